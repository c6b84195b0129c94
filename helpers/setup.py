"""Are the packages here that the notebooks call? Adds what is missing and changes nothing that is there.

Colab and Kaggle come with torch, transformers and some 700 packages that fit together. A plain ``pip install bitsandbytes optimum
gptqmodel`` would replace 31 of them, torch and CUDA included. So only packages that are absent are installed, in the versions of
requirements.txt, and pip may not touch anything else (``--no-deps``). First used in notebook 00.
"""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from tempfile import TemporaryDirectory

from helpers import ROOT, errors, machine
from helpers.errors import DiskError, PackagesError
from helpers.machine import network

OLDEST = {  # the oldest versions that notebooks 00 to 05 were run with, together; pandas 2.2.2 is the first for numpy 2
    "torch": "2.10.0", "transformers": "5.0.0", "accelerate": "1.10.1", "huggingface_hub": "1.3.0", "ipywidgets": "7.7.1",
    "matplotlib": "3.9.0", "pandas": "2.2.2",
}  # fmt: skip
FOR_TESTS = {"nbmake"}


def prepare(requirements=ROOT / "requirements.txt"):
    """Check the packages of this kernel, add the missing ones, choose a cache folder with room; print what was done.

    Raises PackagesError, before anything is fetched, if what is there cannot work.
    """
    if wrong := network.unreadable():
        raise PackagesError(f"The libraries cannot be imported, because {wrong}.")
    use_roomy_cache()
    machine.hide_unusable()
    _add(pins(requirements))


def add(*tools):
    """Add what a notebook needs beside the course's packages, from ``requirements/NAME.txt`` for each of ``tools``, as ``prepare`` does."""
    _add({name: pinned for tool in tools for name, pinned in pins(ROOT / "requirements" / f"{tool}.txt").items()})


def _add(wanted):
    """Install those of ``wanted`` ({name: version}) that this Python lacks in any version; all others stay as they are."""
    check(wanted)
    started = time.perf_counter()
    missing = [name for name in wanted if installed(name) is None]
    if not missing:
        print("Set-up: everything is here.")
        return
    if {"torch", "transformers"} & set(missing):
        print("This Python lacks PyTorch or transformers: installing the whole course takes some minutes and 2 to 6 GB of disk.", flush=True)
        with TemporaryDirectory() as folder:  # what they depend on comes too, while every package that is installed keeps its version
            frozen = Path(folder) / "constraints.txt"
            frozen.write_text("".join(f"{d.metadata['Name']}=={d.version}\n" for d in distributions()), encoding="utf-8")
            pip("--constraint", str(frozen), *(f"{name}=={wanted[name]}" for name in missing))
    else:
        print(f"Set-up: adding {', '.join(missing)}.", flush=True)
        pip("--no-deps", *(f"{name}=={wanted[name]}" for name in missing))
    importlib.invalidate_caches()
    print(f"Set-up: {len(missing)} packages added in {time.perf_counter() - started:.0f} s, none changed.")


def pins(requirements):
    """Return {name: version} of the packages that ``requirements`` pins, without those that only the tests need."""
    lines = Path(requirements).read_text(encoding="utf-8").splitlines()
    found = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name: pinned for name, pinned in found.items() if name not in FOR_TESTS}


def installed(name):
    """Version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def check(names):
    """Raise PackagesError if Python or a package is too old, or was replaced after this kernel had imported it."""
    if sys.version_info < (3, 11):
        raise PackagesError(f"This is Python {sys.version.split()[0]} and the course needs 3.11 or newer: choose a newer kernel.")
    for name in names:
        there, imported = installed(name), getattr(sys.modules.get(name), "__version__", None)
        if there and imported and _numbers(there) != _numbers(imported):
            raise PackagesError(
                f"{name} was replaced after this kernel had imported it ({imported}, on disk now {there}): restart the kernel"
                " (Colab: Runtime > Restart session), then run all cells again."
            )
        if there and name in OLDEST and _numbers(there) < _numbers(OLDEST[name]):
            raise PackagesError(
                f"{name} {there} is too old, the course needs {OLDEST[name]} or newer: in Colab choose Runtime > Disconnect and delete"
                f" runtime, in Kaggle the latest environment, elsewhere pip install --upgrade {name}; then restart the kernel."
            )


def pip(*arguments):
    """Run ``pip install`` in this Python. Raises PackagesError with the reason that pip gives."""
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable]
    else:
        raise PackagesError(f"Packages are missing and this Python has no pip to add them: run {sys.executable} -m ensurepip, then this cell again.")
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        reasons = re.findall(r"^(?:ERROR|error): (.*)$", done.stderr, flags=re.M) or done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        told = network.trouble(OSError(done.stderr), network.PYPI) or errors.disk_trouble(OSError(done.stderr), "TMPDIR")
        advice = told or f"{reasons[0]}: {network.CHECK}"
        raise PackagesError(f"Packages could not be added, {advice} and run this cell again; nothing was changed.")


def use_roomy_cache():
    """On Kaggle, let downloads and synthetic checkpoints go where most room is: /kaggle/working has 20 GB and is saved with the notebook."""
    if "KAGGLE_KERNEL_RUN_TYPE" not in os.environ:
        return
    roomy = max((Path.home() / ".cache", Path("/kaggle/temp"), Path("/tmp")), key=machine.disk)
    os.environ.setdefault("HF_HOME", str(roomy / "huggingface"))
    os.environ.setdefault("SYNTHETIC_DIR", str(roomy / "synthetic"))
    os.environ.setdefault("ARTICLE_STACK_DIR", str(roomy / "article-stack"))


def folder(variable, default):
    """The folder (Path) that the environment variable ``variable`` names, by default ``default``; a relative path counts from the project.

    Raises DiskError if no folder can have that name.
    """
    given = os.environ.get(variable) or default
    try:
        path = ROOT / Path(given).expanduser()
        path.resolve()
        path.exists()
    except (OSError, RuntimeError) as error:  # too long, a circle of links, the home of nobody
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise DiskError(f"{variable} names {given}, which can be no folder ({reason}): set it to a folder that you may write to.") from None
    return path


def results_dir():
    """The folder for everything that a run leaves: the environment variable RESULTS_DIR, by default ``results/`` in the project.

    Raises DiskError if it is no folder and cannot be made.
    """
    path = folder("RESULTS_DIR", "results")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = errors.disk_trouble(error, "RESULTS_DIR", errors.FULL | errors.CLOSED | errors.NO_FOLDER) or f"{error}: set RESULTS_DIR to another one"
        raise DiskError(f"The results folder {path} cannot be used, {told}.") from None
    return path


def _numbers(text):
    """The release numbers of a version, e.g. (2, 11, 0) of "2.11.0+cu128"."""
    return tuple(int(part) for part in re.match(r"\d+(?:\.\d+)*", text).group().split("."))
