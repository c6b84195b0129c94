"""Can this checkpoint be loaded here? Answered from file headers and free memory, before anything large is read."""

import json
import re
from pathlib import Path

from helpers import machine, tiers
from helpers.errors import CheckpointError, NotEnoughMemoryError
from helpers.steps import Shape, read_json

LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def check_folder(folder, format):
    """Raise CheckpointError unless ``folder`` holds a complete Llama checkpoint in ``format`` (int8 is made from bf16 files).

    Only the safetensors headers are read: every shard must be there, none cut off, and no layer missing.
    """
    folder = Path(folder)
    shape = Shape.from_config(folder)
    quantised = (read_json(folder, "config.json").get("quantization_config") or {}).get("quant_method")
    if (quantised == "gptq") != (format == "gptq") or quantised not in (None, "gptq"):
        wanted = "GPTQ" if format == "gptq" else "unquantised"
        raise CheckpointError(f"{folder} holds {quantised or 'unquantised'} weights: this step needs {wanted} ones.")
    index = "model.safetensors.index.json"
    names = ["model.safetensors"]
    if (folder / index).is_file():
        weight_map = read_json(folder, index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{folder} has no usable {index}: fetch or build the checkpoint again.")
        names = sorted(set(weight_map.values()))
    found = set()
    for name in names:
        shard = folder / name
        if not shard.is_file():
            raise CheckpointError(f"{folder} lacks {name}: fetch or build the checkpoint again.")
        tensors = _tensor_names(shard)
        if tensors is None:
            raise CheckpointError(f"{shard} is cut off or damaged ({shard.stat().st_size:,} bytes): fetch or build the checkpoint again.")
        found.update(tensors)
    weight = "qweight" if format == "gptq" else "weight"
    wanted = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    wanted |= {f"model.layers.{n}.{linear}.{weight}" for n in range(shape.num_hidden_layers) for linear in LINEARS}
    if missing := sorted(wanted - found):
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors, {missing[0]} for one: fetch or build the checkpoint again.")


def _tensor_names(shard):
    """Names in a safetensors file, or None if it has not exactly the length that its header announces.

    Format: https://huggingface.co/docs/safetensors, 8 bytes of header length, a JSON header, the tensors.
    """
    size = shard.stat().st_size
    with open(shard, "rb") as file:
        try:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= size else {}
            header.pop("__metadata__", None)
            end = max(entry["data_offsets"][1] for entry in header.values())
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None
    return list(header) if size == 8 + length + end else None


def check_step(step, device):
    """Raise NotEnoughMemoryError if ``step``'s weights, and what its kernel needs beside them, do not fit on ``device``."""
    check_memory(step.bytes, device, tiers.beside_weights(step.shape, step.format) if device.startswith("cuda") else tiers.OVERHEAD)


def free_memory(device):
    """Free bytes on ``device``: of the GPU's memory, or of the host's that programs can still get (in a container: its share)."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return machine.host_memory()[1]


def out_of_memory(error, device, doing, report=""):
    """Return the NotEnoughMemoryError that says what ``error`` means, if a device or the host ran out of memory; else None.

    report: what a library wrote into its log instead of the error.
    """
    said = f"{error}\n{report}"
    signs = ("out of memory", "can't allocate memory", "Cannot allocate memory", "ALLOC_FAILED")
    if not isinstance(error, MemoryError) and not any(sign in said for sign in signs):
        return None
    asked = re.search(r"(?:[Tt]ried to allocate|unable to mmap) ([\d.]+) ?(bytes|[KMG]iB)?", said)
    needed = "more memory was"
    if asked:
        size = float(asked.group(1)) * {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}.get(asked.group(2), 1)
        needed = f"{size / 1e6:,.0f} MB more were"
    return NotEnoughMemoryError(
        f"The memory of {device} ran out while {doing}: {needed} needed and {free_memory(device) / 1e6:,.0f} MB are free. The model was released;"
        " use a shorter prompt or fewer tokens, close other notebooks, or set TIER=embedded, then load it again."
    )


def check_memory(weights, device, beside=tiers.OVERHEAD):
    """Raise NotEnoughMemoryError if ``weights`` bytes and ``beside``, what comes with them, are more than is free on ``device``."""
    need, free = weights + beside, free_memory(device)
    if need > free:
        raise NotEnoughMemoryError(
            f"This step needs about {need / 1e9:.1f} GB on {device} and {free / 1e9:.1f} GB are free: release other models or restart"
            " other notebooks, or set TIER=embedded for the small models."
        )
