"""A damaged checkpoint or too little memory ends in one sentence, before anything large is read."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import loading, machine
from helpers.errors import CheckpointError, CourseError, DeviceError, NotEnoughMemoryError
from helpers.models import catalogue, choose


@pytest.fixture
def broken(tmp_path):
    """A copy of the small checkpoint to damage, as (step, folder)."""
    folder = tmp_path / "small"
    shutil.copytree(catalogue.CHECKPOINTS / "small", folder)
    return choose.get_step(2, checkpoint=str(folder)), folder


def fails(step, words):
    with pytest.raises(CheckpointError, match=words) as error:
        loading.load(step)
    assert "\n" not in str(error.value)


def test_untouched_copy_loads(broken):
    model, tokenizer = loading.load(broken[0])
    assert tokenizer.bos_token == "<s>" and model.num_parameters() == broken[0].shape.parameters


@pytest.mark.parametrize("kept", [0, 5, 200, 100_000, -1])
def test_truncated_weights(broken, kept):
    step, folder = broken
    weights = folder / "model.safetensors"
    weights.chmod(0o644)
    data = weights.read_bytes()
    weights.write_bytes(data[:kept])
    fails(step, "cut off or damaged")


def test_weights_with_a_foreign_tail(broken):
    step, folder = broken
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"more")
    fails(step, "cut off or damaged")


def test_garbage_instead_of_weights(broken):
    step, folder = broken
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>" * 100)
    fails(step, "cut off or damaged")


def test_missing_weights(broken):
    step, folder = broken
    (folder / "model.safetensors").unlink()
    fails(step, "lacks model.safetensors")


def test_missing_shard(broken):
    step, folder = broken
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    fails(step, "lacks model-00002-of-00002.safetensors")


def test_index_that_is_no_json(broken):
    step, folder = broken
    (folder / "model.safetensors.index.json").write_text("{")
    fails(step, "index")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    fails(step, "no usable model.safetensors.index.json")


def test_another_architecture(broken):
    step, folder = broken
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen3"}))
    fails(step, "lacks 8 tensors, model.layers.0.self_attn.k_norm.weight for one")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_key_value_heads": 2}, r"k_proj.weight is of shape \(256, 256\) in place of \(128, 256\)"),
        ({"tie_word_embeddings": True}, "a head and an embedding table that differ.*set tie_word_embeddings to false"),
    ],
)
def test_another_kind_of_llama(broken, change, words):
    step, folder = broken
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    fails(step, words)


def test_config_without_a_size(broken):
    step, folder = broken
    config = json.loads((folder / "config.json").read_text())
    del config["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config))
    fails(step, r"is of shape .* in place of .*4096")  # transformers' own


def test_missing_layer(broken):
    step, folder = broken
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    fails(step, "lacks 9 tensors, model.layers.4.input_layernorm.weight for one")


def test_weights_of_another_shape(broken):
    step, folder = broken
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 512}))
    fails(step, r"down_proj.weight is of shape \(256, 768\) in place of \(256, 512\), as config.json says")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocab_size": 1535}, r"lm_head.weight is of shape \(1536, 256\) in place of \(1535, 256\)"),
        ({"num_hidden_layers": 3}, r"a tensor that its config.json does not know \(model.layers.3.input_layernorm.weight\).*correct config.json"),
        ({"quantization_config": "gptq"}, "a quantization_config that is no object"),
        ({"quantization_config": [1]}, "a quantization_config that is no object"),
        ({"hidden_size": "256"}, "no model that transformers can build .*hidden_size"),
        ({"num_key_value_heads": "4"}, "no model that transformers can build .*num_key_value_heads"),
        ({"num_key_value_heads": 0}, "no model that transformers can build"),
        ({"head_dim": 32}, r"k_proj.\w+ is of shape .* in place of"),
        ({"rms_norm_eps": "1e-5"}, "'rms_norm_eps'.*expected float"),
        ({"_attn_implementation": "flash_attention_2"}, "Take _attn_implementation out of its config.json"),
    ],
)
@pytest.mark.parametrize(("number", "name"), [(2, "small"), (3, "small-gptq")])
def test_settings_that_are_not_those_of_the_files(tmp_path, number, name, change, words):
    folder = tmp_path / name
    shutil.copytree(catalogue.CHECKPOINTS / name, folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CourseError, match=words) as error:
        loading.load(choose.get_step(number, checkpoint=str(folder)))
    assert "\n" not in str(error.value)


def test_biases_that_no_setting_names(broken):
    """transformers would leave them out: another model."""
    step, folder = broken
    tensors = load_file(folder / "model.safetensors") | {"model.layers.1.self_attn.q_proj.bias": torch.ones(256)}
    (folder / "model.safetensors").chmod(0o644)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fails(step, "a tensor that its config.json does not know .model.layers.1.self_attn.q_proj.bias")
    save_file(load_file(catalogue.CHECKPOINTS / "small" / "model.safetensors") | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(32)},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    loading.load(step)  # Llama-2's own files have these, and nothing reads them


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block_name_to_quantize": "foo"}, "leaves that layer out: correct block_name_to_quantize"),  # transformers would load random numbers there
        ({"modules_in_block_to_quantize": 5}, "not all quantised alike .modules_in_block_to_quantize"),
        ({"modules_in_block_to_quantize": [["foo"]]}, "GPTQ's integers of .*, and its quantization_config leaves that layer out"),
        ({"quant_method": "GPTQ"}, "names its quant_method 'GPTQ'"),
    ],
)
def test_gptq_settings_that_leave_layers_out(tmp_path, change, words):
    folder = tmp_path / "small-gptq"
    shutil.copytree(catalogue.CHECKPOINTS / "small-gptq", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": config["quantization_config"] | change}))
    fails(choose.get_step(3, checkpoint=str(folder)), words)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_file_that_is_no_json_is_named(broken, file):
    step, folder = broken
    (folder / file).chmod(0o644)
    (folder / file).write_text("<html>not found</html>")
    if file == "generation_config.json":  # the library goes on without it
        loading.load(step)
    else:
        fails(step, f"has no readable {file}")


@pytest.mark.parametrize(("number", "name", "words"), [(2, "small-gptq", "holds gptq weights"), (3, "small", "holds unquantised weights")])
def test_another_format(number, name, words):
    fails(choose.get_step(number, checkpoint=str(catalogue.CHECKPOINTS / name)), words)


@pytest.mark.parametrize("header", [b"[]", b"{}", b'{"a": 1}', b'{"a": {"data_offsets": []}}'])
def test_foreign_header(broken, header):
    step, folder = broken
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    fails(step, "cut off or damaged")


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_unreadable_config(broken, text):
    step, folder = broken
    (folder / "config.json").write_text(text)
    fails(step, "config.json")


def test_missing_tokeniser(broken):
    step, folder = broken
    for file in folder.glob("tokenizer*"):
        file.unlink()
    fails(step, "cannot be loaded")


def test_too_little_memory_names_both_numbers(monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda device: 0.5e9)
    with pytest.raises(NotEnoughMemoryError, match=r"needs about 0\.8 GB on cpu and 0\.5 GB are free"):
        loading.load(choose.get_step(2))


def test_llama_2_would_not_fit_a_small_machine():
    with pytest.raises(NotEnoughMemoryError, match="TIER=embedded"):
        choose.check_memory(10**15, "cpu")


def test_cuda_only_choice_on_a_cpu():
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(DeviceError, match="no CUDA GPU"):
        loading.load(choose.get_step(1), device="cuda:0")


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_release_frees_what_no_variable_holds(capsys, number):
    model, tokenizer = loading.load(choose.get_step(number))
    model.generate(tokenizer("A", return_tensors="pt").input_ids.to(model.device), max_new_tokens=2, pad_token_id=2)
    held = model.model.layers[0]
    loading.release()
    assert "still in memory" in capsys.readouterr().out
    del model, held
    loading.release()
    assert "still in memory" not in capsys.readouterr().out


@pytest.mark.parametrize("number", [1, 2, 3])
def test_show_call_is_what_load_passes(capsys, monkeypatch, number):
    """The printed text, run as Python, makes the very call that ``load`` makes."""
    import torch
    import transformers

    step, calls = choose.get_step(number), []

    class AutoModelForCausalLM:
        @staticmethod
        def from_pretrained(name, **arguments):
            calls.append((loading.Path(name).resolve(), {k: str(v) for k, v in arguments.items()}))

    loading.show_call(step)
    exec(capsys.readouterr().out, {
        "AutoModelForCausalLM": AutoModelForCausalLM, "BitsAndBytesConfig": transformers.BitsAndBytesConfig, "torch": torch,
    })  # fmt: skip

    def stop(pretrained_model_name_or_path, **arguments):
        AutoModelForCausalLM.from_pretrained(pretrained_model_name_or_path, **arguments)
        raise ValueError("stop here")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", stop)
    with pytest.raises(CheckpointError, match="stop here"):
        loading.load(step)
    assert calls[0] == calls[1]


def test_another_dtype_is_passed_on():
    import torch

    assert loading.load_arguments(replace(choose.get_step(2), dtype="float16"))["dtype"] is torch.float16
