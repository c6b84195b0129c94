"""Which checkpoints can this machine use?

hub        the article's own checkpoints from the Hugging Face Hub: for a GPU that they fit on
synthetic  Llama-2's shapes with random weights, written on this disk: real sizes, kernels and timings without licence and download;
           the text has no sense
embedded   the small trained models in ``data/``: any machine, no network
"""

import os
from functools import lru_cache

from helpers import access, machine
from helpers.errors import DeviceError, UnknownTierError

TIERS = ("embedded", "hub", "synthetic")
OVERHEAD = 0.8e9  # estimate of the bytes beside the weights on one device: CUDA context, KV cache and activations of one short prompt


def choose_tier(requested=None):
    """Return (tier, reason). ``requested``: a tier, "auto", or None for the environment variable TIER (default "auto").

    "auto" takes the hub where all four steps fit on the GPU and the Hub answers, else the embedded models; reason says why.
    """
    requested = requested or os.environ.get("TIER") or "auto"
    if requested in TIERS:
        return requested, "" if requested != "synthetic" else "The weights are random: timings are real, the text has no sense."
    if requested != "auto":
        raise UnknownTierError(f"There is no tier {requested!r}: choose auto, {', '.join(TIERS[:-1])} or {TIERS[-1]}.")
    reason = _why_not_hub()
    return ("embedded", f"Small embedded model instead of Llama-2, because {reason}.") if reason else ("hub", "")


@lru_cache(maxsize=1)
def _why_not_hub():
    """Return why the hub tier can't be used here, or "" if it can. torch is not imported."""
    from helpers.steps import LLAMA_2, STEPS

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
    from huggingface_hub import HfApi

    try:
        HfApi(token=False).model_info(STEPS[4].hub, timeout=5)
    except Exception as error:  # whatever goes wrong here, the embedded tier still works
        return access.why(error, STEPS[4].hub)
    return ""


def beside_weights(shape, format):
    """Estimate of the bytes that each GPU needs beside the weights: OVERHEAD, and for GPTQ the scratch space of its kernel."""
    return OVERHEAD + (shape.exllama_bytes if format == "gptq" else 0)


def spread(weights, free, beside=OVERHEAD):
    """Return the fewest GPUs (list of indices) that hold ``weights`` bytes, the first ones first; free: bytes free on each GPU.

    beside: bytes that each of them needs besides.

    The first GPU alone where it is large enough; [] if all together are too small. Of several, a tenth stays empty: layers are not
    divided (and bitsandbytes leaves as much).
    """
    for count in range(1, len(free) + 1):
        if weights <= (free[0] - beside if count == 1 else 0.9 * sum(f - beside for f in free[:count])):
            return list(range(count))
    return []


def get_device(device=None):
    """Return the torch device to use, as a string: ``device`` if this machine has it, by default the first GPU, else the CPU."""
    old = machine.unusable_gpu()
    if old:
        if str(device).startswith("cuda") or isinstance(device, int):
            raise DeviceError(f"Today's PyTorch cannot use this GPU ({old}): leave the device out, or pass 'cpu'.")
        return "cpu"
    import torch

    if device is None:
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    device = f"cuda:{device}" if isinstance(device, int) else str(device)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"{device} was asked for, and this machine has no CUDA GPU: leave the device out, or pass 'cpu'.")
    known = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    device = "cuda:0" if device == "cuda" else device
    if device not in known:
        raise DeviceError(f"There is no device {device!r} here: choose one of {', '.join(known)}.")
    return device


def gpu_count():
    """How many GPUs torch can use here."""
    if machine.unusable_gpu():
        return 0
    import torch

    return torch.cuda.device_count()


def device_of(model):
    """Name of the device that ``model`` is on, e.g. "Tesla T4"; where GPUs share it, of all of them: "Tesla T4 + Tesla T4"."""
    places = getattr(model, "hf_device_map", {}).values()
    gpus = sorted({f"cuda:{place}" for place in places if isinstance(place, int)} | {str(p) for p in places if str(p).startswith("cuda:")})
    return " + ".join(map(device_name, gpus)) if len(gpus) > 1 else device_name(str(model.device))


def device_name(device=None):
    """Return the device in words: the GPU's product name, or the processor's with its number of usable cores."""
    import platform

    import torch

    device = get_device(device)
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    name = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            name = next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    threads = torch.get_num_threads()
    return f"CPU ({name or platform.machine()}, {threads} thread{'s' * (threads != 1)})"
