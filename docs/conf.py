"""Sphinx' settings for the site that ``make book`` builds (tools/book.py writes its sources), and the links from words to the glossary."""

import re

from docutils import nodes

from tools import ROOT, badges

project = "Quantised LLM inference, hands on"
copyright = "the authors of the course. Text and pictures: CC BY 4.0, code: MIT"
language = "en_GB"
html_title = project
extensions = ["myst_nb"]
exclude_patterns = [".doctrees"]
suppress_warnings = ["misc.highlighting_failure"]  # lines that begin with ! or %% are no Python
nb_execution_mode = "off"  # what is shown was executed by make run
nb_merge_streams = True
nb_ipywidgets_js = {}  # tools/book.py writes controls as text: they need a kernel
myst_heading_anchors = 6  # as GitHub names them
html_theme = "sphinx_book_theme"
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_theme_options = {
    "home_page_in_toc": True,
    "footer_content_items": ["copyright"],
    "use_fullscreen_button": False,
    "use_download_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
if badges.REPOSITORY != badges.UNSET:
    html_theme_options |= {
        "repository_url": f"https://github.com/{badges.REPOSITORY}",
        "repository_branch": badges.BRANCH,
        "use_repository_button": True,
        "launch_buttons": {"colab_url": "https://colab.research.google.com"},
    }
GLOSSARY = "docs/glossary"
NOT_IN = (nodes.reference, nodes.title, nodes.literal, nodes.FixedTextElement, nodes.raw, nodes.Invisible, nodes.image)


def terms(text):
    """{form of a word: (its anchor, what it means)} of the glossary's Markdown."""
    found = {}
    for forms, meaning in re.findall(r"^- \*\*(.+?)\*\*: (.+)$", text, flags=re.M):
        forms = forms.split(", ")
        for form in forms:
            found[form] = (f"term-{nodes.make_id(forms[0])}", re.sub(r"[*`]", "", meaning))
    return found


TERMS = terms((ROOT / "docs" / "glossary.md").read_text(encoding="utf-8"))
LOWER = {form.lower(): form for form in TERMS if form.upper() != form}  # TTFT is not ttft, but a prefill may begin a sentence
WORD = re.compile(
    r"(?<![\w-])(?:"
    + "|".join(f"{re.escape(f)}" if f.upper() == f else f"(?i:{re.escape(f)})" for f in sorted(TERMS, key=len, reverse=True))
    + r")(?:s?)(?![\w-])"
)


def term_of(word):
    """The glossary's form of ``word``, which may be a plural."""
    for form in (word, word.removesuffix("s")):
        if form in TERMS or form.lower() in LOWER:
            return form if form in TERMS else LOWER[form.lower()]


def link_terms(app, doctree, page):
    """Lead the first use of each word on ``page`` to the glossary; give the glossary's entries their anchors."""
    if page == GLOSSARY:
        for item in doctree.findall(nodes.list_item):
            strong = next(iter(item.findall(nodes.strong)), None)
            if strong is not None:
                item["ids"].append(TERMS[strong.astext().split(", ")[0]][0])
        return
    glossary, seen = app.builder.get_relative_uri(page, GLOSSARY), set()
    for text in list(doctree.findall(nodes.Text)):
        above, node = [], text.parent
        while node is not None:
            above, node = [*above, node], node.parent
        if any(isinstance(one, NOT_IN) for one in above):
            continue
        parts, end = [], 0
        for found in WORD.finditer(text):
            anchor, meaning = TERMS[term_of(found.group())]
            if anchor not in seen:
                seen.add(anchor)
                parts += [nodes.Text(text[end : found.start()])] * (found.start() > end)
                parts.append(nodes.reference("", found.group(), internal=True, refuri=f"{glossary}#{anchor}", reftitle=meaning, classes=["term"]))
                end = found.end()
        if parts:
            text.parent.replace(text, parts + [nodes.Text(text[end:])] * (end < len(text)))


def setup(app):
    app.connect("doctree-resolved", link_terms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
