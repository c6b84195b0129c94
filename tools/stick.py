"""A folder for a USB stick: the course, its models and all packages, for rooms without a network. ``make stick FOLDER=results/stick``, or
``python -m tools.stick FOLDER [--models REPOSITORY …] [--for SYSTEM PYTHON …] [--lean]``.

It is checked at once: in a new environment, with the network cut for pip, everything is installed from it, and notebook 00 runs. The packages are for
this machine's system and Python; ``--for windows 3.12`` adds those of another one (their wheels are fetched, not tried).
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from datetime import date
from pathlib import Path

from helpers import ROOT, process
from helpers.errors import CheckpointError, CourseError, PackagesError
from helpers.models import files
from tools.replica import uv

CHECKED = "checked.txt"  # says when, with which Python, how large: written only after the check
MORE = ("llamacpp", "onnx", "serving", "formats", "lab")  # requirements/NAME.txt
SYSTEMS = {"windows": "win_amd64", "macos": "macosx_14_0_arm64", "linux": "manylinux_2_28_x86_64"}  # uv's name: pip's
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")
BUILD = ("setuptools", "wheel", "packaging")  # what pip needs to compile pypcre, where no wheel is there
META = "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved.\n"  # as its section 1.b.iii asks
README = Path(__file__).with_suffix(".txt")  # of the stick


def run(*command, **options):
    """Run a program; raise PackagesError with its last words if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)
    if done.returncode:
        said = (re.findall(r"^(?:ERROR|error): (.*)$", done.stderr, flags=re.M) or (done.stderr or done.stdout).strip().splitlines() or ["no reason given"])[-1]
        raise PackagesError(f"{' '.join(map(str, command[1:4]))} failed: {said.rstrip('.')}. Run make stick again; what is there already is kept.")
    return done.stdout


def copy_course(target):
    """Copy the files that git knows, and new ones that it does not ignore, to ``target``."""
    listed = run("git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in listed:
        if (ROOT / name).is_file() and target.parent not in (ROOT / name).parents:  # nothing of a stick that lies in the course
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def lists(lean):
    """Files of requirements that go along."""
    return ["requirements.txt"] if lean else ["requirements.txt", *(f"requirements/{name}.txt" for name in MORE)]


def alone(name):
    """pip's option for packages that are added as the notebooks add them."""
    return ["--no-deps"] if name.startswith("requirements/") and "lab" not in name else []


def bring_wheels(folder, lean):
    """Put the wheels of all pinned packages, and of what they need, into ``folder``; where PyPI has none, it is built here."""
    for name in lists(lean):
        run(*PIP, "wheel", "--quiet", "--find-links", str(folder), "--wheel-dir", str(folder), *alone(name), "-r", str(ROOT / name))
    run(*PIP, "download", "--quiet", "--dest", str(folder), "--only-binary", ":all:", *BUILD)


def bring_others(folder, system, python):
    """Add the wheels of requirements.txt for another ``system`` (a key of SYSTEMS) and ``python``. pip resolves for its own system only, so uv does it."""
    if not uv():
        raise PackagesError("uv is missing, which knows what other systems need: pip install -r requirements/uv.txt, then make stick again.")
    variables = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}  # PyTorch's builds need it
    listed = run(
        uv(),
        "pip",
        "compile",
        "--quiet",
        "--no-header",
        "--no-annotate",
        "--python-platform",
        system,
        "--python-version",
        python,
        str(ROOT / "requirements.txt"),
        env=variables,
    )
    pins = [line.split(";")[0].strip() for line in listed.splitlines() if "==" in line]
    for_them = ("--find-links", str(folder), "--only-binary", ":all:", "--platform", SYSTEMS[system], "--python-version", python)
    run(*PIP, "download", "--quiet", "--no-deps", "--dest", str(folder), *for_them, *(pin for pin in pins if not pin.startswith("pypcre")))
    for pin in (pin for pin in pins if pin.startswith("pypcre")):  # as source: it is compiled there
        run(*PIP, "download", "--quiet", "--no-deps", "--dest", str(folder), "--no-binary", "pypcre", pin)


def bring(repository):
    """Fetch a repository of the Hub into the cache of this process, with its licence where it lies there."""
    from helpers.models import choose, hub

    hub.fetch(choose.get_step(3 if "gptq" in repository.lower() else 2, checkpoint=repository))
    for name in ("LICENSE.txt", "USE_POLICY.md"):
        with contextlib.suppress(CheckpointError):
            hub.fetch_file(repository, name)


def bring_models(folder, repositories):
    """Fetch ``repositories`` of the Hub into ``folder``, laid out as HF_HOME; with the notice that Meta's licence asks for."""
    for repository in repositories:
        process.call("tools.stick.bring", repository, repository, variables=os.environ | {"HF_HOME": str(folder), "HF_HUB_CACHE": str(folder / "hub")})
        if "llama-2" in repository.lower():
            files.write(folder / "Notice", META)


def check(stick, lean):
    """Install from ``stick`` into a new environment, with no index and no way out, run notebook 00 there; return the seconds that both took."""
    started = time.perf_counter()
    dead = {name: "http://127.0.0.1:9" for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")}
    with tempfile.TemporaryDirectory(dir=stick) as scratch:  # on the same disk: /tmp may be small
        venv.create(Path(scratch) / ".venv", with_pip=True)
        python = next(path for path in (Path(scratch) / ".venv" / "bin" / "python", Path(scratch) / ".venv" / "Scripts" / "python.exe") if path.exists())
        variables = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))} | dead | {"PIP_CONFIG_FILE": os.devnull, "TMPDIR": scratch}
        for name in lists(lean):
            offline = ("--quiet", "--no-index", "--find-links", str(stick / "wheels"), "--disable-pip-version-check")
            run(str(python), "-m", "pip", "install", *offline, *alone(name), "-r", str(stick / "course" / name), env=variables)
        variables |= {"TIER": "embedded", "RESULTS_DIR": scratch, "HF_HUB_OFFLINE": "1"}
        run(str(python), "-m", "tools.run", "00", cwd=stick / "course", env=variables)
        taken = time.perf_counter() - started
    return taken


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(arguments=None):
    """The command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.stick", description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="*", default=[], help="repositories of the Hub to take along")
    parser.add_argument("--for", nargs=2, action="append", default=[], dest="others", metavar=("SYSTEM", "PYTHON"), help="e.g. windows 3.12, macos 3.13")
    parser.add_argument("--lean", action="store_true", help="only requirements.txt: no JupyterLab, no other engines")
    given = parser.parse_args(arguments)
    if unknown := [system for system, _ in given.others if system not in SYSTEMS]:
        parser.error(f"{unknown[0]!r} is no system: choose from {', '.join(SYSTEMS)}.")
    stick, started = given.folder.resolve(), time.perf_counter()
    if stick in (ROOT, *ROOT.parents):
        parser.error("name a folder of its own: make stick FOLDER=results/stick.")
    try:
        (stick / CHECKED).unlink(missing_ok=True)
        copy_course(stick / "course")
        (stick / "wheels").mkdir(exist_ok=True)
        bring_wheels(stick / "wheels", given.lean)
        for system, python in given.others:
            bring_others(stick / "wheels", system, python)
        bring_models(stick / "huggingface", given.models)
        python, others = f"{sys.version_info.major}.{sys.version_info.minor}", "".join(f", or {version} on {name}" for name, version in given.others)
        models = "4. Models of the Hub: set HF_HOME to the folder huggingface, and HF_HUB_OFFLINE=1." if given.models else ""
        files.write(stick / "README.txt", README.read_text(encoding="utf-8").format(python=f"{python} on {sys.platform}", others=others, models=models))
        taken, large = time.perf_counter() - started, size(stick)
        print(f"{stick}: {large / 1e9:.2f} GB in {taken / 60:.1f} minutes. Now it is tried, without a network.", flush=True)
        seconds = check(stick, given.lean)
    except (CourseError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    said = (
        f"{large / 1e9:.2f} GB, made in {taken / 60:.1f} minutes, installed from in {seconds / 60:.1f} minutes, {date.today()}, Python {python}, {sys.platform}"
    )
    files.write(stick / CHECKED, said + "\n")
    print(f"Checked: {said}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
