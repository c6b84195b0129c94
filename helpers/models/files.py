"""Is a checkpoint's folder complete? Its files read, and files and folders written whole or not at all.

First used in notebook 01.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from itertools import count
from pathlib import Path
from typing import NamedTuple

from helpers import errors, machine
from helpers.errors import CheckpointError, CourseError, DiskError, NotEnoughMemoryError
from helpers.models import sizes
from helpers.models.catalogue import read_json, settings

NORMS = ("input_layernorm", "post_attention_layernorm")  # of one block of a Llama
INDEX = "model.safetensors.index.json"  # of a checkpoint in several files: which tensor is in which
PARTS = {name: ("I32", "I64") for name in ("qweight", "qzeros", "g_idx")} | {"scales": ("F16", "BF16", "F32")}  # of a GPTQ layer, and their types
_count = count()


@contextlib.contextmanager
def whole(path, unless=lambda: False, need=0, setting="RESULTS_DIR"):
    """Yield a new path to write a file or a folder to, which gets the name ``path`` at the end, all at once; a block that fails leaves what was there.

    Processes of this machine take turns. unless: says, in its turn, that what is there is good already: then None is yielded. need: bytes;
    NotEnoughMemoryError is raised before if the disk has not that room. setting: the variable that names the disk, for the sentence of the
    DiskError where that is full, read-only or no folder.
    """
    path = Path(os.path.realpath(path))
    before = path.with_name(f"{path.name}.before")  # the old folder, while the new one takes its name
    with _turn(path), _sentence(path, setting):
        if before.is_dir() and not path.exists():  # a program was killed just then
            os.replace(before, path)
        if unless():
            yield None
            return
        make_folder(path.parent, setting)
        _sweep(path)
        if need > 0.98 * (free := machine.disk(path.parent)):
            raise NotEnoughMemoryError(
                f"{path.name} takes {need / 1e6:,.1f} MB and {free / 1e6:,.1f} MB of the disk are free: make room, or set {setting} to another disk."
            )
        partial = path.with_name(f"{path.name}.{_own(os.getpid())}-{next(_count)}.partial")
        try:
            yield partial
            _to_the_disk(partial)
            if partial.is_dir() and path.is_dir():  # a folder takes the place of an empty one only
                os.replace(path, before)
            os.replace(partial, path)
        finally:
            if before.is_dir() and not path.exists():
                os.replace(before, path)
            _remove(before)
            _remove(partial)


@contextlib.contextmanager
def _sentence(path, setting, **reasons):
    """Make a DiskError of what a disk says against writing ``path``; other errors pass, and those about files elsewhere. reasons: see disk_trouble."""
    try:
        yield
    except Exception as error:
        trouble = errors.disk_trouble(error, setting, **reasons)
        elsewhere = not reasons and not str(getattr(error, "filename", None) or path).startswith(str(path.parent))
        if isinstance(error, CourseError) or elsewhere or not trouble:
            raise
        raise DiskError(f"{path if reasons else path.name} could not be written, {trouble}; then run this again.") from None


@contextlib.contextmanager
def _turn(path):
    """Wait, and say so, while another program of this machine writes ``path``. Where no lock can be had, the names of partial files keep them apart."""
    lock = None
    with contextlib.suppress(OSError, NotImplementedError, ImportError):  # a file of another user's, a disk without locks, make check's packages
        from filelock import FileLock, Timeout

        mark = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]  # the lock lies elsewhere: a folder may be on a read-only disk
        lock = FileLock(Path(tempfile.gettempdir()) / f"writing-{mark}.lock", mode=0o666)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            with machine.waiting(f"another program is writing {path.name}, waiting for it"):
                lock.acquire()
    try:
        yield
    finally:
        if lock:
            lock.release()


def _own(process):
    """The mark of a ``process`` (its number) of this machine in the names of partial files."""
    return f"{hashlib.sha256(platform.node().encode()).hexdigest()[:6]}-{process}"


def _sweep(path):
    """Remove what programs of this machine that were killed have left of ``path``."""
    _remove(path.with_name(f"{path.name}.partial"))  # the name of earlier versions of the course
    for left in path.parent.glob(f"{glob.escape(path.name)}.*-*-*.partial"):
        import psutil

        *_, process, _ = left.name.removesuffix(".partial").split("-")
        if process.isdecimal() and f".{_own(process)}-" in left.name and not psutil.pid_exists(int(process)):
            _remove(left)


def _to_the_disk(partial):
    """Wait until the system has written all of ``partial``: a network disk tells only then that it is full."""
    with machine.waiting(f"{partial.name.split('.partial')[0]}: waiting for the disk"):
        for file in [partial] if partial.is_file() else partial.rglob("*"):
            if file.is_file():
                with open(file, "rb" if os.name == "posix" else "rb+") as written:
                    os.fsync(written.fileno())


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_folder(folder, setting="RESULTS_DIR"):
    """Make ``folder`` unless it is there. Raises DiskError, a sentence that names ``setting``."""
    with _sentence(Path(folder), setting, reasons=errors.FULL | errors.CLOSED | errors.NO_FOLDER):
        Path(folder).mkdir(parents=True, exist_ok=True)


def write(path, content, setting="RESULTS_DIR"):
    """Write ``content`` (bytes, or text, which becomes UTF-8) as the file ``path``, whole or not at all. Raises DiskError."""
    with whole(path, setting=setting) as partial:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_json(path, content, setting="RESULTS_DIR", **options):
    """Write ``content`` to ``path`` as JSON, whole or not at all. Raises ValueError for numbers that JSON has not, and DiskError."""
    write(path, json.dumps(content, ensure_ascii=False, allow_nan=False, **options) + "\n", setting)


def append(path, line, setting="RESULTS_DIR"):
    """Append ``line`` (text without its end) to the file ``path`` as a line of its own, whole or not at all. Raises DiskError."""
    path = Path(path)
    with _turn(path), _sentence(path, setting):
        make_folder(path.parent, setting)
        with open(path, "ab+", buffering=0) as file:
            size, rest = file.seek(0, os.SEEK_END), line.encode() + b"\n"
            if size:
                file.seek(-1, os.SEEK_END)
                rest = rest if file.read(1) == b"\n" else b"\n" + rest  # an earlier write was cut off: leave it, begin a new line
            try:
                end = size + len(rest)
                while rest:  # a disk that fills up takes a part, and says why with the next
                    if not (taken := file.write(rest)):
                        raise OSError(errno.ENOSPC, "nothing was written")
                    rest = rest[taken:]
                os.fsync(file.fileno())
            except BaseException:  # an interrupt too
                with contextlib.suppress(OSError):
                    if os.fstat(file.fileno()).st_size <= end:  # nobody has appended meanwhile
                        file.truncate(size)
                raise


def newer(path, folder):
    """Whether the file ``path`` is there and not older than any file of ``folder``, from which it was made."""
    return path.is_file() and path.stat().st_mtime >= max(file.stat().st_mtime for file in Path(folder).iterdir())


def read_tensor(folder, name):
    """Return the tensor ``name`` as it stands in the checkpoint ``folder``'s files, on the CPU, before any library has touched it. Raises CheckpointError."""
    if (stored := tensors(folder).get(name)) is None:
        raise CheckpointError(f"{folder} has no tensor {name} in its files: check the name, or fetch the checkpoint again.")
    return stored.read()


def check_format(folder, format):
    """Raise CheckpointError unless ``folder/config.json`` is of a decoder whose weights a step of ``format`` can load; return its Sizes."""
    check_method(folder, format)
    return sizes.of(folder)


def check_method(folder, format):
    """Raise CheckpointError unless the weights in ``folder`` are quantised as a step of ``format`` loads them, by config.json alone."""
    folder = Path(folder)
    own = settings(folder)
    on_load = any(own.get(key) for key in ("load_in_8bit", "load_in_4bit", "_load_in_8bit", "_load_in_4bit"))
    old = not own and (folder / "quantize_config.json").is_file()
    method = own.get("quant_method") or ("bitsandbytes" if on_load else "unnamed" if own else "gptq" if old else None)
    if old and format == "gptq":
        why = (
            "has its GPTQ settings in quantize_config.json alone, as older programs wrote them, and transformers reads config.json: copy them there, as"
            ' "quantization_config", and add "quant_method": "gptq" to them'
        )
    elif method != "gptq" and str(method).lower() == "gptq":
        why = f'names its quant_method {method!r} in config.json, and transformers knows "gptq": write it so'
    elif method == (None if format != "gptq" else "gptq"):
        return
    elif method == "gptq":
        why = "holds gptq weights: this step needs unquantised ones, so take step 3 or 4, which load GPTQ"
    elif method:
        makes = " (step 1 makes 8 bits of it while it loads, nf4 makes 4)" if method == "bitsandbytes" else ""
        why = f"holds {method} weights, which no step loads: take the unquantised checkpoint that they were made from{makes}, or a GPTQ one with step 3"
    else:
        why = "holds unquantised weights: this step needs GPTQ ones, so take step 1 or 2, which load unquantised ones"
    raise CheckpointError(f"{folder} {why}.")


def check_folder(folder, format):
    """Raise CheckpointError unless ``folder`` holds a complete checkpoint in ``format`` (int8 and nf4 are made from 16-bit files).

    Only the safetensors headers are read, and GPTQ's indices: every shard must be there, none cut off, no layer missing, and GPTQ's integers packed
    as config.json says. Of an architecture whose tensors transformers renames while it loads, what is missing is said by it (see ``loading``).
    """
    folder, size = Path(folder), check_format(folder, format)
    found, gptq = _named(tensors(folder), size), format == "gptq"
    if gptq and (routed := next((name for name in sorted(found) if "experts." in name and name.endswith(".qweight")), "")):
        raise CheckpointError(
            f"{folder} has experts in GPTQ's integers ({routed}), and transformers keeps the experts of a block as one tensor of 16 bits: take the"
            " unquantised checkpoint in bf16 (step 2), 8 bits (step 1) or NF4, or a model without experts."
        )
    layers, wanted = size.quantised if gptq else {}, {}
    unread = {f"{layer}.bias" for layer in layers} - set(size.tensors)  # programs wrote zeros for a bias that the model has not
    if gptq:
        _check_parts(folder, found, unread)
    if size.renamed:
        return
    for name, tensor in size.tensors.items():
        layer, _, part = name.rpartition(".")
        if part == "weight" and layer in layers:
            wanted |= {f"{layer}.{piece}": shape for piece, (shape, _) in size.packed(layer).items()}
        else:
            wanted[name] = tensor.shape
    missing = sorted(set(wanted) - set(found) - set(size.tied))
    if missing and (whole := missing[0].removesuffix("weight") + "qweight") in found:
        raise CheckpointError(
            f"{folder} has GPTQ's integers of {whole.removesuffix('.qweight')}, and its quantization_config leaves that layer out: correct"
            " block_name_to_quantize or modules_in_block_to_quantize in its config.json, or take another checkpoint."
        )
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors, {missing[0]} for one: fetch or build the checkpoint again.")
    for name, (*_, shape) in sorted(found.items()):
        if name not in {*wanted, *unread, *size.tied} and not any(re.search(key, name) for key in (*size.ignored, r"rotary_emb\.inv_freq$")):
            raise CheckpointError(
                f"{folder} has a tensor that its config.json does not know ({name}), and a library would leave it out: correct config.json, or take another"
                " checkpoint."
            )
        if wanted.get(name) in (None, shape):
            continue
        if name.rpartition(".")[2] in ("qweight", "qzeros", "scales"):
            raise CheckpointError(
                f"{folder} says {size.bits} bits in groups of {size.group_size}, and {name} is of shape {shape} in place of {wanted[name]}: correct"
                " quantization_config in its config.json, or fetch the checkpoint again."
            )
        raise CheckpointError(
            f"{folder}: {name} is of shape {shape} in place of {wanted[name]}, as config.json says: correct config.json, or fetch the checkpoint again."
        )


def _check_parts(folder, found, unread):
    """Raise CheckpointError unless each GPTQ layer in ``found`` has all its parts, of their types, and inputs in groups that it has.

    unread: biases, which must be 0. transformers says nothing of any of these: it computes with what lies in the memory, or with other numbers.
    """
    again = "fetch the checkpoint again, or take another"
    for name in sorted(found):
        layer, _, part = name.rpartition(".")
        if name in unread and found[name].read().any():
            raise CheckpointError(f"{folder} has a bias that config.json does not know ({name}), and a library would leave it out: take another checkpoint.")
        if f"{layer}.qweight" not in found or part not in PARTS:
            continue
        if lost := [piece for piece in PARTS if f"{layer}.{piece}" not in found]:
            raise CheckpointError(f"{folder} lacks {layer}.{lost[0]}, without which its integers are other weights: {again}.")
        if found[name].kind not in PARTS[part]:
            raise CheckpointError(f"{folder}: {name} has numbers of type {found[name].kind} in place of {PARTS[part][0]}: {again}.")
        if part == "g_idx" and (index := found[name].read()).numel() and not 0 <= index.min() <= index.max() < found[f"{layer}.scales"].shape[0]:
            raise CheckpointError(f"{folder}: {name} names groups that {layer}.scales does not have ({index.min()} to {index.max()}): {again}.")


def _named(found, size):
    """``found`` with the model's names: some files leave out the name of its body, which transformers puts before them."""
    return {name if name in size.tensors or (longer := f"{size.prefix}.{name}") not in size.tensors else longer: stored for name, stored in found.items()}


class Stored(NamedTuple):
    """A tensor in a checkpoint's ``file``, where it has the name ``name``; kind: safetensors' name of its type."""

    file: Path
    name: str
    kind: str
    shape: tuple

    def read(self):
        """The tensor, on the CPU."""
        from safetensors import safe_open

        with safe_open(self.file, framework="pt") as content:
            return content.get_tensor(self.name)


def tensors(folder):
    """Return {name: Stored} of all tensors in a checkpoint's files, from their headers. Raises CheckpointError if a file is missing, cut off or damaged."""
    folder, found = Path(folder), {}
    for name in _shards(folder):
        shard = folder / name
        if not os.path.isfile(shard):  # a name that no disk takes is no error
            raise CheckpointError(f"{folder} lacks {name}: fetch or build the checkpoint again.")
        if (stored := _stored(shard)) is None:
            raise CheckpointError(f"{shard} is cut off or damaged ({shard.stat().st_size:,} bytes): fetch or build the checkpoint again.")
        found.update(stored)
    return found


def _shards(folder):
    """The names of a checkpoint's files of weights. Raises CheckpointError, which says what the folder has instead."""
    if (folder / INDEX).is_file():
        weight_map = read_json(folder, INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
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


def _stored(shard):
    """{name: Stored} of a safetensors file, or None if it has none, or not exactly the length that its header announces. The weights are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}
            return {name: Stored(shard, name, part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()} or None
    except (SafetensorError, OSError):
        return None
