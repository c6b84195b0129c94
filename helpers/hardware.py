"""How fast could a machine be at best? Memory and bandwidth of the makers' data sheets, from ``data/hardware.json``."""

import json

from helpers.article import ROOT
from helpers.steps import FORMATS, LLAMA_2


def machines():
    """Return the list of machines (dicts: name, memory in GB, bandwidth in GB/s, capability or None, source)."""
    return json.loads((ROOT / "data" / "hardware.json").read_text(encoding="utf-8"))["machines"]


def floor_table(model):
    """Return for each machine the most tokens a second it could decode of Llama-2 ``model`` ("7B", "13B"), batch 1 (pandas.DataFrame).

    Bandwidth / bytes that one token must read (helpers.steps.Shape.read_bytes); NaN where the weights do not fit. A bound, not a
    measurement: kernels stay below it.
    """
    import pandas as pd

    shape, lines = LLAMA_2[model], {}
    for machine in machines():
        line = {"memory": f"{machine['memory']} GB", "bandwidth": f"{machine['bandwidth']:,} GB/s"}
        for format in ("bf16", "int8", "gptq"):  # the article's
            fits = shape.weight_bytes(format) <= machine["memory"] * 1e9
            line[f"{FORMATS[format]}, tokens/s"] = round(machine["bandwidth"] * 1e9 / shape.read_bytes(format), 1) if fits else float("nan")
        lines[machine["name"]] = line
    return pd.DataFrame.from_dict(lines, orient="index").rename_axis("machine")
