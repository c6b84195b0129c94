"""What do the four steps show together? Relative changes as the article states them, conclusions in computed words, a report.

First used in notebook 05.
"""

from helpers import ledger
from helpers.article import ARTICLE, article_rows, change, markdown
from helpers.plots import comparison_table, label, source
from helpers.timing import seconds

QUANTITIES = {"cpu_total_s": "CPU total", "wall_s": "wall"}


def relative_changes(rows):
    """Return [(claim, change)], one for each change that the article states, computed from ``rows`` ({step: row}).

    claim is the entry of ``data/article.json``; change is in the claim's unit (% or s), None if one of its two steps is not in rows.
    """
    changes = []
    for claim in ARTICLE["claims"]:
        before, after = (rows.get(claim[end], {}).get(claim["quantity"]) for end in ("from", "to"))
        known = before is not None and after is not None
        changes.append((claim, None if not known else after - before if claim["unit"] == "s" else change(before, after)))
    return changes


def changes_table(rows, history=None):
    """Return a table (pandas.DataFrame): what the article says, what its own figures give, what ``rows`` ({step: row}) give.

    history: see ``conclusions``; a change that is too noisy to tell is marked "~ noisy".
    """
    import pandas as pd

    def shown(value, unit):
        return f"{value:+.2f} s" if unit == "s" else f"{value:+.0f} %"

    def ours(claim):
        ends = [history.get(claim[end]) for end in ("from", "to")]
        if not all(ends):
            return "not measured"
        change, key = ledger.difference(*ends, claim["quantity"]), claim["quantity"]
        value = change.percent if claim["unit"] == "%" else ledger.middle(ends[1], key) - ledger.middle(ends[0], key)
        return shown(value, claim["unit"]) + (" ~ noisy" if change.sign is None else "")

    history, lines = {number: [row] for number, row in rows.items()} | (history or {}), {}
    for claim, theirs in relative_changes(article_rows()):
        name = f"{QUANTITIES[claim['quantity']]}, step {claim['from']} to {claim['to']}" + (" (seconds)" if claim["unit"] == "s" else "")
        lines[name] = [shown(claim["stated"], claim["unit"]), shown(theirs, claim["unit"]), ours(claim)]
    return pd.DataFrame.from_dict(lines, orient="index", columns=["article says", "from its table", "yours"]).rename_axis("change")


def completions_table(rows):
    """Return a table (pandas.DataFrame) of the completions: the article's and those in ``rows`` ({step: row}).

    "yours" goes on with the prompt as it stands, as the article's do; what a chat model answers through its template stands beside it.
    """
    import pandas as pd

    theirs = article_rows()
    lines = {f"step {n}": {"the article": repr(theirs[n]["completion"]), "yours": repr(rows[n]["completion"]) if n in rows else "not measured"} for n in theirs}
    if any("answer" in row for row in rows.values()):
        for n in theirs:
            told = "not measured" if n not in rows else repr(rows[n]["answer"]) if "answer" in rows[n] else "no chat model"
            lines[f"step {n}"]["yours, through the chat template"] = told
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("step")


def conclusions(rows, history=None):
    """Return what ``rows`` ({step: ledger row}) show, as sentences; each follows from the figures, none is written in advance.

    history: {step: all its rows on that machine}, see ledger.history; comparisons are made with all of them, and say so where they differ too
    much. Without it, with ``rows`` alone.
    """
    history = {number: [row] for number, row in rows.items()} | (history or {})

    def differ(before, after, key, what):
        return ledger.difference(history[before], history[after], key).words(what)

    if not rows:
        return ["Nothing was measured yet: run notebooks 01 to 04 first."]
    missing = [str(n) for n in article_rows() if n not in rows]
    said = [f"Not measured yet: step {', '.join(missing)}. Run its notebook first."] if missing else []
    if 1 in rows and 4 in rows:
        theirs = ledger.Difference(change(*(article_rows()[n]["wall_s"] for n in (1, 4))))
        said.append(f"First call, step 1 to step 4: {differ(1, 4, 'wall_s', 'wall time')} here, {theirs.words('wall time')} in the article.")
    warm = {n: r for n, r in rows.items() if r.get("warm_wall_s") and r.get("tpot_s")}
    if warm:
        starts = {n: ledger.difference(history[n], history[n], "warm_wall_s", "wall_s") for n in warm}
        ratios = {n: 1 + start.percent / 100 for n, start in starts.items() if start.sign is not None}
        troubled = "; ".join(f"step {n}: {start.why}" for n, start in starts.items() if n not in ratios)
        if ratios:
            visible = "it measures start-up and decoding together" if max(starts[n].sign for n in ratios) > 0 else "no start-up can be seen here"
            names = f" (step {', '.join(map(str, ratios))}; too noisy to tell: {troubled})" if troubled else ""
            said.append(f"A first call took {min(ratios.values()):.1f} to {max(ratios.values()):.1f} times as long as a warm one{names}: {visible}.")
        else:
            said.append(f"How long a first call takes, held against a warm one, is too noisy to tell ({troubled}).")
    if 1 in warm and 4 in warm:
        said.append(f"Warm call, step 1 to step 4: {differ(1, 4, 'warm_wall_s', 'wall time')}.")
    if 3 in warm and 4 in warm:
        ratio = rows[4]["weight_bytes"] / rows[3]["weight_bytes"]
        said.append(f"Step 3 to step 4, a larger model, both GPTQ: {ratio:.2f} times the bytes, {differ(3, 4, 'tpot_s', 'time a token')}.")
    if len(warm) > 1:
        middle = {n: ledger.middle(history[n], "tpot_s") for n in warm}
        order = sorted(warm, key=middle.get)

        def end(before, after, one):
            if ledger.difference(history[before], history[after], "tpot_s").sign == 1:
                return f"step {label(one, rows)} ({seconds(middle[one])})"
            return f"step {label(before, rows)} or step {label(after, rows)}: {differ(before, after, 'tpot_s', 'time a token')}"

        said.append(f"The shortest time a token has {end(*order[:2], order[0])}, the longest {end(*order[-2:], order[-1])}.")
    if 2 in rows:
        said += [_against_bf16(rows, n) for n in (1, 3) if n in rows]
    tiers = {r["tier"] for r in rows.values()}
    if tiers & {"embedded", "laptop"}:
        size = max(r["parameters"] for r in rows.values()) / 1e6
        said.append(f"These models have at most {size:,.1f} million parameters: the figures show how the formats behave, not how fast Llama-2 is.")
    if "synthetic" in tiers:
        said.append("The weights are random: the times are real, the texts have no sense.")
    return said


def report(rows, history=None):
    """Return everything above as one Markdown text, with the place and the dates of the measurements. history: see ``conclusions``."""
    if not rows:
        return "Nothing was measured yet.\n"
    dates = sorted(r["date"] for r in rows.values())
    parts = [
        f"# The four steps ({source(next(iter(rows.values())))})",
        f"Measured {dates[0]} to {dates[-1]}. user, sys, CPU total and wall are of the first call of generate, as in the article.",
        markdown(comparison_table(rows)),
        f"## The article's changes\n\n{markdown(changes_table(rows, history))}",
        f"## Completions\n\n{markdown(completions_table(rows))}",
        "## What your figures show",
        "\n".join(f"- {sentence}" for sentence in conclusions(rows, history)),
    ]
    return "\n\n".join(parts) + "\n"


def _against_bf16(rows, number):
    """With which share of bf16's bytes step ``number`` runs, and whether it wrote the same text (where it is the same model)."""
    ours, base = rows[number], rows[2]
    share = f"Step {label(number, rows)} has {100 * ours['weight_bytes'] / base['weight_bytes']:.0f} % of the bytes of bf16"
    if "chat" in ours["checkpoint"].lower():
        return f"{share}; {ours['checkpoint']} is a chat model, so the texts can't be compared."
    if ours["tier"] not in ("embedded", "laptop", "hub"):
        return f"{share}."
    return f"{share} and writes {'the same' if ours['completion'] == base['completion'] else 'another'} text."
