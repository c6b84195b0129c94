"""What did the article measure and claim? Its figures stand in ``data/article.json``; nothing here is the reader's own.

First used in notebook 05.
"""

import json

from helpers import ROOT

ARTICLE = json.loads((ROOT / "data" / "article.json").read_text(encoding="utf-8"))


def article_rows():
    """Return {step number: the article's figures}, with the keys that ledger rows use (user_s, sys_s, cpu_total_s, wall_s, …)."""
    return {row["step"]: row for row in ARTICLE["steps"]}


def change(before, after):
    """Relative change from ``before`` to ``after`` in percent; negative means less."""
    return 100 * (after - before) / before


def markdown(table):
    """A DataFrame as a Markdown table, columns aligned for reading in a terminal. First used in notebook 09."""
    cells = [[table.index.name, *table.columns], *([str(i), *map(str, r)] for i, r in zip(table.index, table.to_numpy()))]
    cells = [[c.replace("|", "\\|") for c in line] for line in cells]
    widths = [max(len(line[k]) for line in cells) for k in range(len(cells[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths)) + " |" for line in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])
