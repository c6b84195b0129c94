"""Write a checkpoint of a Llama's shape with random weights: real sizes, timings and kernels, without licence and download.

    python -m tools.synthetic 7B gptq
    python -m tools.synthetic 1.3B bf16 --layers 12

The environment variable SYNTHETIC_DIR says where, see helpers.models.synthetic.
"""

import argparse
import sys

from helpers.errors import CourseError
from helpers.models import synthetic


def main(arguments=None):
    """The command: write one checkpoint and say where it lies; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.synthetic", description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", help=f"size: {', '.join(synthetic.SHAPES)}")
    parser.add_argument("format", choices=("bf16", "gptq"), help="8-bit, fp16 and NF4 are loaded from bf16's files")
    parser.add_argument("--layers", type=int, help="another number of blocks than the model has")
    given = parser.parse_args(arguments)
    try:
        path = synthetic.folder(given.model, given.format, given.layers)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"{path}: {size:,} bytes. The weights are random: timings are real, the text has no sense.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nInterrupted: what was written is deleted.")
