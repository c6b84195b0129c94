"""What did the article measure and claim? Its figures stand in ``data/article.json``; nothing here is the reader's own.

First used in notebook 05.
"""

import json

from helpers import ROOT

ARTICLE = json.loads((ROOT / "data" / "article.json").read_text(encoding="utf-8"))


def article_rows():
    """Return {step number: the article's figures}, with the keys that ledger rows use (user_s, sys_s, cpu_total_s, wall_s, …)."""
    return {row["step"]: row for row in ARTICLE["steps"]}
