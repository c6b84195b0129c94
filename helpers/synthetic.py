"""Write checkpoints of Llama-2's shapes with random weights: real sizes, timings and kernels, without licence and download.

What such a model writes has no sense. Eight channels of each norm are scaled up, so that the layers behind it see outliers as
those of trained models do: without any, LLM.int8() would skip its 16-bit part and look faster than it is. The tokeniser is the
embedded models', whose tokens are a part of the vocabulary.
"""

import json
import os
import shutil
from pathlib import Path

from helpers.article import ROOT
from helpers.checks import LINEARS
from helpers.errors import CheckpointError, NotEnoughMemoryError
from helpers.steps import CHECKPOINTS, LLAMA_2

GROUP_SIZE = 128
STD = 0.02  # of the weights, as in Llama's initialisation: activations stay finite in 16 bits


def folder(model, format):
    """Return the folder of the synthetic checkpoint for ``model`` ("7B", "13B") and ``format``, written now if it is not there yet.

    It lies in the environment variable SYNTHETIC_DIR, by default ``synthetic/`` in the project. int8 is made while loading, so it
    shares bf16's files.
    """
    stored = "gptq" if format == "gptq" else "bf16"
    parent = ROOT / (os.environ.get("SYNTHETIC_DIR") or "synthetic")  # a relative path counts from the project
    path = parent / f"llama-2-{model.lower()}-{stored}"
    if not path.is_dir():
        write(LLAMA_2[model], stored, path)
    return path


def write(shape, format, path, seed=0):
    """Write a checkpoint of ``shape`` in ``format`` ("bf16", or "gptq" in AutoGPTQ's v1 layout) to the folder ``path``.

    One block of the model is in memory at a time. All blocks have the same random values. The folder gets its name only when it is
    complete, so a write that was cut off leaves nothing that looks finished. Raises NotEnoughMemoryError if the disk is too full.
    """
    import torch
    from safetensors.torch import save_file
    from tqdm.auto import tqdm

    path = Path(path)
    if path.exists():
        raise CheckpointError(f"{path} exists already: delete it first to write it again.")
    path.parent.mkdir(parents=True, exist_ok=True)
    need, free = shape.weight_bytes(format), shutil.disk_usage(path.parent).free
    if need > 0.98 * free:
        raise NotEnoughMemoryError(
            f"{path.name} takes {need / 1e9:.1f} GB and {free / 1e9:.1f} GB of the disk are free: make room, or set SYNTHETIC_DIR to another disk."
        )
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    random = torch.Generator().manual_seed(seed)
    dtype = torch.float16 if format == "gptq" else torch.bfloat16
    h, vocab = shape.hidden_size, shape.vocab_size

    def normal(*size):
        return (torch.randn(*size, generator=random) * STD).to(dtype)

    linear = _gptq_linear if format == "gptq" else lambda n, m, random: {"weight": normal(m, n)}
    block = {f"{name}.{part}": t for name, (n, m) in zip(LINEARS, shape.linears()) for part, t in linear(n, m, random).items()}
    norm = torch.ones(h, dtype=dtype)
    norm[:: h // 8] = 8.0
    block |= {f"{name}.weight": norm.clone() for name in ("input_layernorm", "post_attention_layernorm")}
    outer = {"model.embed_tokens.weight": normal(vocab, h), "model.norm.weight": torch.ones(h, dtype=dtype), "lm_head.weight": normal(vocab, h)}
    weight_map, count = {}, shape.num_hidden_layers + 1
    for number in tqdm(range(count), desc=f"writing {path.name}, {need / 1e9:.1f} GB"):
        tensors = outer if number == count - 1 else {f"model.layers.{number}.{name}": t for name, t in block.items()}
        shard = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        save_file(tensors, partial / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    _write_json(partial / "model.safetensors.index.json", {"metadata": {"total_size": need}, "weight_map": weight_map})
    _write_json(partial / "config.json", _config(shape, format))
    for file in (CHECKPOINTS / "small").glob("*token*.json"):
        shutil.copy(file, partial)
    partial.rename(path)


def _gptq_linear(inputs, outputs, random):
    """The tensors of one GPTQ layer with random 4-bit integers; the scale makes the weights' standard deviation about STD."""
    import torch

    groups = inputs // GROUP_SIZE
    return {
        "qweight": torch.randint(-(2**31), 2**31, (inputs // 8, outputs), generator=random, dtype=torch.int64).to(torch.int32),
        "qzeros": torch.full((groups, outputs // 8), 0x77777777, dtype=torch.int32),
        "scales": torch.full((groups, outputs), STD / 4.61, dtype=torch.float16),  # 4.61: standard deviation of 0 … 15
        "g_idx": torch.arange(inputs, dtype=torch.int32) // GROUP_SIZE,
    }


def _config(shape, format):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.hidden_size // 128,
        "num_key_value_heads": shape.hidden_size // 128,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16" if format == "gptq" else "bfloat16",
    }
    if format == "gptq":
        config["quantization_config"] = {
            "quant_method": "gptq", "bits": 4, "group_size": GROUP_SIZE, "desc_act": False, "sym": True, "true_sequential": True,
            "damp_percent": 0.1,
        }  # fmt: skip
    return config


def _write_json(path, content):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
