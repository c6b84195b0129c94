"""Will each step run here? What it needs against what there is, before anything is downloaded."""

from helpers import access, machine, tiers
from helpers.steps import LLAMA_2, STEPS

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
    from huggingface_hub import HfApi, constants

    memory, free = machine.host_memory()
    found = {"platform": machine.platform_name(), "gpus": machine.gpus(), "memory": memory, "free": free}
    found |= {"disk": machine.disk(constants.HF_HUB_CACHE), "token": access.token_place(), "gated": "", "speed": None}
    open_repository = STEPS[4].hub
    try:
        HfApi(token=False).model_info(open_repository, timeout=3)
        found["online"] = ""
    except access.OUR_MISTAKES:
        raise
    except Exception as error:
        return found | {"online": access.why(error, open_repository), "gated": "not asked: the Hub is out of reach"}
    found["gated"] = access.refusal(STEPS[1].hub)[0]
    try:
        found["speed"] = machine.network_speed(open_repository, "model.safetensors")
    except access.OUR_MISTAKES:
        raise
    except Exception:
        found["speed"] = None
    return found


def machine_table(found):
    """Return what ``survey`` found as a table (pandas.DataFrame, one column)."""
    import pandas as pd

    gpus = {f"GPU {gpu.index}": gpu.sentence for gpu in found["gpus"]} or {"GPU": "no NVIDIA GPU: the embedded models run on the CPU"}
    pd.set_option("display.max_colwidth", None)  # sentences, not their beginnings
    rows = {
        "platform": found["platform"],
        **gpus,
        "host memory": f"{found['free'] / 1e9:.1f} of {found['memory'] / 1e9:.1f} GB free",
        "disk for downloads": f"{found['disk'] / 1e9:,.0f} GB free",
        "Hugging Face Hub": f"✗ {found['online']}" if found["online"] else "✓ answers",
        "network": "not measured" if found["speed"] is None else f"{found['speed'] / 1e6:,.1f} MB a second (one small request)",
        "token": f"found in {found['token']}" if found["token"] else "none (only the gated repository needs one)",
        STEPS[1].hub: f"✗ {found['gated']}" if found["gated"] else "✓ you may read it",
    }
    return pd.Series(rows, name="this machine").to_frame()


def step_table(found, context=512):
    """Return what each step needs and whether it fits (pandas.DataFrame, one line a step). context: tokens of prompt and answer.

    Weights: exact bytes, from the shape. KV cache: 2 (keys and values) x layers x width x 2 bytes a token. Other: tiers.beside_weights,
    an upper estimate that no measurement on this machine backs; for GPTQ it holds ExLlamaV2's scratch space. Without a GPU, the host's
    memory is what there is.
    """
    import pandas as pd

    gpus = [gpu for gpu in found["gpus"] if gpu.supported]
    lines = {}
    for number, step in STEPS.items():
        shape = LLAMA_2[step.model]
        weights, cache = shape.weight_bytes(step.format), context * shape.kv_bytes_per_token
        download = shape.weight_bytes("bf16" if step.format == "int8" else step.format)
        beside = tiers.beside_weights(shape, step.format) if gpus else tiers.OVERHEAD
        shared = tiers.spread(weights + cache, [gpu.free for gpu in gpus], beside) or [0]
        need = weights + cache + len(shared) * beside
        free = sum(gpus[n].free for n in shared) if gpus else found["free"]
        fits = verdict(need, free)
        disk = verdict(download, found["disk"])
        minutes = f"about {max(1, round(download / found['speed'] / 60))} min" if found["speed"] else "time unknown"
        lines[f"{number}: {step.title}"] = {
            "weights": f"{weights:,}",
            f"KV cache ({context:,} tokens)": _gb(cache),
            "other (estimate)": _gb(len(shared) * beside),
            "needed": _gb(need),
            "free": f"{_gb(free)} ({'GPU' if len(shared) == 1 else f'{len(shared)} GPUs'})" if gpus else f"{_gb(free)} (host)",
            "verdict": fits,
            "download, time, disk": f"{_gb(download)}, {minutes}, {disk}",
            "what to do": _advice(fits, disk, bool(gpus), found),
        }
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("step")


def _advice(fits, disk, gpu, found):
    if found["online"]:
        return "embedded models: they need no network"
    if disk == TOO_LARGE:
        return "make room, or set HF_HOME to another disk; or the embedded models"
    if not gpu:
        return "embedded models; in Colab: Runtime > Change runtime type > T4 GPU" if fits == TOO_LARGE else "embedded models (Llama-2 would run, slowly: TIER=hub)"
    return {
        FITS: "run it",
        TIGHT: "run it with a short context, nothing else on the GPU",
        TOO_LARGE: "a shorter context, another runtime, or the embedded models",
    }[fits]


def _gb(size):
    return f"{size / 1e9:.1f} GB"
