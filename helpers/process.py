"""How is a function called in a process of its own? It gets one job and gives one answer; nothing else is shared.

The process may be of another Python, with other packages: then not even the versions are shared. Or it is a copy of one that has
imported the libraries (``Copies``): then it starts in a tenth of a second. First used in notebook 06, by the benchmark.
"""

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers import ROOT, errors, machine
from helpers.errors import CourseError

MARK = "answer of the process: "  # begins the line that ``call`` reads


class ProcessError(CourseError, RuntimeError):
    """A process that died, was too slow, or whose answer cannot be read."""


def call(function, job, name="", python=sys.executable, variables=None, timeout=None):
    """Return what ``function`` ("module.name") returns for ``job``, called in a new process of the program ``python``.

    job, answer: what JSON can hold. name: of the process in sentences. variables: its environment, by default this one's. Raises the
    CourseError that the function raises, or ProcessError if the process dies or gives no answer within ``timeout`` seconds.
    """
    name, program = name or function, f"from helpers import process; process.reply({function!r})"
    options = {"cwd": ROOT, "env": variables, "stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": timeout}
    try:
        done = subprocess.run([python, "-c", program, json.dumps(job)], **options)
    except subprocess.TimeoutExpired:
        raise _too_slow(name, timeout) from None
    return _answer(name, done.returncode, done.stdout, done.stderr)


def _too_slow(name, timeout):
    return ProcessError(f"{name} gave no answer within {timeout:.0f} s and was stopped: run the cell again when the machine is quiet.")


def _answer(name, status, output, said):
    """What the process ``name`` answered in its ``output``; ``said``: what it wrote to stderr. Raises as ``call``."""
    line = next((line.removeprefix(MARK) for line in output.splitlines() if line.startswith(MARK)), None)
    if line is None and status == -9:  # SIGKILL, which Windows does not have
        raise ProcessError(f"{name} was killed, most likely because the memory ran out: close other notebooks and run the cell again.")
    if line is None:
        end = f"died of signal {-status}" if status < 0 else f"ended with status {status}"
        raise ProcessError(
            f"{name} {end} and gave no answer: {(said.strip() or 'it said nothing').splitlines()[-1].rstrip('.')}. Run the cell again, or set up the packages again."
        )
    try:
        found = json.loads(line)
    except ValueError:
        raise ProcessError(f"The answer of {name} is no JSON, it begins {line[:40]!r}: run the cell again.") from None
    if "problem" in found:
        raise getattr(errors, found["problem"], ProcessError)(found["sentence"] if found["problem"] else f"{name} could not do its job. {found['sentence']}")
    return found["answer"]


def reply(function, *job):
    """The other end of ``call``: print the answer of ``function`` to ``job`` (by default that in sys.argv), or why there is none, as one line of JSON."""
    (job,) = job or (json.loads(sys.argv[1]),)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            found = {"answer": _named(function)(job)}
        except CourseError as error:
            found = {"problem": type(error).__name__, "sentence": str(error)}
        except Exception as error:  # a compiler that is missing, a kernel that refuses
            found = {"problem": "", "sentence": f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"}
    print(f"{MARK}{json.dumps(found, allow_nan=False)}", flush=True)


def _named(function):
    """The function that ``function``, "module.name", names."""
    module, _, name = function.rpartition(".")
    return getattr(importlib.import_module(module), name)


class Copies:
    """A context in which processes start as copies (fork) of one that has imported ``modules`` and has done nothing else, one at a time.

    A copy is as new as a process that has just imported them: no thread of torch runs, nothing is loaded, its peak of memory is its own.
    (Memory that was read from a library's file only while it was imported is not counted to it.) Where a copy would not be that, ``call``
    starts an ordinary process: outside Linux, and beside a GPU, which no copy can use once its original has looked for it.
    """

    def __init__(self, modules):
        self.modules, self.server, self.possible = modules, None, sys.platform == "linux" and not machine.gpus()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.possible = False
        if self.server:
            self.server.stdin.close()  # which ends it, and its copy
            self.server.wait()
            self.server.stdout.close()

    def ready(self):
        """Whether there is a process to copy; it is started, and has imported its modules, when this is asked for the first time."""
        if self.possible and not self.server:
            program = f"from helpers import process; process.serve({self.modules!r})"
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
            self.server = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, start_new_session=True, **pipes)
            self.possible = self.server.stdout.readline() == b"ready\n"
        return self.possible and self.server.poll() is None

    def start(self, function, job, output=None, said=None):
        """Call ``function`` with ``job`` in a copy and return the Copy. output, said: files for its stdout and stderr. Only if ``ready``."""
        self.server.stdin.write(json.dumps({"function": function, "job": job, "files": [os.devnull, output, said]}).encode() + b"\n")
        return Copy(self.server, int(self.server.stdout.readline()))

    def call(self, function, job, name="", timeout=None):
        """As ``process.call``, in a copy."""
        if not self.ready():
            return call(function, job, name, timeout=timeout)
        with TemporaryDirectory() as folder:
            output, said = (str(Path(folder) / name) for name in ("output", "said"))
            copy = self.start("helpers.process.reply_to", [function, job], output, said)
            try:
                status = copy.wait(timeout)
            except subprocess.TimeoutExpired:
                raise _too_slow(name or function, timeout) from None
            finally:
                copy.kill()
            return _answer(name or function, status, *(Path(path).read_text(encoding="utf-8", errors="replace") for path in (output, said)))


class Copy:
    """A process that ``Copies`` has started, with what subprocess.Popen has."""

    stdin = stdout = stderr = None

    def __init__(self, server, pid):
        self.server, self.pid, self.returncode = server, pid, None

    def wait(self, timeout=None):
        """Return its status as soon as it has ended; raises TimeoutExpired if that takes longer than ``timeout`` seconds."""
        if self.returncode is None and select.select([self.server.stdout], [], [], timeout)[0]:
            self.returncode = int(self.server.stdout.readline() or -signal.SIGKILL)  # no line: the server was killed, and its copy with it
        if self.returncode is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.returncode

    def poll(self):
        """Its status if it has ended, else None."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)

    def send_signal(self, number):
        """Send it the signal ``number``, if it has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self):
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self):
        """End it, and wait until it has ended."""
        self.send_signal(signal.SIGKILL)
        self.wait()


def reply_to(job):
    """``reply`` in a copy; job: [function, its job]."""
    reply(*job)


def serve(modules):
    """The process that ``Copies`` starts: import ``modules``, then read what is to be called from stdin, and call it in a copy.

    For each it writes two lines, the copy's number and its status. It ends with its stdin, and then ends its copy too.
    """
    asked, told = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no answer
    with machine.quiet():
        for module in modules:
            importlib.import_module(module)
    torch = sys.modules.get("torch")
    told.write(b"no\n" if torch and torch.cuda.is_initialized() else b"ready\n")  # no: a copy could not use the GPU
    while line := asked.readline():
        alive, copy_alive = os.pipe()  # closed by the system when the copy has ended
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: NumPy's BLAS has a thread, and stops it before a fork itself
            pid = os.fork()
        if not pid:
            for end in (asked, told, os.fdopen(alive)):
                end.close()
            return _be(**json.loads(line))
        os.close(copy_alive)
        told.write(f"{pid}\n".encode())
        if asked in select.select([asked, alive], [], [])[0]:  # nothing is asked for meanwhile, so this is its end
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(alive)
        told.write(f"{status}\n".encode())


def _be(function, job, files):
    """In a copy: become the process that does ``job``, in a session of its own and with ``files`` (paths, or None) as its first three."""
    os.setsid()
    for number, path in enumerate(files):
        if path:
            file = os.open(path, os.O_RDWR | os.O_CREAT)
            os.dup2(file, number)
            os.close(file)
    importlib.invalidate_caches()  # packages may have been added since
    _named(function)(job)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # taking PyTorch apart, module by module, would take a second
