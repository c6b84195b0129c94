"""How does a program of another time run today? Its packages in an environment of their own, which uv builds; its answer as JSON from a process.

Nothing is shared with the calling Python: not its version, not a package. The two exchange one job and one answer.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

from helpers import errors, machine, setup
from helpers.article import ROOT
from helpers.errors import CourseError, NotEnoughMemoryError, PackagesError

MARK = "answer of the process: "  # begins the line that ``Environment.call`` reads
TIMEOUT = 3600  # seconds that a process may take to answer
PLAIN = ("--color", "never")  # for uv: a notebook's kernel asks every program for coloured words
OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # variables that would lead another Python to this one's packages
THEIRS = ("UV_CONSTRAINT", "UV_BUILD_CONSTRAINT", "UV_OVERRIDE", "UV_SYSTEM_PYTHON")  # a platform's wishes (Colab's) for its own packages


class ProcessError(CourseError, RuntimeError):
    """A process in another environment that died, was too slow, or whose answer cannot be read."""


@dataclass(frozen=True)
class Environment:
    """A folder with a Python and packages of its own.

    folder: where it is or will be. requirements: a file with one ``name==version`` a line. python: what uv shall take, a version or a
    path. download, size: bytes that building it fetches, and that it has on the disk.
    """

    folder: Path
    requirements: Path
    python: str = "3.11"
    download: float = 0
    size: float = 0

    @property
    def executable(self):
        """Path of its Python."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def packages(self):
        """What a finished build left in it, as ``name==version`` (list of str); None if it is not there, not finished, or of other pins."""
        try:
            left = json.loads((self.folder / "ready.json").read_text(encoding="utf-8"))
            return left["packages"] if left["pins"] == self._pins() and self.executable.exists() else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def ready(self):
        """Whether it can be called. A build that was interrupted left no mark, and one of other pins another mark: neither counts."""
        return self.packages is not None

    def about(self):
        """Say in a sentence what is there, or what building it would take."""
        if self.ready:
            return f"Ready in {self.folder}: {len(self.packages)} packages of its own."
        return (
            f"Not on this machine. Building it downloads {self.download / 1e9:.1f} GB and takes {self.size / 1e9:.1f} GB of the disk, in"
            f" {self.folder} ({machine.disk(self.folder) / 1e9:,.0f} GB free there)."
        )

    def build(self):
        """Build it with uv, unless it is ready; show the progress and print what was done. Only ready-made packages, nothing is compiled.

        What uv has fetched stays in its cache, so a second try only fetches the rest. Raises PackagesError, or NotEnoughMemoryError
        before anything is fetched if a disk has too little room.
        """
        if self.ready:
            return
        program = uv()
        cache = subprocess.run([program, "cache", "dir", *PLAIN], capture_output=True, text=True).stdout.strip()
        for place in filter(None, (self.folder, cache)):
            if machine.disk(place) < self.size:
                raise NotEnoughMemoryError(
                    f"The environment needs {self.size / 1e9:.1f} GB and the disk of {place} has {machine.disk(place) / 1e9:.1f} GB free: make"
                    " room, or set ARTICLE_STACK_DIR (for uv's cache UV_CACHE_DIR) to a folder on another disk and restart the kernel."
                )
        if self.folder.exists() and any(self.folder.iterdir()) and not (self.folder / "pyvenv.cfg").is_file():
            raise PackagesError(f"{self.folder} holds something else: set ARTICLE_STACK_DIR to a new folder and restart the kernel.")
        started = time.perf_counter()
        shutil.rmtree(self.folder, ignore_errors=True)
        command = (program, "venv", "--python", self.python, str(self.folder))
        if (reason := _run(*command)) and _run(*command, "--python-preference", "only-managed"):  # uv's own, where the machine's is broken
            raise PackagesError(
                f"uv made no environment with Python {self.python} ({reason}): install that Python, or let uv fetch it from the network, and"
                " run this cell again."
            )
        install = ("pip", "install", "--no-build", "--python", str(self.executable), "-r", str(self.requirements))
        if reason := _run(program, *install, download=self.download):
            if "no usable wheels" in reason:
                raise PackagesError(f"These packages are not made for this machine ({reason}): use another one, in Colab for example.")
            raise PackagesError(
                f"The environment is not finished ({reason}): check the network and the room on the disk, and run this cell again; what is"
                " complete stays in uv's cache."
            )
        listed = subprocess.run([program, "pip", "freeze", *PLAIN, "--python", str(self.executable)], capture_output=True, text=True, check=True)
        partial = self.folder / "ready.json.partial"
        partial.write_text(json.dumps({"pins": self._pins(), "packages": listed.stdout.split()}), encoding="utf-8")
        os.replace(partial, self.folder / "ready.json")  # last, and all at once
        print(f"{len(self.packages)} packages in {time.perf_counter() - started:.0f} s. {self.about()}")

    def call(self, module, job, timeout=TIMEOUT):
        """Run ``python -m module JOB`` in this environment, without network for the Hub, and return its answer (what ``reply`` printed).

        job: what JSON can hold. Raises the CourseError that the process reports, PackagesError if the environment is not ready, or
        ProcessError if the process dies or gives no answer within ``timeout`` seconds.
        """
        if not self.ready:
            raise PackagesError(f"There is no finished environment in {self.folder}: build it first.")
        variables = _without(OURS) | {"HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            [self.executable, "-m", module, json.dumps(job)], cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with process:
            try:
                out, said = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise ProcessError(f"{module} gave no answer within {timeout:.0f} s and was stopped: run the cell again when the machine is quiet.") from None
            except BaseException:
                process.kill()
                raise
        line = next((line for line in out.splitlines() if line.startswith(MARK)), None)
        try:
            answer = None if line is None else json.loads(line.removeprefix(MARK))
        except ValueError:
            raise ProcessError(f"The answer of {module} is no JSON, it begins {line[len(MARK) :][:40]!r}: run the cell again.") from None
        if answer is None:
            raise ProcessError(_why(module, process.returncode, said))
        if "problem" in answer:
            raise getattr(errors, answer["problem"], ProcessError)(answer["sentence"])
        return answer

    def _pins(self):
        """What a finished build must have been made from; a comment in the file makes no difference."""
        return hashlib.sha256(json.dumps([self.python, sorted(setup.pins(self.requirements).items())]).encode()).hexdigest()


def reply(work, text):
    """The other end of ``Environment.call``: print ``work(job)`` of the job in ``text`` (JSON), or why there is no answer, as one line of JSON."""
    with contextlib.redirect_stdout(sys.stderr):
        try:
            answer = work(json.loads(text))
        except CourseError as error:
            answer = {"problem": type(error).__name__, "sentence": str(error)}
        except Exception as error:
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            answer = {"problem": "", "sentence": f"The process could not do its job. {type(error).__name__}: {reason}"}
    print(f"{MARK}{json.dumps(answer, allow_nan=False)}", flush=True)


def uv():
    """Return the path of uv: the one on PATH, else the one among this Python's packages, where it is added if it is missing. Raises PackagesError."""
    if found := shutil.which("uv"):
        return found
    if setup.installed("uv") is None:
        try:
            setup.add("uv")
        except PackagesError as error:
            raise PackagesError(f"uv, which builds the environment, is missing. {error}") from None
    from uv import find_uv_bin

    return find_uv_bin()


def _run(*command, download=0):
    """Run uv; return why it failed, or "". download: bytes for the bar. Raises PackagesError if the reader interrupts it."""
    from tqdm.auto import tqdm

    said, sizes = [], {}
    bar = tqdm(total=download, unit="B", unit_scale=True, desc="fetching", leave=False, disable=not download)
    with bar, subprocess.Popen([*command, *PLAIN], env=_without(THEIRS), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        try:
            for line in map(str.strip, process.stderr):
                said.append(line)
                if begun := re.fullmatch(r"Downloading (\S+) \(([\d.]+)([KMG])iB\)", line):
                    sizes[begun[1]] = float(begun[2]) * 1024 ** " KMG".index(begun[3])
                elif done := re.fullmatch(r"Downloaded (\S+)", line):
                    bar.update(sizes.get(done[1], 0))
        except KeyboardInterrupt:
            process.kill()
            raise PackagesError("Interrupted: what is complete stays in uv's cache. Run the cell again to go on.") from None
    if process.returncode == 0:
        return ""
    reasons = re.split(r"^(?:error|cause|Caused by|×|╰─▶):? ", "\n".join(said).split("\nhint:")[0], flags=re.M)
    reasons = reasons[1:] or said[-1:] or ["no reason given"]
    return ": ".join(textwrap.shorten(reason, 200, placeholder=" …").rstrip(".") for reason in dict.fromkeys([reasons[0], reasons[-1]]))


def _without(names):
    """This process's environment variables without ``names``."""
    return {name: value for name, value in os.environ.items() if name not in names}


def _why(module, status, said):
    """A sentence: why the process gave no answer. status: as subprocess gives it; said: its standard error."""
    if status == -signal.SIGKILL:
        return f"{module} was killed, most likely because the memory ran out: close other notebooks and run the cell again."
    end = f"died of signal {-status}" if status < 0 else f"ended with status {status}"
    return f"{module} {end} and gave no answer: {(said.strip() or 'it said nothing').splitlines()[-1]}"
