"""How fast could a model decode at best on a machine, and what keeps it from that?

One decoded token must read all weights and the whole KV cache once, and multiply with each weight once. A machine reads so many bytes and
does so many operations a second: the longer of the two times is the floor (roofline; Williams, Waterman and Patterson, 2009,
https://doi.org/10.1145/1498765.1498785). This machine's rates are measured; others' stand in ``data/hardware.json``, with their
sources. The names: TPOT is the time per output token. First used in notebook 00.
"""

import json
from dataclasses import dataclass
from statistics import median

from helpers import ROOT, ledger, machine
from helpers.errors import CourseError
from helpers.machine.speed import LARGEST, bandwidth, duration, flops  # noqa: F401  (notebook 07 calls them)
from helpers.models import choose
from helpers.models.catalogue import FORMATS, LLAMA_2, STEPS, Shape
from helpers.timing import seconds

HARDWARE, PUBLISHED = ROOT / "data" / "hardware.json", ROOT / "data" / "published_speed.json"
LIKE_STEPS = ("", "1", "2", "3", "4", "fp16", "nf4", "13b-bf16", "13b-int8", "13b-nf4")  # steps and variants with their usual kernel and settings


class EstimateError(CourseError, ValueError):
    """A calculation that was asked for with a value that makes no sense. First used in notebook 07."""


def models():
    """Return {name: Shape} of the models that the calculator knows: Llama-2's and those of ``data/published_speed.json``. First used in notebook 00."""
    others = json.loads(PUBLISHED.read_text(encoding="utf-8"))["models"]
    return {f"Llama-2 {name}": shape for name, shape in LLAMA_2.items()} | {name: Shape(**sizes) for name, sizes in others.items()}


def machines():
    """Return {name: machine}; a machine is a dict: name, memory in GB, bandwidth in GB/s, tflops and capability or None, source. First used in notebook 00."""
    return {machine["name"]: machine for machine in json.loads(HARDWARE.read_text(encoding="utf-8"))["machines"]}


def this_machine(device=None):
    """Return the machine at hand as a dict like those of ``machines`` and its device; bandwidth (GB/s) and tflops are measured now."""
    import torch

    device = machine.get_device(device)
    memory = torch.cuda.get_device_properties(device).total_memory if device.startswith("cuda") else machine.host_memory()[0]
    rates = {"bandwidth": bandwidth(device) / 1e9, "tflops": flops(device) / 1e12}
    return {"name": machine.device_name(device), "device": device, "memory": memory / 1e9} | rates


def operations(shape, context=0):
    """Floating-point operations of one token of a model of ``shape``: 2 for each weight that it reads, and the attention over ``context``."""
    return shape.operations(context)


def step_bytes(shape, format, context, batch=1, group_size=None):
    """Bytes that one decoding step must read: the weights once for all ``batch`` sequences, and the KV cache of each (``context`` tokens)."""
    return shape.read_bytes(format, group_size) + batch * shape.kv_bytes(context)


def with_floor(rows, device=None, speeds=()):
    """Return ``rows`` with the floor of a token: bandwidth_bytes_per_s, and floor_tpot_s, the seconds that reading its bytes takes at that.

    The floor is a pass's; where a pass gives several tokens (tokens_per_pass), each has its part of it. The bytes are the row's floor_bytes (weights and KV cache), without that key its read_bytes (the weights alone). The bandwidth of
    ``device`` is measured now, over as many bytes; that of a larger set counts for a smaller one too, and so does what was measured beside the
    rows. speeds: [(bytes, bytes a second)] known before.
    """
    speeds = [*speeds, *((size, bandwidth(device, size)) for size in {row["read_bytes"] for row in rows})]
    speeds += [(row["read_bytes"], row["bandwidth_bytes_per_s"]) for row in rows if row.get("bandwidth_bytes_per_s")]
    found = []
    for row in rows:
        best = max(speed for size, speed in speeds if size >= min(row["read_bytes"], LARGEST))
        found.append(
            row | {"bandwidth_bytes_per_s": best, "floor_tpot_s": row.get("floor_bytes", row["read_bytes"]) / best / (row.get("tokens_per_pass") or 1)}
        )
    return found


def steps(tier, **options):
    """Return {number: row} of the article's four steps on ``tier`` and this machine, see ledger.steps, each with its floor and operations.

    floor_bytes: of the weights and the KV cache at half of the answer. operations: of one token, in floating point. rows: all rows of the step
    on this machine, with the same floor. First used in notebook 07.
    """
    rows, history = ledger.steps(tier, STEPS, **options), ledger.history(ledger.read(), tier, machine.device_name())
    for number, row in rows.items():
        shape, context = choose.get_step(number, tier).shape, row.get("prompt_tokens", 0) + row["new_tokens"] // 2
        rows[number] = row | {"floor_bytes": step_bytes(shape, row["format"], context), "operations": operations(shape, context)}
    found = dict(zip(rows, with_floor(list(rows.values()))))
    return {n: row | {"rows": [each | {"floor_tpot_s": row["floor_tpot_s"]} for each in history.get(n, [row])]} for n, row in found.items()}


def reached(rows):
    """(share, noise in per cent, why it is noisy or ""): floor / measured TPOT of all ``rows`` of a step on one machine, see ledger.difference. First used in notebook 07."""
    return median(row["floor_tpot_s"] / row["tpot_s"] for row in ledger.calm(rows, "tpot_s")), *ledger.difference(rows, rows, "tpot_s")[1:]


def gain(before, after):
    """Say what step ``after`` reads and takes a token against step ``before`` (rows of ``steps``), in a sentence. First used in notebook 07."""
    change = ledger.difference(before["rows"], after["rows"], "tpot_s")
    reads = f"{after['title']} reads {after['floor_bytes'] / before['floor_bytes']:.2f} times the bytes of {before['title']}"
    if change.sign:
        return f"{reads}, and takes {change.words('time a token')}."
    if change.sign is None:
        return f"{reads}. Whether it takes less time a token is too noisy to tell ({change.percent:+.0f} %, and {change.why})."
    return f"{reads}, and takes about as long a token ({change.percent:+.0f} %)."


@dataclass(frozen=True)
class Estimate:
    """What the calculator found. cache, needed, memory: bytes. floor: seconds a step, in which each sequence gets a token. expected: (shortest, longest). text: all of it."""

    batch: int
    cache: int
    needed: float
    memory: float
    fits: str
    floor: float
    bound: str
    expected: tuple | None
    text: str

    @property
    def floor_tokens_per_s(self):
        """Tokens a second at best, of all sequences together."""
        return self.batch / self.floor

    def __str__(self):
        return self.text


def estimate(shape, format, context, batch, machine, efficiency=None, group_size=None):
    """Return an Estimate: does ``shape`` in ``format`` fit on ``machine``, and how long does one decoding step take at best?

    context: tokens in the KV cache of each sequence. batch: sequences at a time. machine: a dict with name, memory (GB), bandwidth (GB/s),
    tflops (or None) and cards (default 1). efficiency: floor / measured TPOT of a run, a list of several runs', or None. Raises EstimateError or
    UnknownFormatError.
    First used in notebook 07.
    """
    for name, value in {"context": context, "batch": batch}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise EstimateError(f"The {name} is {value!r}: give a whole number, 1 or more.")
    shares = sorted(efficiency if isinstance(efficiency, (list, tuple)) else [] if efficiency is None else [efficiency])
    if not all(0 < share <= 1 for share in shares):
        raise EstimateError(f"The efficiency is {efficiency!r}: give a share of the floor above 0 and at most 1, or None.")
    weights, cache = shape.weight_bytes(format, group_size), batch * shape.kv_bytes(context)
    reading = step_bytes(shape, format, context, batch, group_size) / (machine["bandwidth"] * 1e9)
    computing = batch * operations(shape, context) / (machine["tflops"] * 1e12) if machine.get("tflops") else 0
    needed, floor = weights + cache + machine.get("cards", 1) * choose.beside_weights(shape, format), max(reading, computing)
    memory, bound = machine["memory"] * 1e9, "reading" if reading >= computing else "computing"
    fits, expected, words = choose.verdict(needed, memory), None, "nothing was measured from which to say it"
    if shares:
        expected = floor / shares[-1], floor / shares[0]
        times, rates = dict.fromkeys(map(seconds, expected)), dict.fromkeys(f"{batch / each:,.1f}" for each in reversed(expected))
        words = f"{' to '.join(times)} a step, {' to '.join(rates)} tokens a second, if it reaches {_percent(shares)} of that"
    text = (
        f"{machine['name']}, {FORMATS[format]}, context {context:,}, batch {batch}\n"
        f"{fits}: {weights / 1e9:.2f} GB of weights + {cache / 1e9:.2f} GB of KV cache + {(needed - weights - cache) / 1e9:.1f} GB for the rest (estimate) "
        f"= {needed / 1e9:.1f} of {memory / 1e9:.1f} GB\n"
        f"at best   {seconds(floor)} a step, {batch / floor:,.1f} tokens a second; {bound} takes longest\n"
        f"expected  {words}"
    )
    return Estimate(batch, cache, needed, memory, fits, floor, bound, expected, text)


def _percent(shares):
    """Sorted ``shares`` in words, e.g. "28 to 53 %"."""
    return " to ".join(dict.fromkeys(f"{100 * share:.3g}" for share in (shares[0], shares[-1]))) + " %"


def efficiencies(rows):
    """Return {format: {machine: (share, row)}}: floor / measured TPOT on each machine that ``rows``, or any recorded run, know of.

    Only full-size shapes count (not the embedded models), batch 1, and steps as they are usually run. Of these the machine's largest model, the
    reader's own before a recorded one: the median of all its rows (see ``reached``), and the newest of them. What ``launched`` returns is left
    out: how long a processor takes to start kernels says nothing about another machine's memory. First used in notebook 07.
    """
    groups, found = {}, {}
    for row in _full_size(rows):
        if not _waits_for_the_processor(row):
            sizes = groups.setdefault((row["format"], row["device"]), {})
            sizes.setdefault((row["parameters"], "recorded" not in row), []).append(row)
    for (format, device), sizes in groups.items():
        found.setdefault(format, {})[device] = reached(sizes[max(sizes)])[0], sizes[max(sizes)][-1]
    return found


def launched(rows):
    """Return those of ``rows``, and of the recorded ones, in whose time no operation runs for the most part, by their profile. First used in notebook 07."""
    return [row for row in _full_size(rows) if _waits_for_the_processor(row)]


def _full_size(rows):
    """``rows`` and all recorded ones that ``efficiencies`` may count, oldest first."""
    for row in sorted([*rows, *ledger.recorded_rows("*/*.jsonl")], key=lambda r: r["date"]):
        usual = row.get("variant", "") in LIKE_STEPS and row.get("batch", 1) == 1
        if row["tier"] != "embedded" and usual and row.get("floor_tpot_s") and row.get("tpot_s"):
            yield row


def _waits_for_the_processor(row):
    """Whether Python and the launching of kernels took most of a decode step in ``row``'s profile, if it has one."""
    kinds = row.get("operations_s") or {}
    return bool(kinds) and kinds["Python and launching"] > sum(kinds.values()) / 2
