"""How fast is the same model in another engine? Timed by the definitions of ``timing``, it stands beside the steps.

First used in notebook 11.
"""

import sys
import time
from dataclasses import asdict, replace
from importlib import import_module

from helpers import ROOT, ledger, limits, machine, plots, process
from helpers.errors import TokenCountError
from helpers.models import choose
from helpers.timing import NEW_TOKENS, PROMPT, REPEATS, WARMUPS, Call, Timing, seconds, steadiest

COLOURS = {"transformers": "#0072b2", "llama.cpp": "#d55e00", "onnxruntime": "#009e73", "2024 stack": "#cc79a7"}  # Okabe and Ito's palette
HATCHES = {"transformers": "", "llama.cpp": "///", "onnxruntime": "...", "2024 stack": "xxx"}
LATE = 0.7  # of the engine's own time: where ours is shorter, the tokens lay ready before this program got a processor to take them
TRIES = 4  # of one answer that came late
ALONE = ("llama.cpp", "onnxruntime")  # engines that are timed in processes that do not hold torch


def answer_once(answer, new_tokens=NEW_TOKENS):
    """Time one answer and return (Call, new token ids); TTFT ends when the first token has arrived.

    answer: a function of (number of new tokens, arrived) that decodes greedily, calls ``arrived`` at each new token, and returns their ids (list
    of int); an engine that decodes in another thread returns (ids, seconds of decoding by its own clock), and an answer that came LATE is asked for
    again. Raises TokenCountError unless there are exactly ``new_tokens``.
    """
    for _ in range(TRIES):
        call, new, own = _answer(answer, new_tokens)
        if call.decode >= LATE * own:
            break
    return call, new


def _answer(answer, new_tokens):
    first = []

    def arrived(text=""):
        if not first:
            first.append(time.perf_counter())

    load = machine.Load()
    user, system = machine.cpu_times()
    start = time.perf_counter()
    new = answer(new_tokens, arrived)
    end = time.perf_counter()
    user_end, system_end = machine.cpu_times()
    load.stop()
    new, own = new if isinstance(new, tuple) else (new, 0.0)
    if len(new) != new_tokens or not first:
        raise TokenCountError(
            f"The engine returned {len(new)} new tokens instead of {new_tokens}: the timing would be wrong; take another prompt, or forbid the end of the text."
        )
    return Call(user_end - user, system_end - system, end - start, first[0] - start, new_tokens, load.others), new, own


def measure(answer, ids, decode, repeats=REPEATS, new_tokens=NEW_TOKENS):
    """Measure an engine as ``timing.measure`` measures ``generate``: one cold call, then warm-ups, then warm calls. Return a Timing.

    answer: see ``answer_once``. ids: PROMPT's token ids. decode: turns token ids into text.
    """
    from tqdm.auto import trange

    cold, new = answer_once(answer, new_tokens)
    load = machine.Load()
    calls = [answer_once(answer, new_tokens)[0] for _ in trange(WARMUPS + repeats, desc="warm-ups and repeats")]
    warm = steadiest(calls[WARMUPS:], lambda: [answer_once(answer, new_tokens)[0] for _ in range(repeats)])
    return Timing(cold, warm, PROMPT, len(ids), new_tokens, decode(new), peak_rss=machine.peak_rss(), token_ids=new, load=load.figures())


def work(library, load, threads, new_tokens=NEW_TOKENS):
    """Load an engine in this process, measure it, and return what ``apart`` reads, with JSON's types only.

    library: name of the engine's module, which is imported first: only what the process grows by after that counts as weights. load: a function
    that returns what ``measure`` wants, (answer, ids, decode).
    """
    import psutil

    import_module(library)
    before = psutil.Process().memory_info().rss
    engine = load()
    result = measure(*engine, new_tokens=new_tokens)  # which needs it no more, but its memory is looked at next
    more = {"resident_bytes": psutil.Process().memory_info().rss - before, "beside_torch": "torch" in sys.modules}
    return {"timing": asdict(replace(result, threads=threads)), "more": more}


def apart(function, job, need, decode=None):
    """Have ``function`` ("module.name") measure an engine in a process of its own; return (Timing, what else a row keeps).

    A process that does not hold PyTorch: its threads and an engine's would wait for each other. job: what ``function`` wants, JSON's types.
    need: bytes of the weights. decode: turns token ids into text, where the process cannot. More: resident_bytes, what loading and decoding
    added to the memory of the process; beside_torch, whether it held PyTorch after all. Raises NotEnoughMemoryError, and what the process raises.
    """
    choose.check_memory(need, "cpu")
    with machine.waiting("an engine is measured in a process of its own"):
        answer = process.call(function, job, "The process of the engine")
    timing = read(answer["timing"])
    return replace(timing, text=decode(timing.token_ids)) if decode else timing, answer["more"]


def read(parts):
    """The Timing of which ``parts`` is the dict (dataclasses.asdict) that came as JSON."""
    return Timing(**parts | {"cold": Call(**parts["cold"]), "warm": [Call(**call) for call in parts["warm"]]})


def make_row(engine, name, timing, like, packages=(), kernel="", **other):
    """Return the ledger row (see ledger.make_row) of ``timing`` in another engine. Raises ImpossibleFigureError, see ledger.held.

    engine: a key of COLOURS. name: of the format in tables, e.g. "Q4_0". like: the Step whose model it is. packages: names whose versions belong
    to the row. kernel: in place of a layer's class. other: format, weight_bytes (of the file or the tensors), read_bytes (what one decoded token
    reads of them), and what differs from a row of this CPU.
    """
    row = ledger.measured(timing, packages) | {
        "engine": engine,
        "step": 0,
        "variant": f"{engine} {name}",
        "title": f"{like.title.split()[0]} {name} ({engine})",
    }
    row |= {"tier": like.tier, "device": machine.device_name("cpu"), "checkpoint": "", "dtype": "", "layer_class": kernel, "note": ""}
    row |= {"prediction_wall_s": None, "parameters": like.shape.parameters} | other
    return ledger.held(row, "cpu" if row["device"].startswith("CPU") else None)


def record(*arguments, **options):
    """Append the row that ``make_row`` makes to the ledger, and return it."""
    row = make_row(*arguments, **options)
    ledger.append(row)
    return row


def beside(step, steps=()):
    """Return the newest row of each engine in the ledger with ``step``'s model and tier, the slowest first, with their floors.

    steps: the article's, by number, that are measured now if the ledger lacks them; of a checkpoint of the reader's own, that one.
    """
    if step.tier != "own":
        ledger.steps(step.tier, steps)
    elif steps:
        ledger.append(ledger.measure_step(step))
    return with_floor(newest(ledger.read(engine=None), step))


def newest(rows, step):
    """Return the newest row of each engine, title and device among ``rows`` with ``step``'s model and tier, the slowest first; none of benchmark's."""
    return sorted((each[-1] for each in history(rows, step).values()), key=lambda row: -row["tpot_s"])


def history(rows, step):
    """Return {(engine, title, device): all its rows} among ``rows`` with ``step``'s model and tier; none of benchmark's.

    None either that llama.cpp or ONNX Runtime got beside PyTorch, as this course once measured them.
    """

    def matches(row):
        same = row["title"].split()[0] == step.title.split()[0] and row["tier"] == step.tier and "run" not in row and row.get("tpot_s")
        same = same and row["prompt"] == PROMPT and row["new_tokens"] == NEW_TOKENS and row.get("batch", 1) == 1
        return same and (row.get("engine") not in ALONE or row.get("beside_torch") is False)

    found = {}
    for row in filter(matches, rows):
        found.setdefault(_key(row), []).append(row)
    return found


def _key(row):
    return row.get("engine"), row["title"], row["device"]


def compare(one, other, step):
    """Return (how many times as many tokens a second ``one``'s engine decodes as ``other``'s, or None, a sentence that says so or why not).

    one, other: rows; all rows of the ledger like them count, see ledger.difference, which says what is too noisy.
    """
    found = history(ledger.read(engine=None), step)
    ours, theirs = found[_key(one)], found[_key(other)]
    change = ledger.difference(ours, theirs, "tpot_s")
    if slower := change.percent < 0:
        change = ledger.difference(theirs, ours, "tpot_s")  # how much longer the slower one takes: above 100 % if need be, as the noise
    factor = 1 + change.percent / 100
    names = one["title"], other["title"] + (f" on {other['device']}" if other["device"] != one["device"] else "")
    if change.sign:
        gain = 1 / factor if slower else factor
        return gain, f"{names[0]} decodes {gain:.{2 if slower else 1}f} times as many tokens a second as {names[1]}."
    if change.sign is None:
        return None, f"{names[0]} against {names[1]}: too noisy to tell (one takes {factor:.3g} times as long, and {change.why})."
    return 1.0, f"{names[0]} and {names[1]} are about as fast as each other (one takes {factor:.3g} times as long)."


def fastest(rows, step):
    """Return (the fastest of ``rows``, a sentence that says so, or which others cannot be told from it)."""
    first, *others = sorted(rows, key=lambda row: row["tpot_s"])
    said = {row["title"]: compare(first, row, step) for row in others}
    level = {title: why for title, (gain, why) in said.items() if gain in (None, 1.0)}
    if not level:
        return first, f"The fastest: {first['title']}, {seconds(first['tpot_s'])} a token."
    return first, f"The fastest cannot be told: {first['title']} or {' or '.join(level)}. {next(iter(level.values()))}"


def with_floor(rows):
    """Return ``rows`` with the floor of a token on this CPU, see limits.with_floor; floor_tpot_s is None for rows of another device."""
    here = [row for row in rows if row["device"] == machine.device_name("cpu")]
    floors = iter(limits.with_floor(here, "cpu"))
    return [next(floors) if row in here else row | {"floor_tpot_s": None} for row in rows]


def recorded(run):
    """Return the engines' rows of the recorded ``run`` (a folder in data/recorded), and print where they are from."""
    rows = ledger.read(ROOT / "data" / "recorded" / run / "engines.jsonl", engine=None)
    print(plots.where(rows[0] | {"recorded": True}))
    return rows


def table(rows):
    """Return a table (pandas.DataFrame) of ``rows``."""
    import pandas as pd

    if not rows:
        return pd.DataFrame()
    found = pd.DataFrame([{"model": row["title"], "engine": row.get("engine", "transformers"), **plots.times(row)} for row in rows]).set_index("model")
    found.insert(6, "weights", [f"{row['weight_bytes'] / 1e6:,.1f} MB" for row in rows])  # before the floor
    return plots.marked(found, rows)


def chart(rows, save_as=None):
    """Draw the time per output token of ``rows``, the floor (see ``beside``) as a black line; return what ``plots.show`` returns."""
    figure, axes = plots.figure("", "time per output token, ms", "", size=(8, 1.2 + 0.36 * len(rows)))
    highest, several, said = max((1000 * row["tpot_s"] for row in rows), default=1), len({row["device"] for row in rows}) > 1, []
    names = []
    wide = highest > 20 * min((1000 * row["tpot_s"] for row in rows), default=1)
    for place, row in enumerate(rows):
        engine, value, floor = row.get("engine", "transformers"), 1000 * row["tpot_s"], row.get("floor_tpot_s")
        axes.barh(place, value, 0.7, color=COLOURS[engine], hatch=HATCHES[engine], edgecolor="white")
        axes.text(value * 1.05 if wide else value + highest / 100, place, seconds(row["tpot_s"]), va="center", fontsize=8)
        if floor:
            axes.plot([1000 * floor] * 2, [place - 0.35, place + 0.35], color="black", linewidth=2)
        names.append(f"{row['title']} {ledger.mark(row)}".rstrip())
        said.append(f"{names[-1]} {seconds(row['tpot_s'])}" + (f" (floor {seconds(floor)})" if floor else ""))
    axes.set_yticks(
        range(len(rows)),
        [name + (f"\n{row['device']}" if several else "") for name, row in zip(names, rows)],
        fontsize=8,
    )
    if wide:
        axes.set_xscale("log")
        axes.set_xlabel("time per output token, ms (logarithmic)")
        axes.set_xlim(500 * min(row.get("floor_tpot_s") or row["tpot_s"] for row in rows), highest * 2)
    else:
        axes.set_xlim(0, highest * 1.15)
    where = plots.where(rows[0] | ({"device": "several devices"} if several else {})) if rows else "nothing measured yet"
    axes.set_title(
        where.replace(", CPU", "\nCPU") + ("\nblack line: the floor, reading the weights once" if any(row.get("floor_tpot_s") for row in rows) else ""),
        fontsize=10,
    )
    return plots.show(figure, f"{where}. Time per output token: {'; '.join(said)}.", save_as)
