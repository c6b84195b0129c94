"""What decides the tier, and what can this machine load?

hub        the article's own checkpoints from the Hugging Face Hub: for a GPU that they fit on
laptop     small real models from the Hub, Qwen2.5, and their makers' own GPTQ: for any computer with a network; only where it is asked for
synthetic  Llama-2's shapes with random weights, written on this disk: real sizes, kernels and timings without licence and download;
           the text has no sense
embedded   the small trained models in ``data/``: any machine, no network

First used in notebook 00.
"""

import contextlib
import json
import os
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median

from helpers import machine
from helpers.errors import CheckpointError, NotEnoughMemoryError, UnknownStepError, UnknownTierError
from helpers.models import files, hub, sizes, synthetic
from helpers.models.catalogue import CHECKPOINTS, LLAMA_2, REAL, STEPS, VARIANTS, Shape, Step, packing, settings
from helpers.setup import results_dir

SLOWER = 1.3  # what fewer threads may cost on a quiet machine; beside other programs more threads cost far more than that
LONG = 0.01  # seconds of one block: within it the system shares the cores out, so that medians hold beside other programs
TIERS = ("embedded", "laptop", "hub", "synthetic")
OVERHEAD = 0.8e9  # estimate of the bytes beside the weights on one device: CUDA context, KV cache and activations of one short prompt


def choose_tier(requested=None):
    """Return (tier, reason). ``requested``: a tier, "auto", or None for the environment variable TIER (default "auto").

    "auto" takes the hub where all four steps fit on the GPU and the Hub answers, else the embedded models; reason says why, and names the
    tier laptop: gigabytes are not fetched for small models unless somebody asks.
    """
    requested = requested or os.environ.get("TIER") or "auto"
    if requested in TIERS:
        return requested, "" if requested != "synthetic" else "The weights are random: timings are real, the text has no sense."
    if requested != "auto":
        raise UnknownTierError(f"There is no tier {requested!r}: choose auto, {', '.join(TIERS[:-1])} or {TIERS[-1]}.")
    reason = _why_not_hub()
    if not reason:
        return "hub", ""
    instead = f"TIER=laptop takes small real models instead: {download('laptop') / 1e9:.1f} GB to download, any computer"
    return "embedded", f"Small embedded model instead of Llama-2, because {reason}. {instead}."


def download(tier):
    """Bytes of the checkpoints of the four steps on ``tier``, a key of catalogue.REAL; what two steps share counts once."""
    return sum({getattr(s, tier): REAL[tier][s.model].weight_bytes("bf16" if s.format == "int8" else s.format) for s in STEPS.values()}.values())


@lru_cache(maxsize=1)
def _why_not_hub():
    """Return why the hub tier can't be used here, or "" if it can. torch is not imported."""
    found = [gpu for gpu in machine.gpus() if gpu.supported]
    if machine.unusable_gpu():
        return f"today's PyTorch cannot use this GPU ({machine.unusable_gpu()})"
    if not found:
        return "this machine has no CUDA GPU"
    have = [gpu.total for gpu in found]
    for shape, format in sorted({(LLAMA_2[s.model], s.format) for s in STEPS.values()}, key=lambda pair: -pair[0].weight_bytes(pair[1])):
        need, beside = shape.weight_bytes(format), beside_weights(shape, format)
        if not spread(need, have, beside):
            return f"the four steps need {(need + beside) / 1e9:.1f} GB of GPU memory and there are {sum(have) / 1e9:.1f} GB"
    return hub.silence(STEPS[4].hub)


def beside_weights(shape, format):
    """Estimate of the bytes that each GPU needs beside the weights: OVERHEAD, and for GPTQ the scratch space of its kernel."""
    return OVERHEAD + (shape.exllama_bytes if format == "gptq" else 0)


def spread(weights, free, beside=OVERHEAD):
    """Return the fewest GPUs (list of indices) that hold ``weights`` bytes, the first ones first.

    free: bytes free on each GPU; beside: bytes that each of them needs besides. The first GPU alone where it is large
    enough; [] if all together are too small. Of several, a tenth stays empty: layers are not divided (and bitsandbytes leaves as much).
    """
    for count in range(1, len(free) + 1):
        if weights <= (free[0] - beside if count == 1 else 0.9 * sum(f - beside for f in free[:count])):
            return list(range(count))
    return []


@dataclass(frozen=True)
class Chosen(Step):
    """A Step with its checkpoint, as this machine has it: here the Hub and the disk are asked."""

    @property
    def is_folder(self):
        """Whether the checkpoint is a folder on this disk."""
        return Path(self.checkpoint).is_dir()

    @property
    def folder(self):
        """The folder (Path) of its files: its own, or the cache's. Of the Hub's, config.json is fetched if need be. Raises CheckpointError."""
        return Path(self.checkpoint) if self.is_folder else hub.config(self.checkpoint, self.revision)

    @property
    def place(self):
        """The checkpoint in words: the Hub id, or the folder's name."""
        return Path(self.checkpoint).name if self.is_folder else self.checkpoint

    @property
    def shape(self):
        """Sizes of the checkpoint that is loaded, from its config.json."""
        return sizes.of(self.folder)

    @property
    def quantization(self):
        """The checkpoint's own quantization_config (a dict: bits, group_size, …); {} if it is not quantised."""
        return settings(self.folder)

    @property
    def packing(self):
        """Bits and groups, where a GPTQ checkpoint is not packed as the article's are (4 bits, groups of 128), e.g. "8-bit, g32"; "" otherwise."""
        here = self.format == "gptq" and (self.is_folder or hub.cached_path(self.checkpoint, "config.json", self.revision))
        with contextlib.suppress(CheckpointError):  # what cannot be read is said where it is loaded
            bits, group = (packing(self.folder, self.quantization) if here else {}).values() or (Shape.bits, Shape.group_size)
            if (bits, group) != (Shape.bits, Shape.group_size):
                return f"{bits}-bit, {'one group a row' if group == -1 else f'g{group}'}"
        return ""

    @property
    def bytes(self):
        """Bytes of the weights once they are loaded in this step's format."""
        return self.shape.weight_bytes(self.format)


LIKE_FOR_LIKE = ("TheBloke/Llama-2-7B-GPTQ",)  # the base model's GPTQ twin, where the article took the chat model


def get_step(number, tier=None, checkpoint=None, revision="main"):
    """Return step ``number`` (1 to 4, or a name in catalogue.VARIANTS) as a Chosen, with the checkpoint that this machine can use.

    tier: one of TIERS, "auto", or None for the environment variable TIER. checkpoint: a Hub id or a folder to load instead of the tier's,
    in the same format; its tier is "own", unless it is one of LIKE_FOR_LIKE. Raises UnknownStepError, UnknownTierError or
    CheckpointError. First used in notebook 01.
    """
    if number in VARIANTS:
        step, names = VARIANTS[number], {"number": 0, "name": number}
    elif number in STEPS:
        step, names = STEPS[number], {}
    else:
        known = f"the article has steps {', '.join(map(str, STEPS))}, and this course adds {', '.join(VARIANTS)}"
        raise UnknownStepError(f"There is no step {number!r}: choose one of these; {known}.")
    tier, note = choose_tier(tier)
    if checkpoint is not None:
        own, note = os.path.expanduser(str(checkpoint)), ""
        if own.startswith((".", "/", "~")) and not os.path.isdir(own):
            raise CheckpointError(f"There is no folder {checkpoint}: check the path, or give the name of a Hub repository.")
        checkpoint, told = (own, None) if own.strip() and os.path.isdir(own) else hub.named(checkpoint)
        revision = told if told and revision == "main" else revision
        tier = "hub" if checkpoint in LIKE_FOR_LIKE else "own"
    elif tier in REAL:
        checkpoint, reason = hub.whether(getattr(step, tier), revision)
        note = " ".join(filter(None, [note, reason]))
    elif tier == "synthetic":
        checkpoint = str(synthetic.folder(step.model, step.format))
    else:
        checkpoint = str(CHECKPOINTS / step.embedded)
    return Chosen(**vars(step) | names | {"tier": tier, "checkpoint": checkpoint, "revision": revision, "note": note})


def threads(shape):
    """How many threads decode a model of ``shape`` on this processor; says so in a sentence the first time.

    Measured once for each machine and shape, and kept in ``threads.json`` of the results folder (unless other programs computed meanwhile), so
    that all engines, notebooks and processes take the same number: the fewest with which one token takes at most SLOWER times the shortest median in one block of the model. Threads that wait for each other lose far more beside other programs than they gain on a small model. The variable
    THREADS overrides it; raises UnknownStepError if that is no whole number, or more than any library takes. First used in notebook 11.
    """
    if asked := os.environ.get("THREADS"):
        most = max(64, 4 * (os.cpu_count() or 1))
        if not asked.isdecimal() or len(asked) > 9 or not 1 <= int(asked) <= most:
            raise UnknownStepError(f"THREADS is {asked[:40]!r}: set it to a whole number of threads from 1 to {most}, or delete the variable.")
        return int(asked)
    name = f"{machine.device_name('cpu')}: {shape.hidden_size} x {shape.intermediate_size}"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        kept = results_dir() / "threads.json"
        if isinstance(number := json.loads(kept.read_text(encoding="utf-8")).get(name), int) and 1 <= number <= machine.cores():
            return number
    load = machine.Load()
    medians = _block_times(shape)
    others = load.stop().others
    medians = {count: time for count, time in medians.items() if count <= machine.free_cores(others) or medians[1] > LONG}
    number = min(count for count, time in medians.items() if time <= SLOWER * min(medians.values()))
    if others < machine.QUIET:
        with contextlib.suppress(OSError, ValueError, TypeError), files.whole(results_dir() / "threads.json") as new:  # it only saves the measuring
            before = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
            new.write_text(json.dumps(before | {name: number}, indent=2) + "\n", encoding="utf-8")
    if len(medians) > 1:
        said = ", ".join(f"{time / medians[number]:.1f} times as long with {count}" for count, time in medians.items() if count != number)
        rule = f"the fewest that take at most {SLOWER} times as long as the best number"
        print(f"Threads: {number} of {machine.cores()}, {rule}. A token took {said} in a block of this shape (THREADS=n sets another number).")
    return number


def threads_of(*sizes):
    """As ``threads``, of what another engine's file says: hidden size, size within the MLP, layers; all cores where it does not tell, or one size a layer."""
    return threads(Shape(*sizes)) if len(sizes) == 3 and all(type(size) is int for size in sizes) else machine.cores()


def _block_times(shape):
    """{number of threads: median seconds of one token in one decoder block} for 1, 2, 4 … and all cores, measured in turns.

    The block is transformers' own Llama block in bfloat16, with Python and all: what several threads gain is to be held against all of it.
    """
    import torch

    with machine.quiet():
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    width = 128 if shape.hidden_size % 128 == 0 else 64
    config = LlamaConfig(
        hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size, num_attention_heads=max(1, shape.hidden_size // width), num_hidden_layers=1,
        head_dim=width,
    )  # fmt: skip
    config._attn_implementation = "sdpa"  # transformers 5.0 has no default outside a model
    with torch.device("meta"):
        block = LlamaDecoderLayer(config, 0).to(torch.bfloat16).eval()
    block = block.to_empty(device="cpu")
    hidden, angles = (torch.full((1, 1, size), 0.01, dtype=torch.bfloat16) for size in (shape.hidden_size, width))
    before, cores, found = torch.get_num_threads(), machine.cores(), {}
    counts = sorted({2**n for n in range(cores.bit_length()) if 2**n < cores} | {cores})
    try:
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.fill_(0.01)
            for count in 2 * counts if len(counts) > 1 else ():
                torch.set_num_threads(count)
                start, times = time.perf_counter(), []
                while len(times) < 4 or time.perf_counter() - start < 0.15:
                    begin = time.perf_counter()
                    block(hidden, position_embeddings=(angles, angles))
                    times.append(time.perf_counter() - begin)
                found.setdefault(count, []).extend(times[1:])  # the first one starts the threads
    finally:
        torch.set_num_threads(before)
    return {count: median(times) for count, times in found.items()} or {1: 0.0}


def bring(step):
    """Return the folder (Path) of ``step``'s files, complete: one of one's own is checked, the Hub's is fetched. Raises what hub.fetch raises."""
    files.check_format(step.folder, step.format)  # from config.json alone, before gigabytes are fetched
    if not step.is_folder:
        hub.fetch(step)
    files.check_folder(step.folder, step.format)
    return step.folder


def describe(step):
    """Return a table (pandas.DataFrame, one column) of what a step loads, from where, and how large it is; print the step's note. First used in notebook 01."""
    import pandas as pd

    shape = step.shape
    if step.note:
        print(step.note)
    rows = {
        "step": f"{step.key}: {step.title}",
        "tier": step.tier,
        "checkpoint": step.place,
        "stands in for": "itself" if step.tier == "hub" else f"Llama-2 {step.model}",
        "parameters": f"{shape.parameters:,}",
        "bytes of the weights": f"{step.bytes:,}",
        "bits a parameter": f"{8 * step.bytes / shape.parameters:.2f}",
    }
    return pd.Series(rows, name="this step").to_frame()


def check_step(step, device):
    """Raise NotEnoughMemoryError if ``step``'s weights, and what its kernel needs beside them, do not fit on ``device``."""
    check_memory(step.bytes, device, beside_weights(step.shape, step.format) if device.startswith("cuda") else OVERHEAD)


def check_memory(weights, device=None, beside=OVERHEAD):
    """Raise NotEnoughMemoryError if ``weights`` bytes and ``beside``, what comes with them, are more than is free on ``device``.

    device: as for machine.get_device. Raises DeviceError if this machine has not got it. First used in notebook 10.
    """
    device = machine.get_device(device)
    need, free = weights + beside, machine.free_memory(device)
    if need > free:
        raise NotEnoughMemoryError(
            f"This step needs about {need / 1e9:.1f} GB on {device} and {free / 1e9:.1f} GB are free: release other models or restart"
            " other notebooks, or set TIER=embedded for the small models."
        )


FITS, TIGHT, TOO_LARGE = "✓ fits", "△ tight", "✗ does not fit"
MARGIN = 0.9  # of the free memory: above it, another program can spoil the run


def verdict(need, free):
    """One of FITS, TIGHT, TOO_LARGE for ``need`` bytes where ``free`` bytes are free."""
    return FITS if need <= MARGIN * free else TIGHT if need <= free else TOO_LARGE


def survey():
    """Ask this machine, the network and the Hub what the course needs to know; return a dict, torch is not imported.

    Keys: platform, gpus (list of Gpu), memory and free (bytes of the host), disk (free bytes for downloads), online ("" or why not),
    token (where it lies, or None), gated ("" or why the article's gated repository cannot be read), speed (bytes a second, or None).
    """
    from huggingface_hub import constants

    memory, free = machine.host_memory()
    found = {"platform": machine.platform_name(), "gpus": machine.gpus(), "memory": memory, "free": free}
    found |= {"disk": machine.disk(constants.HF_HUB_CACHE), "token": hub.token_place(), "gated": "", "speed": None}
    found["online"] = hub.silence(STEPS[4].hub)
    if found["online"]:
        return found | {"gated": "not asked: the Hub is out of reach"}
    found["gated"] = hub.refusal(STEPS[1].hub)[0]
    return found | {"speed": hub.speed(STEPS[4].hub, "model.safetensors")}


def step_table(found, context=512, tier="hub"):
    """Return what each step on ``tier``, a key of REAL, needs and whether it fits (pandas.DataFrame, one line a step). context: tokens of prompt and answer.

    Weights: exact bytes, from the shape. Other: beside_weights, an upper estimate that no measurement on this machine backs. Without a GPU,
    the host's memory is what there is.
    """
    import pandas as pd

    gpus = [gpu for gpu in found["gpus"] if gpu.supported]
    lines = {}
    for number, step in STEPS.items():
        shape = REAL[tier][step.model]
        weights, cache = shape.weight_bytes(step.format), shape.kv_bytes(context)
        download = shape.weight_bytes("bf16" if step.format == "int8" else step.format)
        beside = beside_weights(shape, step.format) if gpus else OVERHEAD
        shared = spread(weights + cache, [gpu.free for gpu in gpus], beside) or [0]
        need = weights + cache + len(shared) * beside
        free = sum(gpus[n].free for n in shared) if gpus else found["free"]
        where = "host" if not gpus else "GPU" if len(shared) == 1 else f"{len(shared)} GPUs"
        fits, disk = verdict(need, free), verdict(download, found["disk"])
        minutes = f"about {max(1, round(download / found['speed'] / 60))} min" if found["speed"] else "time unknown"
        lines[f"{number}: {replace(step, tier=tier).title}"] = {
            "weights": f"{weights:,}",
            f"KV cache ({context:,} tokens)": f"{cache / 1e9:.1f} GB",
            "other (estimate)": f"{len(shared) * beside / 1e9:.1f} GB",
            "needed": f"{need / 1e9:.1f} GB",
            "free": f"{free / 1e9:.1f} GB ({where})",
            "verdict": fits,
            "download, time, disk": f"{download / 1e9:.1f} GB, {minutes}, {disk}",
            "what to do": _advice(fits, disk, bool(gpus), found, tier),
        }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("step")


def _advice(fits, disk, gpu, found, tier):
    if found["online"]:
        return "embedded models: they need no network"
    if disk == TOO_LARGE:
        return "make room, or set HF_HOME to another disk; or the embedded models"
    if tier == "laptop":
        return "embedded models" if fits == TOO_LARGE else "run it: TIER=laptop"
    if not gpu:
        where = "; in Colab: Runtime > Change runtime type > T4 GPU" if fits == TOO_LARGE else " (Llama-2 would run, slowly: TIER=hub)"
        return f"embedded models{where}"
    return {
        FITS: "run it",
        TIGHT: "run it with a short context, nothing else on the GPU",
        TOO_LARGE: "a shorter context, another runtime, or the embedded models",
    }[fits]
