"""The exported graph computes what transformers computes, keeps GPTQ's integers, and every fault is a sentence."""

import gc
import json
import shutil

import numpy as np
import onnxruntime_genai
import pytest
import torch
from support import qwen

from helpers import ROOT, ledger, machine, quality, setup, timing
from helpers.engines import onnx_models, timed
from helpers.errors import CheckpointError, PromptError
from helpers.models import choose
from helpers.models.catalogue import Shape


@pytest.fixture(scope="module")
def folders():
    """The graphs of notebook 12: those that it has just written, else they are written now."""
    small, gptq = choose.get_step(2), choose.get_step(3)
    return {
        "fp32": onnx_models.export(small, "fp32"),
        "exact": onnx_models.export(gptq, "int4", "small-gptq-exact", accuracy_level=1, nodes_to_exclude="/lm_head/MatMul"),
    }


@pytest.fixture(scope="module")
def fp32(folders):
    return onnx_models.load(folders["fp32"])


def test_an_export_leaves_nothing_in_memory():
    """The builder's graph and weights hold each other until Python's collector comes: 9 GB for a 7B."""

    def left():
        return sum(str(type(thing).__module__).startswith("onnx_ir") for thing in gc.get_objects())

    onnx_models.export(choose.get_step(3), "int4", "small-gptq-memory", accuracy_level=1)
    before = left()  # its classes are imported now
    shutil.rmtree(setup.results_dir() / "onnx" / "small-gptq-memory")
    gc.disable()
    try:
        onnx_models.export(choose.get_step(3), "int4", "small-gptq-memory", accuracy_level=1)
        assert left() <= before + 20
    finally:
        gc.enable()
        shutil.rmtree(setup.results_dir() / "onnx" / "small-gptq-memory")


def test_logits_are_those_of_transformers(fp32):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = choose.get_step(2).checkpoint
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    for number, line in enumerate(quality.lines()[:25]):
        ids = tokenizer(line).input_ids[: 2 + number]
        with torch.no_grad():
            theirs = model(torch.tensor([ids])).logits[0, -1].numpy()
        ours = onnx_models.logits(fp32, ids)
        assert ours.argmax() == theirs.argmax() and np.abs(ours - theirs).max() < 1e-3


def test_greedy_tokens_are_those_of_transformers(fp32, models):
    _, model, tokenizer = models[2]
    for prompt in (timing.PROMPT, "The river of "):
        ids = tokenizer(prompt).input_ids
        assert onnx_models.answer(fp32, ids, 12) == timing.generate_once(model, tokenizer, prompt, 12)[1]


@pytest.mark.parametrize("name", ["model.layers.0.mlp.gate_proj", "model.layers.3.mlp.down_proj", "model.layers.2.attn.o_proj"])
def test_gptqs_integers_and_scales_are_kept(folders, name):
    from test_formats import unpack

    step = choose.get_step(3)
    integers = np.array(onnx_models.tensor(folders["exact"], f"{name}.MatMulNBits.qweight"))  # (outputs, groups, bytes)
    scales = np.array(onnx_models.tensor(folders["exact"], f"{name}.MatMulNBits.scales")).reshape(*integers.shape[:2], 1)
    weight = scales * ((np.stack([integers & 15, integers >> 4], -1).reshape(*integers.shape[:2], -1)).astype(np.float32) - 8)
    assert np.array_equal(weight.reshape(integers.shape[0], -1), unpack(step, name.replace(".attn", ".self_attn")).numpy())


def test_sizes_are_those_of_the_file(folders):
    for folder in folders.values():
        total, read = onnx_models.sizes(folder)
        on_disk = (folder / "model.onnx.data").stat().st_size
        assert 0.98 * on_disk <= total <= on_disk + 50_000  # small tensors stand in the graph, large ones begin at round places
        assert total - read == 1536 * 256 * 4
    assert onnx_models.operations(folders["fp32"])["GroupQueryAttention"] == 4


def test_measured_like_the_steps_and_alone(fp32, folders, models, tmp_path):
    """In a process that does not hold torch, with the threads that it was given; the same tokens as in this one."""
    step, tokenizer = choose.get_step(2), models[2][2]
    ids, (total, read) = tokenizer(timing.PROMPT).input_ids, onnx_models.sizes(folders["fp32"])
    job = {"folder": str(folders["fp32"]), "threads": 1, "ids": ids}
    result, more = timed.apart("helpers.engines.onnx_models.work", job, total, tokenizer.decode)
    assert more["beside_torch"] is False and result.threads == 1 and len(result.warm) == timing.REPEATS
    assert result.token_ids == onnx_models.answer(fp32, ids, timing.NEW_TOKENS) and result.text == tokenizer.decode(result.token_ids)
    about = {"format": "onnx", "weight_bytes": total, "read_bytes": read, "packages": onnx_models.PACKAGES}
    row = timed.make_row("onnxruntime", "fp32", result, step, **about, **more)
    ledger.append(row, tmp_path / "ledger.jsonl")
    assert ledger.read(tmp_path / "ledger.jsonl", engine="onnxruntime") == [row] and ledger.refusal(row) == ""
    assert all(row["versions"].values()) and 0 < row["ttft_s"] < row["wall_s"] and row["resident_bytes"] >= read


def test_a_second_export_is_the_first_one(folders):
    before = (folders["fp32"] / "model.onnx").stat().st_mtime_ns
    assert onnx_models.export(choose.get_step(2), "fp32") == folders["fp32"] and (folders["fp32"] / "model.onnx").stat().st_mtime_ns == before


def test_threads_are_chosen_for_the_models_own_sizes(folders, tmp_path, monkeypatch):
    """Not as many as torch has: each engine takes what the course chooses for the sizes, or THREADS; a model that tells no sizes takes all cores."""
    asked, torch_has = [], torch.get_num_threads()
    monkeypatch.setattr(choose, "threads", lambda shape: asked.append((shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers)) or 7)
    config = json.loads((ROOT / "data" / "checkpoints" / "small" / "config.json").read_text(encoding="utf-8"))
    assert [onnx_models._threads(folder) for folder in folders.values()] == [7, 7] and torch_has == torch.get_num_threads()
    assert asked == 2 * [(config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"])]
    monkeypatch.undo()
    monkeypatch.setenv("THREADS", "2")
    overlaid, real = [], onnxruntime_genai.Config.overlay
    monkeypatch.setattr(onnxruntime_genai.Config, "overlay", lambda self, text: overlaid.append(json.loads(text)) or real(self, text))
    onnx_models.load(folders["fp32"])
    assert overlaid == [{"model": {"decoder": {"session_options": {"intra_op_num_threads": 2}}}}]
    assert onnx_models._threads(tmp_path) == machine.cores()


def test_prompts_that_are_refused(fp32):
    for ids, words in (([], "prompt of 0 tokens"), ([5] * 300, "context_length"), ([99999], "out of data bounds")):
        with pytest.raises(PromptError, match=words) as error:
            onnx_models.answer(fp32, ids, 3)
        assert "\n" not in str(error.value)


def test_folders_that_cannot_be_loaded(folders, tmp_path):
    with pytest.raises(CheckpointError, match="no genai_config.json.*export it again"):
        onnx_models.load(tmp_path)
    damaged = tmp_path / "damaged"
    shutil.copytree(folders["fp32"], damaged)
    (damaged / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match="ONNX Runtime cannot load .*damaged") as error:
        onnx_models.load(damaged)
    assert "\n" not in str(error.value)


def test_an_export_that_fails_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    with pytest.raises(CheckpointError, match="could not be written as ONNX .*int5") as error:
        onnx_models.export(choose.get_step(2), "int5")
    assert "\n" not in str(error.value) and not list((tmp_path / "onnx").glob("*"))
    with pytest.raises(CheckpointError, match="this step needs GPTQ ones"):
        onnx_models.export(choose.get_step(3, checkpoint=str(ROOT / "data" / "checkpoints" / "small")), "int4")


# Other architectures

MINI = Shape(256, 512, 2, 1536, kv_size=128, tied=True, biases=256 + 2 * 128)
UNKNOWN = {"architectures": ["OPTForCausalLM"], "model_type": "opt"}


def against_transformers(folder, onnx_folder, exact=1e-3):
    """The largest difference of the logits of one graph and of transformers in float32, over prompts of 2 to 40 tokens."""
    from transformers import AutoModelForCausalLM

    model, graph = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), onnx_models.load(onnx_folder)
    worst = 0
    for length in (2, 9, 40):
        ids = [3 + 7 * n % 1500 for n in range(length)]
        with torch.no_grad():
            theirs = model(torch.tensor([ids])).logits[0, -1].numpy()
        worst = max(worst, np.abs(onnx_models.logits(graph, ids) - theirs).max() / np.abs(theirs).max())
    return worst


def test_a_miniature_qwen2(tmp_path, monkeypatch):
    """Grouped queries, biases, a tied head, another base of rotary positions: in 32 bits, and with its GPTQ's integers."""
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    plain, packed = (qwen.write(tmp_path / name, MINI, format, std=0.1) for name, format in (("mini", "bf16"), ("mini-gptq", "gptq")))
    graph = onnx_models.export(choose.get_step(2, checkpoint=str(plain)), "fp32")
    assert against_transformers(plain, graph) < 1e-3
    assert onnx_models.sizes(graph)[0] == onnx_models.sizes(graph)[1]  # the table is the head: all of it is read
    step = choose.get_step(3, checkpoint=str(packed))
    exact = onnx_models.export(step, "int4", accuracy_level=1, nodes_to_exclude="/lm_head/MatMul,/model/embed_tokens/Gather")
    unpacked = unpack(packed, tmp_path / "unpacked")
    assert against_transformers(unpacked, exact) < 1e-3


def unpack(packed, folder):
    """A GPTQ folder as a float32 checkpoint, unpacked by hand."""
    from safetensors.torch import load_file, save_file

    tensors, found = load_file(packed / "model.safetensors"), {}
    shifts = torch.arange(0, 32, 4)
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if part == "qweight":
            integers = (tensor[:, None, :] >> shifts[:, None] & 15).flatten(0, 1)
            zeros = (tensors[f"{layer}.qzeros"][:, :, None] >> shifts & 15).flatten(1) + 1
            group = tensors[f"{layer}.g_idx"].long()
            found[f"{layer}.weight"] = (tensors[f"{layer}.scales"].float()[group] * (integers - zeros[group])).T.contiguous()
        elif part in ("weight", "bias"):
            found[name] = tensor.float()
    folder.mkdir()
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((packed / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_architectures_that_the_builder_does_not_know_are_a_sentence(tmp_path):
    known = onnx_models.architectures()
    assert {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM"} <= known
    (tmp_path / "config.json").write_text(json.dumps(UNKNOWN))
    with pytest.raises(
        CheckpointError, match="is a OPTForCausalLM, which the builder of onnxruntime-genai .* does not know: take a Llama or a Qwen2, or llama.cpp"
    ):
        onnx_models._check(choose.get_step(2), tmp_path)


def test_gemma_3_is_a_sentence_until_the_builder_reads_transformers_5(tmp_path, monkeypatch):
    """onnxruntime-genai 0.15.2 looks for rope_local_base_freq, which transformers 5 keeps in rope_parameters."""
    import transformers

    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    sizes = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "vocab_size": 1536,
    }
    transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes)).bfloat16().save_pretrained(tmp_path / "mini")
    qwen.tokeniser(tmp_path / "mini")
    with pytest.raises(
        CheckpointError,
        match=r"could not be written as ONNX \(AttributeError: .*rope_local_base_freq.*the builder does not know it as this transformers has it",
    ):
        onnx_models.export(choose.get_step(2, checkpoint=str(tmp_path / "mini")), "fp32")
    assert not (tmp_path / "results" / "onnx" / "mini-fp32").exists()
