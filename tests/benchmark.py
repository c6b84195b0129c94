"""How long do the commands take, and how much memory? ``python tests/benchmark.py`` (after ``make run`` has set up .venv).

Prints a table: wall seconds of each command, and the peak of the resident memory of all its processes together, read five times a
second (pages that processes share count once for each of them, so it is an upper bound). Not a test: nothing is asserted.
"""

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "make run": ["make", "run"],
    "make run, until its first line": ["make", "run"],
    "make test, until its first line": ["make", "test"],
    "import helpers": [sys.executable, "-c", "import helpers"],
    "make test": ["make", "test"],
}


def tree_bytes(process):
    """Resident bytes of ``process`` and all its descendants."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            pass
    return total


def measure(name, command, results):
    """Run ``command``; return (wall seconds, peak bytes, exit status). With "first line" in its name, stop there."""
    environment = psutil.Process().environ() | {"RESULTS_DIR": results, "TIER": "embedded"}
    started = time.perf_counter()
    child = psutil.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if "first line" in name:
        child.stdout.readline()
        wall = time.perf_counter() - started
        for each in [*child.children(recursive=True), child]:
            each.kill()
        return wall, 0, 0
    peak, log = 0, open(Path(results) / "log", "w", encoding="utf-8")
    reader = threading.Thread(target=lambda: log.writelines(child.stdout))
    reader.start()
    while child.poll() is None:
        peak = max(peak, tree_bytes(child))
        time.sleep(0.2)
    wall = time.perf_counter() - started
    reader.join()
    return wall, peak, child.returncode


def main():
    chosen = sys.argv[1:] or list(COMMANDS)
    print(f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB")
    for name in chosen:
        with tempfile.TemporaryDirectory() as results:
            wall, peak, status = measure(name, COMMANDS[name], results)
        print(f"{name:32} {wall:7.1f} s  peak {peak / 1e9:5.2f} GB  exit {status}", flush=True)


if __name__ == "__main__":
    main()
