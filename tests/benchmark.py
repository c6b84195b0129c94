"""How long do the commands take, and how much memory? ``python tests/benchmark.py`` (after ``make run`` has set up .venv).

``python tests/benchmark.py writer`` holds the writer of synthetic checkpoints against the disk, ``… overhead`` what our timing adds to a call.

Prints a table: wall seconds of each command, and the peak of the resident memory of all its processes together, read five times a
second (pages that processes share count once for each of them, so it is an upper bound). Not a test: nothing is asserted.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from resource import RUSAGE_SELF, getrusage

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


def writer(pairs=3):
    """Write a checkpoint with 13B's widths, and the same bytes from one buffer, in turns; print the ratio of their speeds and the memory."""
    sys.path.insert(0, str(ROOT))
    from helpers.models import catalogue, synthetic

    wide, ratios = catalogue.LLAMA_2["13B"], []
    shape = catalogue.Shape(wide.hidden_size, wide.intermediate_size, 6)
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        for number in range(pairs + 1):  # the first pair is a warm-up
            started = time.perf_counter()
            synthetic.write(shape, "bf16", Path(folder) / "checkpoint")
            os.sync()
            ours, size = time.perf_counter() - started, sum(file.stat().st_size for file in (Path(folder) / "checkpoint").iterdir())
            shutil.rmtree(Path(folder) / "checkpoint")
            started, block = time.perf_counter(), os.urandom(2**24)
            with open(Path(folder) / "plain", "wb", buffering=0) as file:
                for _ in range(size // len(block)):
                    file.write(block)
            os.sync()
            plain = time.perf_counter() - started
            (Path(folder) / "plain").unlink()
            if number:
                ratios.append(plain / ours)
                print(f"writer {size / ours / 1e9:.2f} GB/s, plain write {size / plain / 1e9:.2f} GB/s: {100 * plain / ours:.0f} %", flush=True)
    peak = getrusage(RUSAGE_SELF).ru_maxrss * 1024
    print(f"median {100 * statistics.median(ratios):.0f} % of the disk's speed; peak memory {peak / 1e9:.2f} GB")


def overhead(pairs=60):
    """Call generate alone and through generate_once, in turns; print the median ratio, and the time that our own lines take in a call."""
    sys.path.insert(0, str(ROOT))
    from helpers import loading, timing
    from helpers.models import choose

    model, tokenizer = loading.load(choose.get_step(2, tier="embedded"))
    ids, tokens, plain, inside, ratios, same = timing.tokenise(model, tokenizer), 100, model.generate, [0.0], [], {}

    def timed(*arguments, **options):
        same.update({name: value for name, value in options.items() if name != "logits_processor"})
        started = time.perf_counter()
        output = plain(*arguments, **options)
        inside[0] = time.perf_counter() - started
        return output

    def bare():
        started = time.perf_counter()
        plain(ids, **same)
        return time.perf_counter() - started

    model.generate = timed
    timing.generate_once(model, tokenizer, new_tokens=tokens)
    for number in range(pairs):
        alone, (call, _) = bare(), timing.generate_once(model, tokenizer, new_tokens=tokens)
        if number >= 5:
            ratios.append((call.wall / alone, call.wall / inside[0]))
    print(f"our wall time / generate alone: median {statistics.median(r[0] for r in ratios):.4f} over {len(ratios)} pairs")
    print(f"our wall time / the generate inside of it: median {statistics.median(r[1] for r in ratios):.5f}")


def main():
    chosen = sys.argv[1:] or list(COMMANDS)
    if chosen in (["writer"], ["overhead"]):
        return globals()[chosen[0]]()
    print(f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB")
    for name in chosen:
        with tempfile.TemporaryDirectory() as results:
            wall, peak, status = measure(name, COMMANDS[name], results)
        print(f"{name:32} {wall:7.1f} s  peak {peak / 1e9:5.2f} GB  exit {status}", flush=True)


if __name__ == "__main__":
    main()
