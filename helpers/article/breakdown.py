"""Where does the time go? Benchmark rows taken apart: first call and warm call, kinds of operation, and the change from step 1 to step 4.

First used in notebook 06.
"""

from typing import NamedTuple

from helpers import ledger, plots
from helpers.benchmark import by_step
from helpers.benchmark.job import KINDS
from helpers.plots import where
from helpers.timing import seconds

CHAIN = (  # (what changes, the step after it, which of its calls): one thing at a time from the article's step 1 to its step 4
    ("start-up of step 1", 1, "warm_wall_s"),
    ("without outlier decomposition", "int8-no-outliers", "warm_wall_s"),
    ("16-bit product in place of the 8-bit kernel", "fp16", "warm_wall_s"),
    ("bfloat16 in place of float16", 2, "warm_wall_s"),
    ("back to float16", "fp16 again", "warm_wall_s"),
    ("4 bits, plain kernel", "gptq-torch", "warm_wall_s"),
    ("4 bits, Triton kernel", "gptq-triton", "warm_wall_s"),
    ("4 bits, the kernel of step 3", 3, "warm_wall_s"),
    ("larger model", 4, "warm_wall_s"),
    ("start-up of step 4", 4, "wall_s"),
)
STYLES = {  # kind of operation: (colour, hatch)
    "matrix products": ("#0072b2", ""), "quantise and dequantise": ("#e69f00", "///"), "conversion and copies": ("#56b4e9", "\\\\\\"),
    "attention": ("#009e73", "xx"), "other operations": ("#cc79a7", ".."), "Python and launching": ("#bbbbbb", "--"),
}  # fmt: skip


def largest_recorded():
    """Return the benchmark's rows of the recorded run with the largest model."""
    recorded = [row for row in ledger.recorded_rows() if "run" in row]
    name = max(recorded, key=lambda row: row["parameters"])["recorded"]
    return [row for row in recorded if row["recorded"] == name]


def operations_chart(rows, save_as=None):
    """Draw the shares of the kinds of operation in one decode step, a bar for each step in ``rows``; return what ``plots.show`` returns."""
    measured = by_step(rows)
    if not measured:
        print("No step was measured with the article's prompt, so there is nothing to draw.")
        return None
    first = next(iter(measured.values()))
    title = f"One decode step by kind of operation (torch.profiler)\n{_two_lines(first)}"
    figure, axes = plots.figure(title, "share of the step, %", "", size=(9, 1.6 + 0.42 * len(measured)))
    texts = []
    for place, row in enumerate(measured.values()):
        total, left = sum(row["operations_s"].values()), 0
        for kind in KINDS:
            share = 100 * row["operations_s"][kind] / total
            colour, hatch = STYLES[kind]
            axes.barh(place, share, left=left, color=colour, hatch=hatch, edgecolor="white", label=kind if place == 0 else None)
            if share >= 8:
                axes.text(left + share / 2, place, f"{share:.0f}", ha="center", va="center", fontsize=8, bbox={"fc": "white", "ec": "none", "pad": 1})
            left += share
        texts.append(f"{row['title']}: " + ", ".join(f"{kind} {100 * row['operations_s'][kind] / total:.0f} %" for kind in KINDS))
    axes.set_yticks(range(len(measured)), [row["title"] for row in measured.values()])
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return plots.show(figure, f"{where(first)}. " + "; ".join(texts) + ".", save_as)


def history(rows):
    """Return all rows of each step (ledger.history) on the tier and device of ``rows``, those of the notebooks before and of earlier runs too."""
    return ledger.history(ledger.read(), rows[-1]["tier"], rows[-1]["device"]) if rows else {}


def against(before, after, key, after_key=None):
    """Return the ledger.Difference of two Timings, or of all rows of two steps. First used in notebook 06."""
    sides = (side if isinstance(side, list) else [ledger.measured(side)] for side in (before, after))
    return ledger.difference(*sides, key, after_key)


class Part(NamedTuple):
    """One bar of the waterfall: what changes, seconds before and after it, and ledger.Difference.sign. after is None where it was not measured."""

    what: str
    before: float
    after: float | None
    sign: int | None


def changes(found):
    """Return the Parts from the first call of step 1 to the first call of step 4.

    found: all rows of each step, see ledger.by_step; each level is the middle of its rows. Each part changes one thing and their differences
    add up to the whole. A step that was not measured here is in the next change. A kernel that step 3 itself has is no change and is left
    out. [] without steps 1 and 4.
    """
    if not {1, 4} <= set(found):
        return []
    newest = {key: rows[-1] for key, rows in found.items()}
    back = 3 in found and newest[3]["dtype"] == "float16"  # on a GPU: GPTQ computes in float16, not in step 2's bfloat16
    before, level, parts = (1, "wall_s"), ledger.middle(found[1], "wall_s"), []
    for what, key, call in CHAIN:
        if key == "fp16 again" and not back:
            continue
        key = "fp16" if key == "fp16 again" else key
        if str(key).startswith("gptq-") and {key, 3} <= set(found) and newest[key]["layer_class"] == newest[3]["layer_class"]:
            continue
        if key not in found:
            parts.append(Part(what, level, None, None))
            continue
        after = ledger.middle(found[key], call)
        parts.append(Part(what, level, after, ledger.difference(found[before[0]], found[key], before[1], call).sign))
        before, level = (key, call), after
    return parts


def waterfall_chart(rows, save_as=None):
    """Draw ``changes`` of all ``rows`` as a waterfall, from step 1's first call down to step 4's; return what ``plots.show`` returns.

    A bar that is not larger than its noise says so ("~ none"), and one that is too noisy to tell ("~ noisy"). None without the two steps.
    """
    found = ledger.by_step(rows)
    parts = changes(found)
    if not parts:
        print("Steps 1 and 4 are both needed for this chart.")
        return None
    first, last = (found[key][-1] | {"wall_s": ledger.middle(found[key], "wall_s")} for key in (1, 4))
    title = f"From {first['title']} to {last['title']}, first call of generate, {first['new_tokens']} new tokens\n{_two_lines(first)}"
    figure, axes = plots.figure(title, "seconds", "", size=(9, 1.2 + 0.38 * (len(parts) + 2)))
    highest = max(value for part in parts for value in (part.before, part.after or 0))
    bars = [(f"{first['title']}, first call", 0, first["wall_s"], "total"), *parts]
    bars.append((f"{last['title']}, first call", 0, last["wall_s"], "total"))
    texts = []
    for place, (what, before, after, sign) in enumerate(bars):
        if after is None:
            side = "right" if before > highest / 2 else "left"  # where there is room for the words
            axes.text(before, place, "  not measured here, in the next bar  ", ha=side, va="center", fontsize=8, style="italic")
            texts.append(f"{what}: not measured here, part of the next")
            continue
        less = after < before
        colour, hatch = ("#999999", "") if sign == "total" else ("#0072b2", "") if less else ("#e69f00", "///")
        axes.barh(place, after - before, left=before, color=colour, hatch=hatch, edgecolor="white", height=0.7)
        said = seconds(after) if sign == "total" else f"{'−' if less else '+'}{seconds(abs(after - before))}{ {0: ' ~ none', None: ' ~ noisy'}.get(sign, '') }"
        axes.text(max(before, after) + highest / 100, place, said, va="center", fontsize=8)
        texts.append(f"{what}: {said}")
    axes.set_yticks(range(len(bars)), [what for what, *_ in bars])
    axes.set_xlim(0, highest * 1.2)
    axes.invert_yaxis()
    return plots.show(figure, f"{where(first)}. " + "; ".join(texts) + ".", save_as)


def _two_lines(row):
    return where(row).replace(", ", "\n", 1)
