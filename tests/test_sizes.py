"""Sizes of decoders of any architecture: those of real checkpoints, of miniatures in memory, of the library's own cache; and what is refused."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support.book import functions
from support.hub import Hub

from helpers import ROOT, benchmark, ledger, limits, loading, quality, timing
from helpers.errors import CheckpointError, DeviceError, PromptError
from helpers.models import choose, sizes
from helpers.models.catalogue import CHECKPOINTS, LLAMA_2, Shape

REAL = json.loads((Path(__file__).parent / "sizes.json").read_text(encoding="utf-8"))["models"]
BASE = {"vocab_size": 1536, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
GROUPED = BASE | {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
MINI = {  # one of each kind: grouped queries and tied heads, biases, heads of their own width, windows, experts, other names for the layers
    "llama": GROUPED | {"tie_word_embeddings": True, "attention_bias": True},
    "qwen2": GROUPED | {"tie_word_embeddings": True},
    "qwen3": GROUPED | {"head_dim": 64, "tie_word_embeddings": False},
    "gemma3_text": GROUPED | {"num_hidden_layers": 7, "num_key_value_heads": 1, "head_dim": 64, "sliding_window": 16},
    "mistral": GROUPED | {"sliding_window": 16},
    "phi": BASE | {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4},
    "phi3": GROUPED,
    "gpt2": {"vocab_size": 1536, "n_positions": 512, "n_embd": 96, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    "olmoe": GROUPED | {"num_experts": 8, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    "mixtral": GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
FURTHER = {  # positions without an end, and in a part of config.json
    "bloom": {"vocab_size": 1536, "hidden_size": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    "mamba": {"vocab_size": 1536, "hidden_size": 64, "state_size": 8, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2},
    "gemma3": {"text_config": GROUPED | {"sliding_window": 16}, "vision_config": {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}},
}  # fmt: skip


def described(folder, config):
    """``folder`` with a config.json alone, as the Hub's is fetched before anything large."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def mini(kind, folder, **change):
    """Write a checkpoint of ``kind`` with random weights and the embedded models' tokeniser."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **(MINI | FURTHER)[kind] | change)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for file in (CHECKPOINTS / "small").glob("*token*.json"):
        shutil.copy(file, folder)
    return folder


def fails(action, *words, kind=CheckpointError):
    with pytest.raises(kind) as error:
        action()
    assert "\n" not in str(error.value) and not [word for word in words if word not in str(error.value)], str(error.value)


@pytest.mark.parametrize("name", REAL)
def test_bytes_of_real_checkpoints(tmp_path, name):
    """From config.json alone, to the byte where the index says it; of a single file, what is left is its header."""
    model, found = REAL[name], sizes.of(described(tmp_path / "model", REAL[name]["config"]))
    ours = found.weight_bytes("bf16") + (2 * found.vocab_size * found.hidden_size if "again" in model else 0)
    if "total_size" in model:
        assert ours == model["total_size"]
    else:
        assert 8 + 50 * len(found.tensors) < model["file"] - ours < 200 * len(found.tensors)
        assert ours == pytest.approx(model["file"], rel=1e-3)
    assert found.parameters == found.weight_bytes("bf16") // 2
    if "active" in model:
        tables = found.vocab_size * found.hidden_size
        assert found.read_bytes("bf16") == 2 * (model["active"] - tables)


def test_formulas_and_models_agree(tmp_path):
    """The formulas of the lessons, for Llamas, against the empty model, in all formats."""
    cases = {
        **{name: (shape, None) for name, shape in LLAMA_2.items()},
        "grouped": (Shape(2048, 5632, 22, kv_size=256), 4),
        "tied": (Shape(576, 1536, 30, 49152, kv_size=192, tied=True), 3),
    }
    for name, (shape, groups) in cases.items():
        heads = {"grouped": 32, "tied": 9}.get(name, shape.hidden_size // 128)
        config = {"model_type": "llama", "num_attention_heads": heads, "num_key_value_heads": groups or heads, "tie_word_embeddings": shape.tied}
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
        found = sizes.of(described(tmp_path / name, config | {each: getattr(shape, each) for each in names}))
        for format in ("bf16", "fp16", "int8", "gptq"):
            assert (found.weight_bytes(format), found.read_bytes(format)) == (shape.weight_bytes(format), shape.read_bytes(format)), (name, format)
        assert found.weight_bytes("gptq", 64) == shape.weight_bytes("gptq", 64)
        assert found.weight_bytes("nf4") == shape.weight_bytes("nf4") + 64 * 7 * shape.num_hidden_layers  # the code's 16 values, once a layer
        for each in ("parameters", "linear_parameters", "other_parameters", "kv_bytes_per_token", "exllama_bytes", "num_hidden_layers"):
            assert getattr(found, each) == getattr(shape, each), (name, each)
        assert found.linears() == shape.linears()
        assert found.kv_bytes(700) == shape.kv_bytes(700)
        assert found.operations(100) == shape.operations(100)
        assert limits.step_bytes(found, "int8", 100, 3) == limits.step_bytes(shape, "int8", 100, 3)


@pytest.mark.parametrize("kind", MINI)
@pytest.mark.parametrize("key", [2, 1, "nf4"])
def test_a_model_in_memory_has_the_bytes(tmp_path, kind, key):
    """Written, loaded by the course's own call, and asked for a few tokens."""
    step = choose.get_step(key, checkpoint=str(mini(kind, tmp_path / kind)))
    model, tokenizer = loading.load(step)
    assert loading.weight_bytes(model) == step.bytes == step.shape.weight_bytes(step.format)
    assert step.shape.parameters == sum(p.numel() for p in transformers.AutoModelForCausalLM.from_config(model.config).parameters())
    _, new = timing.generate_once(model, tokenizer, new_tokens=4)
    assert len(new) == 4
    name, layer = loading.first_layer(model)
    assert name.split(".")[-1] in ("q_proj", "o_proj", "c_attn")
    assert type(layer).__name__ == {2: "Conv1D" if kind == "gpt2" else "Linear", 1: "Linear8bitLt", "nf4": "Linear4bit"}[key]


def quantised(folder, source, bits=4, group=32, **settings):
    """A GPTQ checkpoint of the miniature ``source`` with random integers, in the layout that ``sizes`` does not know of: counted by hand."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    tensors, random = {}, torch.Generator().manual_seed(0)
    linear = {name: m for name, m in model.named_modules() if type(m) is torch.nn.Linear and ".layers." in name}
    for name, tensor in model.state_dict().items():
        layer, _, part = name.rpartition(".")
        if layer not in linear or part == "bias":
            tensors[name] = tensor.half().clone()
            continue
        m, n = tensor.shape
        tensors[f"{layer}.qweight"] = torch.randint(-(2**31), 2**31 - 1, (n * bits // 32, m), generator=random, dtype=torch.int32)
        tensors[f"{layer}.qzeros"] = torch.full((math.ceil(n / group), m * bits // 32), 0x77777777, dtype=torch.int32)
        tensors[f"{layer}.scales"] = torch.full((math.ceil(n / group), m), 0.004, dtype=torch.float16)
        tensors[f"{layer}.g_idx"] = torch.arange(n, dtype=torch.int32) // group
    if config.get("tie_word_embeddings"):
        tensors.pop("lm_head.weight", None)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    own = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": True} | settings
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": own}))
    return folder, sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3_text", "mistral", "phi3"])
def test_gptq_of_other_architectures(tmp_path, kind):
    folder, real = quantised(tmp_path / "gptq", mini(kind, tmp_path / kind))
    step = choose.get_step(3, checkpoint=str(folder))
    assert step.bytes == real and step.title == "gptq GPTQ 4-bit, g32"
    model, tokenizer = loading.load(step)
    name, layer = loading.first_layer(model)
    assert "Linear" in type(layer).__name__ and type(layer) is not torch.nn.Linear
    assert (
        name
        == f"model.layers.0.self_attn.{'o_proj' if kind == 'phi3' else 'q_proj'}"
        == loading.first_layer(loading.load(choose.get_step(2, checkpoint=str(tmp_path / kind)))[0])[0]
    )
    assert len(timing.generate_once(model, tokenizer, new_tokens=4)[1]) == 4


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text", "mistral", "olmoe", "gpt2"])
@pytest.mark.parametrize("tokens", [5, 40])
def test_the_kv_cache_is_the_librarys(tmp_path, kind, tokens):
    """After a prompt shorter and longer than the window of 16 tokens."""
    step = choose.get_step(2, checkpoint=str(mini(kind, tmp_path / kind)))
    model, _ = loading.load(step)
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.arange(3, 3 + tokens)[None], past_key_values=cache)
    real = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert step.shape.kv_bytes(tokens) == real
    assert limits.step_bytes(step.shape, "bf16", tokens) == step.shape.read_bytes("bf16") + real
    grown = step.shape.kv_bytes(1001) - step.shape.kv_bytes(1000)
    assert grown == {"mistral": 0, "gemma3_text": step.shape.kv_bytes_per_token // 7}.get(kind, step.shape.kv_bytes_per_token)


def test_windows_bound_the_cache_of_real_models(tmp_path):
    """Gemma 3: of six layers one sees everything. Mistral 7B v0.1: none does. Keys and values of as many tokens as the window, less the newest."""
    gemma, mistral, qwen = (
        sizes.of(described(tmp_path / name, REAL[key]["config"]))
        for name, key in (("gemma", "google/gemma-3-1b-pt"), ("mistral", "mistralai/Mistral-7B-v0.1"), ("qwen", "Qwen/Qwen2.5-0.5B"))
    )
    assert gemma.kv_bytes(32768) == 2 * 2 * 256 * (4 * 32768 + 22 * 511)
    assert mistral.kv_bytes(100_000) == mistral.kv_bytes(4095) == 32 * 2 * 2 * 8 * 128 * 4095
    assert qwen.kv_bytes(32768) == 24 * 2 * 2 * 2 * 64 * 32768  # use_sliding_window is false


@pytest.mark.parametrize(("kind", "count"), [("olmoe", 8), ("mixtral", 4)])
def test_a_token_reads_the_experts_that_are_active(tmp_path, kind, count):
    found = sizes.of(mini(kind, tmp_path / kind))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / kind)
    routed = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    rest = sum(p.numel() for name, p in model.named_parameters() if ".experts." not in name and "embed_tokens" not in name)
    linear = sum(p.numel() for name, p in model.named_parameters() if "self_attn" in name and "_proj" in name)
    rows = sum(len(p) for name, p in model.named_parameters() if "self_attn" in name and "_proj" in name)
    assert routed == 3 * count * 3 * 128 * 160  # layers, experts, matrices
    assert found.read_bytes("bf16") == 2 * (rest + routed * 2 // count)
    assert found.read_bytes("int8") == 2 * (rest + routed * 2 // count) - linear + 4 * rows  # the experts stay in 16 bits
    assert found.weight_bytes("bf16") == 2 * (rest + routed + 1536 * 128)


def test_experts_in_gptq_are_refused(tmp_path):
    """transformers 5 has no layer that could take them; of the others, the attention is read as it is."""
    folder, real = quantised(tmp_path / "gptq", mini("olmoe", tmp_path / "olmoe"))
    assert sizes.of(folder).weight_bytes("gptq") == real
    tensors = {f"model.layers.0.mlp.experts.{n}.gate_proj.qweight": torch.zeros((16, 160), dtype=torch.int32) for n in range(8)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fails(lambda: loading.load(choose.get_step(3, checkpoint=str(folder))), "experts in GPTQ's integers", "in bf16 (step 2)")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "t5"}, ("an encoder with a decoder", "take a decoder")),
        ({"model_type": "from_next_year"}, ("which it does not know (transformers", "take a decoder")),
        (
            {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}},
            ("the course runs no code of checkpoints", "take a decoder"),
        ),
        ({"model_type": "vit"}, ("no decoder that writes text",)),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, ("no decoder that writes text",)),
        ({"model_type": "llama", "hidden_size": 100, "num_attention_heads": 0}, ("no model that transformers can build",)),
        ({}, ("holds a None model",)),
    ],
)
@pytest.mark.parametrize("key", [1, 2])
def test_what_is_no_decoder_says_what_works(tmp_path, config, words, key):
    step = choose.get_step(key, checkpoint=str(described(tmp_path / "model", config)))
    for action in (lambda: loading.load(step), lambda: choose.describe(step)):
        fails(action, *words)


def test_layers_that_gptq_cannot_pack(tmp_path):
    found = sizes.of(described(tmp_path / "odd", MINI["llama"] | {"model_type": "llama", "intermediate_size": 100}))
    fails(lambda: found.weight_bytes("gptq"), "mlp.gate_proj has 100 inputs or outputs", "bf16 (step 2), in 8 bits (step 1) or in NF4")
    assert found.weight_bytes("nf4") < found.weight_bytes("int8") < found.weight_bytes("bf16")


def test_parts_of_a_block_in_gptq(tmp_path):
    """modules_in_block_to_quantize: the others are in 16 bits, in the sizes and in memory."""
    source = mini("qwen2", tmp_path / "qwen2")
    folder = tmp_path / "gptq"
    quantised(folder, source, modules_in_block_to_quantize=[["mlp.up_proj", "mlp.gate_proj"]])
    fails(lambda: loading.load(choose.get_step(3, checkpoint=str(folder))), "leaves that layer out")
    whole = sizes.of(described(tmp_path / "whole", json.loads((source / "config.json").read_text())))
    some = sizes.of(folder)
    assert set(some.quantised) == {f"model.layers.{n}.mlp.{name}_proj" for n in range(3) for name in ("gate", "up")}
    assert some.weight_bytes("gptq") == whole.weight_bytes("bf16") - 3 * 2 * (2 * 128 * 160 - (64 * 160 + 4 * 80 + 4 * 2 * 160 + 4 * 128))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3_text", "mistral", "olmoe", "phi"])
def test_what_the_notebooks_call_works_with_other_decoders(tmp_path, kind):
    """A row of the ledger with its floor, perplexity against the model's own logits, a layer's table, outputs of blocks, other settings of a text."""
    step = replace(choose.get_step(2, checkpoint=str(mini(kind, tmp_path / kind))), dtype="float32")
    model, tokenizer = loading.load(step)
    row = ledger.make_row(step, timing.measure(model, tokenizer, new_tokens=4, warmups=0, repeats=1), model)
    assert (row["weight_bytes"], row["read_bytes"]) == (step.bytes, step.shape.read_bytes("bf16")) and row["layer_class"] == "Linear"
    assert row["parameters"] == sum(p.numel() for p in model.parameters()) and row["title"] == f"{kind} bf16"
    texts = [[1, *range(5, 20)], [1, *range(100, 130)]]
    logits, targets = next(quality.batches(model, texts))
    with torch.no_grad():
        theirs = [model(torch.tensor([text])).logits[0, :-1] for text in texts]
    assert torch.allclose(logits, torch.cat(theirs), rtol=1e-4, atol=1e-4) and targets.tolist() == texts[0][1:] + texts[1][1:]
    name, layer = loading.first_layer(model)
    assert loading.read_tensor(step, f"{name}.weight").float().equal(layer.weight) and set(loading.layer_table(layer).index) >= {"weight"}
    outputs = functions("08")["block_outputs"](model, texts)
    assert len(outputs) == step.shape.num_hidden_layers and outputs[0].shape == (len(targets), 128)
    assert choose.describe(step).loc["parameters", "this step"] == f"{step.shape.parameters:,}"
    assert choose._block_times(step.shape)


@pytest.mark.parametrize(("kind", "context"), [("llama", 512), ("gpt2", 512), ("gemma3", 512), ("bloom", None), ("mamba", None)])
def test_the_context_of_each_kind_of_configuration(tmp_path, kind, context):
    """In the part of the text, by another name, or none at all: then nothing is too long."""
    step = choose.get_step(2, checkpoint=str(mini(kind, tmp_path / kind)))
    model, tokenizer = loading.load(step)
    assert step.shape.context == sizes.context(model.config) == context
    assert timing.generate_once(model, tokenizer, timing.prompt_ids(model, tokenizer, 20), 3)[0].new_tokens == 3
    assert len(next(quality.batches(model, [[1, *range(5, 20)]]))[1]) == 15
    long, job = torch.full((1, 600), 5), {"key": 2, "tier": "embedded", "checkpoint": step.checkpoint, "prompt_tokens": [600], "batches": [1], "repeats": 1}
    for action in (
        lambda: timing.generate_once(model, tokenizer, long, 3),
        lambda: list(quality.batches(model, long.tolist())),
        lambda: benchmark.job.measure(job | {"new_tokens": 3, "warmups": 0}),
    ):
        fails(action, "context", "512", kind=PromptError) if context else action()


def test_rounding_reaches_all_layers_of_the_blocks(tmp_path):
    sized = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    model, _ = loading.load(choose.get_step(2, checkpoint=str(mini("qwen2", tmp_path / "qwen2", **sized))))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quality.round_to_nearest(model)
    changed = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {f"{name}.weight" for name in sizes.of(tmp_path / "qwen2").quantised}


PROGRAM = """
import json
from helpers import loading, timing
from helpers.models import choose

step = choose.get_step(1, checkpoint="somebody/Another-Qwen")
before = step.bytes  # from config.json alone
model, tokenizer = loading.load(step)
print(json.dumps([step.tier, step.title, before, loading.weight_bytes(model), len(timing.generate_once(model, tokenizer, new_tokens=3)[1])]))
"""


def test_any_repository_of_the_hub(tmp_path):
    with Hub({"somebody/Another-Qwen": mini("qwen2", tmp_path / "qwen2")}) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    tier, title, before, after, tokens = json.loads(done.stdout.splitlines()[-1])
    assert (tier, title, tokens) == ("own", "Another-Qwen 8-bit", 3) and before == after == sizes.of(tmp_path / "qwen2").weight_bytes("int8")


def test_a_tied_head_that_the_file_stores_again(tmp_path):
    """As Qwen3-0.6B does; and one that is another table."""
    folder = mini("qwen2", tmp_path / "qwen2")
    tensors = load_file(folder / "model.safetensors")
    for factor in (1, 2):
        save_file(tensors | {"lm_head.weight": factor * tensors["model.embed_tokens.weight"]}, folder / "model.safetensors", metadata={"format": "pt"})
        step = choose.get_step(2, checkpoint=str(folder))
        if factor == 1:
            assert loading.weight_bytes(loading.load(step)[0]) == step.bytes
        else:
            fails(lambda: loading.load(step), "a head and an embedding table that differ", "tie_word_embeddings")  # noqa: B023


@pytest.mark.parametrize(
    ("drop", "words"), [("experts.3.up_proj", ("cannot be loaded", "got size 7")), ("model.norm.weight", ("without weights for model.norm.weight (1 in all)",))]
)
def test_missing_tensors_of_an_architecture_with_other_names(tmp_path, drop, words):
    folder = mini("olmoe", tmp_path / "olmoe")
    tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if drop not in name}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fails(lambda: loading.load(choose.get_step(2, checkpoint=str(folder))), *words)


def test_groups_that_do_not_divide_a_layer(tmp_path):
    """The bytes are right, and where a kernel cannot compute them the sentence names one that can."""
    folder, real = quantised(tmp_path / "gptq", mini("qwen2", tmp_path / "qwen2"), group=128)  # of 160 inputs
    step = choose.get_step(3, checkpoint=str(folder))
    assert step.bytes == real
    if not torch.cuda.is_available():
        fails(lambda: loading.load(step), "4 bits in groups of 128", "take gptq-torch, which can", kind=DeviceError)
