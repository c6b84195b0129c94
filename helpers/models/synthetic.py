"""Write checkpoints of Llama-2's shapes with random weights: real sizes, timings and kernels, without licence and download.

What such a model writes has no sense. Eight channels of each norm are scaled up, so that the layers behind it see outliers as
those of trained models do: without any, LLM.int8() would skip its 16-bit part and look faster than it is. The tokeniser is the
embedded models', whose tokens are a part of the vocabulary. First used in notebook 00, which may choose the tier "synthetic".
"""

import shutil
from dataclasses import replace
from pathlib import Path

from helpers import setup
from helpers.errors import CheckpointError, UnknownStepError
from helpers.models import files
from helpers.models.catalogue import CHECKPOINTS, LINEARS, LLAMA_2, Shape, read_json

GROUP_SIZE = 128
STD = 0.02  # of the weights, as in Llama's initialisation: activations stay finite in 16 bits
# Of the values: version 1, which left no mark, had equal blocks; the GPTQ weights of 2 had a mean, which float16 overflowed after 27 blocks.
VERSION, MARK = 3, "synthetic.json"
POOL = 4_194_301  # random numbers drawn; a prime, so that repeating them never lines up with a matrix's rows
SHAPES = {  # between the course's small models and Llama-2: https://arxiv.org/abs/2310.06694 (Sheared LLaMA)
    "1.3B": Shape(2048, 5504, 24),
    "2.7B": Shape(2560, 6912, 32),
    **LLAMA_2,
}


def folder(model, format, layers=None):
    """Return the folder of the synthetic checkpoint for ``model`` (a key of SHAPES) and ``format``, written now if it is not there yet.

    It lies in the environment variable SYNTHETIC_DIR, by default ``synthetic/`` in the project. int8 and nf4 are made while loading,
    so they share bf16's files. One of an earlier VERSION is written again. layers: another number of blocks than the model has. Raises UnknownStepError or NotEnoughMemoryError.
    """
    if model not in SHAPES:
        raise UnknownStepError(f"There is no size {model!r}: choose one of {', '.join(SHAPES)}.")
    if layers is not None and layers < 1:
        raise UnknownStepError(f"A model of {layers} layers makes no sense: ask for 1 or more.")
    stored = "gptq" if format == "gptq" else "bf16"
    shape = LLAMA_2.get(model, SHAPES[model])
    shape = replace(shape, num_hidden_layers=layers or shape.num_hidden_layers)
    path = setup.folder("SYNTHETIC_DIR", "synthetic") / f"llama-2-{model.lower()}{f'-{layers}-layers' if layers else ''}-{stored}"
    if path.is_dir() and not _current(path):
        print(f"{path.name} is of an earlier version of this course, with weights less like those of a real model: it is written again.")
        shutil.rmtree(path)
    if not path.is_dir():
        write(shape, stored, path)
    return path


def _current(path):
    """Whether the folder ``path`` was written with today's values."""
    try:
        return read_json(path, MARK)["version"] == VERSION
    except (CheckpointError, KeyError, TypeError):
        return False


def write(shape, format, path):
    """Write a checkpoint of ``shape`` in ``format`` ("bf16", or "gptq" in AutoGPTQ's v1 layout) to the folder ``path``, unless that is there.

    Its sizes are multiples of 128, the width of a head and of a group of GPTQ. One block of the model is in memory, at most 2 GB at Llama-2
    13B's size. Each block has values of its own: an engine that keeps equal weights once would otherwise read less than a real model's. A write that was cut off leaves nothing. Raises NotEnoughMemoryError if the disk is
    too full.
    """
    path = Path(path)
    with files.whole(path, path.is_dir, shape.weight_bytes(format), "SYNTHETIC_DIR") as partial:
        if partial:
            partial.mkdir()
            _write_files(shape, format, partial, f"writing {path.name}")


def _write_files(shape, format, folder, description):
    """Write all files of a checkpoint: two shards a block (its attention, its MLP), then norm, embedding table and head."""
    import torch
    from safetensors.torch import save_file
    from tqdm.auto import tqdm

    random = torch.Generator().manual_seed(0)
    dtype = torch.float16 if format == "gptq" else torch.bfloat16
    h, count = shape.hidden_size, 2 * shape.num_hidden_layers + 2
    pool = (torch.randn(POOL, generator=random) * STD).to(dtype)
    norm = torch.ones(h, dtype=dtype)
    norm[:: h // 8] = 8.0
    names = dict(zip(LINEARS, shape.linears()))
    weight_map = {}

    def normal(rows, columns):
        return pool.repeat(rows * columns // POOL + 1)[: rows * columns].view(rows, columns)

    def own(tensors, number):
        """``tensors`` of block ``number``: the rows of its matrices are turned by as many places, so that no two blocks are equal."""
        return {name: t.roll(number, 0) if "_proj" in name and name.endswith("weight") else t for name, t in tensors.items()}

    def parts(half, norm_name):
        """The tensors of one half of a block, by their names within the block."""
        linears = {name: size for name, size in names.items() if name.startswith(half)}
        if format == "gptq":
            tensors = {f"{name}.{part}": t for name, size in linears.items() for part, t in _gptq_linear(*size, random).items()}
        else:
            tensors = {f"{name}.weight": normal(outputs, inputs) for name, (inputs, outputs) in linears.items()}
        return tensors | {f"{norm_name}.weight": norm}

    def save(tensors):
        shard = f"model-{len(set(weight_map.values())) + 1:05d}-of-{count:05d}.safetensors"
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, shard))
        bar.update(sum(t.nbytes for t in tensors.values()))

    with tqdm(total=shape.weight_bytes(format), desc=description, unit="B", unit_scale=True) as bar:
        for half, norm_name in (("self_attn", "input_layernorm"), ("mlp", "post_attention_layernorm")):
            tensors = parts(half, norm_name)
            for number in range(shape.num_hidden_layers):
                save({f"model.layers.{number}.{name}": t for name, t in own(tensors, number).items()})
            del tensors
        save({"model.embed_tokens.weight": normal(shape.vocab_size, h), "model.norm.weight": torch.ones(h, dtype=dtype)})
        save({"lm_head.weight": normal(shape.vocab_size, h)})
    files.write_json(folder / files.INDEX, {"metadata": {"total_size": shape.weight_bytes(format)}, "weight_map": weight_map}, indent=2)
    files.write_json(folder / "config.json", _config(shape, format), indent=2)
    files.write_json(folder / MARK, {"version": VERSION})
    for file in (CHECKPOINTS / "small").glob("*token*.json"):
        shutil.copy(file, folder)


def _gptq_linear(inputs, outputs, random):
    """The tensors of one GPTQ layer with random 4-bit integers; the scale makes the weights' standard deviation about STD."""
    import torch

    groups = inputs // GROUP_SIZE
    eight = torch.randint(-(2**31), 2**31 - 1, (inputs // 8, outputs), generator=random, dtype=torch.int32)  # integers of 0 … 15 in one number
    some = eight | eight >> 1 | eight >> 2 | eight >> 3  # its bit 4n: whether integer n is above 0
    return {
        "qweight": eight | (~some & 0x11111111) << 3,  # 8, the zero point, in place of 0: so the weights' mean is 0
        "qzeros": torch.full((groups, outputs // 8), 0x77777777, dtype=torch.int32),
        "scales": torch.full((groups, outputs), STD / 4.18, dtype=torch.float16),  # 4.18: their standard deviation
        "g_idx": torch.arange(inputs, dtype=torch.int32) // GROUP_SIZE,
    }


def _config(shape, format):
    """The embedded models' configuration, with the sizes of ``shape``; heads are 128 wide."""
    sizes = {name: getattr(shape, name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")}
    heads = dict.fromkeys(("num_attention_heads", "num_key_value_heads"), shape.hidden_size // 128)
    return (
        read_json(CHECKPOINTS / ("small-gptq" if format == "gptq" else "small"), "config.json")
        | sizes
        | heads
        | {"head_dim": 128, "max_position_embeddings": 4096}
    )
