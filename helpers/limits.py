"""How fast could a model decode at best on a machine, and what keeps it from that?

One decoded token must read all weights and the whole KV cache once, and multiply with each weight once. A machine reads so many bytes and
does so many operations a second: the longer of the two times is the floor (roofline; Williams, Waterman and Patterson, 2009,
https://doi.org/10.1145/1498765.1498785). The names: TPOT is the time per output token.
"""

import json
from dataclasses import dataclass

from helpers import fit, hardware, ledger, tiers
from helpers.article import ROOT
from helpers.errors import CourseError
from helpers.steps import FORMATS, LLAMA_2, Shape
from helpers.words import closeness, seconds

PUBLISHED = ROOT / "data" / "published_speed.json"
LIKE_STEPS = ("", "1", "2", "3", "4", "fp16", "nf4", "13b-bf16", "13b-int8", "13b-nf4")  # steps and variants with their usual kernel and settings


class EstimateError(CourseError, ValueError):
    """A calculation that was asked for with a value that makes no sense."""


@dataclass(frozen=True)
class GroupedShape(Shape):
    """A Shape with grouped-query attention and, if ``tied``, one table for embedding and output head.

    kv_size: width of the keys, and of the values, of one token. (Ainslie et al., 2023, https://arxiv.org/abs/2305.13245)
    """

    kv_size: int = 0
    tied: bool = False

    def linears(self):
        h, i = self.hidden_size, self.intermediate_size
        return [(h, h), (h, self.kv_size), (h, self.kv_size), (h, h), (h, i), (h, i), (i, h)]

    @property
    def other_parameters(self):
        return super().other_parameters - self.tied * self.vocab_size * self.hidden_size

    @property
    def kv_bytes_per_token(self):
        return 2 * self.num_hidden_layers * self.kv_size * 2

    def read_bytes(self, format):
        return self.weight_bytes(format) if self.tied else super().read_bytes(format)


def models():
    """Return {name: Shape} of the models that the calculator knows: Llama-2's and those of ``data/published_speed.json``."""
    others = json.loads(PUBLISHED.read_text(encoding="utf-8"))["models"]
    return {f"Llama-2 {name}": shape for name, shape in LLAMA_2.items()} | {name: GroupedShape(**sizes) for name, sizes in others.items()}


def machines():
    """Return {name: machine} of ``data/hardware.json``; a machine is a dict as helpers.hardware.machines returns it."""
    return {machine["name"]: machine for machine in hardware.machines()}


def this_machine(bandwidth, flops, device=None):
    """Return the machine at hand as a dict like those of ``machines``: bandwidth in bytes/s and flops in operations/s are measured ones."""
    import torch

    from helpers import machine

    device = tiers.get_device(device)
    memory = torch.cuda.get_device_properties(device).total_memory if device.startswith("cuda") else machine.host_memory()[0]
    return {"name": tiers.device_name(device), "memory": memory / 1e9, "bandwidth": bandwidth / 1e9, "tflops": flops / 1e12}


def operations(shape, context=0):
    """Floating-point operations of one token: 2 for each weight of the linear layers and the head, and the attention over ``context``."""
    return 2 * (shape.linear_parameters + shape.vocab_size * shape.hidden_size) + 4 * shape.num_hidden_layers * shape.hidden_size * context


def step_bytes(shape, format, context, batch=1, group_size=128):
    """Bytes that one decoding step must read: the weights once for all ``batch`` sequences, and the KV cache of each (``context`` tokens)."""
    embedding = shape.weight_bytes(format) - shape.read_bytes(format)
    return shape.weight_bytes(format, group_size) - embedding + batch * context * shape.kv_bytes_per_token


@dataclass(frozen=True)
class Estimate:
    """What the calculator found. weights, cache, needed, memory: bytes. floor, expected: seconds a step, in which each sequence gets a token."""

    machine: str
    format: str
    context: int
    batch: int
    weights: int
    cache: int
    needed: float
    memory: float
    fits: str
    floor: float
    bound: str
    efficiency: float | None = None
    expected: float | None = None

    @property
    def floor_tokens_per_s(self):
        """Tokens a second at best, of all sequences together."""
        return self.batch / self.floor

    def __str__(self):
        weights, cache, needed, memory = (size / 1e9 for size in (self.weights, self.cache, self.needed, self.memory))
        lines = [
            f"{self.machine}, {FORMATS[self.format]}, context {self.context:,}, batch {self.batch}",
            f"{self.fits}: {weights:.2f} GB of weights + {cache:.2f} GB of KV cache + {needed - weights - cache:.1f} GB for the rest (estimate) "
            f"= {needed:.1f} of {memory:.1f} GB",
            f"at best   {seconds(self.floor)} a step, {self.floor_tokens_per_s:,.1f} tokens a second; {self.bound} takes longest",
        ]
        if self.expected:
            rate = f"{self.batch / self.expected:,.1f} tokens a second, if it reaches {100 * self.efficiency:.3g} % of that"
            lines.append(f"expected  {seconds(self.expected)} a step, {rate}")
        else:
            lines.append("expected  nothing was measured from which to say it")
        return "\n".join(lines)


def estimate(shape, format, context, batch, machine, efficiency=None, group_size=128):
    """Return an Estimate: does ``shape`` in ``format`` fit on ``machine``, and how long does one decoding step take at best?

    context: tokens in the KV cache of each sequence. batch: sequences at a time. machine: a dict with name, memory (GB), bandwidth (GB/s),
    tflops (or None) and cards (default 1). efficiency: floor / measured TPOT of a run, or None. Raises EstimateError or UnknownFormatError.
    """
    for name, value in {"context": context, "batch": batch}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise EstimateError(f"The {name} is {value!r}: give a whole number, 1 or more.")
    if efficiency is not None and not 0 < efficiency <= 1:
        raise EstimateError(f"The efficiency is {efficiency!r}: give a share of the floor above 0 and at most 1, or None.")
    weights, cache = shape.weight_bytes(format, group_size), batch * context * shape.kv_bytes_per_token
    reading = step_bytes(shape, format, context, batch, group_size) / (machine["bandwidth"] * 1e9)
    computing = batch * operations(shape, context) / (machine["tflops"] * 1e12) if machine.get("tflops") else 0
    needed, floor = weights + cache + machine.get("cards", 1) * tiers.beside_weights(shape, format), max(reading, computing)
    return Estimate(
        machine["name"], format, context, batch, weights, cache, needed, machine["memory"] * 1e9, fit.verdict(needed, machine["memory"] * 1e9),
        floor, "reading" if reading >= computing else "computing", efficiency, floor / efficiency if efficiency else None,
    )


def crossover(shape, format):
    """Tokens of context (all sequences together) from which on the KV cache is as many bytes to read as the weights."""
    return shape.read_bytes(format) / shape.kv_bytes_per_token


def recorded_rows():
    """Return the ledger rows of all recorded runs (``data/recorded/*/ledger.jsonl``), each with the key "recorded": the run's name."""
    paths = sorted((ROOT / "data" / "recorded").glob("*/ledger.jsonl"))
    return [row | {"recorded": path.parent.name} for path in paths for row in ledger.read(path)]


def efficiencies(rows):
    """Return {format: (share, row)}: floor / measured TPOT of the best matching of ``rows`` for each format; formats without one are absent.

    Only full-size shapes count (not the embedded models), batch 1, and steps as they are usually run; of these the largest model, the
    reader's own before a recorded one, the newest.
    """
    found = {}
    for row in sorted(rows, key=lambda r: (r["parameters"], "recorded" not in r, r["date"])):
        usual = row.get("variant", "") in LIKE_STEPS and row.get("batch", 1) == 1
        if row["tier"] != "embedded" and usual and row.get("floor_tpot_s") and row.get("tpot_s"):
            found[row["format"]] = (row["floor_tpot_s"] / row["tpot_s"], row)
    return found


def where(row):
    """Say which run ``row`` is from."""
    who = f"recorded run {row['recorded']}" if "recorded" in row else "measured here"
    return f"{row['title']}, {row['tier']}, {row['device']}, {who}, {row['date'][:10]}"


def score(prediction, actual):
    """Say in a sentence how far the reader's ``prediction`` (tokens a second, or None) was from ``actual``."""
    if prediction is None or prediction <= 0:
        return f"At best {actual:,.1f} tokens a second. (You made no prediction.)"
    return f"You said {prediction:,.1f} tokens a second, at best it is {actual:,.1f}: {closeness(prediction, actual, 'high', 'low')}."
