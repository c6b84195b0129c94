"""Which format for this model on this machine? What each would weigh and at best take, and what the candidates measured.

The rule that chooses among them stands in the notebook. First used in notebook 15.
"""

import contextlib
import re
import textwrap
from copy import copy
from dataclasses import dataclass, field
from itertools import accumulate
from math import log2, prod, sqrt
from statistics import mean, stdev

from helpers import ledger, limits, loading, machine, quality, setup, timing
from helpers.engines import llamacpp, timed
from helpers.errors import CheckpointError, CourseError, PackagesError
from helpers.limits import EstimateError
from helpers.models import choose
from helpers.models.catalogue import FORMATS

STEPS = {"bf16": 2, "8-bit": 1, "NF4": "nf4", "GPTQ 4-bit": 3}  # name here: what choose.get_step is asked for
TYPES = ("Q8_0", "Q4_K_M", "Q4_0")  # of llama.cpp
BLOCKS = {"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_0": 5.5, "Q4_K": 4.5, "Q4_0": 4.5}  # bits a weight, scales included


def memory(text):
    """Bytes of a memory in words ("16", "15.6 GB", "8 GiB"; a number alone counts as GB); None for "". Raises EstimateError for anything else."""
    words = str("" if text is None else text).strip().lower()
    found = re.fullmatch(r"(\d+(?:[.,]\d+)?)\s*([gm]i?b|)", words)
    size = float(found[1].replace(",", ".")) * (1024 if "i" in found[2] else 1000) ** (2 if "m" in found[2] else 3) if found else 0
    if words and not size:
        raise EstimateError(f"The memory is {text!r}: write a number of GB above 0, for example 16 GB, or leave it empty for this machine's.")
    return size or None


def ask(name="", size="", tier=None):
    """Return (Step of the unquantised model, bytes of the memory or None for this machine's) for what the reader wrote: a Hub name or folder, and words.

    What cannot be is said in a sentence: then the ``tier``'s model, or this machine's memory, stands in. Raises CourseError if that cannot be had.
    """
    for wanted in dict.fromkeys((str(name).strip(), "")):
        try:
            step = choose.get_step(2, tier, checkpoint=wanted or None)
            if kind := step.quantization.get("quant_method"):
                raise CheckpointError(f"{step.place} is quantised already ({kind}): give the name of the model that it was made from.")
            sizes(step)
            break
        except CourseError as error:
            if not wanted:
                raise
            print(f"{error} Until then the tier's model stands in for it.")
    try:
        return step, memory(size)
    except EstimateError as error:
        print(f"{error} Until then this machine's counts.")
        return step, None


def sizes(step):
    """Return {format: (bytes of the weights, bytes that one token reads)} of ``step``'s model, in all formats that its layers' sizes allow."""
    shape = step.shape
    found = {name: (shape.weight_bytes(key), shape.read_bytes(key)) for key, name in FORMATS.items() if name in STEPS}
    for bits in (8, 4, 3):
        packed = copy(shape)
        packed.bits, packed.group_size = bits, 128
        with contextlib.suppress(CheckpointError):
            found[f"GPTQ {bits}-bit"] = packed.weight_bytes("gptq"), packed.read_bytes("gptq")
    return found | {type: gguf_bytes(shape, type) for type in TYPES}


def gguf_bytes(shape, type):
    """(bytes of all tensors, bytes that one token reads) of a GGUF file of ``type`` (a key of llamacpp.TYPES), by llama.cpp's rule for Llamas.

    shape: see models.sizes. Of other architectures, whose tensors have other names, it is an estimate.
    """
    (usual, head, special), found = llamacpp.TYPES[type], [0, 0]
    for name, tensor in shape.tensors.items():
        block, kind = re.search(r"\.(\d+)\.", name), usual
        if len(tensor.shape) == 1:
            kind = "F32"
        elif name.endswith("lm_head.weight") or tensor.share and tensor.shape[0] == shape.vocab_size:  # a tied table is the head
            kind = head
        elif block and re.search("v_proj|down_proj", name) and llamacpp.more_bits(int(block[1]), shape.num_hidden_layers):
            kind = special
        kind = llamacpp.FALLBACK.get(kind, kind) if tensor.shape[-1] % 256 else kind
        size = prod(tensor.shape) * BLOCKS[kind] / 8
        found = [found[0] + size, found[1] + size * float(tensor.share)]
    return int(found[0]), int(found[1])


@dataclass(frozen=True)
class Outlook:
    """What a format would be on a machine. weights, reads, needed: bytes (needed: with the KV cache and an estimate of the rest). floor: seconds a token."""

    name: str
    engine: str
    weights: int
    reads: int
    needed: float
    fits: str
    floor: float


def outlook(step, here, context, size=None):
    """Return {format: Outlook} of ``step``'s model on the machine ``here`` (of limits.machines, or limits.this_machine), the largest first.

    context: tokens in the KV cache. size: bytes of the memory, by default the machine's. On this machine, what fits into the processor's cache is held
    against the cache's speed. Raises EstimateError for a context that makes no sense.
    """
    if type(context) is not int or context < 1:
        raise EstimateError(f"The context is {context!r}: give a whole number of tokens, 1 or more.")
    shape, speeds, found = step.shape, {}, {}
    cache, gpu = shape.kv_bytes(context), here.get("device", here.get("capability") and "cuda") not in (None, "cpu")
    for name, (weights, reads) in sorted(sizes(step).items(), key=lambda item: -item[1][0]):
        near = 2 ** round(log2(reads))  # sizes that are alike are measured once
        if near not in speeds:
            inside = "device" in here and near < limits.LARGEST
            speeds[near] = limits.bandwidth(here["device"], near) if inside else here["bandwidth"] * 1e9
        needed = weights + cache + choose.beside_weights(shape, "gptq" if gpu and name.startswith("GPTQ") else "bf16")
        engine, fits = "llama.cpp" if name in TYPES else "transformers", choose.verdict(needed, size or here["memory"] * 1e9)
        found[name] = Outlook(name, engine, weights, reads, needed, fits, (reads + cache) / speeds[near])
    return found


@dataclass
class Evidence:
    """What was measured of a candidate. rows: the ledger's, of this device. kl: nats, one a text, against bf16. missing: why there is nothing, in a sentence."""

    look: Outlook
    rows: list = field(default_factory=list)
    kl: list = field(default_factory=list)
    place: str = ""
    missing: str = ""

    @property
    def tpot(self):
        """Seconds a token, median of all rows that stand."""
        return ledger.middle(self.rows, "tpot_s")

    @property
    def divergence(self):
        """(mean, two standard errors) of the KL divergence; (None, None) where there was nothing to compare with."""
        return (mean(self.kl), 2 * stdev(self.kl) / sqrt(len(self.kl))) if self.kl else (None, None)


class Trial:
    """Measures candidates of ``step``'s model: time a token, from the ledger where it is there, and the next token after ``texts`` beginnings of texts.

    looks: of ``outlook``. gptq: the GPTQ twin of a model of the reader's own. bf16 comes first: the others' next tokens are compared with its.
    """

    def __init__(self, step, looks, gptq="", texts=None):
        self.step, self.looks, self.gptq, self.prompts, self.yardstick = step, looks, gptq, [], None
        self.texts = texts or (96 if step.tier == "embedded" else 24)  # of a large model on a processor, each takes seconds

    def measure(self, name):
        """Return the Evidence of the format ``name``; one that cannot be had has a sentence instead, which is printed."""
        found = Evidence(self.looks[name])
        try:
            (self._llamacpp if name in TYPES else self._transformers)(name, found)
        except CourseError as error:
            found.missing = str(error)
            print(f"{name} is left out: {error}")
        return found

    def _step(self, name):
        if name not in STEPS:
            raise CheckpointError(f"There is no ready checkpoint in {name}: make one (notebook 10), or take another format.")
        gptq, own = name.startswith("GPTQ"), self.step.tier == "own"
        if own and gptq and not self.gptq:
            raise CheckpointError(f"{self.step.place} has no GPTQ twin that the course knows: give its name in GPTQ, or make one (notebook 10).")
        twin = choose.LIKE_FOR_LIKE[0] if gptq and self.step.tier == "hub" else None  # the article's is a chat model
        checkpoint = (self.gptq if gptq else self.step.checkpoint) if own else twin
        return choose.get_step(STEPS[name], None if checkpoint else self.step.tier, checkpoint=checkpoint)

    def _transformers(self, name, found):
        step = self._step(name)
        found.place, found.rows = step.checkpoint, timed.history(ledger.read(), step).get((None, step.title, machine.device_name()), [])
        model, tokenizer = loading.load(step)
        try:
            if not found.rows:
                found.rows = [ledger.make_row(step, timing.measure(model, tokenizer), model)]
                ledger.append(found.rows[0])
            if name == "bf16":
                encoded = [quality.encode(tokenizer, [line])[0] for line in quality.lines()[: self.texts]]
                self.prompts = [ids[: 4 + number % 40] for number, ids in enumerate(encoded)]
            if self.prompts:
                logits = _last(model, self.prompts)
                self.yardstick = logits if self.yardstick is None else self.yardstick
                found.kl = quality.compare(logits, self.yardstick)[0].tolist()
        finally:
            model = None  # exceptions that libraries keep would keep it too
            loading.release()

    def _llamacpp(self, type, found):
        if missing := [name for name in llamacpp.PACKAGES if not setup.installed(name)]:
            raise PackagesError(f"llama.cpp is not here ({' and '.join(missing)} missing): run setup.add('llamacpp') where there is a network.")
        title, file = f"{self.step.title.split()[0]} {type} (llama.cpp)", llamacpp.file(self.step, type)
        key, found.place = ("llama.cpp", title, machine.device_name("cpu")), str(file)
        found.rows = timed.history(ledger.read(engine="llama.cpp"), self.step).get(key, [])
        if not found.rows:
            weights, reads = llamacpp.sizes(file)
            result, more = timed.apart("helpers.engines.llamacpp.work", {"path": str(file), "threads": choose.threads(self.step.shape)}, weights)
            about = {"format": "gguf", "dtype": type, "kernel": "llama.cpp", "checkpoint": file.name, "packages": llamacpp.PACKAGES}
            found.rows = [timed.record("llama.cpp", type, result, self.step, weight_bytes=weights, read_bytes=reads, **about, **more)]
        if self.prompts:
            import torch

            server = llamacpp.load(file, context=256)
            ours = [torch.from_numpy(llamacpp.log_probabilities(server, ids, self.yardstick.shape[1])) for ids in self.prompts]
            found.kl = quality.compare(torch.stack(ours), self.yardstick)[0].tolist()


def _last(model, prompts):
    """Logits (texts, vocabulary), float32, on the host, of the token that follows each of ``prompts`` (lists of int)."""
    import torch

    found = []
    for number, (logits, _) in enumerate(quality.batches(model, [[*ids, ids[-1]] for ids in prompts])):
        ends = accumulate(map(len, prompts[number * quality.BATCH : (number + 1) * quality.BATCH]))
        found.append(logits[[end - 1 for end in ends]].cpu())
    return torch.cat(found)


def drawn(card):
    """Return a ``card`` (Markdown: headings, sentences, tables, code) as a matplotlib figure, its tables as columns."""
    from matplotlib.figure import Figure

    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.startswith("|") and set(line) - set("|- ")]
    widths, lines, code = [max(map(len, column)) for column in zip(*rows)], [], False
    for line in card.splitlines():
        kind = "code" if code else "head" if line.startswith("#") else "table" if line.startswith("|") else "text"
        if line.startswith("```"):
            code = not code
        elif kind == "table":
            lines += [] if set(line) <= set("|- ") else [(kind, "  ".join(cell.ljust(width) for cell, width in zip(rows.pop(0), widths)))]
        elif line.strip():
            width, indent = {"head": 74, "text": 128, "code": 120}[kind], {"text": "   " * line.startswith("-"), "code": "    "}.get(kind, "")
            lines += [(kind, part) for part in textwrap.wrap(line.lstrip("# ") if kind == "head" else line, width, subsequent_indent=indent)]
    looks = {"head": (0.36, 12, "sans-serif"), "text": (0.21, 9, "sans-serif"), "table": (0.2, 7.5, "monospace"), "code": (0.19, 8, "monospace")}  # inch, pt
    figure = Figure(figsize=(9, 0.4 + sum(looks[kind][0] for kind, _ in lines)))
    height = place = figure.get_figheight()
    for kind, line in lines:
        step, size, family = looks[kind]
        place -= step
        figure.text(0.03, (place - 0.1) / height, line, fontsize=size, family=family, weight="bold" if kind == "head" else "normal")
    return figure
