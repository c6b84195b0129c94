"""Draw the recorded runs again: ``python -m data.recorded``. Table and charts are written beside the rows that they show.

What notebooks left (comparison, quality) stays as it is.
"""

from helpers import ROOT, benchmark, ledger, plots
from helpers.article import breakdown
from helpers.engines import timed
from helpers.models import files


def draw(root=ROOT / "data" / "recorded"):
    """Write table.txt and the charts of every run below ``root`` that the benchmark or another engine's notebook made."""
    for path in sorted(root.glob("*/ledger.jsonl")):
        rows = [row | {"recorded": path.parent.name} for row in ledger.read(path)]
        if "run" in rows[0]:
            write_table(path.parent, rows, benchmark.table(rows))
            breakdown.operations_chart(rows, save_as=path.parent / "operations.png")
            breakdown.waterfall_chart(rows, save_as=path.parent / "waterfall.png")
    for path in sorted(root.glob("*/engines.jsonl")):
        rows = [row | {"recorded": path.parent.name} for row in engines(path.parent)]
        write_table(path.parent, rows, timed.table(rows))
        timed.chart(rows, save_as=path.parent / "engines.png")


def engines(folder):
    """The rows of engines.jsonl in ``folder``, behind those of the benchmark, rounds pooled, if it measured the same model in the same run."""
    steps = benchmark.pool(ledger.read(folder / "ledger.jsonl")).values()
    return [*steps, *ledger.read(folder / "engines.jsonl", engine=None)]


def write_table(folder, rows, table):
    """Write ``table`` (pandas.DataFrame) as ``folder``/table.txt, with where its ``rows`` were recorded."""
    files.write(folder / "table.txt", f"{plots.where(rows[0])}\n{table.to_string()}\n")


if __name__ == "__main__":
    draw()
