"""Make a site to read from the executed notebooks and the pages of docs/: ``python -m tools.book``, or ``make book``.

Notebooks that were not executed since they changed are executed first. The site is ``book/index.html`` in the results folder; it needs
no server and no network. It is refused if a link in it leads nowhere, a picture has no alternative text, or a folder of this machine is named.
"""

import html
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
WIDGET, STATE = "application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"
TERMINAL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BAR = re.compile(r"^(.*?):?\s+\d+%\|(?:[^|]*\|)?\s*(\S+/\S+)\s\[([\d:]+)")  # what tqdm writes; as a widget without the bar, and with other spaces
CLOCK = re.compile(r"^(.*): ()((?:\d+:)?\d\d:\d\d)$")  # what a wait writes
UNIT = re.compile(r"(?<=\d) (?=(?:[mµn]?s|[kMGT]?B|GB/s)\b|%)")  # the space between a number and its unit
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


def readable(notebook):
    """Make the outputs of ``notebook`` readable on a page: progress as one line each, controls as what they showed, no folder of this machine."""
    models = notebook["metadata"].pop("widgets", {}).get(STATE, {}).get("state", {})
    for cell in notebook["cells"]:
        lines, kept = [], []
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if output["output_type"] == "stream" and output["name"] == "stderr":
                lines += ["".join(output["text"])]
            elif WIDGET in data:
                text, shown = controls(data[WIDGET]["model_id"], models)
                lines += [f"\n{text}\n"] if text else []
                kept += [{"output_type": "display_data", "metadata": {}, "data": {"text/html": shown}}] if shown else []
            else:
                if "text/html" in data:
                    table = re.sub(r"<style scoped>.*?</style>", "", "".join(data["text/html"]), flags=re.S)
                    data["text/html"] = UNIT.sub("&nbsp;", table)
                kept.append(output)
        if text := progress("".join(lines)):
            kept.insert(0, {"output_type": "stream", "name": "stderr", "text": text})
        if "outputs" in cell:
            cell["outputs"] = kept
        if words := [said for output in kept if (said := output.get("metadata", {}).get("image/png", {}).get("alt"))]:
            cell["metadata"]["mystnb"] = {"image": {"alt": " | ".join(words)}}  # of a cell; none shows two pictures
    return json.loads(without_folders(json.dumps(notebook, ensure_ascii=False)))


def progress(text):
    """What a terminal would show at the end of ``text``, a bar as one line: "Loading weights: 39/39 in 00:01"."""
    lines = []  # (what, how far, seconds, the line)
    for line in TERMINAL.sub("", text).split("\n"):
        line = next((part.rstrip() for part in reversed(line.split("\r")) if part.strip()), "")
        if found := BAR.match(line) or CLOCK.match(line):
            what, done, clock = found.groups()
            seconds = sum(int(part) * 60**n for n, part in enumerate(reversed(clock.split(":"))))
            same = [n for n, one in enumerate(lines) if one[0] == what]
            line = f"{what}: {done} in {clock}" if done else f"{what}: {clock}"
            if same and lines[same[-1]][1] <= seconds:  # the same bar, further on
                lines[same[-1]] = (what, seconds, line)
            else:
                lines.append((what, seconds, line))
        elif line:
            lines.append((None, 0, line))
    return "\n".join(line for *_, line in lines)


def controls(name, models):
    """(progress as text, the rest as HTML) of the widget ``name`` as it was when the notebook ended; models: {name: its state}."""
    if name not in models:  # it was taken away again
        return "", ""
    rows = list(_shown(models[name], models))
    plain = "|".join(html.unescape(re.sub("<[^>]*>", "", value)) for _, value in rows).replace("\u2007", " ")  # tqdm's widgets have a space of their own
    if BAR.match(plain):  # a bar's words stand before and behind it
        return plain, ""
    table = "".join(f"<tr><th>{html.escape(label)}</th><td>{value}</td></tr>" for label, value in rows if label)
    table = f"<p>In a running notebook these are controls. They stood at:</p><table><tbody>{table}</tbody></table>" if table else ""
    return "", table + "".join(value for label, value in rows if not label)


def _shown(model, models):
    """(label, value as HTML) of each widget that ``model`` holds; a label is empty for words that stand alone."""
    state, kind = model["state"], model["model_name"]
    if "children" in state:
        for child in state["children"]:
            yield from _shown(models[child.removeprefix("IPY_MODEL_")], models)
    elif kind in ("HTMLModel", "HTMLMathModel"):
        yield state.get("description") or "", state.get("value") or ""
    elif "_options_labels" in state:
        labels, chosen = state["_options_labels"], state.get("index")
        yield state.get("description") or "choice", html.escape(labels[chosen] if isinstance(chosen, int) else "one of: " + "; ".join(labels))
    elif kind not in ("ButtonModel", "FloatProgressModel", "IntProgressModel"):
        yield state.get("description") or "", html.escape(str(state.get("value", "")))


def without_folders(text):
    """``text`` without the folders of this machine: what lies in the course is named from there."""
    known = {str(setup.results_dir()): "results", str(ROOT): ".", str(Path.home()): "~", tempfile.gettempdir(): "/tmp"}
    for folder, name in sorted(known.items(), key=lambda item: -len(item[0])):
        text = re.sub(rf"{re.escape(folder)}(?![\w-])", name, text) if len(folder) > 1 else text
    return text


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
    sys.exit(main())
