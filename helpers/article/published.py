"""How far from the limit are the speeds that others published, and is the article's hardware advice right?

Published figures are from ``data/published_speed.json``, machines from ``data/hardware.json``. Nothing is fitted to the figures. First used in
notebook 07.
"""

import json

from helpers import limits
from helpers.models import choose

CONTEXT = 1  # the figures were taken with short prompts, most of unknown length: their KV cache is left out


def figures():
    """Return the published figures (list of dict, see the file), each with floor_tokens_per_s and share, the part of it that was reached."""
    models, machines, found = limits.models(), limits.machines(), []
    for figure in json.loads(limits.PUBLISHED.read_text(encoding="utf-8"))["figures"]:
        group = figure.get("group_size", 128)
        best = limits.estimate(models[figure["model"]], figure["format"], CONTEXT, 1, machines[figure["machine"]], group_size=group)
        found.append(figure | {"floor_tokens_per_s": best.floor_tokens_per_s, "share": figure["tokens_per_s"] / best.floor_tokens_per_s})
    return found


def together(machine, count, divided):
    """Return ``count`` of a machine as one: memory adds up; bandwidth only if the layers are ``divided`` among them (tensor parallel).

    Otherwise each card has its own layers, and a token passes from card to card: one reads while the others wait. Transfers are left out.
    """
    factor = count if divided else 1
    return machine | {
        "name": f"{count} x {machine['name']}, layers {'divided' if divided else 'in turn'}",
        "memory": count * machine["memory"],
        "bandwidth": factor * machine["bandwidth"],
        "tflops": machine["tflops"] and factor * machine["tflops"],
        "cards": count,
    }


def advice_machines():
    """Return {name: machine} of those in the article's advice: one and two RTX 3090, RTX 4090, M2 Ultra, T4."""
    one, *others = (limits.machines()[name] for name in ("RTX 3090", "RTX 4090", "Apple M2 Ultra", "NVIDIA T4 (free Colab, Kaggle)"))
    return {machine["name"]: machine for machine in (one, together(one, 2, False), together(one, 2, True), *others)}


def advice():
    """Return {(model, format): {machine: Estimate, or None where it does not fit}} for Llama-2 in 4 and in 16 bits, a context of 512, batch 1."""
    result = {}
    for model, shape in limits.models().items():
        for format in ("gptq", "fp16") if model.startswith("Llama-2") else ():
            found = {name: limits.estimate(shape, format, 512, 1, machine) for name, machine in advice_machines().items()}
            result[model, format] = {name: None if one.fits == choose.TOO_LARGE else one for name, one in found.items()}
    return result
