"""Recorded figures, the charts drawn from them, and the tables of the page that shows them are the same measurements."""

import re
import shutil

import pytest

from data.recorded.__main__ import draw as redraw
from data.recorded.__main__ import engines
from helpers import ROOT, article, benchmark, ledger, plots, quality
from helpers.article import compare
from helpers.engines import timed
from helpers.plots import comparison_table

RECORDED = ROOT / "data" / "recorded"
RUNS = sorted(path.parent for path in RECORDED.glob("*/ledger.jsonl"))
NOTEBOOKS = [folder for folder in RUNS if (folder / "comparison.md").is_file()]
COMMANDS = ("python -m helpers.benchmark ", "python -m tools.benchmark ", "python -m tools.real_model")  # the first: before it moved
COLUMNS = ["kernel", "first call", "warm call", "TPOT", "floor", "GB/s", "TPOT / floor"]
ENGINES = sorted(path.parent for path in RECORDED.glob("*/engines.jsonl"))
BENCHMARKS = [folder for folder in RUNS if folder not in NOTEBOOKS]


@pytest.mark.parametrize("folder", NOTEBOOKS, ids=lambda f: f.name)
def test_rows_of_the_notebooks(folder, capsys):
    rows = ledger.read(folder / "ledger.jsonl")
    assert not capsys.readouterr().err and {r["step"] for r in rows} == {1, 2, 3, 4}
    assert len({(r["tier"], r["device"]) for r in rows}) == 1
    assert (folder / "comparison.md").read_text(encoding="utf-8") == compare.report({r["step"]: r for r in rows})


@pytest.mark.parametrize("folder", BENCHMARKS, ids=lambda f: f.name)
def test_rows_of_the_benchmark(folder, capsys):
    """Complete, on one device, none faster than its floor, with the command that made them; table and charts are drawn from them."""
    rows = ledger.read(folder / "ledger.jsonl")
    assert not capsys.readouterr().err and len({(r["tier"], r["device"]) for r in rows}) == 1
    for row in rows:
        assert ledger.refusal(row, rows) == "" and row["command"].startswith(COMMANDS) and row["versions"]["torch"]
        assert row["busy_cores_before"] < 0.5, "other programs were running"
    with_name = [row for row in ledger.recorded_rows() if row["recorded"] == folder.name]
    if folder not in ENGINES:
        assert (folder / "table.txt").read_text(encoding="utf-8") == f"{plots.where(with_name[0])}\n{benchmark.table(rows).to_string()}\n"
    whole = {"1", "4"} <= benchmark.by_step(rows).keys()
    assert all((folder / f"{name}.png").stat().st_size > 10_000 for name in ("operations", "waterfall")[: 1 + whole])


@pytest.mark.parametrize("folder", ENGINES, ids=lambda f: f.name)
def test_rows_of_other_engines(folder, capsys):
    """Complete, on one device, none faster than its floor; llama.cpp decodes at least as fast as every transformers path of the same run."""
    rows = engines(folder)
    assert not capsys.readouterr().err and len({(row["tier"], row["device"]) for row in rows}) == 1
    speeds = [row | {"bandwidth_bytes_per_s": row["read_bytes"] / row["floor_tpot_s"]} for row in rows]
    assert not any(ledger.refusal(row, speeds) for row in speeds) and all(row["versions"] for row in rows)
    if "amx" in folder.name:  # python -m tools.native: llama.cpp's builds among each other
        assert {row["dtype"] for row in rows if row["layer_class"].startswith("AMX")} == {"Q8_0", "Q4_0", "Q4_K_M"}
        assert any(row["layer_class"].startswith("wheel") for row in rows) and not any(map(ledger.disturbed, rows))
    else:
        fastest = {engine: min(row["tpot_s"] for row in rows if row.get("engine", "transformers") == engine) for engine in ("transformers", "llama.cpp")}
        assert {"int8", "bf16", "gptq"} <= {row["format"] for row in rows if "engine" not in row} and fastest["llama.cpp"] <= fastest["transformers"]
    with_name = [row | {"recorded": folder.name} for row in rows]
    assert (folder / "table.txt").read_text(encoding="utf-8") == f"{plots.where(with_name[0])}\n{timed.table(rows).to_string()}\n"
    assert (folder / "engines.png").stat().st_size > 10_000


def test_the_command_draws_all_of_it_again(tmp_path):
    """The same tables from the same rows, and every chart; quality and comparison are what notebooks left."""
    shutil.copytree(RECORDED, tmp_path / "recorded")
    drawn = [path for path in (tmp_path / "recorded").glob("*/*") if path.name in ("table.txt", "operations.png", "waterfall.png", "engines.png")]
    for path in drawn:
        path.unlink()
    redraw(tmp_path / "recorded")
    for path in drawn:
        original = RECORDED / path.relative_to(tmp_path / "recorded")
        assert path.stat().st_size > 10_000 if path.suffix == ".png" else path.read_text("utf-8") == original.read_text("utf-8"), path


def test_what_is_recorded():
    """The four steps at three sizes, the real shapes of Llama-2 among them, and the quality of the embedded models."""
    steps = {(row["parameters"], row["format"]) for row in ledger.recorded_rows()}
    assert {(6_738_415_616, "bf16"), (6_738_415_616, "int8"), (6_738_415_616, "gptq"), (13_015_864_320, "gptq")} <= steps
    figures = quality.read(RECORDED / "cpu-2-cores-embedded" / "quality.json")
    assert figures[2]["perplexity"] < figures[3]["perplexity"] < figures["rtn"]["perplexity"] and not any(row["missing"] for row in figures.values())


def test_a_recorded_figure_is_never_the_readers():
    for row in ledger.recorded_rows():
        assert plots.where(row).startswith("recorded on 2026-")


def test_the_page_quotes_the_recorded_runs():
    rows = {r["step"]: r for r in ledger.read(RECORDED / "cpu-2-cores" / "ledger.jsonl")}
    page = (ROOT / "docs" / "recorded-runs.md").read_text(encoding="utf-8")
    assert article.markdown(comparison_table(rows)) in page and not re.search(r"[A-Z]+_[A-Z]+$", page, re.MULTILINE)
    llama = ledger.read(RECORDED / "cpu-2-cores-llama-2" / "ledger.jsonl")
    assert article.markdown(benchmark.table(llama)[COLUMNS]) in page
    gpu = ledger.read(RECORDED / "nvidia-h200-llama-2" / "ledger.jsonl")
    assert article.markdown(benchmark.table(gpu)[COLUMNS]) in (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    others = ledger.read(RECORDED / "cpu-2-cores-engines-llama-2" / "engines.jsonl", engine=None)
    assert article.markdown(timed.table(others)[["engine", *COLUMNS[1:]]]) in page
    assert len(re.findall(r"!\[[^\]]{20,}\]\(\.\./data/recorded/[\w-]+/\w+\.png\)", page)) >= 3
