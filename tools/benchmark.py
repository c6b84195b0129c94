"""Measure steps so that they can be compared: each in a process of its own, in turns, with the bandwidth of the memory beside it.

    python -m tools.benchmark                                          # the article's four steps
    python -m tools.benchmark 1 int8-no-outliers fp16 2 3 4 --rounds 3
    python -m tools.benchmark 2 3 --prompt-tokens 8 64 128 --batch 1 4
    python -m tools.benchmark 1 2 3 --size 1.3B                        # random weights of that size, see tools.synthetic
    python -m tools.benchmark 1 2 nf4 --checkpoint Qwen/Qwen2.5-0.5B   # another model

Every result is a row of the ledger. Interrupted, the same command goes on with what is missing.
"""

import argparse
import sys

from helpers import benchmark, plots, setup, timing
from helpers.errors import CourseError
from helpers.models import catalogue, choose
from helpers.timing import NEW_TOKENS


def main(arguments=None):
    """The command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark", description=__doc__.split("\n", 1)[0])
    parser.add_argument("steps", nargs="*", default=["1", "2", "3", "4"], help=f"1 to 4, or one of {', '.join(catalogue.VARIANTS)}")
    parser.add_argument("--tier", choices=("auto", *choose.TIERS))
    parser.add_argument("--checkpoint", default="", help="a folder or a repository of the Hub, in place of the tier's")
    parser.add_argument("--dtype", default="", help="type of the activations, in place of the step's, e.g. bfloat16")
    parser.add_argument("--size", nargs="+", default=[""], help="sizes with random weights, e.g. 1.3B 2.7B, in place of the tier's models")
    parser.add_argument("--layers", type=int, help="with --size: another number of blocks")
    parser.add_argument("--prompt-tokens", nargs="+", default=["article"], help="lengths of the prompt; article: the article's")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="sequences at a time")
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    parser.add_argument("--warmups", type=int, default=timing.WARMUPS)
    parser.add_argument("--repeats", type=int, default=timing.REPEATS)
    parser.add_argument("--rounds", type=int, default=benchmark.ROUNDS)
    parser.add_argument("--device")
    given = parser.parse_args(arguments)
    try:
        lengths = tuple(None if n == "article" else int(n) for n in given.prompt_tokens)
    except ValueError:
        print("--prompt-tokens takes whole numbers, or the word article.", file=sys.stderr)
        return 2
    keys = [int(key) if key.isdecimal() else key for key in given.steps]
    try:
        found = benchmark.run(
            keys, given.tier, given.size, given.rounds, layers=given.layers, prompt_tokens=lengths, batches=tuple(given.batch), new_tokens=given.new_tokens,
            warmups=given.warmups, repeats=given.repeats, device=given.device, checkpoint=given.checkpoint, dtype=given.dtype,
        )  # fmt: skip
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"The ledger could not be written ({error}): make room, or set RESULTS_DIR to another folder; then the same command goes on.", file=sys.stderr)
        return 2
    if found.rows:
        print(f"\n{plots.where(found.rows[0])}\n{benchmark.table(found.rows).to_string()}")
    for sentence in dict.fromkeys(found.problems.values()):
        print(f"Not measured: {sentence}")
    print(f"{len(found.rows)} rows of run {found.id} are in {setup.results_dir() / 'ledger.jsonl'}.")
    return 0 if found.rows else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. What was measured is in the ledger; the same command goes on.")
