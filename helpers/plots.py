"""Draw what was measured. Every chart has the same facts as text: the sentence is printed below it and is its alternative text.

First used in notebook 00.
"""

import html
import io
from dataclasses import replace

from helpers import ledger
from helpers.errors import DiskError
from helpers.models import files
from helpers.models.catalogue import STEPS
from helpers.setup import results_dir
from helpers.timing import seconds

TIERS = {
    "embedded": "embedded stand-ins (not Llama-2)",
    "synthetic": "full-size shapes with random weights",
    "hub": "Llama-2 from the Hub",
    "laptop": "Qwen2.5, small real models (not Llama-2)",
    "own": "a checkpoint that was named",
}
COLOURS = {"CPU total": "#0072b2", "wall": "#e69f00"}  # Okabe and Ito's palette: distinct to colour-blind readers too
HATCHES = {"CPU total": "///", "wall": ""}
THREE_LINES = 330  # characters, in a notebook
KEYS = {"CPU total": "cpu_total_s", "wall": "wall_s"}


def source(row):
    """Where ``row`` was measured, for a title: the tier and the device of a ledger row, or the article's platform. First used in notebook 05."""
    return f"{TIERS[row['tier']]}, {row['device']}" if "tier" in row else "the article: Llama-2 on a T4, October 2023"


def where(row):
    """Tier and device of ``row`` for a title; of a recorded run with the date, so that it is never taken for the reader's own. First used in notebook 06."""
    return f"recorded on {row['date'][:10]}: {source(row)}" if row.get("recorded") else source(row)


def label(number, rows):
    """Name of step ``number`` in tables and charts of ``rows`` ({step: row}), e.g. "1: 7B 8-bit", or "1: small 8-bit". First used in notebook 04."""
    if "title" in rows.get(number, {}):
        return f"{number}: {rows[number]['title']}"
    tier = next((row["tier"] for row in rows.values() if "tier" in row), "hub")  # not measured yet, or the article's
    return f"{number}: {replace(STEPS[number], tier=tier, checkpoint=STEPS[number].embedded).title}"


def comparison_table(rows):
    """Return the cumulative table (pandas.DataFrame, one line a step) of ledger ``rows`` ({step: row}). First used in notebook 01."""
    import pandas as pd

    times = {"user": "user_s", "sys": "sys_s", "CPU total": "cpu_total_s", "wall": "wall_s", "warm wall": "warm_wall_s"}
    lines = {label(number, rows): {name: seconds(row.get(key)) for name, key in times.items()} for number, row in rows.items()}
    for number, row in rows.items():
        rate, size = row.get("decode_tokens_per_s"), row.get("weight_bytes")
        lines[label(number, rows)] |= {"tokens/s": "-" if rate is None else f"{rate:,.1f}", "weights": "-" if size is None else f"{size / 1e6:,.1f} MB"}
    return marked(pd.DataFrame.from_dict(lines, orient="index").rename_axis("step"), list(rows.values()))


def marked(table, rows):
    """``table``, one line a row of ``rows``, with the threads, and with the marks of rows that were disturbed (see ledger.mark) if any was."""
    if any(row.get("threads") for row in rows):
        table["threads"] = [row.get("threads") or "-" for row in rows]
    if any(marks := [ledger.mark(row, "wall_s", "warm_wall_s") for row in rows]):
        table["mark"] = marks
    return table


def times(row):
    """The times of ``row`` for a table, in words, the floor of a token beside them (see limits.with_floor), and at which GB/s it is one."""
    tpot, floor = row["tpot_s"], row.get("floor_tpot_s")
    found = {"first call": seconds(row["wall_s"]), "warm call": seconds(row["warm_wall_s"]), "TTFT": seconds(row["warm_ttft_s"]), "TPOT": seconds(tpot)}
    found |= {"tokens/s": "-" if tpot is None else f"{row['decode_tokens_per_s']:,.1f}", "floor": seconds(floor)}
    found["GB/s"] = f"{row.get('floor_bytes', row['read_bytes']) / floor / (row.get('tokens_per_pass') or 1) / 1e9:.1f}" if floor else "-"
    return found | {"TPOT / floor": f"{tpot / floor:.1f}" if tpot and floor else "-"}


def comparison_chart(rows, save_as=None):
    """Draw CPU total and wall of the cold call for each step in ``rows`` ({step: row}); returns what ``show`` returns. First used in notebook 01."""
    place = source(next(iter(rows.values()))) if rows else "nothing measured yet"
    chart, axes = figure(f"First call of generate, 15 new tokens\n{place}", "", "")
    bars(axes, rows)
    return show(chart, comparison_text(rows), save_as)


def comparison_text(rows):
    """The facts of ``comparison_chart`` as one sentence."""
    if not rows:
        return "nothing measured yet."
    marks = {n: f" ({mark})" if (mark := ledger.mark(r, "wall_s")) else "" for n, r in rows.items()}
    parts = [f"{label(n, rows)} took {seconds(r['wall_s'])} wall and {seconds(r['cpu_total_s'])} CPU total{marks[n]}" for n, r in rows.items()]
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
    """Turn ``figure`` into a PNG with ``text`` as its alternative text, print the text, return the image for the notebook to show.

    In a notebook a text of more than three lines is folded below the picture, and nothing is returned: both are shown already.
    save_as: name of a file in the results folder that it is written to as well.
    """
    from IPython import get_ipython
    from IPython.display import HTML, Image, display

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    image = Image(buffer.getvalue(), metadata={"alt": text})  # Colab's IPython 7 has no alt=
    try:
        if save_as:
            save(save_as, buffer.getvalue())
    except DiskError:
        display(image)
        raise
    if len(text) > THREE_LINES and get_ipython():
        return display(image, HTML(f"<details><summary>The chart in words</summary>{html.escape(text)}</details>"))
    print(text)
    return image


def save(name, content):
    """Write ``content`` (text, bytes, or what JSON can hold) as ``name`` in the results folder, whole or not at all; return its path. Raises DiskError.

    First used in notebook 05.
    """
    path = results_dir() / name
    if isinstance(content, (str, bytes)):
        files.write(path, content)
    else:
        files.write_json(path, content, indent=1)
    return path


def bars(axes, rows):
    """Two bars a step, CPU total and wall, each with its value; a dash where a step was not measured."""
    highest = max((row[key] for row in rows.values() for key in KEYS.values()), default=1)
    for side, (name, key) in zip((-0.2, 0.2), KEYS.items()):
        for place, number in enumerate(STEPS):
            value = rows[number][key] if number in rows else 0
            axes.bar(place + side, value, 0.38, color=COLOURS[name], hatch=HATCHES[name], edgecolor="white", label=name if place == 0 else None)
            text = seconds(value) if number in rows else "–"
            axes.text(place + side, value + highest / 60, text, ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(STEPS)), [f"{label(n, rows)}\n{ledger.mark(rows.get(n, {}), 'wall_s')}".rstrip() for n in STEPS])
    axes.set_ylabel("seconds")
    axes.set_ylim(0, highest * 1.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
