"""Measure a real size in the builds of llama.cpp that this processor can run, in turns, with the bandwidth of the memory beside each.

    python -m tools.native                # 2.7 billion random weights: 11 GB of disk; about ten minutes on two quiet cores
    python -m tools.native 1.3B --rounds 2

What was measured is in the ledger; the steadiest row of each build and type goes to engines.jsonl in the results folder, to be recorded (CONTRIBUTING.md).
"""

import argparse
import sys

from helpers import ledger, limits, setup
from helpers.benchmark.job import Job
from helpers.engines import llamacpp, native, timed
from helpers.errors import CourseError
from helpers.models import choose, synthetic
from helpers.timing import seconds

TYPES = ("Q8_0", "Q4_0", "Q4_K_M")


def main(arguments=None):
    """The command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.native", description=__doc__.split("\n", 1)[0])
    parser.add_argument("size", nargs="?", default="2.7B", help=f"random weights of this size: {', '.join(synthetic.SHAPES)}")
    parser.add_argument("--layers", type=int, help="another number of blocks")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is measured")
    given = parser.parse_args(arguments)
    try:
        rows = measure(given.size, given.layers, given.rounds)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    if not rows:
        return 1
    path = setup.results_dir() / "engines.jsonl"
    path.unlink(missing_ok=True)
    for row in rows:
        ledger.append(row, path)
    print(f"\n{timed.table(rows).to_string()}\n\n{native.verdict(rows)}\n\n{len(rows)} rows are in {path}.")
    return 0


def measure(size, layers=None, rounds=1):
    """Return the steadiest row of each build and type, with the floor at the best bandwidth of the whole run; none where there is only the wheel."""
    if not (folder := native.fetch()):
        return []
    step = Job(2, None, size, layers=layers).step()
    threads, found, speeds = choose.threads(step.shape), {}, []
    paths = {type: llamacpp.file(step, type) for type in TYPES}
    plan = [(build, type) for type in TYPES for build in [*native.compared(native.builds(folder)), native.WHEEL]]
    for build, type in rounds * plan:
        row = native.record(folder, build, paths[type], step, type, threads)
        speeds.append((row["read_bytes"], row["bandwidth_bytes_per_s"]))
        found.setdefault((type, build), []).append(row)
        print(f"{row['title']}: {seconds(row['tpot_s'])} a token, memory {speeds[-1][1] / 1e9:.1f} GB/s {ledger.mark(row)}", flush=True)
    steadiest = [min(same, key=lambda row: (bool(ledger.disturbed(row)), row["warm_wall_iqr_s"] / row["warm_wall_s"])) for same in found.values()]
    return limits.with_floor(steadiest, "cpu", speeds)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. What was measured is in the ledger.")
