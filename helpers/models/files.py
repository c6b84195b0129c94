"""Is a checkpoint's folder complete? Its files read, and files and folders written whole or not at all.

First used in notebook 01.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from helpers import machine
from helpers.errors import CheckpointError, CourseError, NotEnoughMemoryError
from helpers.models.catalogue import LINEARS, Shape, read_json

NORMS = ("input_layernorm", "post_attention_layernorm")  # of one block
INDEX = "model.safetensors.index.json"  # of a checkpoint in several files: which tensor is in which


@contextlib.contextmanager
def whole(path, unless=lambda: False, need=0, setting="RESULTS_DIR"):
    """Yield a new path to write a file or a folder to, which gets the name ``path`` at the end, all at once; a block that fails leaves nothing.

    Processes of this machine take turns. unless: says, in its turn, that what is there is good already: then None is yielded. need: bytes;
    with them, NotEnoughMemoryError is raised if the disk has too little room, before or meanwhile. setting: the variable that names the disk.
    """
    from filelock import FileLock

    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    mark = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]  # the lock lies elsewhere: a folder may be on a read-only disk
    with FileLock(Path(tempfile.gettempdir()) / f"writing-{mark}.lock", mode=0o666):
        if unless():
            yield None
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        room = f"make room, or set {setting} to another disk"
        if need > 0.98 * (free := machine.disk(path.parent)):
            raise NotEnoughMemoryError(f"{path.name} takes {need / 1e9:.1f} GB and {free / 1e9:.1f} GB of the disk are free: {room}.")
        try:
            yield partial
            if partial.is_dir():
                _remove(path)
            os.replace(partial, path)
        except Exception as error:
            full = isinstance(error, OSError) or type(error).__name__ == "SafetensorError"
            if not need or not full or isinstance(error, CourseError):
                raise
            raise NotEnoughMemoryError(f"{path.name} could not be written ({error}): {room}.") from None
        finally:
            _remove(partial)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def newer(path, folder):
    """Whether the file ``path`` is there and not older than any file of ``folder``, from which it was made."""
    return path.is_file() and path.stat().st_mtime >= max(file.stat().st_mtime for file in Path(folder).iterdir())


def write_json(path, content, **options):
    """Write ``content`` to ``path`` as JSON, whole or not at all. Raises ValueError for numbers that JSON has not."""
    with whole(path) as partial:
        partial.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False, **options) + "\n", encoding="utf-8")


def read_tensor(folder, name):
    """Return the tensor ``name`` as it stands in the checkpoint ``folder``'s files, on the CPU, before any library has touched it."""
    from safetensors import safe_open

    shard = read_json(folder, INDEX)["weight_map"][name] if (Path(folder) / INDEX).is_file() else "model.safetensors"
    with safe_open(Path(folder) / shard, framework="pt") as tensors:
        return tensors.get_tensor(name)


def check_format(folder, format):
    """Raise CheckpointError unless ``folder/config.json`` is of a Llama whose weights a step of ``format`` can load; return its Shape."""
    folder = Path(folder)
    shape, settings = Shape.from_config(folder), read_json(folder, "config.json").get("quantization_config") or {}
    on_load = any(settings.get(key) for key in ("load_in_8bit", "load_in_4bit", "_load_in_8bit", "_load_in_4bit"))
    old = not settings and (folder / "quantize_config.json").is_file()
    method = settings.get("quant_method") or ("bitsandbytes" if on_load else "unnamed" if settings else "gptq" if old else None)
    if old and format == "gptq":
        why = (
            "has its GPTQ settings in quantize_config.json alone, as older programs wrote them, and transformers reads config.json: copy them there, as"
            ' "quantization_config", and add "quant_method": "gptq" to them'
        )
    elif method == (None if format != "gptq" else "gptq"):
        return shape
    elif method == "gptq":
        why = "holds gptq weights: this step needs unquantised ones, and steps 3 and 4 load GPTQ"
    elif method:
        makes = " (step 1 makes 8 bits of it while it loads, nf4 makes 4)" if method == "bitsandbytes" else ""
        why = f"holds {method} weights, which no step loads: take the unquantised checkpoint that they were made from{makes}, or a GPTQ one with step 3"
    else:
        why = "holds unquantised weights: this step needs GPTQ ones, and steps 1 and 2 load unquantised ones"
    raise CheckpointError(f"{folder} {why}.")


def check_folder(folder, format):
    """Raise CheckpointError unless ``folder`` holds a complete Llama checkpoint in ``format`` (int8 is made from bf16 files).

    Only the safetensors headers are read: every shard must be there, none cut off, no layer missing, and GPTQ's integers packed as config.json says.
    """
    folder, shape = Path(folder), check_format(folder, format)
    found = tensors(folder)
    weight, config = "qweight" if format == "gptq" else "weight", read_json(folder, "config.json")
    with_bias = [name for name in LINEARS if config.get("attention_bias" if name.startswith("self_attn") else "mlp_bias")]
    matrices = [f"{name}.{weight}" for name in LINEARS]
    small = [f"{name}.weight" for name in NORMS] + [f"{name}.bias" for name in with_bias]
    for outside, inside in (({"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}, matrices), (set(), small)):
        wanted = outside | {f"model.layers.{n}.{part}" for n in range(shape.num_hidden_layers) for part in inside}
        if missing := sorted(wanted - set(found)):
            raise CheckpointError(f"{folder} lacks {len(missing)} tensors, {missing[0]} for one: fetch or build the checkpoint again.")
    for name, (inputs, outputs) in zip(LINEARS, shape.linears()) if format == "gptq" else ():
        groups = 1 if shape.group_size == -1 else -(-inputs // shape.group_size)
        for part, size in {"qweight": (inputs * shape.bits // 32, outputs), "scales": (groups, outputs)}.items():
            for n in range(shape.num_hidden_layers):
                if (there := found.get(f"model.layers.{n}.{name}.{part}")) != size:
                    raise CheckpointError(
                        f"{folder} says {shape.bits} bits in groups of {shape.group_size}, and model.layers.{n}.{name}.{part} is of shape {there} in place of"
                        f" {size}: correct quantization_config in its config.json, or fetch the checkpoint again."
                    )


def tensors(folder):
    """Return {name: shape} of all tensors in a checkpoint's files, from their headers. Raises CheckpointError if a file is missing, cut off or damaged."""
    folder, found = Path(folder), {}
    for name in _shards(folder):
        shard = folder / name
        if not shard.is_file():
            raise CheckpointError(f"{folder} lacks {name}: fetch or build the checkpoint again.")
        shapes = _tensor_shapes(shard)
        if shapes is None:
            raise CheckpointError(f"{shard} is cut off or damaged ({shard.stat().st_size:,} bytes): fetch or build the checkpoint again.")
        found.update(shapes)
    return found


def _shards(folder):
    """The names of a checkpoint's files of weights. Raises CheckpointError, which says what the folder has instead."""
    if (folder / INDEX).is_file():
        weight_map = read_json(folder, INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{folder} has no usable {INDEX}: fetch or build the checkpoint again.")
        return sorted(set(weight_map.values()))
    if (folder / "model.safetensors").is_file():
        return ["model.safetensors"]
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".gguf"))
    if len(others) == 1 and others[0].endswith(".safetensors"):
        raise CheckpointError(f"{folder} has its weights in {others[0]}, and transformers looks for model.safetensors: give a copy of the file that name.")
    if any(name.endswith(".safetensors") for name in others):
        raise CheckpointError(f"{folder} lacks model.safetensors, and {INDEX}, which says what is in its other files: fetch the checkpoint again.")
    if others:
        raise CheckpointError(
            f"{folder} lacks model.safetensors: its weights are in {others[0]}, and the course reads safetensors files only. Take a checkpoint that has them,"
            " or load this one with transformers and write it with save_pretrained."
        )
    raise CheckpointError(f"{folder} lacks model.safetensors: fetch or build the checkpoint again.")


def _tensor_shapes(shard):
    """{name: shape} of a safetensors file, or None if it has none, or not exactly the length that its header announces. The weights are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} or None
    except (SafetensorError, OSError):
        return None
