"""The notebooks as a reader first sees them: valid, clean, short cells, links that lead somewhere."""

import re
import statistics

import nbformat
import pytest

from helpers.article import ROOT

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_lengths(notebook):
    return [sum(bool(line.strip()) for line in c.source.splitlines()) for c in notebook.cells if c.cell_type == "code"]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_notebook_is_valid_and_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith(f"# {path.stem[:2]} · ")
    assert not any(c.get("outputs") or c.get("execution_count") for c in notebook.cells)
    lengths = code_lengths(notebook)
    assert statistics.median(lengths) <= 5 and max(lengths) <= 30
    assert sum(n <= 15 for n in lengths) >= 0.9 * len(lengths)


@pytest.mark.parametrize("path", [*PATHS, ROOT / "README.md", ROOT / "data" / "README.md"], ids=lambda p: p.stem)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_each_notebook_leads_to_the_next():
    for path, following in zip(PATHS, PATHS[1:]):
        assert f"({following.name})" in nbformat.read(path, as_version=4).cells[-1].source
