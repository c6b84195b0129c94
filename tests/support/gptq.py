"""GPTQ checkpoints of any settings, written from the embedded model bit by bit, and the same weights unpacked by hand."""

import json
import shutil

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from helpers.models.catalogue import CHECKPOINTS, LINEARS


def bits_of(integers, bits):
    """Integers below 2^``bits``, shape (n, columns), as int32 words, shape (n x bits / 32, columns): one stream of bits a column, lowest first."""
    stream = (integers[:, None, :] >> np.arange(bits)[None, :, None]) & 1
    packed = np.packbits(stream.reshape(-1, integers.shape[1]).astype(np.uint8), axis=0, bitorder="little")
    return torch.tensor(np.ascontiguousarray(packed.T).view("<i4").T.tolist(), dtype=torch.int32)


def write(folder, bits=4, group=128, act_order=False, sym=True, v2=False, source="small", **settings):
    """Write a GPTQ checkpoint of the embedded model ``source`` to ``folder`` and return {layer: its weights (float32) unpacked by hand}.

    act_order: the columns' groups are shuffled. v2: zero points as they are, not minus 1. settings: more of the quantization_config.
    """
    shutil.copytree(CHECKPOINTS / f"{source}-gptq", folder)
    tensors, unpacked, random = {}, {}, np.random.default_rng(0)
    for key, weight in load_file(CHECKPOINTS / source / "model.safetensors").items():
        name = key.removesuffix(".weight")
        if not name.endswith(LINEARS):
            tensors[key] = weight.half()
            continue
        weight = weight.float().numpy()
        columns = weight.shape[1]
        index = np.arange(columns) // (columns if group == -1 else group)
        index = random.permutation(index) if act_order else index
        groups = index.max() + 1
        low, high = (np.stack([end(weight[:, index == n], axis=1) for n in range(groups)], 1) for end in (np.min, np.max))  # (outputs, groups)
        if sym:
            high = np.maximum(-low, high)
            low = -high
        scale = np.maximum((high - low) / (2**bits - 1), 1e-6).astype(np.float16)
        step = scale.astype(np.float32)
        zero = np.full(scale.shape, 2 ** (bits - 1)) if sym else np.clip(np.round(-low / step), 1, 2**bits - 1).astype(int)
        codes = np.clip(np.round(weight / step[:, index]) + zero[:, index], 0, 2**bits - 1).astype(np.int64)
        unpacked[name] = torch.from_numpy((codes - zero[:, index]) * step[:, index]).float()
        parts = {
            "qweight": bits_of(codes.T, bits), "qzeros": bits_of((zero if v2 else zero - 1).astype(np.int64), bits).T,
            "scales": torch.from_numpy(scale.T), "g_idx": torch.from_numpy(index.astype(np.int32)),
        }  # fmt: skip
        tensors |= {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    (folder / "model.safetensors").chmod(0o644)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"bits": bits, "group_size": group, "desc_act": act_order, "sym": sym, "true_sequential": True, "damp_percent": 0.1} | settings
    settings |= {"checkpoint_format": "gptq_v2"} if v2 else {}
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": settings | {"quant_method": "gptq"}}
    for name, content in (("config.json", config), ("quantize_config.json", settings)):
        (folder / name).chmod(0o644)
        (folder / name).write_text(json.dumps(content))
    return unpacked


def by_hand(unpacked, ids, dtype, source="small"):
    """Logits of the last position after ``ids`` from a plain model in ``dtype`` that has the ``unpacked`` weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / source, dtype=dtype)
    with torch.no_grad():
        for name, weight in unpacked.items():
            model.get_submodule(name).weight.copy_(weight)
        return model(ids).logits[0, -1].float()
