"""Which checkpoints can this machine use?

hub        the article's own checkpoints from the Hugging Face Hub: for a GPU that they fit on
synthetic  Llama-2's shapes with random weights, written on this disk: real sizes, kernels and timings without licence and download;
           the text has no sense
embedded   the small trained models in ``data/``: any machine, no network
"""

import ctypes
import os
from functools import lru_cache

from helpers.errors import CheckpointError, DeviceError, UnknownTierError

TIERS = ("embedded", "hub", "synthetic")
MIRRORS = {"meta-llama/Llama-2-7b-hf": "NousResearch/Llama-2-7b-hf"}
OVERHEAD = 0.8e9  # estimate of the bytes beside the weights: CUDA context, KV cache and activations of one short prompt


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
    """Return why the hub tier can't be used here, or "" if it can."""
    no_gpu = "this machine has no CUDA GPU"
    try:  # NVIDIA's driver library: without it there is no need to import torch, which takes seconds
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return no_gpu
    import torch

    from helpers.steps import LLAMA_2, STEPS

    if not torch.cuda.is_available():
        return no_gpu
    need = max(LLAMA_2[s.model].weight_bytes(s.format) for s in STEPS.values()) + OVERHEAD
    have = torch.cuda.get_device_properties(0).total_memory
    if have < need:
        return f"the four steps need {need / 1e9:.1f} GB of GPU memory and this GPU has {have / 1e9:.1f} GB"
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        HfApi().model_info(STEPS[4].hub, timeout=5)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except Exception as error:  # whatever goes wrong here, the embedded tier still works
        return f"the Hugging Face Hub does not answer ({type(error).__name__})"
    return ""


@lru_cache
def accessible(repository):
    """Return (repository or its ungated mirror, sentence). The sentence is empty where the repository itself can be read.

    Raises CheckpointError where neither can be read.
    """
    from huggingface_hub import auth_check
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        auth_check(repository)
        return repository, ""
    except OfflineModeIsEnabled:
        return repository, "Offline: only what is in the cache already can be loaded."
    except GatedRepoError:
        reason = "you have no access to it yet (accept Meta's licence on its page and set HF_TOKEN)"
    except RepositoryNotFoundError:
        reason = "it does not exist or your token is not valid"
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise CheckpointError(f"The Hub refused {repository} (HTTP {status}): try again later, or set TIER=embedded.") from None
    except Exception as error:
        raise CheckpointError(
            f"The Hub cannot be reached ({type(error).__name__}): check the network, or set TIER=embedded to go on without it."
        ) from None
    if repository not in MIRRORS:
        raise CheckpointError(f"{repository} cannot be read: {reason}. Set TIER=embedded to go on without it.")
    mirror = MIRRORS[repository]
    return mirror, f"{mirror} instead of {repository}, because {reason}: the same weights, and Meta's licence applies to them too."


def get_device(device=None):
    """Return the torch device to use, as a string: ``device`` if this machine has it, by default the first GPU, else the CPU."""
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
