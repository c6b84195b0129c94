"""Draw what was measured. Every chart has the same facts as text: the sentence is printed below it and is its alternative text."""

import io
from dataclasses import replace

from helpers.article import article_rows
from helpers.steps import STEPS
from helpers.words import seconds

TIERS = {
    "embedded": "embedded stand-ins (not Llama-2)",
    "synthetic": "full-size shapes with random weights",
    "hub": "Llama-2 from the Hub",
    "own": "a checkpoint of your own",
}
COLOURS = {"CPU total": "#0072b2", "wall": "#e69f00"}  # Okabe and Ito's palette: distinct to colour-blind readers too
HATCHES = {"CPU total": "///", "wall": ""}
MARKERS = {"bf16": "o", "int8": "s", "nf4": "^", "gptq": "D", "rtn": "X"}
KEYS = {"CPU total": "cpu_total_s", "wall": "wall_s"}


def source(row):
    """Where ``row`` was measured, for a title: the tier and the device of a ledger row, or the article's platform."""
    return f"{TIERS[row['tier']]}, {row['device']}" if "tier" in row else "the article: Llama-2 on a T4, October 2023"


def where(row):
    """Tier and device of ``row`` for a title; of a recorded run with the date, so that it is never taken for the reader's own."""
    return f"recorded on {row['date'][:10]}: {source(row)}" if row.get("recorded") else source(row)


def label(number, rows):
    """Name of step ``number`` in tables and charts of ``rows`` ({step: row}), e.g. "1: 7B 8-bit", or "1: small 8-bit"."""
    if "title" in rows.get(number, {}):
        return f"{number}: {rows[number]['title']}"
    tier = next((row["tier"] for row in rows.values() if "tier" in row), "hub")  # not measured yet, or the article's
    return f"{number}: {replace(STEPS[number], tier=tier, checkpoint=STEPS[number].embedded).title}"


def comparison_table(rows):
    """Return the cumulative table (pandas.DataFrame, one line a step) of ledger ``rows`` ({step: row})."""
    import pandas as pd

    lines = {
        label(number, rows): {
            "user": seconds(row["user_s"]),
            "sys": seconds(row["sys_s"]),
            "CPU total": seconds(row["cpu_total_s"]),
            "wall": seconds(row["wall_s"]),
            "warm wall": seconds(row.get("warm_wall_s")),
            "tokens/s": "-" if row.get("decode_tokens_per_s") is None else f"{row['decode_tokens_per_s']:,.1f}",
            "weights": "-" if row.get("weight_bytes") is None else f"{row['weight_bytes'] / 1e6:,.1f} MB",
        }
        for number, row in rows.items()
    }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("step")


def comparison_chart(rows, save_as=None):
    """Draw CPU total and wall of the cold call for each step in ``rows`` ({step: row}); steps not measured yet keep their place.

    The title names tier and device. save_as: a path for the PNG. Returns what a notebook shows, see ``show``.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.8), layout="constrained")
    axes = figure.subplots()
    _bars(axes, rows)
    where = source(next(iter(rows.values()))) if rows else "nothing measured yet"
    axes.set_title(f"First call of generate, 15 new tokens\n{where}", fontsize=10)
    return show(figure, comparison_text(rows), save_as)


def side_by_side_chart(rows, save_as=None):
    """Draw the article's figures (left) and ``rows`` ({step: row}, right), each on its own scale. Returns what ``show`` returns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, part in zip(figure.subplots(1, 2), (article_rows(), rows)):
        _bars(axes, part)
        where = source(next(iter(part.values()))) if part else "nothing measured yet"
        axes.set_title(where.replace(", ", "\n", 1), fontsize=10)
    figure.suptitle("First call of generate, 15 new tokens")
    text = f"Left, {comparison_text(article_rows())}\nRight, {comparison_text(rows)}"
    return show(figure, text, save_as)


def quality_chart(rows, save_as=None):
    """Draw perplexity against bytes (left) and against time a token (right), all formats and sizes; return what ``show`` returns.

    rows: {step key: row}, see helpers.quality. What was not measured is named as missing; fp16, the control, is left out.
    """
    from matplotlib.figure import Figure

    rows = {key: row for key, row in rows.items() if key != "fp16"}
    base = rows[2]
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    unit, name = (1e9, "GB") if base["weight_bytes"] > 1e9 else (1e6, "MB")
    said, gone = [], []
    for row in rows.values():
        colour, fill = ("#d55e00", "none") if row["model"] == "13B" else ("#0072b2", "full")
        style = {"marker": MARKERS[row["format"]], "color": colour, "fillstyle": fill, "linestyle": "", "markersize": 9}
        if row["missing"]:
            left.plot([], [], label=f"{row['title']}: missing", **style | {"marker": "$?$"})
            gone.append(row["title"])
            continue
        left.plot(row["weight_bytes"] / unit, row["perplexity"], label=row["title"], **style)
        if row["tpot_s"]:
            right.plot(1000 * row["tpot_s"], row["perplexity"], **style)
        time = f", {1000 * row['tpot_s']:.1f} ms" if row["tpot_s"] else ""
        said.append(f"{row['title']} {row['perplexity']:.3f}, {row['weight_bytes'] / unit:.1f} {name}{time}")
    for axes, label in ((left, f"weights, {name}"), (right, "ms a token")):
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("perplexity (our protocol)")
    figure.legend(loc="outside right center", frameon=False)
    figure.suptitle(f"Quality against bytes and time\n{where(base)}", fontsize=10)
    text = f"{where(base)}. Perplexity, bytes of the weights and time a token: {'; '.join(said)}. Missing: {', '.join(gone) or 'nothing'}."
    return show(figure, text, save_as)


def comparison_text(rows):
    """The facts of ``comparison_chart`` as one sentence."""
    if not rows:
        return "nothing measured yet."
    parts = [f"{label(n, rows)} took {seconds(r['wall_s'])} wall and {seconds(r['cpu_total_s'])} CPU total" for n, r in rows.items()]
    return f"{source(next(iter(rows.values())))}: " + "; ".join(parts) + "."


def figure(title, x, y, size=(8, 3.8)):
    """Return (figure, axes) of an empty chart in the course's style. title, x, y: what it shows and what its axes mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def show(figure, text, save_as=None):
    """Turn ``figure`` into a PNG with ``text`` as its alternative text, print the text, return the image for the notebook to show."""
    from IPython.display import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    if save_as:
        with open(save_as, "wb") as file:
            file.write(buffer.getvalue())
    print(text)
    return Image(buffer.getvalue(), metadata={"alt": text})  # Colab's IPython 7 has no alt=


def _bars(axes, rows):
    """Two bars a step, CPU total and wall, each with its value; a dash where a step was not measured."""
    highest = max((row[key] for row in rows.values() for key in KEYS.values()), default=1)
    for side, (name, key) in zip((-0.2, 0.2), KEYS.items()):
        for place, number in enumerate(STEPS):
            value = rows[number][key] if number in rows else 0
            axes.bar(place + side, value, 0.38, color=COLOURS[name], hatch=HATCHES[name], edgecolor="white", label=name if place == 0 else None)
            text = seconds(value) if number in rows else "–"
            axes.text(place + side, value + highest / 60, text, ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(STEPS)), [label(n, rows) for n in STEPS])
    axes.set_ylabel("seconds")
    axes.set_ylim(0, highest * 1.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
