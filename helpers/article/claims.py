"""Which of the article's claims hold? Each verdict is computed from ledger rows, or from the model's shape where nothing is to be measured.

The claims stand in ``data/article.json``; each has a function of the same name here, which returns (verdict, why), or None if the rows
that it needs are missing. First used in notebook 09.
"""

from dataclasses import dataclass
from statistics import median

from helpers import benchmark, ledger, limits, plots
from helpers.article import ARTICLE, article_rows, breakdown, compare, published
from helpers.models.catalogue import LLAMA_2
from helpers.timing import iqr, seconds

HOLDS, OTHERWISE, NOT, UNKNOWN = "holds", "holds for another reason", "does not hold", "can't be told on this hardware"
NOISE = 5  # per cent: a smaller change counts as none; where the warm calls of a step differ by more, that counts
T4 = "NVIDIA T4 (free Colab, Kaggle)"


@dataclass(frozen=True)
class Evidence:
    """What one machine says. name: for the table. steps: {step's key as text: ledger row}, rounds pooled. quality: rows of notebook 08."""

    name: str
    steps: dict
    quality: dict


@dataclass(frozen=True)
class Verdict:
    """claim: the article's, in our words. verdict: one of the four. why: the measurement in words. source: whose measurement it is."""

    claim: str
    verdict: str
    why: str
    source: str


def own(rows, quality):
    """Return the reader's Evidence: the newest row's tier and device, and there the benchmark's newest run of all four steps, else notebooks 01 to 04."""
    if not rows:
        return Evidence("yours", {}, {})
    newest = next((row for row in reversed(rows) if row["step"]), rows[-1])  # one of the four, not another model of the reader's
    here = [row for row in rows if (row["tier"], row["device"]) == (newest["tier"], newest["device"])]
    steps = {str(number): row for number, row in ledger.latest(rows, newest["tier"], newest["device"]).items()}
    for run in dict.fromkeys(row["run"] for row in here if "run" in row):  # oldest first
        found = benchmark.by_step([row for row in here if row.get("run") == run])
        if all(found.get(str(number), {}).get("step") == number for number in (1, 2, 3, 4)):  # a size has taken no step's place
            steps = found
    return Evidence(f"yours: {plots.source(newest)}", steps, {str(key): row for key, row in quality.items() if row["tier"] == newest["tier"]})


def recorded(rows, quality):
    """Return the Evidence of one recorded run (rows of ledger.recorded_rows): its benchmark rows, or the rows of its notebooks."""
    runs = [row for row in rows if "run" in row]
    steps = benchmark.by_step(runs) if runs else {str(row["step"]): row for row in rows}
    return Evidence(plots.where(rows[-1]), steps, {str(key): row for key, row in quality.items()})


def check(sources):
    """Return a Verdict for each claim, from the first of ``sources`` (list of Evidence) that can tell it, else from the first that has an opinion."""
    verdicts = []
    for name, claim in ARTICLE["statements"].items():
        opinions = [(found, source.name) for source in sources if (found := globals()[name](source))]
        told = [opinion for opinion in opinions if opinion[0][0] != UNKNOWN] or opinions
        (verdict, why), source = told[0] if told else ((UNKNOWN, "the steps that it takes were not measured"), "-")
        verdicts.append(Verdict(claim, verdict, why, "computed" if name in COMPUTED else source))
    return verdicts


def table(verdicts):
    """Return ``verdicts`` as a table (pandas.DataFrame), one line a claim."""
    import pandas as pd

    lines = [{"the article says": v.claim, "verdict": v.verdict, "because": v.why, "measured by": v.source} for v in verdicts]
    return pd.DataFrame(lines).set_index("the article says")


def cpu_saving(_):
    before, after = (article_rows()[n]["cpu_total_s"] for n in (1, 2))
    stated = next(-c["stated"] for c in ARTICLE["claims"] if c["unit"] == "s")
    verdict = HOLDS if abs(before - after - stated) < 0.005 else NOT
    return verdict, f"its own table gives {before:.2f} - {after:.2f} = {before - after:.2f} s, and it says {stated:.2f} s"


def eight_to_bf16(found):
    return _faster(found, "1", "2")


def bf16_to_gptq(found):
    answer, fp16 = _faster(found, "2", "3"), _changes(found, "fp16", "3")
    if answer and answer[0] == HOLDS and fp16 and fp16[1] > -fp16[2]:  # a T4 emulates bfloat16
        return OTHERWISE, f"{answer[1]}; against float16 {_percent(fp16[1])}: bfloat16 itself is slow here"
    return answer


def eight_to_13b(found):
    first, larger = _changes(found, "1", "4"), _changes(found, "3", "4")
    if not first or not larger:
        return None
    cold, said = first[0], f"first call {_percent(first[0])}, warm call {_percent(first[1])}"
    if cold > -first[2]:
        return NOT, said
    parts = [(what, after - before) for what, before, after in breakdown.changes_of(found.steps) if after is not None]
    savings = sorted((p for p in parts if p[1] < 0), key=lambda p: p[1])
    most = "; most of it: " + ", ".join(f"{what} ({seconds(-value)})" for what, value in savings[:2]) if savings else ""
    if larger[1] < -larger[2]:
        return HOLDS, f"{said}{most}"
    return OTHERWISE, f"{said}{most}; the larger model by itself: {_percent(larger[1])} for a warm call"


def thirteen_faster_than_seven(found):
    both = [found.steps.get(key) for key in ("3", "4")]
    if None in both or not all(row.get("tpot_s") for row in both):
        return None
    time, size = both[1]["tpot_s"] / both[0]["tpot_s"], both[1]["weight_bytes"] / both[0]["weight_bytes"]
    said = f"a token of the larger model takes {time:.2f} times as long, with {size:.2f} times the bytes"
    if abs(100 * time - 100) < NOISE:
        return UNKNOWN, f"{said}: the models are too small for their size to show"
    if time < 1:
        return HOLDS, said
    if both[1]["wall_s"] < both[0]["wall_s"]:
        return OTHERWISE, f"{said}; its first call is faster all the same: that is start-up"
    return NOT, f"{said}: decoding cannot have been faster, so the article saw start-up"


def twice_the_parameters(_):
    ratio = LLAMA_2["13B"].parameters / LLAMA_2["7B"].parameters
    return HOLDS if 1.8 < ratio < 2.2 else NOT, f"{LLAMA_2['13B'].parameters:,} / {LLAMA_2['7B'].parameters:,} = {ratio:.2f}"


def better_completion(found):
    first, last = (found.quality.get(key) for key in ("1", "4"))
    if not first or not last or not first["perplexity"] or not last["perplexity"] or last["tier"] == "synthetic" or first["protocol"] != last["protocol"]:
        return None
    said = f"perplexity {first['perplexity']:.3f} ({first['title']}) and {last['perplexity']:.3f} ({last['title']}) over {last['tokens']:,} tokens"
    if abs(compare.change(first["perplexity"], last["perplexity"])) < 1:
        return UNKNOWN, f"{said}: less than 1 % apart, which can be chance"
    return (HOLDS if last["perplexity"] < first["perplexity"] else NOT), f"{said}; 15 tokens read by eye could not show it"


def gap_is_memory_work(found):
    row = found.steps.get("1")
    if not row or not row.get("warm"):
        return None
    cold = 1 - row["cpu_total_s"] / row["wall_s"]
    warm = sorted(1 - (call["user"] + call["sys"]) / call["wall"] for call in row["warm"])[len(row["warm"]) // 2]
    said = f"the processor is idle for {100 * max(cold, 0):.0f} % of the first call and {100 * max(warm, 0):.0f} % of a warm one"
    if cold < 0.1:
        return UNKNOWN, f"{said}: there is no gap to explain"
    if warm < cold / 2:
        return NOT, f"{said}, which moves the same weights: the gap was waiting at start-up"
    return OTHERWISE, f"{said}: it waits for the device at every call, which is no work of its own"


def bf16_changes_the_type_only(found):
    row = found.steps.get("2")
    if not row:
        return None
    bits = 8 * row["weight_bytes_loaded"] / row["parameters"]
    return (HOLDS if bits == 16 else NOT), f"the loaded model has {bits:g} bits for each parameter: no room for a scale"


def no_room_in_32_bits(_):
    need, room = 4 * LLAMA_2["7B"].parameters, limits.machines()[T4]["memory"] * 1e9
    return (HOLDS if need > room else NOT), f"4 bytes x {LLAMA_2['7B'].parameters:,} = {need / 1e9:.1f} GB, and a T4 has {room / 1e9:.0f} GB"


def quantisation_saves_80_percent(found):
    rows = [found.steps.get(key) for key in ("1", "2", "3", "4")]
    if not all(row and row.get("tpot_s") for row in rows):
        return None
    eight, bf16, four, last = (row["tpot_s"] for row in rows)
    best = min(bf16, found.steps.get("fp16", rows[1])["tpot_s"])  # a T4 emulates bfloat16: that is not what quantising saves
    said = (
        f"time a token against the faster 16-bit type: 8-bit {_percent(compare.change(best, eight))}, 4-bit {_percent(compare.change(best, four))};"
        f" step 1 to step 4 {_percent(compare.change(eight, last))}"
    )
    if compare.change(best, four) < -80 + NOISE:
        return HOLDS, said
    return (OTHERWISE if compare.change(eight, last) < -80 + NOISE else NOT), f"{said}: what it saves depends on the kernel it is compared with"


def two_3090s(_):
    _, turns, divided, ada, *_ = published.advice_machines()
    rows = published.advice().values()
    speeds = [min(row[name].floor_tokens_per_s / row[ada].floor_tokens_per_s for row in rows if row[name] and row[ada]) for name in (turns, divided)]
    more = sum(bool(row[turns] and not row[ada]) for row in rows)
    said = f"layers in turn: {speeds[0]:.2f} times the speed of one 4090 at best, layers divided: {speeds[1]:.2f} times; {more} more Llama-2 models fit"
    return (HOLDS if speeds[0] > 1 else OTHERWISE if more else NOT), f"{said}: memory always, bandwidth only if the layers are divided"


COMPUTED = ("cpu_saving", "twice_the_parameters", "no_room_in_32_bits", "two_3090s")


def _changes(found, before, after):
    """(change of the first call, change of the warm call, what counts as noise) from one step to another, in per cent; None if one is missing."""
    rows = [found.steps.get(key) for key in (before, after)]
    if None in rows or not all(row.get("warm_wall_s") for row in rows):
        return None
    return *(compare.change(rows[0][what], rows[1][what]) for what in ("wall_s", "warm_wall_s")), max(NOISE, *map(_spread, rows))


def _spread(row):
    """Interquartile range of the warm calls' wall times in per cent of their median; 0 with fewer than two."""
    walls = [call["wall"] for call in row["warm"]]
    return 100 * (iqr(walls) or 0) / median(walls)


def _faster(found, before, after):
    """Verdict on "``after`` takes less wall time than ``before``", both first calls: it must show in warm calls too."""
    both = _changes(found, before, after)
    if not both:
        return None
    cold, warm, noise = both
    said = f"first call {_percent(cold)}, warm call {_percent(warm)}" + (f" (calls differ by {noise:.0f} %)" if noise > NOISE else "")
    if cold > -noise:
        return (NOT if cold > 0 or noise == NOISE else UNKNOWN), said
    return (HOLDS, said) if warm < -noise else (OTHERWISE, f"{said}: it is start-up")


def _percent(value):
    return f"{value:+.0f} %"
