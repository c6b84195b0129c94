"""Checkpoints of Qwen2.5's exact shapes with random weights, as their repositories have them: names of tensors, types, settings, no begin-of-sequence token."""

import json
import shutil

import torch
from safetensors.torch import save_file

from helpers.models.catalogue import CHECKPOINTS, LINEARS, QWEN_2_5
from helpers.models.synthetic import _gptq_linear

HEADS = {"7B": 14, "13B": 12}
TEMPLATE = (  # ChatML, as Qwen's is
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUANTIZATION = {
    "bits": 4, "damp_percent": 0.01, "desc_act": False, "group_size": 128, "model_file_base_name": "model", "model_name_or_path": None, "modules_in_block_to_quantize": None,
    "quant_method": "gptq", "static_groups": False, "sym": True, "true_sequential": True,
}  # fmt: skip


def write(folder, size, format="bf16", layers=None, std=0.02):
    """Write the model in the place of the article's ``size``, or of another Shape, into ``folder`` and return it; layers: fewer blocks than it has."""
    shape, random = QWEN_2_5.get(size, size), torch.Generator().manual_seed(0)
    count, h, dtype = layers or shape.num_hidden_layers, shape.hidden_size, torch.float16 if format == "gptq" else torch.bfloat16
    pool = (torch.randn(4_194_301, generator=random) * std).to(dtype)

    def normal(*sizes):
        numbers = torch.Size(sizes).numel()
        return pool.repeat(numbers // len(pool) + 1)[:numbers].view(sizes).contiguous()

    tensors = {"model.embed_tokens.weight": normal(shape.vocab_size, h), "model.norm.weight": torch.ones(h, dtype=dtype)}
    for n in range(count):
        for name, (inputs, outputs) in zip(LINEARS, shape.linears()):
            parts = _gptq_linear(inputs, outputs, random) if format == "gptq" else {"weight": normal(outputs, inputs).roll(n, 0)}
            if name.endswith(("q_proj", "k_proj", "v_proj")):
                parts["bias"] = normal(outputs)
            tensors |= {f"model.layers.{n}.{name}.{part}": tensor for part, tensor in parts.items()}
        tensors |= {f"model.layers.{n}.{norm}.weight": torch.ones(h, dtype=dtype) for norm in ("input_layernorm", "post_attention_layernorm")}
    folder.mkdir(parents=True)
    last = min(151645, shape.vocab_size - 1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": last - 2, "eos_token_id": last, "hidden_act": "silu", "hidden_size": h,
        "initializer_range": 0.02, "intermediate_size": shape.intermediate_size, "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2",
        "num_attention_heads": HEADS.get(size, 4), "num_hidden_layers": count, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": str(dtype).removeprefix("torch."), "use_cache": True, "use_sliding_window": False,
        "vocab_size": shape.vocab_size,
    }  # fmt: skip
    generation = {"bos_token_id": last - 2, "do_sample": True, "eos_token_id": [last, last - 2], "repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8}
    for name, content in {
        "config.json": config | ({"quantization_config": QUANTIZATION} if format == "gptq" else {}),
        "generation_config.json": generation,
    }.items():
        (folder / name).write_text(json.dumps(content))
    tokeniser(folder)
    return folder


def tokeniser(folder, template=TEMPLATE):
    """Put the embedded models' tokeniser into ``folder`` as Qwen's is: without a begin-of-sequence token, with a chat template."""
    shutil.copy(CHECKPOINTS / "small" / "tokenizer.json", folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    settings = json.loads((CHECKPOINTS / "small" / "tokenizer_config.json").read_text(encoding="utf-8")) | {"chat_template": template}
    settings |= {"bos_token": None, "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
