"""Charts are written, not blank, say whose figures they show, and carry their facts as text."""

import io

import matplotlib.image
import pytest
from matplotlib.figure import Figure
from support.book import functions
from test_compare import rows

from helpers import article, plots


def pixels(png):
    return matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3]


@pytest.mark.parametrize("some", [{}, {1: rows()[1]}, rows()], ids=["none", "one", "four"])
def test_chart_is_not_blank_and_has_its_text(some, capsys):
    image = plots.comparison_chart(some)
    picture = pixels(image.data)
    assert picture.shape[0] > 300 and picture.shape[1] > 600 and picture.std() > 0.02
    assert image.metadata["alt"] == capsys.readouterr().out.strip() and image.metadata["alt"]
    for number in some:
        assert plots.label(number, some) in image.metadata["alt"]


def test_chart_grows():
    one, four = (pixels(plots.comparison_chart(some).data) for some in ({1: rows()[1]}, rows()))
    coloured = [((p.max(axis=2) - p.min(axis=2)) > 0.3).sum() for p in (one, four)]
    assert coloured[1] > coloured[0]


def test_side_by_side_is_saved(tmp_path):
    path = tmp_path / "comparison.png"
    image = functions("05", article=article, plots=plots, Figure=Figure)["side_by_side"](rows(), save_as=path)
    assert path.read_bytes() == image.data and pixels(image.data).std() > 0.02
    assert "the article: Llama-2 on a T4" in image.metadata["alt"] and "embedded stand-ins (not Llama-2), CPU" in image.metadata["alt"]


def test_picture_of_a_run(run_results):
    with open(f"{run_results}/comparison.png", "rb") as file:
        assert pixels(file.read()).std() > 0.02


def test_table_of_the_article():
    table = plots.comparison_table(article.article_rows())
    assert table.loc["1: 7B 8-bit", "wall"] == "16.4 s" and table.loc["4: 13B GPTQ", "warm wall"] == "-"
