"""Everything about the course that only a machine with a CUDA GPU can tell, in one command: ``make gpu``, or ``python -m tools.gpu``.

    python -m tools.gpu [--wheels FOLDER] [--minutes 10] [--into FOLDER]

1. An environment, .venv-gpu, that sees the packages of the Python it was called with (its torch, if it has one, stays as it is) and holds
   what is missing; with --wheels nothing is asked of a network.
2. All tests that need CUDA.
3. The four steps and their variants at Llama-2's shapes with random weights (no Hub, no token), as far as memory, disk and minutes allow.
4. A folder like those in data/recorded: rows, versions, table, charts, kernels and how long they were compiled, memory against what was
   predicted. Nothing in it names a person or a path of the machine.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from helpers.models import files

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv-gpu" / ("Scripts" if os.name == "nt" else "bin")
STEPS = ((3, "7B"), (2, "7B"), (1, "7B"), (4, "13B"), ("fp16", "7B"), ("gptq-triton", "7B"), ("int8-no-outliers", "7B"), ("nf4", "7B"), ("gptq-torch", "7B"))
SMALLER = {"13B": "2.7B", "7B": "1.3B"}  # where Llama-2's do not fit: their neighbours, of Sheared LLaMA's shapes
FOR_TESTS = ("pytest",)


def main(arguments=None):
    """The command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to install from, without a network")
    parser.add_argument("--minutes", type=float, default=10, help="for tests and measurements, after set-up")
    parser.add_argument("--into", type=Path, help="where the run's folder is made (default: results/)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        return inside(options.minutes, options.into)
    environment(options.wheels)
    command = [str(BIN / "python"), "-m", "tools.gpu", "--inside", "--minutes", str(options.minutes)]
    return subprocess.run([*command, *(["--into", str(options.into.resolve())] if options.into else [])], cwd=ROOT).returncode


def environment(wheels=None):
    """Make .venv-gpu: it sees this Python's packages, none of which it changes, and gets what requirements.txt names beyond them."""
    if not BIN.exists():
        print("Setting up .venv-gpu (once) ...", flush=True)
        without = ["--without-pip"] if importlib.util.find_spec("pip") else []  # it will see this Python's; Debian's venv has none of its own
        subprocess.run([sys.executable, "-m", "venv", *without, str(BIN.parent)], check=True)
        own = subprocess.run([str(BIN / "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True, check=True)
        theirs = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        files.write(Path(own.stdout.strip()) / "packages-of-the-machine.pth", "\n".join(theirs) + "\n")
    program = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from helpers import setup
wanted = setup.pins(setup.ROOT / "requirements.txt")
print("\\n".join([f"{{name}}=={{pin}}" for name, pin in wanted.items() if setup.installed(name) is None] + [n for n in {FOR_TESTS!r} if setup.installed(n) is None]))
"""
    missing = subprocess.run([str(BIN / "python"), "-c", program], capture_output=True, text=True, check=True).stdout.split()
    if not missing:
        return
    print(f"Adding {', '.join(name.split('==')[0] for name in missing)}; what is there stays as it is.", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        frozen = Path(folder) / "constraints.txt"
        listing = subprocess.run(
            [str(BIN / "python"), "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"], capture_output=True, text=True, check=True
        )
        keep = [line for line in listing.stdout.splitlines() if not line.startswith(("pip==", "setuptools=="))]  # these two are the environment's own
        files.write(frozen, "\n".join(keep))
        offline = ["--no-index", "--find-links", str(wheels)] if wheels else []
        pip = [str(BIN / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", str(frozen), *offline]
        tries = (subprocess.run([*pip, *how, *missing], capture_output=True, text=True) for how in ([], ["--no-deps"]))
        if all((last := done).returncode for done in tries):
            said = (last.stderr.strip() or "no reason given").splitlines()[-1]
            sys.exit(
                f"These packages could not be added ({said}): {', '.join(missing)}. Without a network, put their wheels into a folder: make gpu WHEELS=folder"
            )


def inside(minutes, into=None):
    """Tests and measurements, in .venv-gpu; return the exit status."""
    import torch

    if not torch.cuda.is_available():
        why = "its torch was built without CUDA" if torch.version.cuda is None else "no CUDA GPU, or its driver does not answer (nvidia-smi)"
        sys.exit(f"This machine cannot do it: {why}. Without a GPU, make t4 compiles what a T4 would compile.")
    end = time.monotonic() + 60 * minutes
    tests = subprocess.run([sys.executable, "-m", "pytest", "-v", "-m", "gpu", "tests"], cwd=ROOT)
    name = "-".join(torch.cuda.get_device_name(0).lower().split())
    folder = (into or ROOT / "results") / f"{name}-llama-2"
    failed = record(folder, STEPS, end)
    print(
        f"\n{folder} holds the run. To contribute it: look at it, copy it to data/recorded/, add its line to data/recorded/README.md, and open a pull request."
    )
    if tests.returncode:
        print("Some tests failed: please open an issue with the lines above and the output of notebook 00.")
    return int(bool(tests.returncode or failed))


def record(folder, steps, end, device=None, **options):
    """Measure ``steps`` ((key, size), in this order) until the clock (time.monotonic) shows ``end`` and fill ``folder``; True if none could be.

    options: as for benchmark.run, in place of what fits ten minutes.
    """
    from data.recorded.__main__ import write_table
    from helpers import benchmark, machine
    from helpers.article import breakdown

    files.make_folder(folder)
    (folder / "ledger.jsonl").unlink(missing_ok=True)  # of an earlier run
    os.environ["RESULTS_DIR"] = str(folder)
    os.environ.setdefault("SYNTHETIC_DIR", str(ROOT / "synthetic"))
    options = {"warmups": 2, "repeats": 5} | options
    rows, left_out, compiled = [], {}, compile_times(machine.get_device(device))
    for key, size in steps:
        if time.monotonic() > end:
            left_out[f"{key}, {size}"] = "the minutes were used up"
            continue
        for this in (size, SMALLER.get(size)):
            found = benchmark.run((key,), "embedded", (this,), rounds=1, path=folder / "ledger.jsonl", device=device, **options) if this else None
            if found is None or found.rows:
                break
            left_out[f"{key}, {this}"] = next(iter(found.problems.values()), "no reason given")
        rows += found.rows if found else []
    for sentence in left_out.items():
        print("Not measured:", *sentence)
    (folder / "threads.json").unlink(missing_ok=True)  # of a run on a CPU: each row has its threads
    files.write_json(folder / "machine.json", about(compiled, left_out), indent=1)
    if not rows:
        return True
    named = [row | {"recorded": folder.name} for row in rows]
    write_table(folder, named, benchmark.table(rows))
    kernel = "\n".join(dict.fromkeys(f"{row['title']}: {row['kernel']}" for row in rows if row["kernel"]))
    text = f"GPTQ kernels\n{kernel}\n\nMemory, GB\n{memory_table(rows).to_string()}\n"
    files.write(folder / "gpu.txt", text)
    print(f"\n{(folder / 'table.txt').read_text(encoding='utf-8')}\n{text}")
    breakdown.operations_chart(named, save_as=folder / "operations.png")
    breakdown.waterfall_chart(named, save_as=folder / "waterfall.png")
    return False


def compile_times(device):
    """{kernel: seconds, or why it failed}: each compiled anew, in a process and a cache of its own; {} on a CPU."""
    if device == "cpu":
        return {}
    found = {}
    for kernel in ("exllama_v2",):
        with tempfile.TemporaryDirectory() as cache:
            program = (
                "import time; from helpers import kernels; kernels.missing_tools(); kernels.library(); t = time.perf_counter()\n"
                f"why = kernels.make_ready({kernel!r}); print('took:', why or round(time.perf_counter() - t, 1))"
            )
            variables = {name: value for name, value in os.environ.items() if name != "KERNELS_DIR"} | {"GPTQMODEL_TORCH_EXTENSIONS_DIR": cache}
            done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True)
            said = [line.removeprefix("took: ") for line in done.stdout.splitlines() if line.startswith("took: ")]
            found[kernel] = said[0] if said else "its process failed"
            print(f"Compiling {kernel} anew: {found[kernel]} s" if said else f"Compiling {kernel} failed.", flush=True)
    return found


def about(compiled, left_out):
    """What a recorded run says of its machine: no names of hosts or users, no paths."""
    import torch

    from helpers import ledger, machine
    from helpers.setup import installed

    gpus = [{"name": gpu.name, "capability": gpu.capability, "memory_bytes": gpu.total} for gpu in machine.gpus()]
    return {
        "platform": machine.platform_name(), "gpus": gpus, "cores": os.cpu_count(), "host_memory_bytes": machine.host_memory()[0], "cuda": torch.version.cuda,
        "versions": {name: installed(name) for name in ledger.PACKAGES}, "compile_seconds": compiled, "left_out": left_out,
    }  # fmt: skip


def memory_table(rows):
    """A table (pandas.DataFrame), GB: what the fit table predicts for each of ``rows`` and the most that torch had reserved and allocated."""
    import pandas as pd

    from helpers.models import choose, synthetic

    lines = {}
    for row in rows:
        shape = next((s for name, s in synthetic.SHAPES.items() if row["title"].split()[0] == name), None)
        beside = choose.beside_weights(shape, row["format"]) if shape else choose.OVERHEAD
        most = [row[name] for name in ("peak_gpu_allocated_bytes", "peak_gpu_reserved_bytes")]
        figures = {"weights": row["weight_bytes"], "predicted": row["weight_bytes"] + beside, "allocated": most[0], "reserved": most[1]}
        lines[row["title"]] = {name: "-" if size is None else f"{size / 1e9:.2f}" for name, size in figures.items()}
    return pd.DataFrame.from_dict(lines, orient="index")


if __name__ == "__main__":
    sys.exit(main())
