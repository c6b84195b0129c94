"""Draw the recorded runs of the benchmark again: ``python -m data.recorded``. Table and charts are written beside the rows that they show."""

from helpers import breakdown, engines, ledger, limits, plots, quality, results

RECORDED = limits.recorded_rows()

for name in sorted({row["recorded"] for row in RECORDED if "run" in row}):
    rows, folder = [row for row in RECORDED if row["recorded"] == name], limits.ROOT / "data" / "recorded" / name
    (folder / "table.txt").write_text(f"{plots.where(rows[0])}\n{results.table(rows).to_string()}\n", encoding="utf-8")
    breakdown.operations_chart(rows, save_as=folder / "operations.png")
    breakdown.waterfall_chart(rows, save_as=folder / "waterfall.png")
    if figures := quality.read(folder / "quality.json"):
        plots.quality_chart({key: row | {"recorded": name} for key, row in figures.items()}, save_as=folder / "quality.png")

for path in sorted((limits.ROOT / "data" / "recorded").glob("*/engines.jsonl")):
    rows = [row | {"recorded": path.parent.name} for row in ledger.read(path, engine=None)]
    (path.parent / "table.txt").write_text(f"{plots.where(rows[0])}\n{engines.table(rows).to_string()}\n", encoding="utf-8")
    engines.chart(rows, save_as=path.parent / "engines.png")
