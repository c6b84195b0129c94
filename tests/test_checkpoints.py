"""Checkpoints of other people: their own settings decide the figures, what cannot be computed here is said at load, and nothing of them leaks."""

import json
import math
import shutil
from dataclasses import replace
from itertools import product

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import gptq

from helpers import kernels, ledger, limits, loading, machine, process, quality, timing
from helpers.engines import llamacpp, onnx_models, serving
from helpers.errors import CheckpointError, CourseError, DeviceError, LibraryError, NotEnoughMemoryError, NotFiniteError, PromptError
from helpers.loading import library
from helpers.models import choose
from helpers.models.catalogue import CHECKPOINTS, Shape


@pytest.fixture
def small(tmp_path):
    """A copy of the embedded model's folder, to change."""
    return copy(tmp_path)


@pytest.fixture
def uncompiled():
    """Plain PyTorch's kernel of gptqmodel as it is written: compiling it takes half a minute for each checkpoint."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def copy(parent, name="small"):
    parent.mkdir(exist_ok=True)
    shutil.copytree(CHECKPOINTS / name, parent / name)
    for file in (parent / name).iterdir():
        file.chmod(0o644)
    return parent / name


def edit(folder, name="config.json", drop=(), **change):
    content = json.loads((folder / name).read_text()) | change
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if key not in drop}))
    return folder


def own(number, folder):
    return choose.get_step(number, checkpoint=str(folder))


def fails(action, *words, kind=CourseError):
    """``action`` ends in one sentence with ``words``; return it."""
    with pytest.raises(kind) as error:
        action()
    text = str(error.value)
    assert "\n" not in text and not [word for word in words if word not in text], text
    return text


SETTINGS = [  # every number of bits, group, order, symmetry and layout, each with each number of bits
    pytest.param(bits, *others, id=f"{bits}-bit g{others[0]}{' act-order' * others[1]}{'' if others[2] else ' asymmetric'}{' v2' * others[3]}")
    for bits, others in product((2, 3, 4, 8), [(-1, False, True, False), (-1, False, False, True), (16, False, False, False), (32, True, True, True),
                                               (64, True, False, False), (128, False, True, True), (128, True, True, False)])
]  # fmt: skip


@pytest.mark.parametrize(("bits", "group", "act_order", "sym", "v2"), SETTINGS)
def test_figures_and_predictions_are_those_of_the_checkpoints_own_settings(tmp_path, uncompiled, bits, group, act_order, sym, v2):
    unpacked = gptq.write(tmp_path / "mine", bits, group, act_order, sym, v2)
    step, tensors = own(3, tmp_path / "mine"), load_file(tmp_path / "mine" / "model.safetensors")
    real = sum(tensor.nbytes for tensor in tensors.values())
    table = tensors["model.embed_tokens.weight"].nbytes
    assert step.bytes == step.shape.weight_bytes("gptq") == real
    assert step.shape.read_bytes("gptq") == limits.step_bytes(step.shape, "gptq", 0) == real - table
    usual = "mine GPTQ" if (bits, group) == (4, 128) else f"mine GPTQ {bits}-bit, {'one group a row' if group == -1 else f'g{group}'}"
    assert step.title == usual
    assert choose.describe(step).loc["bytes of the weights", "this step"] == f"{real:,}"
    refused = bits == 4 and group in (-1, 16)
    if refused:
        fails(lambda: loading.load(step), "on this CPU", "take gptq-torch", kind=DeviceError)
        step = own("gptq-torch", tmp_path / "mine")
    model, tokenizer = loading.load(step)
    ids = timing.tokenise(model, tokenizer)
    with torch.no_grad():
        ours = model(ids).logits[0, -1].float()
    wanted, rounded = (gptq.by_hand(unpacked, ids, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert divergence(wanted, ours) < 4 * divergence(wanted, rounded) + 2e-4  # bfloat16's own rounding
    call, new = timing.generate_once(model, tokenizer, new_tokens=4)
    row = ledger.make_row(step, timing.measure(model, tokenizer, new_tokens=4, cold=(call, new), warmups=0, repeats=1), model)
    assert (row["weight_bytes"], row["read_bytes"], row["title"]) == (real, real - table, step.title)
    assert (row["quantization"]["bits"], row["quantization"]["group_size"]) == (bits, group)


def divergence(wanted, ours):
    p, q = wanted.log_softmax(-1), ours.log_softmax(-1)
    return (p.exp() * (p - q)).sum().item()


def test_the_memory_check_counts_the_checkpoints_own_bytes(tmp_path, monkeypatch):
    """Memory that 4 bits would fit into, and 8 do not."""
    gptq.write(tmp_path / "mine", 8, 32)
    step, four_bits = own(3, tmp_path / "mine"), Shape(256, 768, 4, 1536).weight_bytes("gptq")
    monkeypatch.setattr("helpers.machine.free_memory", lambda device: (step.bytes + four_bits) // 2 + choose.OVERHEAD)
    fails(lambda: choose.check_step(step, "cpu"), "This step needs about", kind=NotEnoughMemoryError)


def test_formats_of_other_bits_by_hand():
    """A matrix of 64 x 96 alone, counted on paper: words, zero points, scales, one index an input."""
    shape = Shape(64, 96, 1, 0, bits=3, group_size=48)
    rest = 2 * shape.other_parameters
    matrices = [(64, 64)] * 4 + [(64, 96)] * 2 + [(96, 64)]
    by_hand = sum(3 * n * m // 8 + math.ceil(n / 48) * (3 * m // 8 + 2 * m) + 4 * n for n, m in matrices)
    assert shape.weight_bytes("gptq") == by_hand + rest
    assert shape.weight_bytes("gptq", 32) == sum(3 * n * m // 8 + n // 32 * (3 * m // 8 + 2 * m) + 4 * n for n, m in matrices) + rest


@pytest.mark.parametrize(
    ("change", "words"),
    [({"bits": 5}, "its bits are 5"), ({"bits": None}, "its bits are None"), ({"bits": "4"}, "its bits are '4'"), ({"group_size": 0}, "its group_size is 0"),
     ({"dynamic": {"+:.*q_proj": {"bits": 8}}}, "not all quantised alike (dynamic)"), ({"lm_head": True}, "not all quantised alike (lm_head)"),
     ({"modules_in_block_to_quantize": ["mlp.up_proj"]}, "not all quantised alike (modules_in_block_to_quantize, which is no list of lists")],
)  # fmt: skip
def test_settings_whose_figures_nobody_can_compute(tmp_path, change, words):
    gptq.write(tmp_path / "mine", **{"bits": 4} | change if set(change) == {"bits"} and change["bits"] == 4 else {})
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    edit(tmp_path / "mine", quantization_config=config["quantization_config"] | change)
    fails(lambda: loading.load(own(3, tmp_path / "mine")), words, "take a GPTQ checkpoint with one setting", kind=CheckpointError)


@pytest.mark.parametrize("change", [{"bits": 8}, {"group_size": 64}])
def test_settings_that_are_not_those_of_the_weights(tmp_path, change):
    gptq.write(tmp_path / "mine")
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    edit(tmp_path / "mine", quantization_config=config["quantization_config"] | change)
    fails(lambda: loading.load(own(3, tmp_path / "mine")), "in place of", "correct quantization_config", kind=CheckpointError)


def without(*parts):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.endswith(parts)}


def changed(part, change):
    return lambda tensors: {name: change(tensor).contiguous() if name.endswith(f".{part}") else tensor for name, tensor in tensors.items()}


def with_bias(value):
    return lambda tensors: (
        tensors | {name.replace(".scales", ".bias"): torch.full(tensor.shape[1:], value).half() for name, tensor in tensors.items() if name.endswith("scales")}
    )


ANOTHER = {  # each of these loads without a word from a library, as another model, or as what the memory holds
    "no zero points": (without("qzeros"), ".qzeros, without which"),
    "no index": (without("g_idx"), ".g_idx, without which"),
    "no scales": (without("scales"), ".scales, without which"),
    "no integers": (without("o_proj.qweight", "o_proj.qzeros", "o_proj.scales", "o_proj.g_idx"), "lacks 16 tensors"),
    "an index of -1": (changed("g_idx", lambda index: index.fill_(-1)), "names groups that"),
    "an index beyond": (changed("g_idx", lambda index: index.add_(1)), "(1 to 6)"),
    "a shorter index": (changed("g_idx", lambda index: index[:-1]), "in place of (768,)"),
    "zero points of another shape": (changed("qzeros", lambda zeros: zeros[:1]), "in groups of 128, and model.layers.0.mlp.down_proj.qzeros is of shape"),
    "integers as float32": (changed("qweight", torch.Tensor.float), "numbers of type F32 in place of I32"),
    "unsigned integers": (changed("qzeros", lambda zeros: zeros.view(torch.uint32)), "numbers of type U32 in place of I32"),
    "an index as float16": (changed("g_idx", torch.Tensor.half), "numbers of type F16 in place of I32"),
    "scales as integers": (changed("scales", torch.Tensor.int), "numbers of type I32 in place of F16"),
    "biases that config.json does not know": (with_bias(0.5), "has a bias that config.json does not know"),
}


def tensors_of(folder, change):
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("change", "words"), ANOTHER.values(), ids=ANOTHER)
def test_gptq_parts_that_are_missing_or_of_another_kind(tmp_path, change, words):
    fails(lambda: choose.bring(own(3, tensors_of(copy(tmp_path, "small-gptq"), change))), words, kind=CheckpointError)


@pytest.mark.parametrize("change", [with_bias(0.0), changed("g_idx", torch.Tensor.long), changed("scales", torch.Tensor.bfloat16), changed("scales", torch.Tensor.float)],
                         ids=["biases of 0", "int64", "bfloat16", "float32"])  # fmt: skip
def test_gptq_parts_as_other_programs_write_them(tmp_path, uncompiled, change):
    model, tokenizer = loading.load(own(3, tensors_of(copy(tmp_path, "small-gptq"), change)))
    assert timing.generate_once(model, tokenizer, new_tokens=6)[1] == timing.generate_once(*loading.load(choose.get_step(3)), new_tokens=6)[1]


def index(folder, **changes):
    """The index of a checkpoint in several files, of which there is one; changes: of the file's name for the tensor, "." left out of it."""
    weight_map = {name: "model.safetensors" for name in load_file(folder / "model.safetensors")}
    weight_map = {name: changes.get(name.replace(".", ""), file) for name, file in weight_map.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: file for name, file in weight_map.items() if file != "left out"}}))
    return folder


def deep(folder, name, depth=100_000):
    text = json.dumps(json.loads((folder / name).read_text()))
    (folder / name).write_text(f'{text[:-1]}, "deep": {"[" * depth + "]" * depth}}}')


WRONG = {  # in JSON, where a text or an object has to stand
    "a number for a file": (lambda folder: index(folder, modelnormweight=5), "has no usable model.safetensors.index.json"),
    "null for a file": (lambda folder: index(folder, modelnormweight=None), "has no usable model.safetensors.index.json"),
    "a list for a file": (lambda folder: index(folder, modelnormweight=["model.safetensors"]), "has no usable model.safetensors.index.json"),
    "a name that no disk takes": (lambda folder: index(folder, modelnormweight="x" * 5000), "xxx: fetch or build"),
    "a name that no system takes": (lambda folder: index(folder, modelnormweight="a\0b"), "lacks a"),
    "model_type": (lambda folder: edit(folder, model_type=["llama"]), "holds a ['llama'] model"),
    "no layers": (lambda folder: edit(folder, num_hidden_layers=-1), "num_hidden_layers is -1"),
    "blocks": (lambda folder: edit(folder, quantization_config={"quant_method": "gptq", "bits": 4, "block_name_to_quantize": 5}), "that is no text (5)"),
    **{name: (lambda folder, name=name: deep(folder, name), f"no readable {name}") for name in ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")},
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_json_of_a_checkpoint_that_is_of_another_kind(small, change, words):
    change(small)
    fails(lambda: loading.load(own(2, small)), words, kind=CheckpointError)


def test_an_index_that_leaves_a_tensor_out(small):
    """Libraries read all of each file that it names, and so does the course."""
    step = own(2, index(small, modelnormweight="left out"))
    model, _ = loading.load(step)
    assert loading.read_tensor(step, "model.norm.weight").equal(model.model.norm.weight)
    fails(lambda: loading.read_tensor(step, "model.norm.bias"), "has no tensor model.norm.bias", "check the name", kind=CheckpointError)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"quant_method": "bitsandbytes", "load_in_8bit": True}, ("holds bitsandbytes weights", "step 1 makes 8 bits")),
     ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, ("holds bitsandbytes weights", "nf4 makes 4")),
     ({"quant_method": "awq", "bits": 4, "group_size": 128}, ("holds awq weights, which no step loads", "with step 3")),
     ({"quant_method": "fp8"}, ("holds fp8 weights",)), ({"quant_method": "compressed-tensors", "config_groups": {}}, ("holds compressed-tensors weights",)),
     ({"bits": 4, "group_size": 128}, ("holds unnamed weights",))],
)  # fmt: skip
@pytest.mark.parametrize("number", [1, 2, 3, "nf4", "gptq-torch"])
def test_weights_that_no_step_loads(small, settings, words, number):
    fails(lambda: loading.load(own(number, edit(small, quantization_config=settings))), *words, "take the unquantised checkpoint", kind=CheckpointError)


def test_a_backend_in_the_checkpoint_does_not_choose_the_kernel(tmp_path):
    """Programs that save a model write their own kernel's name into it; here it would be one for GPUs."""
    gptq.write(tmp_path / "mine", backend="marlin")
    model, _ = loading.load(own(3, tmp_path / "mine"))
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == "TorchAtenLinear"


def test_what_no_kernel_reads_names_what_could(monkeypatch):
    """Bits that only a GPU's kernel would know: the sentence names it."""
    settings = {"bits": 4, "group_size": 128, "quant_method": "gptq", "checkpoint_format": "exotic"}
    fails(
        lambda: kernels.plan(settings, None, "", (256,)),
        "cannot compute this GPTQ checkpoint on this CPU",
        "take a checkpoint with other settings",
        kind=DeviceError,
    )
    monkeypatch.setattr(kernels, "_fails_on_cpu", lambda *_: "it has none")
    text = fails(lambda: kernels.plan(settings | {"checkpoint_format": "gptq"}, None, "", (256,)), kind=DeviceError)
    assert "load it on a machine with a CUDA GPU, where ExLlamaV2 can" in text


def loud(folder):
    """Let the middle of the MLP of block 1 be some 100,000 times as large and undo it behind: the same function, but float16 ends at 65,504."""
    tensors = load_file(folder / "model.safetensors")
    up, down = (f"model.layers.1.mlp.{name}.{'scales' if 'gptq' in folder.name else 'weight'}" for name in ("up_proj", "down_proj"))
    factor = 60_000 / tensors[up].abs().max().item()  # the weights themselves are finite in float16
    tensors |= {up: (tensors[up].float() * factor).to(tensors[up].dtype), down: (tensors[down].float() / factor).to(tensors[down].dtype)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


SAYS = ("model.layers.1.mlp.", "float16 ends at 65,504", "Take bfloat16", "Nothing is measured")


@pytest.mark.parametrize("key", ["fp16", 1, "nf4"])
def test_overflow_is_named_and_nothing_is_measured(small, key):
    """Both in the first call, whose time is taken before anybody looks, and in perplexity; the unchanged model is measured."""
    model, tokenizer = loading.load(own(key, loud(small)))
    for action in (
        lambda: timing.generate_once(model, tokenizer, new_tokens=3),
        lambda: timing.measure(model, tokenizer, new_tokens=3, warmups=0, repeats=1),
        lambda: quality.keep(model, quality.encode(tokenizer, quality.lines()[:3])),
        lambda: quality.score(quality.batches(model, quality.encode(tokenizer, quality.lines()[:3]))),
        lambda: library.check_finite(model, timing.tokenise(model, tokenizer)),
    ):
        fails(action, *SAYS, kind=NotFiniteError)
    model, tokenizer = loading.load(choose.get_step(key))
    timing.measure(model, tokenizer, new_tokens=3, warmups=0, repeats=1)


def test_what_overflows_in_float16_runs_in_bfloat16(small):
    loud(small)
    texts = {}
    for name, step in (("loud", own(2, small)), ("small", choose.get_step(2))):
        model, tokenizer = loading.load(step)
        texts[name] = timing.measure(model, tokenizer, new_tokens=8, warmups=0, repeats=1).text
        library.check_finite(model, timing.tokenise(model, tokenizer))
    assert texts["loud"] == texts["small"]
    model, tokenizer = loading.load(replace(own("nf4", small), dtype="bfloat16"))
    assert timing.measure(model, tokenizer, new_tokens=3, warmups=0, repeats=1).text


def test_no_server_is_started_for_a_model_that_overflows(small, monkeypatch):
    """On a GPU it would compute in float16. The trial runs in a process of its own, on the CPU here; the unchanged model passes it."""
    real, started = process.call, []
    monkeypatch.setattr(process, "call", lambda function, job, name: real(function, job | {"device": "cpu"}, name))
    monkeypatch.setattr(machine, "get_device", lambda device=None: "cuda:0")
    monkeypatch.setattr(machine, "device_name", lambda device: device)
    monkeypatch.setattr(serving, "_start", lambda *arguments: started.append(arguments))
    try:
        serving.transformers(choose.get_step(2))
    except serving.ServerError as error:  # a transformers that cannot be measured
        pytest.skip(str(error))
    assert started[0][2][:4] == ["--device", "cuda:0", "--dtype", "float16"] and started[0][-1] == {}
    step = own(2, loud(small))
    fails(lambda: serving.transformers(step), "model.layers.1.mlp.", "float16 on a GPU: measure it on the CPU", kind=NotFiniteError)
    assert len(started) == 1


def test_overflow_of_gptq(tmp_path):
    """In float16 it is named; in bfloat16, as on a CPU, it is measured."""
    from transformers import AutoModelForCausalLM

    folder = loud(copy(tmp_path, "small-gptq"))
    model, tokenizer = loading.load(own(3, folder))
    timing.measure(model, tokenizer, new_tokens=3, warmups=0, repeats=1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16, device_map={"": "cpu"})
    fails(lambda: timing.generate_once(model, tokenizer, new_tokens=3), "model.layers.1.mlp.", "(TorchAtenLinear)", "GPTQ", kind=NotFiniteError)


def test_an_overflow_that_comes_with_the_answer(small, monkeypatch):
    """The prompt is harmless and a new token is not: the pass that names the layer sees the answer too. An overflow that no logit shows is found after measuring."""
    model, tokenizer = loading.load(own("fp16", small))
    _, new = timing.generate_once(model, tokenizer, new_tokens=4)
    assert new[0] not in tokenizer(timing.PROMPT).input_ids
    with torch.no_grad():
        model.model.embed_tokens.weight[new[0]] = torch.nan
    timing.generate_once(model, tokenizer, new_tokens=1)
    fails(lambda: timing.generate_once(model, tokenizer, new_tokens=4), "model.embed_tokens", "weights that are no numbers", kind=NotFiniteError)
    model, tokenizer = loading.load(own("fp16", small))
    hidden = model.model.layers[3].mlp.down_proj.register_forward_hook(lambda module, inputs, output: output.clamp(-1, 1))
    seen = model.model.layers[3].mlp.up_proj.register_forward_hook(lambda module, inputs, output: output.fill_(torch.inf), always_call=True)
    quiet = model.model.layers[3].mlp.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    timing.generate_once(model, tokenizer, new_tokens=2)
    fails(lambda: timing.measure(model, tokenizer, new_tokens=2, warmups=0, repeats=1), "model.layers.3.mlp.up_proj", kind=NotFiniteError)
    assert [hook.remove() for hook in (hidden, seen, quiet)]


def test_the_check_costs_the_first_call_nothing(small, monkeypatch):
    """Nothing passes through the model before the first call, or within it beyond its own passes."""
    calls, forward = [], transformers.LlamaForCausalLM.forward

    def counted(*arguments, **options):
        calls.append(options.get("logits_to_keep"))
        return forward(*arguments, **options)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", counted)
    model, tokenizer = loading.load(own("fp16", small))
    assert not calls
    timing.generate_once(model, tokenizer, new_tokens=5)
    assert len(calls) == 5


def test_weights_that_are_shared_count_once(small):
    """A head that is the embedding table."""
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=500, tie_word_embeddings=True
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    shape = Shape(64, 96, 2, 500, kv_size=32, tied=True)
    assert loading.weight_bytes(model) == shape.weight_bytes("bf16") == 2 * sum(parameter.numel() for parameter in model.parameters())
    assert loading.weight_bytes(model.model) == loading.weight_bytes(model)
    with torch.device("meta"):
        assert loading.weight_bytes(transformers.LlamaForCausalLM(config)) >= 2 * loading.weight_bytes(
            model
        )  # float32; nothing is stored, so nothing is shared
    config.tie_word_embeddings = False
    assert loading.weight_bytes(transformers.LlamaForCausalLM(config).to(torch.bfloat16)) == replace(shape, tied=False).weight_bytes("bf16")


LEAKS = [
    {"use_cache": False}, {"repetition_penalty": 1.3}, {"do_sample": True, "temperature": 5.0, "top_k": 3}, {"num_beams": 3}, {"max_length": 12},
    {"min_length": 100}, {"forced_eos_token_id": 2}, {"forced_bos_token_id": 7}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3},
    {"no_repeat_ngram_size": 1}, {"suppress_tokens": list(range(3, 900))}, {"begin_suppress_tokens": list(range(3, 900))}, {"bad_words_ids": [[5]]},
    {"sequence_bias": [[[9], 50.0]]}, {"num_return_sequences": 2, "do_sample": True}, {"output_scores": True, "return_dict_in_generate": True},
    {"max_time": 0.0}, {"stop_strings": ["e"]}, {"encoder_repetition_penalty": 2.0}, {"renormalize_logits": True}, {"guidance_scale": 2.0},
    {"exponential_decay_length_penalty": [1, 2.0]}, {"remove_invalid_values": True},
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(models):
    return timing.generate_once(*models[2][1:], new_tokens=12)[1]


@pytest.mark.parametrize("leak", LEAKS, ids=lambda leak: "-".join(leak))
def test_settings_of_generation_config_do_not_leak(small, plain, monkeypatch, capsys, leak):
    """The same text, one token a pass after the prompt, with a cache; and load names what the checkpoint would have."""
    edit(small, "generation_config.json", **leak)
    passes, forward = [], transformers.LlamaForCausalLM.forward

    def counted(self, input_ids=None, **options):
        passes.append((input_ids.shape, type(options.get("past_key_values")).__name__))
        return forward(self, input_ids, **options)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", counted)
    model, tokenizer = loading.load(own(2, small))
    said, before = capsys.readouterr().out, model.generation_config.to_dict()
    assert "own settings are not used" in said and all(f"{name} {value}" in said for name, value in leak.items() if name != "do_sample" or value), said
    assert timing.generate_once(model, tokenizer, new_tokens=12)[1] == plain
    assert [shape[1] for shape, _ in passes] == [len(tokenizer(timing.PROMPT).input_ids)] + [1] * 11
    assert {(shape[0], kind) for shape, kind in passes} == {(1, "DynamicCache")}
    assert model.generation_config.to_dict() == before  # the reader's own calls, and a saved checkpoint, have what the checkpoint says


@pytest.mark.parametrize(
    "leak",
    [
        {"attn_implementation": "eager"},
        {"_attn_implementation": "eager"},
        {"attn_implementation": "flash_attention_2"},
        {"return_dict": False},
        {"output_attentions": True},
        {"output_hidden_states": True},
        {"use_cache": False},
        {"repetition_penalty": 1.5},
    ],
)
def test_settings_of_config_do_not_leak(small, plain, capsys, leak):
    model, tokenizer = loading.load(own(2, edit(small, **leak)))
    assert model.config._attn_implementation == "sdpa" and not model.config.output_hidden_states and not model.config.output_attentions
    assert timing.generate_once(model, tokenizer, new_tokens=12)[1] == plain
    with torch.no_grad():
        output = model(timing.tokenise(model, tokenizer))
    assert output.hidden_states is None and output.attentions is None


def test_what_generate_is_told_still_counts(small):
    """Options of the caller's own: a static cache, prompt lookup."""
    model, tokenizer = loading.load(own(2, small))
    _, new = timing.generate_once(model, tokenizer, new_tokens=6)
    for options in ({"prompt_lookup_num_tokens": 3}, {"cache_implementation": "dynamic"}, {"repetition_penalty": 1.0}):
        assert timing.generate_once(model, tokenizer, new_tokens=6, **options)[1] == new
    assert timing.generate_once(model, tokenizer, new_tokens=6, suppress_tokens=[new[0]])[1][0] != new[0]


def biased(folder, key):
    """Random biases in all layers of one half of each block, and the key of config.json that says so."""
    tensors = load_file(folder / "model.safetensors")
    half, random = ("self_attn" if key == "attention_bias" else "mlp"), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if f".{half}." in name]:
        tensors[name.replace(".weight", ".bias")] = (torch.randn(len(tensors[name]), generator=random) / 3).bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return edit(folder, **{key: True})


def retokenise(folder, **change):
    content = json.loads((folder / "tokenizer.json").read_text())
    model = content["model"] | change.pop("model", {})
    return edit(folder, "tokenizer.json", model=model, **change)


OTHER = {
    "as it is": lambda folder: folder,
    "attention_bias": lambda folder: biased(folder, "attention_bias"),
    "mlp_bias": lambda folder: biased(folder, "mlp_bias"),
    "rope linear": lambda folder: edit(folder, rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 5000.0}),
    "rope_scaling linear, the old way": lambda folder: edit(folder, drop=["rope_parameters"], rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=700.0),
    "eos_token_id a list": lambda folder: edit(folder, eos_token_id=[2, 1]),
    "rms_norm_eps": lambda folder: edit(folder, rms_norm_eps=0.1),
    "optional keys left out": lambda folder: edit(folder, drop=["bos_token_id", "eos_token_id", "rms_norm_eps", "max_position_embeddings", "hidden_act", "head_dim",
                                                                "rope_parameters", "rope_theta", "num_key_value_heads", "attention_bias", "mlp_bias"]),
    "num_key_value_heads null": lambda folder: edit(folder, num_key_value_heads=None),
    "no begin-of-sequence": lambda folder: retokenise(folder, post_processor=None),
}  # fmt: skip


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_a_gguf_file_is_the_same_model(small, change):
    """transformers, in float32, and llama.cpp predict the same; so do their tokenisers."""
    pytest.importorskip("xllamacpp")
    change(small)
    model, tokenizer = loading.load(replace(own(2, small), dtype="float32"))
    server = llamacpp.load(llamacpp.write(small, "F32", small.parent / "model.gguf"), threads=1)
    ids = timing.tokenise(model, tokenizer, "The best place to spend a long afternoon is in the orchard, because it", 4)
    assert llamacpp.tokenise(server, tokenizer.decode(ids[0], skip_special_tokens=True)) == ids[0].tolist()
    with torch.no_grad():
        ours = model(ids).logits[0, -1].log_softmax(-1)
    theirs = torch.from_numpy(llamacpp.log_probabilities(server, ids[0].tolist(), len(ours)))
    assert (ours.exp() * (ours - theirs)).sum().abs() < 1e-4


REFUSED = {
    "hidden_act": (lambda folder: edit(folder, hidden_act="gelu"), "sets hidden_act to 'gelu'"),
    "rope yarn": (lambda folder: edit(folder, rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 128}), "sets rope_type to 'yarn'"),
    "rope llama3": (lambda folder: edit(folder, rope_parameters={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 1e4}), "sets rope_type to 'llama3'"),
    "sliding_window": (lambda folder: edit(folder, sliding_window=64), "sets sliding_window to 64"),
    "rope linear without a number": (lambda folder: edit(folder, rope_parameters={"rope_type": "linear", "factor": "2", "rope_theta": 1e4}), "no model that transformers can build"),
    "unknown key": (lambda folder: edit(folder, residual_multiplier=0.5), "sets residual_multiplier to 0.5"),
    "head_dim": (lambda folder: edit(folder, head_dim=32), "has heads that are not 256 / 4 wide"),
    "grouped queries": (lambda folder: edit(folder, num_key_value_heads=2), "grouped-query attention"),
    "tied head": (lambda folder: edit(folder, tie_word_embeddings=True), "a tied head"),
    "a tensor more": (lambda folder: save_file(load_file(folder / "model.safetensors") | {"model.layers.0.self_attn.q_norm.weight": torch.ones(64)},
                                               folder / "model.safetensors", metadata={"format": "pt"}), "does not know (model.layers.0.self_attn.q_norm.weight)"),
    "biases without the key": (lambda folder: edit(biased(folder, "attention_bias"), attention_bias=False), "does not know (model.layers.0.self_attn.k_proj.bias)"),
    "the key without biases": (lambda folder: edit(folder, mlp_bias=True), "lacks 12 tensors, model.layers.0.mlp.down_proj.bias for one"),
    "normalizer": (lambda folder: retokenise(folder, normalizer={"type": "Lowercase"}), "changes the text first"),
    "prefix space": (lambda folder: retokenise(folder, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}), "splits text in another way"),
    "ignore_merges": (lambda folder: retokenise(folder, model={"ignore_merges": True}), "merges in another way"),
    "a token beyond the table": (lambda folder: retokenise(folder, added_tokens=json.loads((folder / "tokenizer.json").read_text())["added_tokens"] + [
        {"id": 1536, "content": "[PAD]", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}]), "beyond the embedding table"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_what_a_gguf_file_cannot_say_is_refused(small, change, words):
    change(small)
    fails(lambda: llamacpp.write(small, "F32", small.parent / "model.gguf"), words, "take", kind=CheckpointError) if "lacks" not in words else fails(
        lambda: llamacpp.write(small, "F32", small.parent / "model.gguf"), words, kind=CheckpointError
    )
    assert not (small.parent / "model.gguf").exists()


def test_errors_of_libraries_are_one_sentence(small, tmp_path):
    fails(
        lambda: loading.load(own(2, edit(small, drop=["rope_parameters"], rope_scaling={"type": "dynamic"}))),
        "describes no model that transformers can build (",
        "'rope_type'='dynamic'",
        kind=CheckpointError,
    )
    bare = copy(tmp_path / "bare")
    for file in bare.glob("*token*"):
        file.unlink()
    fails(lambda: loading.load(own(2, bare)), "cannot be loaded: it has no tokeniser", "What to do: copy these files", kind=CheckpointError)
    added = copy(tmp_path / "added")
    REFUSED["a token beyond the table"][0](added)
    model, tokenizer = loading.load(own(2, added))
    text = fails(lambda: timing.generate_once(model, tokenizer, "Hello [PAD]", 4), "the id 1536", "table ends at 1535", kind=PromptError)
    assert "leave the token" in text
    fails(lambda: timing.generate_once(model, tokenizer, torch.tensor([[1, -5]]), 4), "the id -5", kind=PromptError)
    fails(lambda: timing.generate_once(model, tokenizer, torch.tensor([[1.0, 5.0]]), 4), "token", kind=PromptError)
    fails(lambda: timing.generate_once(model, tokenizer, "half an emoji \ud83d", 4), "half of a character ('\\ud83d') at place 15", kind=PromptError)
    silent = edit(copy(tmp_path / "silent"), "tokenizer_config.json", drop=["bos_token", "eos_token"])
    (silent / "special_tokens_map.json").unlink()
    model, tokenizer = loading.load(own(2, silent))
    fails(lambda: timing.prompt_ids(model, tokenizer, 8), "no begin-of-sequence token", "set bos_token", kind=PromptError)
    fails(lambda: quality.encode(tokenizer, ["a"]), "no begin-of-sequence token", kind=PromptError)


@pytest.mark.parametrize("kind", [KeyError, TypeError, RuntimeError, IndexError, AssertionError, OSError])
@pytest.mark.parametrize("words", [(), ("CUDA error: device-side assert\nand more",)])
def test_whatever_a_library_raises_while_generating(models, monkeypatch, kind, words):
    """With frames of the library; an error in the course's own frame stays what it is. The model stays usable."""
    _, model, tokenizer = models[2]
    for file, expected in ((transformers.__file__, LibraryError), (timing.__file__, kind)):
        place = {}
        exec(compile("def generate(*_, **__): raise kind(*words)", file, "exec"), {"kind": kind, "words": words}, place)
        with monkeypatch.context() as patch:
            patch.setattr(model, "generate", place["generate"])
            with pytest.raises(expected) as error:
                timing.generate_once(model, tokenizer, new_tokens=2)
        if expected is LibraryError:
            assert str(error.value).startswith("generate failed: ") and "What to do: restart the kernel" in str(error.value) and "\n" not in str(error.value)
    assert len(timing.generate_once(model, tokenizer, new_tokens=2)[1]) == 2


OLD = {
    "quantize_config.json only": ("small-gptq", lambda folder: edit(folder, drop=["quantization_config"]), ["has its GPTQ settings in quantize_config.json alone"]),
    "an old name": ("small-gptq", lambda folder: (folder / "model.safetensors").rename(folder / "gptq_model-4bit-128g.safetensors"), [
        "has its weights in gptq_model-4bit-128g.safetensors", "give a copy of the file that name"]),
    ".bin": ("small", lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), ["its weights are in pytorch_model.bin", "save_pretrained"]),
    "shards without an index": ("small", lambda folder: [(folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors"),
        shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors")], ["lacks model.safetensors, and model.safetensors.index.json"]),
    "nothing": ("small", lambda folder: (folder / "model.safetensors").unlink(), ["lacks model.safetensors: fetch or build"]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change", "words"), OLD.values(), ids=OLD)
def test_folders_of_older_programs_say_what_they_have(tmp_path, name, change, words):
    folder = copy(tmp_path, name)
    change(folder)
    fails(lambda: loading.load(own(3 if "gptq" in name else 2, folder)), *words, kind=CheckpointError)
    if "gptq" in name:
        fails(lambda: loading.load(own(2, folder)), "holds gptq weights", "take step 3 or 4, which load GPTQ", kind=CheckpointError)


def test_what_these_sentences_advise_works(tmp_path):
    """Settings copied, a file renamed; and an empty number of key and value heads is transformers' default."""
    folder = edit(copy(tmp_path, "small-gptq"), drop=["quantization_config"])
    edit(folder, quantization_config=json.loads((folder / "quantize_config.json").read_text()) | {"quant_method": "gptq"})
    (folder / "model.safetensors").rename(folder / "old.safetensors")
    shutil.copy(folder / "old.safetensors", folder / "model.safetensors")
    model, tokenizer = loading.load(own(3, folder))
    assert timing.generate_once(model, tokenizer, new_tokens=4)[1] == timing.generate_once(*loading.load(choose.get_step(3)), new_tokens=4)[1]
    loading.load(own(2, edit(copy(tmp_path), num_key_value_heads=None)))


def test_a_server_gets_the_usual_settings_with_each_request(small, monkeypatch):
    """transformers serve takes from the checkpoint what a request leaves open: the request leaves nothing open."""
    started = {}
    monkeypatch.setattr(serving, "_start", lambda *arguments: started.update(request=json.loads(arguments[5]["generation_config"])))
    edit(small, "generation_config.json", repetition_penalty=1.3, use_cache=False, num_beams=4, do_sample=True, temperature=0.2, no_repeat_ngram_size=2)
    edit(small, drop=["bos_token_id"], eos_token_id=[2, 1])
    try:
        serving.transformers(own(2, small))
    except serving.ServerError as error:
        pytest.skip(str(error))
    usual = {"repetition_penalty": 1.0, "use_cache": True, "num_beams": 1, "do_sample": False, "temperature": 1.0, "no_repeat_ngram_size": 0}
    assert started["request"] == usual | {"suppress_tokens": [2, 1], "pad_token_id": 2, "bos_token_id": 1}
    edit(small, "generation_config.json", prompt_lookup_num_tokens=3)
    fails(lambda: serving.transformers(own(2, small)), "sets prompt_lookup_num_tokens to 3", "in a copy of the folder", kind=CheckpointError)
    deep(small, "generation_config.json")
    fails(lambda: library.undone(small), "correct generation_config.json", kind=CheckpointError)


@pytest.mark.parametrize("settings", [{"bits": 8, "group": 32}, {"group": 64, "act_order": True}, {"group": 16, "sym": False}], ids=str)
def test_gptq_integers_in_onnx_are_the_same_model(tmp_path, monkeypatch, settings):
    pytest.importorskip("onnxruntime_genai")
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    unpacked = gptq.write(tmp_path / "mine", **settings)
    model = onnx_models.load(onnx_models.export(own(3 if settings["group"] != 16 else "gptq-torch", tmp_path / "mine"), "int4"), threads=1)
    ids = torch.tensor([library.encode(library.tokeniser(tmp_path / "mine"), "The best place to spend a long afternoon is in the orchard, because it")])
    theirs = torch.from_numpy(onnx_models.logits(model, ids[0].tolist())).float()
    assert divergence(gptq.by_hand(unpacked, ids, torch.float32), theirs) < 0.02  # the output head is rounded to 4 bits


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"v2": True}, "of layout gptq_v2"), ({"group": -1}, "4 bits in groups of -1"), ({"bits": 3}, "3 bits in groups of 128"), ({"bits": 2, "group": 64}, "2 bits"),
     ({"bits": 8, "act_order": True}, "without act-order")],
)  # fmt: skip
def test_gptq_integers_that_onnx_would_read_otherwise(tmp_path, settings, words):
    gptq.write(tmp_path / "mine", **settings)
    fails(lambda: onnx_models.export(own("gptq-torch", tmp_path / "mine"), "int4"), words, "take another checkpoint", kind=CheckpointError)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"hidden_act": "gelu"}, "sets hidden_act to 'gelu'"), ({"sliding_window": 64}, "sets sliding_window to 64"), ({"seq_length": 9}, "sets seq_length to 9"),
     ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "sets rope_type to 'linear'"),
     ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "its rope_theta, 500000")],
)  # fmt: skip
def test_settings_that_onnx_would_leave_out(small, change, words):
    fails(lambda: onnx_models.export(own(2, edit(small, **change)), "fp32"), words, "take another checkpoint", kind=CheckpointError)
