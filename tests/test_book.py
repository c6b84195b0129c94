"""The site: built from all notebooks and pages, with outputs that read well; what is broken in it is named; nothing is wider than the page."""

import copy
import json
import re
import shutil
from datetime import UTC, datetime

import nbformat
import pytest

from helpers import ROOT, ledger, plots
from tools import badges, book, book_outputs, links, prose, run

pytest.importorskip("myst_nb", reason="what builds the site is not installed (requirements/book.txt)")
from bs4 import BeautifulSoup

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (400, 1400)
PAGE = "notebooks/98_made_for_this_test.ipynb"
EXERCISE = "notebooks/exercises/98_made_for_this_test.ipynb"
FOLDED = "# 98 · Exercises\n\nAn exercise of [98](../98_made_for_this_test.ipynb).\n\n<details>\n<summary>Solution</summary>\n\n```python\nscale = 0.25\n```\n\n</details>"
CELLS = [
    "# 98 · Made for this test\n\nTTFT, then TTFT again; `prefill` in code, a prefill in prose. Go to [00](00_start_here.ipynb) or [the licence](../LICENSE).",
    f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom helpers import plots\nimport ipywidgets, os, pandas as pd\nfrom tqdm import notebook, tqdm",
    "figure, axes = plots.figure('A chart', 'x', 'y')\naxes.plot([1, 2])\nplots.show(figure, 'It rises from 1 to 2.')",
    "for n in range(6):  # as tqdm writes it, whatever the clock says\n    print('\\r' + tqdm.format_meter(n, 5, n / 50, prefix='on a terminal'), end='', file=sys.stderr)",
    "for _ in notebook.tqdm(range(4), desc='in a widget'):\n    pass",
    "model = ipywidgets.Dropdown(description='model', options=[('Llama', 1), ('another', 2)])\n"
    "ipywidgets.VBox([model, ipywidgets.IntText(description='context', value=512), ipywidgets.HTML('<pre>the answer</pre>')])",
    "display(pd.DataFrame([[10**6] * 40], columns=[f'column {n}' for n in range(40)]))\nprint('x' * 400)",
    "print('Recorded on 2026-11-23, CPU, not on your machine')",
    "print(os.getcwd(), plots.__file__)",
]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook with one of everything, executed as make run does it."""
    folder = tmp_path_factory.mktemp("made")
    cells = [nbformat.v4.new_markdown_cell(CELLS[0]), *map(nbformat.v4.new_code_cell, CELLS[1:])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "98_made_for_this_test.ipynb")
    run.execute(folder / "98_made_for_this_test.ipynb", folder / "executed.ipynb")
    return json.loads((folder / "executed.ipynb").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def site(executed, tmp_path_factory):
    """All pages, the notebooks as they are in the course, and the executed one; the ledger is a recorded one."""
    results = tmp_path_factory.mktemp("results")
    rows = ledger.read(ROOT / "data" / "recorded" / "cpu-2-cores" / "ledger.jsonl")
    (results / "ledger.jsonl").write_text("".join(json.dumps(row | {"date": datetime.now(UTC).isoformat()}) + "\n" for row in rows))
    notebooks = book.unexecuted(book.NOTEBOOKS, *book.NOT_RUN)
    exercise = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(FOLDED)])
    assert book.make(results / "book", results, notebooks | {PAGE: copy.deepcopy(executed), EXERCISE: exercise}) == []
    return results / "book"


def page(site, name):
    return BeautifulSoup((site / name).read_text(encoding="utf-8"), "html.parser")


def test_every_page_is_there(site):
    for path in [ROOT / "CHANGELOG.md", *(path for pattern in (book.NOTEBOOKS, *book.NOT_RUN, "docs/**/*.md") for path in ROOT.glob(pattern))]:
        name = path.relative_to(ROOT).with_suffix(".html")
        assert (site / name).is_file() or path == ROOT / book.HOME
        assert page(site, "index.html").find("a", href=str(name)) or path == ROOT / book.HOME, f"the first page does not lead to {name}"
    order = [tag["href"] for tag in page(site, "notebooks/01_8bit_7b.html").select(".prev-next-footer a")]
    assert order == ["00_start_here.html", "02_bf16_7b.html"]
    assert page(site, "notebooks/01_8bit_7b.html").find("article").find("a", href="exercises/01_exercises.html")
    assert page(site, "notebooks/exercises/01_exercises.html").find("article").find("a", href="../01_8bit_7b.html")
    assert "perplexity" in (site / "searchindex.js").read_text(encoding="utf-8") and (site / "search.html").is_file()


def test_the_first_page_says_what_was_measured_where_and_when(site, executed):
    text = page(site, "index.html").find("article").get_text(" ", strip=True)
    rows = ledger.read(ROOT / "data" / "recorded" / "cpu-2-cores" / "ledger.jsonl")
    now = datetime.now(UTC)
    assert f"executed on {now.day} {now:%B %Y}" in text and plots.source(rows[0]) in text and f"torch {rows[0]['versions']['torch']}" in text
    assert "Made for this test" in text  # a notebook that the table does not name yet is added


def test_outputs_read_well(site):
    made = page(site, "notebooks/98_made_for_this_test.html").find("article")
    text = made.get_text("\n")
    assert [tag["alt"] for tag in made.find_all("img")] == ["It rises from 1 to 2."]
    assert "on a terminal: 5/5 in 00:00" in text and "in a widget: 4/4 in 00:00" in text and "█" not in text and "VBox(children" not in text
    assert [[cell.text for cell in row.find_all(["th", "td"])] for row in made.select("table")[0].find_all("tr")] == [["model", "Llama"], ["context", "512"]]
    assert "the answer" in text and str(ROOT) not in str(made) and "./helpers/plots.py" in text
    marked = made.select("div.cell.tag_recorded")
    assert len(marked) == 1 and "2026-11-23" in marked[0].text
    assert "the licence" in text and not made.find("a", string="the licence")  # no page, and the course has no address here


def test_solutions_are_folded(site):
    made = page(site, EXERCISE.replace(".ipynb", ".html")).find("article")
    (fold,) = made.find_all("details")
    assert not fold.has_attr("open") and fold.summary.text == "Solution" and "scale = 0.25" in fold.text
    assert made.find("a", href="../98_made_for_this_test.html") and page(site, "index.html").find("a", href=EXERCISE.replace(".ipynb", ".html"))


def test_the_first_use_of_a_word_leads_to_the_glossary(site):
    linked = page(site, "notebooks/98_made_for_this_test.html").find("article").find_all("a", class_="term")
    assert [tag.text for tag in linked] == ["TTFT", "prefill"]
    said = next(line for line in (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines() if line.startswith("- **TTFT"))
    assert linked[0]["title"] == said.partition("**: ")[2]
    entry = page(site, "docs/glossary.html").find(id=linked[0]["href"].partition("#")[2])
    assert entry.name == "li" and entry.strong.text.startswith("TTFT")


def test_words_of_the_glossary_are_used(site):
    """Each of them is linked from some page: none is explained in vain."""
    used = {found for path in site.rglob("*.html") for found in re.findall(r'<a class="term[^>]*#(term-[\w-]+)', path.read_text(encoding="utf-8"))}
    there = {tag["id"] for tag in page(site, "docs/glossary.html").select("li[id^=term-]")}
    assert len(there) > 40 and there - used == set()


@pytest.mark.parametrize(
    "body, said",
    [
        ('<a href="other.html">x</a>', "page.html links to other.html, which is not there."),
        ('<a href="#gone">x</a>', "page.html links to #gone, and nothing is called so there."),
        ('<p id="here">x</p><a href="page.html#here">x</a>', None),
        ('<img src="page.html">', "page.html: the picture page.html has no alternative text."),
        ('<img src="page.html" alt=" ">', "page.html: the picture page.html has no alternative text."),
        ('<img src="page.html" alt="../_images/5af0.png">', "page.html: the picture page.html has no alternative text."),
        ('<img src="page.html" alt="It rises.">', None),
        (f"<pre>{ROOT}/helpers</pre>", f"page.html names {ROOT}, a folder of this machine."),
    ],
)
def test_a_broken_page_is_named(tmp_path, body, said):
    (tmp_path / "page.html").write_text(f"<html><body>{body}</body></html>")
    assert book.faults(tmp_path) == ([said] if said else [])


def test_a_link_that_sphinx_cannot_follow_stops_the_build(tmp_path):
    (tmp_path / "index.md").write_text("# A page\n\n[x](nowhere.md)\n")
    good, said = book.build(tmp_path, tmp_path / "site")
    assert not good and "nowhere.md" in said


def test_links_stay_on_the_site_or_lead_to_github(monkeypatch):
    known, copied = book.pages(["notebooks/00_start_here.ipynb"]), set()
    text = "[a](../README.md) [b](models.md#x) [c](../requirements.txt) ![d](fewer_bits.png) [e](https://example.org) [f](https://github.com/OWNER/NAME/issues)"
    there = "[a](../index.md) [b](models.md#x) {} ![d](fewer_bits.png) [e](https://example.org) {}"
    assert book.relinked(text, "docs/running.md", known, copied) == there.format("c", "f") and copied == {"docs/fewer_bits.png"}
    assert book.relinked("[a](../notebooks/00_start_here.ipynb)", book.HOME, known, copied) == "[a](notebooks/00_start_here.ipynb)"
    monkeypatch.setattr(badges, "REPOSITORY", "someone/course")
    assert "[c](https://github.com/someone/course/blob/main/requirements.txt)" in book.relinked(text, "docs/running.md", known, copied)
    first = {"cell_type": "markdown", "metadata": {}, "source": "# 00 · A title\n\ntext"}
    shown = book.dressed({"cells": [first], "metadata": {}}, "notebooks/00_start_here.ipynb", None)["cells"][0]["source"]
    assert "[Open in Colab](https://colab.research.google.com/github/someone/course/blob/main/notebooks/00_start_here.ipynb)" in shown


def test_progress_is_what_a_terminal_would_show():
    bar = "\rloading:   0%|          | 0/9 [00:00<?, ?it/s]\rloading:  44%|████▍     | 4/9 [00:02<00:02,  2.2it/s]\rloading: 100%|██████████| 9/9 [01:01<00:00,  2.2it/s]\n"
    again = "\rloading:   0%|          | 0/9 [00:00<?, ?it/s]\rloading: 100%|██████████| 9/9 [00:03<00:00,  2.2it/s]\n"
    nested = "\router: 00:01\n\rinner:  50%|█████     | 1/2 [00:00<00:00]\n\x1b[A\router: 00:02\n\rinner: 100%|██████████| 2/2 [00:01<00:00]\x1b[A\n"
    assert book_outputs.progress(bar + again + "a warning\n" + nested).split("\n") == [
        "loading: 9/9 in 01:01", "loading: 9/9 in 00:03", "a warning", "outer: 00:02", "inner: 2/2 in 00:01"
    ]  # fmt: skip


def test_a_notebook_that_changed_is_executed_again(tmp_path, executed):
    path, results = tmp_path / "98.ipynb", tmp_path / "results"
    results.mkdir()

    def executed_of(source, then):
        path.write_text(json.dumps(source))
        (results / path.name).write_text(json.dumps(then))
        return book.executed(path, results) is not None

    assert executed_of(executed, executed)
    changed, stopped, unfinished = (copy.deepcopy(executed) for _ in range(3))
    changed["cells"][2]["source"] = "1"
    stopped["cells"][2]["outputs"] = [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]
    unfinished["cells"][-1]["execution_count"] = None
    assert not executed_of(changed, executed) and not executed_of(executed, stopped) and not executed_of(executed, unfinished)
    (results / path.name).unlink()
    assert book.executed(path, results) is None


def test_only_what_changed_is_executed(tmp_path, monkeypatch, capsys):
    """main() hands to make run the notebooks without a run of today's text, and builds from all; what stops, stops the book."""
    asked, built = [], {}

    def run_of(names, counts=1):
        for path in ROOT.glob(book.NOTEBOOKS):
            if path.name in names:
                notebook = json.loads(path.read_text(encoding="utf-8"))
                cells = [cell | ({"execution_count": counts} if cell["cell_type"] == "code" else {}) for cell in notebook["cells"]]
                (tmp_path / path.name).write_text(json.dumps(notebook | {"cells": cells}), encoding="utf-8")
        return 0

    def runs(names):
        asked.append(names)
        return run_of(names)

    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    monkeypatch.setattr(book.run, "main", runs)
    monkeypatch.setattr(book, "make", lambda site, results, notebooks: built.update(notebooks) or [])
    run_of([path.name for path in ROOT.glob(book.NOTEBOOKS) if path.name[:2] != "03"])
    assert book.main() == 0 and asked == [["03_gptq_7b.ipynb"]] and set(book.unexecuted(book.NOTEBOOKS, *book.NOT_RUN)) == set(built)
    assert book.main() == 0 and len(asked) == 1  # and not again
    run_of(["03_gptq_7b.ipynb"], counts=None)
    monkeypatch.setattr(book.run, "main", lambda names: 1)
    assert book.main() == 1
    monkeypatch.setattr(book.run, "main", lambda names: 0)
    assert book.main() == 1 and "03_gptq_7b.ipynb did not run to the end" in capsys.readouterr().err


def test_every_paper_is_in_the_bibliography():
    text = (ROOT / "docs" / "bibliography.md").read_text(encoding="utf-8")
    papers = {address for address in links.addresses() if address.startswith(("https://arxiv.org/", "https://doi.org/", "https://www.usenix.org/"))}
    assert len(papers) > 10 and [address for address in sorted(papers) if address not in text] == []


def test_prose_is_counted_in_sentences(tmp_path):
    cell = "## A heading\n\nOne two three. Four `five()` six?\n\n- a point\n\n```\nno prose at all\n```\n\n| a | bb |\n|---|---|\n| c d | [e](f.md) |\n<!-- a note -->"
    assert prose.sentences(cell) == ["A heading", "One two three.", "Four CODE six?", "a point", "a", "bb", "c d", "e"]
    long = "word " * 31 + "quokka floor."
    (tmp_path / "97.ipynb").write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": [long]}]}))
    lines = prose.report(tmp_path / "97.ipynb", lambda word: 1.0 if word in ("quokka", "floor") else 6.0, prose.known())
    assert lines[0].endswith("33 words on average, the longest 33; 1 have more than 30") or "33.0 words on average, the longest 33; 1 have more" in lines[0]
    assert lines[1].startswith("  cell 0, 33 words: word word") and lines[2] == "  rare: quokka"  # a floor is in the glossary


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome is installed")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements/book.txt)")
    with sync.sync_playwright() as playwright:
        program = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield program
        program.close()


# What sticks out of the page, and out of no box that scrolls; the site's own menus may wait outside.
WIDE = """() => [...document.querySelectorAll("article *")].filter(tag => {
    if (tag.getBoundingClientRect().right <= innerWidth + 1 || !tag.getClientRects().length) return false
    for (let box = tag.parentElement; box && box.tagName != "ARTICLE"; box = box.parentElement) {
        const style = getComputedStyle(box)
        if (["auto", "scroll", "hidden", "clip"].includes(style.overflowX) && box.getBoundingClientRect().right <= innerWidth + 1) return false
        if (style.position == "fixed") return false
    }
    return true
}).map(tag => tag.outerHTML.slice(0, 100))"""


def wide(browser, paths):
    """{(page, width): what is wider than the window} of the pages that scroll sideways or hold something that sticks out."""
    tab, found = browser.new_page(), {}
    for path in paths:
        tab.goto(path.as_uri())
        for width in WIDTHS:
            tab.set_viewport_size({"width": width, "height": 900})
            sideways = tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if (out := tab.evaluate(WIDE)) or sideways > 0:
                found[path.name, width] = (sideways, out[:3])
    tab.close()
    return found


def test_nothing_is_wider_than_the_page(site, browser):
    assert wide(browser, [path for path in sorted(site.rglob("*.html")) if path.name not in ("search.html", "genindex.html")]) == {}


def test_what_is_wider_is_named(tmp_path, browser):
    bodies = {
        "wide": '<p style="width: 2000px">x</p>',
        "on a phone": '<p style="width: 500px">x</p>',
        "cut off": '<div style="overflow: hidden; width: 3000px"><p style="width: 2000px">x</p></div>',
        "in a box": '<div style="overflow-x: auto"><p style="width: 2000px">x</p></div>',
        "good": '<p style="width: 90%">x</p>',
    }
    for name, body in bodies.items():
        (tmp_path / f"{name}.html").write_text(f'<html><body style="margin: 0"><article style="overflow: hidden">{body}</article></body></html>')
    assert set(wide(browser, sorted(tmp_path.glob("*.html")))) == {
        ("wide.html", 400), ("wide.html", 1400), ("on a phone.html", 400), ("cut off.html", 400), ("cut off.html", 1400)
    }  # fmt: skip


def test_search_needs_no_network(site, browser):
    tab, asked = browser.new_page(), []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto((site / "search.html").as_uri() + "?q=perplexity")
    tab.wait_for_selector("#search-results li a")
    found = tab.locator("#search-results li a").all_inner_texts()
    tab.close()
    assert "08 · What it costs in quality" in found and all(address.startswith("file:") for address in asked)


def test_dark_where_the_reader_has_it_dark(site, browser):
    tab = browser.new_page(viewport={"width": 1400, "height": 900}, color_scheme="dark")
    tab.goto((site / "index.html").as_uri())
    red, green, blue = map(int, tab.evaluate("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").removesuffix(")").split(","))
    assert max(red, green, blue) < 60
    tab.close()
