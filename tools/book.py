"""Make a site to read from the executed notebooks and the pages of docs/: ``python -m tools.book``, or ``make book``.

Notebooks that were not executed since they changed are executed first. The site is ``book/index.html`` in the results folder; it needs
no server and no network. It is refused if a link in it leads nowhere, a picture has no alternative text, or a folder of this machine is named.
"""

import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from helpers import ledger, plots, setup
from helpers.errors import CourseError
from tools import ROOT, badges, run
from tools.book_outputs import UNIT, readable

NOTEBOOKS = "notebooks/[0-9][0-9]_*.ipynb"
NOT_RUN = ("notebooks/exercises/[0-9][0-9]_*.ipynb", "notebooks/teaching/*.ipynb")  # make run leaves these out; exercises have their solutions folded
PAGES = ("docs/**/*.md", "CONTRIBUTING.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md", "LICENSE-TEXT.md", "data/README.md", "data/recorded/README.md")
HOME = "docs/index.md"  # the site's first page; README.md says the same to those who have the files
CHAPTERS = {  # of the table of contents, below the notebooks; a page that stands in none of these is one of the last
    "Use it": ("running", "windows", "platforms", "models", "variables", "gpu", "troubleshooting", "benchmark", "versions"),
    "Look it up": ("glossary", "bibliography", "recorded-runs", "data/recorded/README", "data/README"),
    "Teach it, join in": (),
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")  # of Markdown; its text may hold one picture
PREPARE = "setup.prepare()"  # stands in the set-up cell of every notebook
RECORDED = re.compile(r"\brecorded(?: on| at| \(|:)", re.IGNORECASE)  # as the notebooks say it of figures that are not the reader's


def executed(path, results):
    """The executed notebook of ``path`` in ``results``, as a dict; None if it is missing, of another text, or did not reach its end."""
    try:
        found = json.loads((results / path.name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    now, then = (_sources(notebook) for notebook in (json.loads(path.read_text(encoding="utf-8")), found))
    ran = all(cell["execution_count"] for cell in found["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip())
    failed = any(output["output_type"] == "error" for cell in found["cells"] for output in cell.get("outputs", ()))
    return found if now == then and ran and not failed else None


def unexecuted(*patterns):
    """{path in the course: the notebook as a dict} of the notebooks that ``patterns`` name, as they are in the course."""
    paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return {path.relative_to(ROOT).as_posix(): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _sources(notebook):
    """What its cells say; the lines that make badges writes do not count."""
    texts = (re.sub(rf"{badges.START}.*?{badges.END}", "", "".join(cell["source"]), flags=re.S) for cell in notebook["cells"])
    return [text for text in texts if PREPARE not in text]


def started(notebook):
    """When an executed notebook began, a datetime; None if it does not say."""
    times = [cell["metadata"].get("execution", {}).get("iopub.execute_input") for cell in notebook["cells"]]
    return min((datetime.fromisoformat(time.replace("Z", "+00:00")) for time in times if time), default=None)


def day(time):
    return f"{time.day} {time:%B %Y}"


def machine(results, since):
    """On what was measured, in words: one line for each kind of models and device among the rows of the ledger that are not older than ``since``."""
    found = {}
    for row in ledger.read(results / "ledger.jsonl"):
        if "tier" in row and datetime.fromisoformat(row["date"]) >= since:
            versions = ", ".join(f"{name} {row['versions'][name]}" for name in ("torch", "transformers") if name in row.get("versions", {}))
            found[plots.source(row)] = f"{plots.source(row)}; {row.get('system', '')}, Python {row.get('python', '')}, {versions}"
    return list(found.values())


def pages(notebooks):
    """{path of a page in the course: path on the site}: ``notebooks`` (paths in the course), then the pages of Markdown."""
    found = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    names = [*notebooks, *(path.relative_to(ROOT).as_posix() for path in found)]
    return {name: name for name in names} | {HOME: "index.md", "README.md": "index.md"}


def relinked(text, page, known, copied):
    """Markdown ``text`` of ``page`` as it stands on the site: links to pages stay there, pictures go with it, other files are GitHub's.

    known: see ``pages``; copied: a set to which the pictures' paths are added. While the course has no address, a link to another file is only its text.
    """
    folder = posixpath.dirname(known[page]) or "."

    def link(found):
        picture, words, address = found.groups()
        words = LINK.sub(link, words)
        file, _, anchor = address.partition("#")
        if re.match(r"[a-z]+:", address) or not file:
            return f"{picture}[{words}]({address})" if badges.UNSET not in address else words
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(file)))
        if path in known:
            there = posixpath.relpath(known[path], folder)
        elif picture:
            copied.add(path)
            there = posixpath.relpath(path, folder)
        elif badges.REPOSITORY == badges.UNSET:
            return words
        else:
            there = f"https://github.com/{badges.REPOSITORY}/blob/{badges.BRANCH}/{path}"
        return f"{picture}[{words}]({there}{'#' * bool(anchor)}{anchor})"

    text = re.sub(r"^\|.*$", lambda line: UNIT.sub("\N{NO-BREAK SPACE}", line[0]), text, flags=re.M)
    return LINK.sub(link, text)


def dressed(notebook, page, when):
    """``notebook`` as a page of the site: no badges, set-up folded, recorded runs marked."""
    first, last = notebook["cells"][0], notebook["cells"][-1]
    for cell in (first, last):
        cell["source"] = re.sub(rf"\s*{badges.START}(.*?){badges.END}\s*", _pair, "".join(cell["source"]), flags=re.S).strip()
    heading, _, rest = first["source"].partition("\n")
    name, exercises = page.removeprefix("notebooks/"), "/exercises/" in page
    ways = {"Open in Colab": badges.COLAB, "Open in Kaggle": badges.KAGGLE}
    address = " · ".join(f"[{words}]({url.format(repository=badges.REPOSITORY, branch=badges.BRANCH, name=name)})" for words, url in ways.items())
    told = f"Executed on {day(when)}." if when else "Hints and solutions unfold." if exercises else "Not executed: this page has no outputs."
    first["source"] = f"{heading}\n\n{told}{f' {address}' if badges.REPOSITORY != badges.UNSET else ''}\n\n{rest.strip()}"
    notebook["metadata"] = {"kernelspec": badges.METADATA["kernelspec"], "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    setup_cell = next((cell for cell in notebook["cells"] if PREPARE in "".join(cell["source"])), None)
    for cell in notebook["cells"]:
        tags = cell["metadata"].setdefault("tags", [])
        if cell is setup_cell:
            tags.append("hide-cell")
        elif RECORDED.search(json.dumps(cell.get("outputs", ()), ensure_ascii=False)):
            tags.append("recorded")
    return notebook


def _pair(navigation):
    """Of the lines that make badges writes, what the site does not have by itself: from a notebook to its exercises, and back."""
    return "".join(f"\n\n{found}\n\n" for found in re.findall(r"\*\*(?:Exercises|Notebook):\*\* \[[^\]]*\]\([^)]*\)", navigation[1])) or "\n\n"


def first_page(text, notebooks, results):
    """The first page: what was measured where and when, and notebooks that its table does not name yet."""
    times = [time for time in map(started, notebooks.values()) if time]
    if times:
        span = dict.fromkeys((day(min(times)), day(max(times))))
        where = machine(results, min(times)) or ["no measurement: the ledger has no row of this run"]
        told = f"**This run:** executed on {' to '.join(span)}. Measured on:\n\n" + "\n".join(f"- {one}" for one in where)
    else:
        told = "**This run:** the notebooks were not executed; their pages have no outputs."
    text = text.replace("<!-- run -->", told)
    rows = [
        f"| [{name[13:15]}]({'../' + name}) | {title(book)} |"
        for name, book in notebooks.items()
        if re.match(r"notebooks/\d", name) and f"/{Path(name).name})" not in text
    ]
    return text.rstrip() + "".join(f"\n{row}" for row in rows) + "\n"


def title(notebook):
    return "".join(notebook["cells"][0]["source"]).splitlines()[0].removeprefix("# ")


def contents(names):
    """The table of contents for all pages but the first, in MyST's words. names: their paths on the site."""
    left = [name.rsplit(".", 1)[0] for name in dict.fromkeys(names) if name != "index.md"]
    chapters = {
        "Notebooks": [name for name in left if re.match(r"notebooks/\d", name)],
        "Exercises": [name for name in left if "/exercises/" in name],
    }
    for chapter, wanted in CHAPTERS.items():
        chapters[chapter] = [name for want in wanted for name in left if name in (want, f"docs/{want}")]
    placed = {name for names in chapters.values() for name in names}
    chapters[chapter] += [name for name in left if name not in placed]
    return "".join(f"\n```{{toctree}}\n:hidden:\n:caption: {chapter}\n\n" + "\n".join(names) + "\n```\n" for chapter, names in chapters.items() if names)


def stage(folder, results, notebooks):
    """Write the sources of the site into ``folder``. notebooks: {path in the course: the notebook as a dict}, executed or not."""
    known, copied = pages(notebooks), set()
    for page, target in known.items():
        if page == "README.md":  # the first page says the same
            continue
        if page in notebooks:
            shown = dressed(readable(notebooks[page]), page, started(notebooks[page]))
            for cell in shown["cells"]:
                if cell["cell_type"] == "markdown":
                    cell["source"] = relinked("".join(cell["source"]), page, known, copied)
            text = json.dumps(shown, ensure_ascii=False, indent=1) + "\n"
        else:
            text = (ROOT / page).read_text(encoding="utf-8")
            text = relinked(first_page(text, notebooks, results) if page == HOME else text, page, known, copied)
            text += contents(known.values()) * (page == HOME)
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        (folder / target).write_text(text, encoding="utf-8")
    for picture in copied:
        (folder / picture).parent.mkdir(parents=True, exist_ok=True)
        (folder / picture).write_bytes((ROOT / picture).read_bytes())


def build(source, site):
    """Let Sphinx build ``site`` from ``source``; its warnings are errors. Returns (whether it is content, what it said)."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-b",
        "html",
        "-W",
        "--keep-going",
        "-n",
        "-q",
        "-j",
        "auto",
        "-c",
        str(ROOT / "docs"),
        "-d",
        f"{source}/.doctrees",
    ]
    done = subprocess.run([*command, str(source), str(site)], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return done.returncode == 0, done.stderr.replace(f"{source}/", "")


class Read(HTMLParser):
    """What a page of the site is called at (``ids``), the pictures that it shows and the addresses that it names, each in order."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.pictures, self.addresses = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids.add(found.get("id"))
        if tag == "img":
            self.pictures.append((found.get("src"), (found.get("alt") or "").strip()))
        if tag in ("a", "img", "script", "link"):
            self.addresses.append(found.get("href") or found.get("src") or "")


def faults(site):
    """What is wrong with a built site, a sentence each: links that lead nowhere, pictures without alternative text, folders of this machine."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}
    found, read = [], {path.resolve(): Read(text) for path, text in texts.items()}
    private = [str(folder) for folder in (ROOT, Path.home(), setup.results_dir()) if len(str(folder)) > 1]
    for path, text in texts.items():
        page, one = path.relative_to(site), read[path.resolve()]
        for source, words in one.pictures:
            if not words or re.fullmatch(r"[\w./-]+\.(?:png|svg|jpg)", words):
                found.append(f"{page}: the picture {source} has no alternative text.")
        for address in one.addresses:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or address in ("", "#"):
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            if not there.exists():
                found.append(f"{page} links to {address}, which is not there.")
            elif parts.fragment and there in read and unquote(parts.fragment) not in read[there].ids:
                found.append(f"{page} links to {address}, and nothing is called so there.")
        found += [f"{page} names {folder}, a folder of this machine." for folder in private if re.search(rf"{re.escape(folder)}(?![\w-])", text)]
    return list(dict.fromkeys(found))


def make(site, results, notebooks):
    """Build ``site`` from ``notebooks`` ({path in the course: dict}); return what is wrong with it, sentences."""
    shutil.rmtree(site, ignore_errors=True)  # pages that are no longer made
    with tempfile.TemporaryDirectory(prefix="book-") as folder:
        stage(Path(folder), results, notebooks)
        good, said = build(folder, site)
    return ([] if good else [said.strip() or "Sphinx failed and said nothing."]) + (faults(site) if (site / "index.html").is_file() else [])


def main():
    """Execute what is missing and build the site; return the exit status."""
    try:
        results = setup.results_dir()
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    paths = sorted(ROOT.glob(NOTEBOOKS))
    if stale := [path.name for path in paths if not executed(path, results)]:
        print(f"{len(stale)} of {len(paths)} notebooks have changed, or were not executed yet.", flush=True)
        if status := run.main(stale):
            return status
        if stale := [path.name for path in paths if not executed(path, results)]:
            print(f"{', '.join(stale)} did not run to the end: see the files of that name in {results}.", file=sys.stderr)
            return 1
    notebooks = {path.relative_to(ROOT).as_posix(): executed(path, results) for path in paths}
    notebooks |= unexecuted(*NOT_RUN)
    site = results / "book"
    if wrong := make(site, results, notebooks):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    print(f"{len(list(site.rglob('*.html')))} pages: open {site / 'index.html'} in a browser.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Notebooks that were executed are kept: make book goes on from there.")
