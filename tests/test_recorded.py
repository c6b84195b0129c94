"""Recorded figures and the README's table are the same measurement."""

import re

import pytest

from helpers import compare, ledger
from helpers.article import ROOT
from helpers.plots import comparison_table

RUNS = sorted((ROOT / "data" / "recorded").glob("*/ledger.jsonl"))


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.parent.name)
def test_recorded_rows_are_complete(path, capsys):
    rows = ledger.read(path)
    assert not capsys.readouterr().err and {r["step"] for r in rows} == {1, 2, 3, 4}
    assert len({(r["tier"], r["device"]) for r in rows}) == 1
    report = (path.parent / "comparison.md").read_text(encoding="utf-8")
    assert report == compare.report({r["step"]: r for r in rows})


def test_the_readme_quotes_the_recorded_run():
    rows = {r["step"]: r for r in ledger.read(ROOT / "data" / "recorded" / "cpu-2-cores" / "ledger.jsonl")}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert compare.markdown(comparison_table(rows)) in readme and not re.search(r"[A-Z]+_[A-Z]+$", readme, re.MULTILINE)
