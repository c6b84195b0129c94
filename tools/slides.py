"""Slides of the notebooks for a beamer: ``make slides``, or ``python -m tools.slides [name …]``. They are written to slides/ in the results folder.

A rule makes them, not a mark in each cell: a heading begins a slide, each output stands on one of its own below it, short code is shown, long code is
not, and the rest of the prose is what the speaker says. Speaker notes (key S) also have what the minute plans say of that section. Outputs are those
of ``make run`` on this machine; without a run, the slides have code only. They need no network: reveal.js is fetched once and lies beside them.
"""

import base64
import hashlib
import html
import importlib.util
import io
import re
import sys
import tarfile
from urllib.request import urlopen

from helpers import ROOT, setup
from helpers.errors import CourseError, PackagesError
from helpers.models import files
from tools import plans

REVEAL = "https://registry.npmjs.org/reveal.js/-/reveal.js-5.2.1.tgz"  # MIT
SHA512 = "r7//6mIM5p34hFiDMvYfXgyjXqGRta+/psd9YtytsgRlrpRzFv4RbH76TXd2qD+7ZPZEbpBDhdRhJaFgfQ7zNQ=="
SHORT, PICTURE, PROSE = 12, 4, 700  # lines of code, of code above a picture, characters of prose on one slide
LEFT_OUT = ("Self-check",)  # sections that are for the machine
TEMPLATE = ROOT / "tools" / "slides.html.j2"  # what it changes of nbconvert's own: no other site is asked, alternative texts, sizes


def fetch(folder):
    """Put reveal.js into ``folder`` unless it is there. Raises PackagesError."""
    with files.whole(folder, folder.is_dir) as partial:
        if partial is None:
            return
        try:
            with urlopen(REVEAL, timeout=30) as answer:
                data = answer.read()
        except OSError as error:
            raise PackagesError(f"{REVEAL} cannot be fetched ({error}): check the network, and run make slides again.") from None
        if base64.b64encode(hashlib.sha512(data).digest()).decode() != SHA512:
            raise PackagesError(f"{REVEAL} has other content than this course was tested with: check what answers in its place.")
        with tarfile.open(fileobj=io.BytesIO(data)) as package:
            for member in package:
                name = member.name.removeprefix("package/")
                if (
                    member.isfile()
                    and ".." not in name
                    and re.match(r"dist/(reveal\.(js|css)|theme/(white\.css|fonts/source-sans-pro/))|plugin/notes/|LICENSE", name)
                ):
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    (partial / name).write_bytes(package.extractfile(member).read())


def parts(text):
    """[(heading line or "", [blocks of prose])] of a cell of Markdown, without what make badges writes."""
    text = re.sub(r"<!-- navigation.*?/navigation -->", "", text, flags=re.S)
    pieces = re.split(r"^(#+ .+)$", text, flags=re.M)
    return [
        (head, [block for block in re.split(r"\n\s*\n", body) if block.strip()]) for head, body in zip(["", *pieces[1::2]], pieces[::2]) if head or body.strip()
    ]


def deck(notebook, extra=None):
    """``notebook`` with the cells of its slides: each with its slide_type, in the words of nbconvert. extra: {heading: notes}."""
    import nbformat

    cells, waiting, section = [], [], ""

    def add(cell, kind):
        cell.metadata = {"slideshow": {"slide_type": kind}, "tags": cell.metadata.get("tags", [])}
        cells.append(cell)

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    executed = any(cell.outputs for cell in code)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for head, blocks in parts(cell.source):
                section = head.lstrip("# ") or section
                if section in LEFT_OUT:
                    continue
                shown = [head] if head else []
                while head and blocks and (len("".join(shown + blocks[:1])) < PROSE or section == "Recap" and blocks[0].startswith("|")):
                    shown.append(blocks.pop(0))
                if head:
                    waiting.clear()
                    add(nbformat.v4.new_markdown_cell("\n\n".join(shown)), "subslide" if head.startswith("###") else "slide")
                for text in [*((extra or {}).get(section, []) if head else []), *(["\n\n".join(blocks)] if blocks else [])]:
                    add(nbformat.v4.new_markdown_cell(text), "notes")
        elif cell is not code[0] and section not in LEFT_OUT:
            short = len(cell.source.splitlines()) <= SHORT and not re.match(r"(from|import) helpers", cell.source)
            if executed and not cell.outputs:
                waiting += [cell.source] if short else []
                continue
            source = "\n\n".join([*waiting, *([cell.source] if short else [])])
            waiting.clear()
            shown = nbformat.v4.new_code_cell(source, outputs=cell.outputs)
            picture = any("image/png" in output.get("data", {}) for output in cell.outputs)
            if len(source.splitlines()) > (PICTURE if picture else 2 * SHORT) or not source:
                shown.metadata["tags"] = ["remove-input"]
            if source or cell.outputs:
                if section:
                    add(nbformat.v4.new_markdown_cell(f"#### {section}"), "subslide")
                add(shown, "-" if section else "subslide")
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def exporter():
    """nbconvert's exporter of slides, which asks no other site for anything."""
    from nbconvert.exporters import SlidesExporter
    from traitlets.config import Config

    settings = Config()
    settings.SlidesExporter.reveal_url_prefix, settings.SlidesExporter.reveal_theme = "reveal.js", "white"
    settings.TagRemovePreprocessor.enabled, settings.TagRemovePreprocessor.remove_input_tags = True, {"remove-input"}
    made = SlidesExporter(config=settings, raw_template=TEMPLATE.read_text(encoding="utf-8"))
    made.exclude_input_prompt = made.exclude_output_prompt = True
    return made


def main(names=(), notebooks=ROOT / "notebooks"):
    """Write the slides of the notebooks whose names begin with one of ``names``; return the exit status."""
    import nbformat

    paths = [path for path in sorted(notebooks.glob("[0-9][0-9]_*.ipynb")) if not names or path.name.startswith(tuple(names))]
    if not importlib.util.find_spec("nbconvert"):
        print("nbconvert is missing: make slides adds it, or pip install -r requirements/slides.txt.", file=sys.stderr)
        return 2
    results, links = setup.results_dir(), []
    folder = results / "slides"
    try:
        fetch(folder / "reveal.js")
        convert = exporter()
        for path in paths:
            ran = results / path.name if (results / path.name).is_file() else path
            notebook = nbformat.read(ran, as_version=4)
            text, _ = convert.from_notebook_node(deck(notebook, plans.said(path)), {"metadata": {"name": path.stem}})
            files.write(folder / f"{path.stem}.html", text)
            title = "".join(plans.cells(path)[0]["source"]).splitlines()[0].lstrip("# ")
            links.append((path.stem, title, ran is not path))
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    lines = "".join(
        f'<li><a href="{stem}.html">{html.escape(title)}</a>{"" if outputs else " (code only: it was not run here)"}</li>' for stem, title, outputs in links
    )
    head = '<!DOCTYPE html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Slides</title>'
    files.write(
        folder / "index.html", f"{head}<h1>Slides</h1><p>Key S: speaker notes. Key O: all slides. ?print-pdf: for printing.</p><ul>{lines}</ul></html>\n"
    )
    print(f"{len(links)} decks: {folder / 'index.html'}")
    return 0 if links else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
