"""4-bit quantisation: GPTQ checkpoints in the v1 layout, and plain rounding to compare with.

A linear layer with weight [out, in] becomes four tensors:
    qweight int32   [in/8, out]          eight 4-bit codes in one number
    qzeros  int32   [in/group, out/8]    the zero point minus one (v1), here always 7
    scales  float16 [in/group, out]
    g_idx   int32   [in]                 the group of each input
"""

import json
import logging
import os
import shutil
import warnings
from pathlib import Path

import torch

from helpers.models import files

from .settings import SETTING, THREADS

BITS, GROUP = 4, 128
DAMP = 0.1
V1_ZEROS = 0x77777777


def quiet_libraries():
    """Less chatter from the libraries, and no compiler needed to pack the weights."""
    os.environ.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")  # pack in Python: slower, but needs no C++ compiler
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.filterwarnings("ignore")
    for name in ("torchao", "torch.utils._pytree", "optimum", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        from logbar import LogBar

        LogBar.shared().setLevel("ERROR")
    except Exception:
        pass


def gptq_settings():
    """The quantisation settings as they stand in config.json and quantize_config.json."""
    return {
        "bits": BITS,
        "group_size": GROUP,
        "damp_percent": DAMP,
        "desc_act": False,
        "sym": True,
        "true_sequential": True,
        "static_groups": False,
        "model_name_or_path": None,
        "model_file_base_name": "model",
    }


def quantise_gptq(base, windows):
    """Quantise a base checkpoint with GPTQ, calibrated on windows (int64 [count, tokens]); returns the model.

    The computation is in fp32; the in-memory layout is the library's own (v2).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPTQConfig

    torch.set_num_threads(THREADS)
    examples = [{"input_ids": window[None].tolist(), "attention_mask": torch.ones_like(window[None]).tolist()} for window in windows]
    plan = GPTQConfig(
        bits=BITS,
        group_size=GROUP,
        damp_percent=DAMP,
        desc_act=False,
        sym=True,
        true_sequential=True,
        dataset=examples,
        tokenizer=AutoTokenizer.from_pretrained(base),
        batch_size=1,
        model_seqlen=windows.shape[1],
    )
    return AutoModelForCausalLM.from_pretrained(base, quantization_config=plan, dtype=torch.float32, device_map={"": "cpu"})


def save_gptq(model, base, folder):
    """Save a just-quantised model in the v1 layout, with the configuration and tokeniser of its base; a save that is cut leaves the old folder."""
    from gptqmodel.utils.model import hf_convert_gptq_v2_to_v1_format
    from safetensors.torch import save_file

    quantised = [module for module in model.modules() if hasattr(module, "qweight")]
    hf_convert_gptq_v2_to_v1_format(model, True, BITS, type(quantised[0]), "gptq_v2", None)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if name.endswith((".qweight", ".qzeros", ".g_idx")):
            tensors[name] = tensor.to(torch.int32).contiguous()
        else:
            tensors[name] = tensor.to(torch.float16).contiguous()
    for name, tensor in tensors.items():
        if name.endswith(".qzeros") and not torch.all(tensor == V1_ZEROS):
            raise RuntimeError(f"{name} is not in the v1 layout")

    base = Path(base)
    config = json.loads((base / "config.json").read_text())
    config.update(dtype="float16", torch_dtype="float16", quantization_config={**gptq_settings(), "quant_method": "gptq"})
    with files.whole(folder, setting=SETTING) as part:
        part.mkdir()
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
            shutil.copy(base / name, part / name)
        files.write_json(part / "config.json", config, setting=SETTING, indent=2, sort_keys=True)
        files.write_json(part / "quantize_config.json", gptq_settings(), setting=SETTING, indent=2)


def make_gptq(base, folder, windows):
    """Quantise, save, load again and compare; returns the largest difference of the logits (no unit)."""
    from transformers import AutoModelForCausalLM

    model = quantise_gptq(base, windows)
    with torch.no_grad():
        before = model(windows[:4]).logits.float()
    save_gptq(model, base, folder)
    del model
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": "cpu"})
    with torch.no_grad():
        after = again(windows[:4]).logits.float()
    difference = (before - after).abs().max().item()
    if difference > 0.02 * before.abs().max().item():  # the CPU kernel rounds the scales to bfloat16; a wrong zero point gives far more
        raise RuntimeError(f"{folder} does not give the logits of the quantised model: difference {difference:.3f}")
    return difference
