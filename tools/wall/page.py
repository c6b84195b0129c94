"""A page of words, tables and pictures, as one HTML file and as Markdown: both are made of the same blocks, so neither says more than the other.

The HTML file needs no server and no network. Its pictures are SVG drawn in the page's own colour of text, so that light and dark are one picture.
"""

import html
import io
import re
from statistics import quantiles

from helpers import plots
from helpers.article import markdown

BLUE, RED = "#0072b2", "#d55e00"  # of Okabe and Ito's palette; 3 times as bright or as dark as either background
SIGNS = {  # what a mark means: its shape says so without colour
    "undisturbed": ("o", BLUE), "busy or noisy": ("x", RED), "falls": ("v", BLUE), "does not fall": ("^", RED), "can't tell": ("x", RED),
    "well predicted": ("o", BLUE), "far off": ("x", RED),
}  # fmt: skip
STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --page: #ffffff; --line: #767676; --link: #0b57a4 }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --page: #16181b; --line: #8c8c8c; --link: #8ab8ff } }
body { color: var(--text); background: var(--page); font: 1rem/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 0 1rem 3rem; overflow-wrap: anywhere }
a { color: var(--link) }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
svg { display: block; width: 100%; max-width: 40rem; height: auto; fill: currentColor; margin: 1rem 0 }
svg text { fill: currentColor }
.scroll { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--line); overflow-wrap: normal }
table { border-collapse: collapse; font-size: .9rem }
caption { text-align: left; padding: .4rem .6rem; font-weight: 600 }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-top: 1px solid var(--line); font-variant-numeric: tabular-nums }
td { white-space: nowrap }
tbody th { min-width: 9rem }
figure { margin: 0 }
@media print { .scroll { overflow: visible; border: 0 } }
"""


class Page:
    """Blocks in their order. ``html()`` and ``markdown()`` render them."""

    def __init__(self, title):
        self.title, self.blocks, self.pictures = title, [], 0

    def heading(self, text, level=2):
        self.blocks.append(("heading", text, level))

    def say(self, text):
        self.blocks.append(("text", text))

    def points(self, items):
        if items := list(items):
            self.blocks.append(("points", items))

    def table(self, caption, table):
        """table: a DataFrame whose index names its lines."""
        self.blocks.append(("table", caption, table))

    def picture(self, figure, text):
        """text: what the picture shows, its alternative text."""
        self.pictures += 1
        self.blocks.append(("picture", svg(figure, text, self.pictures), text))

    def markdown(self):
        """The page in words; < is written so that nobody's name is taken for a tag."""
        parts = [f"# {_plain(self.title)}"]
        for kind, *block in self.blocks:
            if kind == "heading":
                parts.append(f"{'#' * block[1]} {_plain(block[0])}")
            elif kind == "points":
                parts.append("\n".join(f"- {_plain(item)}" for item in block[0]))
            elif kind == "table":
                parts.append(f"{_plain(block[0])}:\n\n{_plain(markdown(block[1]))}")
            else:
                parts.append(_plain(block[-1]) if kind == "text" else f"(Picture in wall.html) {_plain(block[-1])}")
        return "\n\n".join(parts) + "\n"

    def html(self):
        """The page as one HTML document."""
        say, parts, links = html.escape, [], []
        for number, (kind, *block) in enumerate(self.blocks):
            if kind == "heading":
                parts.append(f'<h{block[1]} id="b{number}">{say(block[0])}</h{block[1]}>')
                links += [f'<li><a href="#b{number}">{say(block[0])}</a></li>'] if block[1] == 2 else []
            elif kind == "text":
                parts.append(f"<p>{say(block[0])}</p>")
            elif kind == "points":
                parts.append("<ul>" + "".join(f"<li>{say(item)}</li>" for item in block[0]) + "</ul>")
            elif kind == "table":
                parts.append(_table(block[0], block[1], f"b{number}"))
            else:
                parts.append(f"<figure>{block[0]}</figure>" if kind == "picture" else "")
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{say(self.title)}</title><style>{STYLE}</style></head>\n<body><header><h1>{say(self.title)}</h1>"
            f'<nav aria-label="On this page"><ul>{"".join(links)}</ul></nav></header>\n<main>\n' + "\n".join(parts) + "\n</main></body></html>\n"
        )


def _plain(text):
    return text.replace("<", "&lt;")


def _table(caption, table, id):
    """A table that scrolls by itself where the page is too narrow for it, also with the keyboard."""
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in (table.index.name, *table.columns))
    lines = [
        f'<tr><th scope="row">{html.escape(str(name))}</th>' + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in line) + "</tr>"
        for name, line in zip(table.index, table.to_numpy())
    ]
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{id}"><table><caption id="{id}">{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def many(count, what):
    """A number of things, e.g. "1 row", "2 rows"."""
    return f"{count} {what}{'s' * (count != 1)}"


def svg(figure, text, number):
    """``figure`` as an <svg> element with the alternative text ``text``; black becomes the page's colour. number: keeps its ids apart from others'."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "wall"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawn = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.S)
    drawn = drawn[drawn.index("<svg") :].replace("#000000", "currentColor")
    used = set(re.findall(r'(?:href="|url\()#([\w.-]+)', drawn))
    drawn = re.sub(r' id="([\w.-]+)"', lambda found: f' id="p{number}-{found[1]}"' if found[1] in used else "", drawn)
    drawn = re.sub(r'(href="|url\()#', rf"\1#p{number}-", drawn)
    head, _, rest = drawn.partition(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{html.escape(text)}">{rest}'


def strips(title, x, lines, ticks, said=None):
    """A chart (matplotlib Figure): one line a thing, one mark a machine, the median as a bar and the middle half as a box.

    lines: {label: [(value, key of SIGNS)]}, values above 0 on a logarithmic axis. ticks: what an axis value is called, a function.
    said: {label: the article's value}, a diamond.
    """
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure, axes = plots.figure(title.replace("$", r"\$"), x, "", size=(5, 1.5 + 0.5 * len(lines)))
    for place, (label, marks) in enumerate(lines.items()):
        size, above = (22, 0.9) if len(marks) < 60 else (8, 3)  # where marks cover each other, the median lies over them
        for sign, (shape, colour) in SIGNS.items():
            points = [(value, place + 0.5 * ((0.618 * n) % 1 - 0.5)) for n, (value, kind) in enumerate(marks) if kind == sign]
            edge = {} if shape == "x" else {"edgecolors": "black", "linewidths": 0.4}
            axes.scatter(*zip(*points), size, colour, marker=shape, label=sign, **edge) if points else None
        values = [value for value, _ in marks]
        if len(values) > 1:
            low, middle, high = quantiles(values, n=4, method="inclusive")
            axes.fill_betweenx([place - 0.32, place + 0.32], low, high, facecolor="none", edgecolor="black", linewidth=0.8, zorder=1)
            axes.plot([middle, middle], [place - 0.32, place + 0.32], color="black", linewidth=2.5, zorder=above)
        if theirs := (said or {}).get(label):
            axes.scatter([theirs], [place - 0.4], 34, "none", marker="D", edgecolors="black", label="the article")
    axes.set_yticks(range(len(lines)), [label.replace("$", r"\$") for label in lines], fontsize=9)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xscale("log")
    values = [value for marks in lines.values() for value, _ in marks] + [value for value in (said or {}).values() if value]
    axes.set_xlim(min(values) / 1.3, max(values) * 1.3)
    low, high = axes.get_xlim()
    shown = [value for power in range(-9, 10) for digit in ((1, 2, 5) if high / low < 200 else (1,)) if low <= (value := digit * 10.0**power) <= high]
    axes.set_xticks(shown or [values[0]])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: ticks(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color="#808080", alpha=0.4, linewidth=0.5)
    found = dict(zip(*reversed(axes.get_legend_handles_labels())))
    names = [name for name in (*SIGNS, "the article") if name in found]
    figure.legend([found[name] for name in names], names, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
