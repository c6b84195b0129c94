"""How far from the limit are the speeds that others published, and is the article's hardware advice right?

Published figures are from ``data/published_speed.json``, machines from ``data/hardware.json``. Nothing is fitted to the figures. First used in
notebook 07.
"""

import json

from helpers import limits
from helpers.models import choose
from helpers.models.catalogue import FORMATS

CONTEXT = 1  # the figures were taken with short prompts, most of unknown length: their KV cache is left out


def figures():
    """Return the published figures (list of dict, see the file), each with floor_tokens_per_s and share, the part of it that was reached."""
    models, machines, found = limits.models(), limits.machines(), []
    for figure in json.loads(limits.PUBLISHED.read_text(encoding="utf-8"))["figures"]:
        group = figure.get("group_size", 128)
        best = limits.estimate(models[figure["model"]], figure["format"], CONTEXT, 1, machines[figure["machine"]], group_size=group)
        found.append(figure | {"floor_tokens_per_s": best.floor_tokens_per_s, "share": figure["tokens_per_s"] / best.floor_tokens_per_s})
    return found


def with_expected(efficiency):
    """Return ``figures`` with expected_tokens_per_s and error, (expected - published) / published; None where ``efficiency`` has no value.

    efficiency: {format: share}. A format that is missing takes fp16 for bf16 and the other way round: they have the same bytes.
    """
    same = {"bf16": "fp16", "fp16": "bf16"}
    found = []
    for figure in figures():
        share = efficiency.get(figure["format"], efficiency.get(same.get(figure["format"])))
        expected = None if share is None else share * figure["floor_tokens_per_s"]
        error = None if share is None else expected / figure["tokens_per_s"] - 1
        found.append(figure | {"expected_tokens_per_s": expected, "error": error})
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


def advice(context=512):
    """Return {(model, format): {machine: Estimate, or None where it does not fit}} for Llama-2 in 4 and in 16 bits, batch 1."""
    result = {}
    for model, shape in limits.models().items():
        for format in ("gptq", "fp16") if model.startswith("Llama-2") else ():
            found = {name: limits.estimate(shape, format, context, 1, machine) for name, machine in advice_machines().items()}
            result[model, format] = {name: None if one.fits == choose.TOO_LARGE else one for name, one in found.items()}
    return result


def advice_verdicts(context=512):
    """Return what ``advice`` says about two RTX 3090 against one RTX 4090, the M2 Ultra and the T4, as sentences, each computed."""
    pair = json.loads(limits.PUBLISHED.read_text(encoding="utf-8"))["two_cards"]
    two_cards = f"Published by {pair['engine'].split(',')[0]}: {pair['two'] / pair['one']:.2f} times with two {pair['machine']} ({pair['source']})."
    rows, (one, turns, divided, ada, mac, t4) = advice(context), advice_machines()
    both = {key: row for key, row in rows.items() if row[turns] and row[ada]}
    slow, fast = ([row[name].floor_tokens_per_s / row[ada].floor_tokens_per_s for row in both.values()] for name in (turns, divided))
    holds = "holds" if min(slow) > 1 else "does not hold"
    said = [
        f"Speed, layers in turn: two RTX 3090 allow {min(slow):.2f} times the tokens a second of one RTX 4090. That they are faster {holds}.",
        f"Speed, layers divided: {min(fast):.2f} times at best; how much of it arrives depends on the link between the cards. {two_cards}",
        f"Memory: fits on two RTX 3090 and not on one RTX 4090: {_only(rows, turns, ada)}.",
        f"M2 Ultra: fits on it and not on two RTX 3090: {_only(rows, mac, turns)}. What fits on both can run at "
        f"{_range(rows, mac, turns)} times the speed of two RTX 3090 with layers in turn.",
        f"T4: fits on one RTX 3090 and not on it: {_only(rows, one, t4)}. What fits on both can run at {_range(rows, t4, one)} times the speed.",
    ]
    return said


def _only(rows, here, there):
    names = [f"{model} {FORMATS[format]}" for (model, format), row in rows.items() if row[here] and not row[there]]
    return " and ".join(names) or "nothing in the table"


def _range(rows, here, there):
    ratios = [row[here].floor_tokens_per_s / row[there].floor_tokens_per_s for row in rows.values() if row[here] and row[there]]
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return low if low == high else f"{low} to {high}"
