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
    weight_map = {"": "model.safetensors"}
    if (folder / INDEX).is_file():
        weight_map = read_json(folder, INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{folder} has no usable {INDEX}: fetch or build the checkpoint again.")
    found = set()
    for name in sorted(set(weight_map.values())):
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
    """Names in a safetensors file, or None if it has none, or not exactly the length that its header announces. The weights are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="np") as tensors:
            return list(tensors.keys()) or None
    except (SafetensorError, OSError):
        return None
