"""The notebooks as a reader first sees them: valid, clean, short cells, links that lead somewhere."""

import re
import statistics

import nbformat
import pytest

from helpers import ROOT, badges

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_lengths(notebook):
    return [sum(bool(line.strip()) for line in c.source.splitlines()) for c in notebook.cells if c.cell_type == "code"]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_notebook_is_valid_and_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata == badges.METADATA  # a T4 preselected; no widgets, whose state is not saved either
    assert notebook.cells[0].source.startswith(f"# {path.stem[:2]} · ")
    assert not any(c.get("outputs") or c.get("execution_count") for c in notebook.cells)
    lengths = code_lengths(notebook)
    assert statistics.median(lengths) <= 5 and max(lengths) <= 30
    assert sum(n <= 15 for n in lengths) >= 0.9 * len(lengths)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_first_look(path):
    """Badges and neighbours at the top, the neighbours at the end again, what it needs, and the one set-up cell."""
    notebook = nbformat.read(path, as_version=4)
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    for service in ("colab.research.google.com/github", "kaggle.com/kernels/welcome?src=https://github.com"):
        assert f"{service}/{badges.REPOSITORY}/blob/main/notebooks/{path.name})" in first
    place = PATHS.index(path)
    for neighbour in PATHS[max(0, place - 1) : place] + PATHS[place + 1 : place + 2]:
        assert f"]({neighbour.name})" in first and f"]({neighbour.name})" in last
    assert "After this notebook you can" in first and re.search(r"it needs|It needs", first)
    assert re.search(r"\d+ (seconds|minutes)|half a minute|few seconds", first) and re.search(r"\d GB|no model", first)
    setup = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert setup == badges.setup_cell(badges.REPOSITORY) and len(setup.splitlines()) <= 5


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_every_picture_has_a_text(path):
    """Pictures in the prose have alternative text; charts are shown by helpers.plots, which asks for one."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"!\[\s*\]\(", cell.source) and "<img" not in cell.source
        else:
            assert "plt." not in cell.source and ("plots.figure(" not in cell.source or "plots.show(" in cell.source)


@pytest.mark.parametrize("path", [*PATHS, ROOT / "README.md", ROOT / "data" / "README.md"], ids=lambda p: p.stem)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
