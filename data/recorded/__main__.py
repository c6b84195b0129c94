"""Draw the recorded runs again: ``python -m data.recorded``. The charts are written beside the rows that they show."""

from helpers import breakdown, limits, results

for name in sorted({row["recorded"] for row in limits.recorded_rows()}):
    rows = [row for row in limits.recorded_rows() if row["recorded"] == name and "run" in row]
    if rows:
        folder = limits.ROOT / "data" / "recorded" / name
        (folder / "table.txt").write_text(f"{results.where(rows[-1] | {'recorded': name})}\n{results.table(rows).to_string()}\n", encoding="utf-8")
        breakdown.operations_chart(rows, save_as=folder / "operations.png")
        breakdown.waterfall_chart(rows, save_as=folder / "waterfall.png")
