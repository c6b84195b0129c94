"""Draw the README's picture, and say the same as a sentence; print what is said of a real model: ``python -m tools.picture``.

Source: ``data/recorded/cpu-2-cores-engines-llama-2/engines.jsonl``, Llama-2 7B's shapes with random weights on two CPU cores, as notebooks
11 and 12 measured them. A test compares the README's text with the sentence. ``sentence`` and ``table`` say what ``tools.real_model`` measured, once it is recorded: the
first stands in the README, the second in docs/recorded-runs.md.
"""

import io

from helpers import benchmark, ledger, quality
from helpers.models import files
from tools import ROOT

ROWS = ROOT / "data" / "recorded" / "cpu-2-cores-engines-llama-2" / "engines.jsonl"
REAL = ROOT / "data" / "recorded" / "cpu-2-cores-gemma"
FILE = ROOT / "docs" / "fewer_bits.png"
BITS = {16: ("bf16",), 8: ("int8", "Q8_0"), 4: ("gptq", "Q4_0", "Q4_K_M")}  # formats of the article's library, types of llama.cpp


def figures():
    """Return {bits: (GB, pieces of words a second as in the article, the same with llama.cpp's fastest type as its wheel has it, or None)}."""
    rows, found = ledger.read(ROWS, engine=None), {}
    for bits, (usual, *others) in BITS.items():
        (own,) = [row for row in rows if "engine" not in row and row["format"] == usual]
        speeds = [1 / row["tpot_s"] for row in rows if row["title"] in (f"7B {type} (llama.cpp)" for type in others)]
        found[bits] = own["weight_bytes"] / 1e9, 1 / own["tpot_s"], max(speeds, default=None)
    return found


def text():
    """The picture as a sentence: its alternative text."""
    (large, slow, _), (middle, usual_8, other_8), (small, usual_4, other_4) = figures().values()
    return (
        f"One language model, each of its numbers stored in 16, 8 or 4 bits, on two processor cores: its size is {large:.1f}, {middle:.1f} or"
        f" {small:.1f} GB; loaded as in the article it writes {slow:.1f}, {usual_8:.1f} or {usual_4:.1f} pieces of words a second, with"
        f" another program, llama.cpp, {other_8:.1f} in 8 bits and {other_4:.1f} in 4 bits"
    )


def real():
    """({step's key: row of quality}, {its key as text: row of speed}, llama.cpp's row) of the recorded run of the real model."""
    (engine,) = ledger.read(REAL / "engines.jsonl", engine=None)
    return quality.read(REAL / "quality.json"), benchmark.by_step(ledger.read(REAL / "ledger.jsonl")), engine


def sentence():
    """What the README says of the real model: the article's steps in its order; "" as long as no run is recorded."""
    if not REAL.is_dir():
        return ""
    found, rows, _ = real()
    parts = [
        f"{name} {found[n]['weight_bytes'] / 1e6:,.0f} MB, perplexity {found[n]['perplexity']:.1f}, {1 / rows[str(n)]['tpot_s']:.1f} pieces a second"
        for n, name in {1: "in 8 bits", 2: "in 16 bits", 3: "in 4 bits (GPTQ)"}.items()
    ]
    return f"A small real model, Gemma 3 270M, on two processor cores, in the formats of the article's first three steps, all computed in bfloat16: {'; '.join(parts)}."


def table():
    """The table of the real model in docs/recorded-runs.md: the article's steps in its order, then what the course adds; "" as long as no run is recorded."""
    if not REAL.is_dir():
        return ""
    found, rows, engine = real()
    names = {1: "step 1: 8-bit (bitsandbytes)", 2: "step 2: bf16, 16 bits", 3: "step 3: GPTQ, 4 bits", "nf4": "NF4, 4 bits (bitsandbytes)"}
    lines = ["| numbers stored in | size | perplexity | same next token as in 16 bits | pieces of words a second |", "|---|---|---|---|---|"]
    for key, name in names.items():
        row, tokens = found[key], 1 / rows[str(key)]["tpot_s"]
        lines.append(f"| {name} | {row['weight_bytes'] / 1e6:,.0f} MB | {row['perplexity']:.1f} | {row['same_top']:.0%} | {tokens:.1f} |")
    lines.append(f"| Q4_K_M (llama.cpp) | {engine['weight_bytes'] / 1e6:,.0f} MB | - | {engine['same_top']:.0%} | {1 / engine['tpot_s']:.1f} |")
    return "\n".join(lines)


def draw(path=FILE):
    """Draw the picture and save it as ``path``."""
    from matplotlib.figure import Figure

    found = figures()
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    size, speed = figure.subplots(1, 2)
    names = [f"{bits} bits" for bits in found]
    parts = size.bar(names, [row[0] for row in found.values()], 0.55, color="#0072b2")
    size.bar_label(parts, fmt="%.1f GB", padding=2)
    size.set_title("Fewer bits for each number:\nthe model is smaller …", fontsize=11, loc="left")
    for side, place, colour, hatch, name in (
        (-0.2, 1, "#0072b2", "", "with the library of the article"),
        (0.2, 2, "#e69f00", "//", "with another program, llama.cpp"),
    ):
        places = [x for x, row in enumerate(found.values()) if row[place]]
        parts = speed.bar(
            [x + side for x in places], [row[place] for row in found.values() if row[place]], 0.38, color=colour, hatch=hatch, edgecolor="white", label=name
        )
        speed.bar_label(parts, fmt="%.1f", padding=2)
    speed.set_xticks(range(len(names)), names)
    speed.set_title("… and faster. How much depends on the program\n(pieces of words written a second)", fontsize=11, loc="left")
    speed.legend(frameon=False, loc="upper left")
    for axes in (size, speed):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_yticks([])
        axes.margins(y=0.15)
    row = ledger.read(ROWS, engine=None)[0]
    where = row["device"].removeprefix("CPU (").removesuffix(")")
    figure.supxlabel(f"A model of Llama-2 7B's shape (random numbers), on {where}, no graphics card. Recorded on {row['date'][:10]}.", fontsize=8.5)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": None, "Description": text()})
    files.write(path, picture.getvalue())


if __name__ == "__main__":
    draw()
    print(f"{FILE.relative_to(ROOT)}: {text()}.\n\n{sentence()}\n\n{table()}")
