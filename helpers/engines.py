"""How fast is the same model in another engine? Timed by the definitions of helpers.timing, it stands beside the steps."""

import time

from helpers import bandwidth, ledger, plots, tiers
from helpers.article import NEW_TOKENS, PROMPT
from helpers.errors import TokenCountError
from helpers.timing import REPEATS, WARMUPS, Call, Timing, cpu_times, peak_rss
from helpers.words import seconds

COLOURS = {"transformers": "#0072b2", "llama.cpp": "#d55e00", "onnxruntime": "#009e73", "2024 stack": "#cc79a7"}  # Okabe and Ito's palette
HATCHES = {"transformers": "", "llama.cpp": "///", "onnxruntime": "...", "2024 stack": "xxx"}


def answer_once(answer, new_tokens=NEW_TOKENS):
    """Time one answer and return (Call, new token ids). TTFT ends when the first token has arrived, TPOT is the mean time between later ones.

    answer: a function of (number of new tokens, arrived) that decodes greedily, calls ``arrived`` when a new token is there, and
    returns the new tokens' ids (list of int). Raises TokenCountError unless there are exactly ``new_tokens``.
    """
    first = []

    def arrived(text=""):
        if not first:
            first.append(time.perf_counter())

    user, system = cpu_times()
    start = time.perf_counter()
    new = answer(new_tokens, arrived)
    end = time.perf_counter()
    user_end, system_end = cpu_times()
    if len(new) != new_tokens or not first:
        raise TokenCountError(f"The engine returned {len(new)} new tokens instead of {new_tokens}: the timing would be wrong.")
    return Call(user_end - user, system_end - system, end - start, first[0] - start, new_tokens), new


def measure(answer, ids, decode, prompt=PROMPT, new_tokens=NEW_TOKENS, warmups=WARMUPS, repeats=REPEATS):
    """Measure an engine as ``timing.measure`` measures ``generate``: one cold call, then warm-ups, then warm calls. Return a Timing.

    answer: see ``answer_once``. ids: the prompt's token ids, prompt: its text. decode: turns token ids into text.
    """
    from tqdm.auto import trange

    cold, new = answer_once(answer, new_tokens)
    calls = [answer_once(answer, new_tokens)[0] for _ in trange(warmups + repeats, desc="warm-ups and repeats")]
    return Timing(cold, calls[warmups:], prompt, len(ids), new_tokens, decode(new), peak_rss=peak_rss(), token_ids=new)


def make_row(engine, name, timing, like, *, format, weight_bytes, read_bytes, packages, kernel="", dtype="", checkpoint="", device=None, **other):
    """Return the ledger row (see ledger.make_row) of ``timing`` in another engine.

    engine: a key of COLOURS. name: of the format in tables, e.g. "Q4_0". like: the Step whose model it is. weight_bytes: of the file or
    tensors; read_bytes: what one decoded token reads of them. packages: names whose versions belong to the row. device: in words, by default
    this CPU. other: more keys, e.g. floor_tpot_s.
    """
    return ledger.measured(timing, packages) | {
        "engine": engine,
        "step": 0,
        "variant": f"{engine} {name}",
        "title": f"{like.title.split()[0]} {name} ({engine})",
        "tier": like.tier,
        "device": device or tiers.device_name("cpu"),
        "checkpoint": checkpoint,
        "format": format,
        "dtype": dtype,
        "layer_class": kernel,
        "note": "",
        "prediction_wall_s": None,
        "parameters": like.shape.parameters,
        "weight_bytes": weight_bytes,
        "read_bytes": read_bytes,
    } | other


def beside(rows, like):
    """Return the newest row of each engine, title and device among ``rows`` with the model, tier, prompt and number of tokens of the row ``like``.

    rows: as ``ledger.read(engine=None)`` returns them; the benchmark's are left out. The slowest comes first.
    """

    def what(row):
        return row["title"].split()[0], row["tier"], row["prompt"], row["new_tokens"], row.get("batch", 1)

    newest = {
        (row.get("engine", "transformers"), row["title"], row["device"]): row
        for row in rows
        if what(row) == what(like) and "run" not in row and row.get("tpot_s")
    }
    return sorted(newest.values(), key=lambda row: -row["tpot_s"])


def with_floor(rows):
    """Return ``rows`` with the key floor_tpot_s: seconds that reading a token's bytes takes on this CPU, None for rows of another device.

    The bandwidth is measured now, once for each row, over as many bytes as the row reads: a small model is read from the cache. What can be
    read from a larger set of bytes can be read from a smaller one too, so the best of those counts.
    """
    here = [row for row in rows if row["device"] == tiers.device_name("cpu")]
    speeds = [(min(row["read_bytes"], bandwidth.LARGEST), bandwidth.measure("cpu", row["read_bytes"])) for row in here]

    def floor(row):
        return row["read_bytes"] / max(speed for size, speed in speeds if size >= min(row["read_bytes"], bandwidth.LARGEST))

    return [row | {"floor_tpot_s": floor(row) if row in here else None} for row in rows]


def table(rows):
    """Return a table (pandas.DataFrame) of ``rows``; floor as ``with_floor`` measured it."""
    import pandas as pd

    lines = [
        {
            "model": row["title"],
            "engine": row.get("engine", "transformers"),
            "first call": seconds(row["wall_s"]),
            "warm call": seconds(row["warm_wall_s"]),
            "TTFT": seconds(row["warm_ttft_s"]),
            "TPOT": seconds(row["tpot_s"]),
            "tokens/s": f"{row['decode_tokens_per_s']:,.1f}",
            "weights": f"{row['weight_bytes'] / 1e6:,.1f} MB",
            "floor": seconds(row.get("floor_tpot_s")),
            "TPOT / floor": f"{row['tpot_s'] / row['floor_tpot_s']:.1f}" if row.get("floor_tpot_s") else "-",
        }
        for row in rows
    ]
    return pd.DataFrame(lines).set_index("model") if lines else pd.DataFrame()


def chart(rows, save_as=None):
    """Draw the time per output token of ``rows``, the floor (see ``with_floor``) as a black line; return what ``plots.show`` returns."""
    figure, axes = plots.figure("", "time per output token, ms", "", size=(8, 1.2 + 0.36 * len(rows)))
    highest, several, said = max((1000 * row["tpot_s"] for row in rows), default=1), len({row["device"] for row in rows}) > 1, []
    wide = highest > 20 * min((1000 * row["tpot_s"] for row in rows), default=1)
    for place, row in enumerate(rows):
        engine, value, floor = row.get("engine", "transformers"), 1000 * row["tpot_s"], row.get("floor_tpot_s")
        axes.barh(place, value, 0.7, color=COLOURS[engine], hatch=HATCHES[engine], edgecolor="white")
        axes.text(value * 1.05 if wide else value + highest / 100, place, seconds(row["tpot_s"]), va="center", fontsize=8)
        if floor:
            axes.plot([1000 * floor] * 2, [place - 0.35, place + 0.35], color="black", linewidth=2)
        said.append(f"{row['title']} {seconds(row['tpot_s'])}" + (f" (floor {seconds(floor)})" if floor else ""))
    axes.set_yticks(range(len(rows)), [row["title"] + (f"\n{row['device']}" if several else "") for row in rows], fontsize=8)
    if wide:
        axes.set_xscale("log")
        axes.set_xlabel("time per output token, ms (logarithmic)")
        axes.set_xlim(500 * min(row.get("floor_tpot_s") or row["tpot_s"] for row in rows), highest * 2)
    else:
        axes.set_xlim(0, highest * 1.15)
    where = plots.where(rows[0] | ({"device": "several devices"} if several else {})) if rows else "nothing measured yet"
    axes.set_title(where + ("\nblack line: the floor, reading the weights once" if any(row.get("floor_tpot_s") for row in rows) else ""), fontsize=10)
    return plots.show(figure, f"{where}. Time per output token: {'; '.join(said)}.", save_as)
