"""Execute the notebooks in order and leave what they produce in ``results/``: ``python -m tools.run [name …]``.

A name is the beginning of a notebook's file name, e.g. ``03``; without names, all notebooks run.
"""

import atexit
import os
import sys
import time
from pathlib import Path

from helpers import ROOT, process, setup
from helpers.errors import CourseError
from helpers.models import choose, files

NOTEBOOKS = ROOT / "notebooks"
LEFT = (
    "ledger.jsonl", "comparison.md", "comparison.png", "waterfall.png", "quality.json", "quality.png", "claims.md", "quantise.png", "engines.png",
    "serving.json", "serving-throughput.png", "serving-latency.png", "format-card.md", "format-card.png", "formats.json", "formats.png",
    "speculation.png",
)  # fmt: skip


def execute(path, output):
    """Execute the notebook ``path`` in a kernel of its own and save it, with its outputs, as ``output``.

    Prints a line a cell. Raises CellExecutionError if a cell fails and DeadKernelError if the kernel dies; what ran until
    then is saved.
    """
    import nbformat  # importing these two takes three seconds: after the first line is printed
    from jupyter_client import AsyncKernelManager
    from jupyter_client.channels import HBChannel
    from jupyter_client.kernelspec import KernelSpec
    from nbclient import NotebookClient

    class OwnPython(AsyncKernelManager):  # a kernel "python3" that is installed may be another Python's, or one that is gone
        kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], display_name="Python 3", language="python")

    notebook = nbformat.read(path, as_version=4)
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    started = time.perf_counter()

    def announce(cell, cell_index):
        nonlocal started
        started = time.perf_counter()
        first_line = next((line for line in cell.source.splitlines() if line.strip()), "")
        print(f"  cell {code.index(cell_index) + 1:2d}/{len(code)}  {first_line[:70]:<70}", end="", flush=True)

    def report(cell, cell_index, execute_reply):
        print(f" {time.perf_counter() - started:6.1f} s", flush=True)

    HBChannel.time_to_dead = 0.1  # seconds: its thread asks so often whether it shall end, and the end of a notebook waits for it
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_manager_class=OwnPython,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--IPKernelApp.log_level=40"],  # no warnings about how the kernel is reached
        on_cell_execute=announce,
        on_cell_executed=report,
    )
    try:
        client.execute()
    finally:
        atexit.unregister(client._cleanup_kernel)  # of a kernel that did not start it says a traceback when this program ends
        files.write(output, nbformat.writes(notebook) + "\n")


def main(names):
    """Run the notebooks whose file names begin with one of ``names`` (all without any); return the exit status."""
    paths = [p for p in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")) if not names or p.name.startswith(tuple(names))]
    if not paths:
        print(f"No notebook in {NOTEBOOKS} begins with {' or '.join(names)}.", file=sys.stderr)
        return 2
    try:
        tier, reason = choose.choose_tier()
        print(f"Tier: {tier}. {reason}".rstrip(), flush=True)
        os.environ["TIER"] = tier  # one tier for all notebooks of a run, even if the network goes away meanwhile
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    results = setup.results_dir()
    os.environ["RESULTS_DIR"] = str(results)
    from tools import kernel  # late, as in execute

    with process.Copies(kernel.MODULES) as copies:
        if len(paths) > 1:  # one alone imports the libraries no faster than a process to copy does
            kernel.use(copies)
        return _run(paths, results)


def _run(paths, results):
    """Run the notebooks ``paths``, leave them in ``results``, and return the exit status."""
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    for count, path in enumerate(paths, start=1):
        started = time.perf_counter()
        print(f"[{count}/{len(paths)}] {path.name}", flush=True)
        try:
            execute(path, results / path.name)
        except CellExecutionError as error:
            print(f"\n{path.name} stopped: {error.ename}: {error.evalue}\nSee {results / path.name} for all output.", file=sys.stderr)
            return 1
        except DeadKernelError:
            print(f"\n{path.name} stopped: its kernel died, most likely because the memory ran out. Set TIER=embedded.", file=sys.stderr)
            return 1
        except CourseError as error:  # the executed notebook finds no room
            print(f"\n{path.name}: {error}", file=sys.stderr)
            return 1
        except RuntimeError as error:  # it ended before it answered
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"\n{path.name} stopped: the kernel of {sys.executable} does not start ({reason}): run make clean, then make run again.", file=sys.stderr)
            return 1
        print(f"  done in {time.perf_counter() - started:.1f} s", flush=True)
    comparison = results / "comparison.md"
    if any(path.name.startswith("05") for path in paths) and comparison.is_file():
        print(f"\n{comparison.read_text(encoding='utf-8')}")
    left = [name for name in LEFT if (results / name).is_file()]
    print(f"In {_shown(results)}: {', '.join(['the executed notebooks', *left])}.")
    return 0


def _shown(path):
    """``path`` relative to the current folder where that is shorter."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a Windows console that lacks a character shows a question mark
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. What was measured so far is in the ledger.")
