"""Open every notebook as a platform does, in an environment built from that platform's package list, and compare the packages.

    python -m tools.replica PLATFORM.txt [--python 3.13] [--with ipywidgets==8.1.5]

PLATFORM.txt is what ``pip freeze`` prints there (``make platforms`` fetches today's lists of Colab and Kaggle; a first line "# Python 3.13"
names the version). Each notebook is copied alone into an empty folder, fetches the course from a git
remote on this disk (under the https address that its set-up cell names), and runs all its cells on the embedded tier. Fails if a
cell fails, a package was changed, or a second set-up took more than a second. Needs uv and git, and about 11 GB of disk.

What differs from the platform, and why: builds of torch for one CUDA version (``+cu128``) are not on PyPI, so the replica has PyPI's
build of the same torch, with the CUDA packages it asks for; packages without a wheel and those of GIANTS, which no cell can reach,
are left out; there is no GPU.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from helpers.models import files
from tools import ROOT

PYTHON = {"colab": "3.13", "kaggle": "3.12"}  # where the list's file name begins so and its first line names none
EXTRA = {"kaggle": ["ipywidgets==8.1.5", "comm==0.2.2"]}  # what Kaggle adds to the image that its list describes
CUDA = re.compile(r"(nvidia|cuda|triton|torch$|torchvision|torchaudio|torchcodec)")
GIANTS = re.compile(
    r"(lib)?(py)?(lib)?(cudf|cuml|cugraph|cuvs|raft|rmm|kvikio|ucxx?|cupy|tensorflow|keras|jax|spacy|xgboost|opencv|duckdb|polars|rapids|dask-cu)"
)
ADDRESS = "course/replica"

RUN = """
import json, sys, time
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

path = sys.argv[1]
notebook = nbformat.read(path, as_version=4)
client = NotebookClient(notebook, timeout=900, kernel_name="python3")
found = {"cells": 0, "error": None}
with client.setup_kernel():
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    for count, i in enumerate(code + code[:1]):
        started = time.perf_counter()
        try:
            client.execute_cell(notebook.cells[i], i)
        except CellExecutionError as error:
            found["error"] = f"cell {i}: {error.ename}: {error.evalue}"
            break
        if i == code[0]:
            found["setup_again" if count else "setup"] = time.perf_counter() - started
            found["said"] = "".join(o.get("text", "") for o in notebook.cells[i].outputs)
        found["cells"] += 1
nbformat.write(notebook, path)
print(json.dumps(found))
"""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path, help="what pip freeze prints on the platform")
    parser.add_argument("--python", help="the platform's Python version (known where the list names it, and for lists named colab… and kaggle…)")
    parser.add_argument("--with", dest="extra", action="append", default=[], metavar="NAME==VERSION", help="a package in another version than the list's")
    parser.add_argument("--folder", type=Path, help="where to build, and keep, the replica (default: a temporary folder)")
    options = parser.parse_args(arguments)
    platform = options.list.name.split("-")[0].split(".")[0]
    if not options.list.is_file():
        parser.error(f"{options.list} is not there: make platforms fetches the lists of Colab and Kaggle.")
    python = options.python or named_python(options.list) or PYTHON.get(platform)
    if not python:
        parser.error(f"which Python does {options.list.name} belong to? Add --python 3.12, for example.")
    if not shutil.which("git") or not uv():
        sys.exit("This needs git and uv: pip install uv")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="replica-") as temporary:
        folder = options.folder or Path(temporary)
        environment = folder.resolve() / "environment"
        if not environment.exists():
            build(environment, options.list, python, options.extra or EXTRA.get(platform, []))
        print(f"{options.list.name}, Python {python}: {len(packages(environment))} packages, built in {time.perf_counter() - started:.0f} s", flush=True)
        problems = try_out(environment, Path(temporary))
    print("\n".join(problems) or f"{options.list.name}: all notebooks ran, no package was changed, no restart.")
    return bool(problems)


def named_python(platform_list):
    """The Python version, e.g. "3.13", that the first line of a list names ("# Python 3.13"), or None."""
    found = re.match(r"# Python (\d+\.\d+)", platform_list.read_text(encoding="utf-8"))
    return found and found.group(1)


def uv():
    """The command that starts uv, or None."""
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")


def build(environment, platform_list, python, extra):
    """Create the virtual environment and fill it from the platform's list; print what had to be left out."""
    replaced = {name(line) for line in extra}
    lines = [line.split("+")[0].strip() for line in platform_list.read_text(encoding="utf-8").splitlines()]
    pins = [line for line in lines if re.match(r"[\w.-]+==", line) and name(line) not in replaced] + extra
    wanted = [line for line in pins if not GIANTS.match(name(line)) and not CUDA.match(name(line))]
    torch = [line for line in pins if name(line) in ("torch", "torchvision")]
    left_out = []
    run(uv(), "venv", "--quiet", "--python", interpreter(python), str(environment))
    requirements = environment / "requirements.txt"
    while True:
        files.write(requirements, "\n".join(wanted))
        done = install(environment, "--no-deps", "-r", str(requirements), check=False)
        if not done.returncode:
            break
        missing = re.search(r"Because (?:only )?([\w.-]+?)(?:==|[<>{ ])", done.stderr)
        kept = [line for line in wanted if not missing or name(line) != name(missing.group(1))]
        if len(kept) == len(wanted):
            sys.exit(f"uv cannot build the replica:\n{done.stderr}")
        left_out.append(missing.group(1))
        wanted = kept
    install(environment, *torch, "--override", str(requirements))
    print(f"Left out for want of a wheel: {', '.join(left_out) or 'none'}", flush=True)


def interpreter(python):
    """Path of a Python of that version that pyenv has, else the version itself: uv looks for it, and downloads it if need be."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    return str(next(root.glob(f"versions/{python}*/bin/python"), python))


def install(environment, *arguments, check=True):
    done = run(uv(), "pip", "install", "--quiet", "--only-binary", ":all:", "--python", str(environment / "bin" / "python"), *arguments, check=False)
    if check and done.returncode:
        sys.exit(done.stderr)
    return done


def try_out(environment, folder):
    """Run every notebook alone in a folder of its own; return what went wrong, a sentence each."""
    course = publish(environment, folder)
    files.write(folder / "gitconfig", f'[url "file://{folder}/remote/"]\n\tinsteadOf = https://github.com/\n')
    variables = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "RESULTS_DIR", "PYTHONHOME")}
    variables |= {"TIER": "embedded", "GIT_CONFIG_GLOBAL": str(folder / "gitconfig"), "PATH": f"{environment / 'bin'}:{os.environ['PATH']}"}
    before, problems = packages(environment), []
    for path in sorted((course / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        alone = folder / "alone" / path.stem
        alone.mkdir(parents=True)
        shutil.copy(path, alone)
        started = time.perf_counter()
        done = run(str(environment / "bin" / "python"), "-c", RUN, str(alone / path.name), cwd=alone, env=variables, check=False)
        if done.returncode:
            problems.append(f"{path.name}: {done.stderr[-2000:]}")
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"  {path.name:24} {found['cells']:3d} cells, {time.perf_counter() - started:5.1f} s, set-up {found.get('setup', 0):5.1f} s,"
            f" again {found.get('setup_again', 0):4.2f} s  {found['error'] or ''}",
            flush=True,
        )
        if found["error"]:
            problems.append(f"{path.name}, {found['error']}")
        elif found["setup_again"] > 1:
            problems.append(f"{path.name}: a second set-up took {found['setup_again']:.1f} s.")
    done = run(str(environment / "bin" / "python"), "-c", "from helpers.models import hub; hub.ask_for_token()", cwd=course, env=variables, check=False)
    if done.returncode:
        problems.append(f"the field for a token cannot be shown: {done.stderr[-500:]}")
    after = packages(environment)
    changed = [f"{n} {v} -> {after.get(n)}" for n, v in before.items() if after.get(n) != v]
    added = [f"{n} {v}" for n, v in after.items() if n not in before]
    print(f"  packages: {len(added)} added ({', '.join(added)}), {len(changed)} changed", flush=True)
    return problems + [f"changed: {line}" for line in changed]


def publish(environment, folder):
    """Commit this working tree, with its address set, into a git repository under ``folder``/remote; return its folder."""
    course = folder / "remote" / ADDRESS
    listed = run("git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines()
    for file in listed:
        if (ROOT / file).is_file():
            (course / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, course / file)
    run(str(environment / "bin" / "python"), "-m", "tools.badges", ADDRESS, cwd=course)
    git = ("git", "-C", str(course), "-c", "user.name=replica", "-c", "user.email=replica@localhost")
    run("git", "init", "--quiet", "--initial-branch", "main", str(course))
    run(*git, "add", "--all")
    run(*git, "commit", "--quiet", "--message", "The course as it is here")
    return course


def packages(environment):
    """{name: version} of all packages in ``environment``."""
    program = "import importlib.metadata as m, json; print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))"
    return dict(sorted(json.loads(run(str(environment / "bin" / "python"), "-c", program).stdout).items()))


def name(requirement):
    """Normalised name of ``name==version``."""
    return re.sub(r"[-_.]+", "-", requirement.split("==")[0]).lower()


def run(*command, check=True, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if check and done.returncode:
        sys.exit(f"{' '.join(command[:4])} failed:\n{done.stderr or done.stdout}")
    return done


if __name__ == "__main__":
    sys.exit(main())
