"""Tests of the data build: a miniature made by the same functions, and the models that ship in data/."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.build.corpus import make_documents  # noqa: E402
from data.build.evaluate import PROMPT, missed_targets  # noqa: E402
from data.build.settings import FULL, MINIATURE  # noqa: E402
from data.build.text import assert_disjoint, is_held_out, split_sentences, write_documents  # noqa: E402

DATA = ROOT / "data"
LAYER = "model.layers.0.mlp.down_proj"


def tensors(folder):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def assert_gptq_v1(folder, layers):
    """The tensor names, dtypes and values of a v1 GPTQ checkpoint."""
    import torch

    content = tensors(folder)
    for name, dtype in (("qweight", torch.int32), ("qzeros", torch.int32), ("scales", torch.float16), ("g_idx", torch.int32)):
        assert content[f"{LAYER}.{name}"].dtype == dtype
    inputs = content[f"{LAYER}.g_idx"].shape[0]
    outputs = content[f"{LAYER}.scales"].shape[1]
    assert content[f"{LAYER}.qweight"].shape == (inputs // 8, outputs)
    assert content[f"{LAYER}.qzeros"].shape == (inputs // 128, outputs // 8)
    assert torch.all(content[f"{LAYER}.qzeros"] == 0x77777777)
    assert content[f"{LAYER}.g_idx"].tolist() == [index // 128 for index in range(inputs)]
    assert sum(name.endswith(".qweight") for name in content) == 7 * layers
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert content[name].dtype == torch.float16
    assert not [name for name in content if name.endswith(".bias") or name.endswith("_proj.weight")]
    config = json.loads((folder / "config.json").read_text())
    settings = json.loads((folder / "quantize_config.json").read_text())
    wanted = {"bits": 4, "group_size": 128, "desc_act": False, "sym": True, "true_sequential": True, "model_file_base_name": "model"}
    assert wanted.items() <= settings.items() and "damp_percent" in settings
    assert settings.items() <= config["quantization_config"].items()
    assert config["quantization_config"]["quant_method"] == "gptq"
    assert config["torch_dtype"] == "float16"
    assert "checkpoint_format" not in config["quantization_config"]


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """(folder, its quality.json) of what the command builds: in a process of its own, because it quiets the libraries for good."""
    out = tmp_path_factory.mktemp("miniature")
    done = subprocess.run([sys.executable, "-m", "data.build", "--miniature", "--out", str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out, json.loads((out / "quality.json").read_text())


def test_the_text_depends_only_on_the_seed():
    first = write_documents(5, "train", 200)
    assert first == write_documents(5, "train", 200)
    assert first != write_documents(6, "train", 200)


def test_a_document_can_be_cut_into_its_sentences_again():
    for document in write_documents(5, "train", 500) + write_documents(5, "heldout", 100):
        assert split_sentences(" ".join(document)) == document


def test_articles_agree():
    for document in write_documents(5, "train", 1000):
        assert " a apple" not in " ".join(document) and " a orange" not in " ".join(document)
        assert " an book" not in " ".join(document) and "[" not in " ".join(document) and "{" not in " ".join(document)


def test_a_shared_sentence_is_noticed():
    with pytest.raises(AssertionError, match="both splits"):
        assert_disjoint([["It is cold.", "It is warm."]], [["It is warm."]])


def test_the_miniature_learns(miniature):
    _, record = miniature
    for name in ("small", "large"):
        assert record["training"][name]["last_loss"] < record["training"][name]["first_loss"] - 0.5


def test_the_miniature_is_complete(miniature):
    out, _ = miniature
    assert "NOT" in (out / "README.md").read_text().upper() and not (out / ".work").exists()
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["large", "large-gptq", "small", "small-gptq"]


def test_the_miniature_loads_and_its_tokeniser_round_trips(miniature):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, _ = miniature
    tokeniser = AutoTokenizer.from_pretrained(out / "checkpoints" / "small-gptq")
    for text in (PROMPT, "Ada likes tea , and  two spaces.", "Grüße, 東京!\n"):
        ids = tokeniser(text).input_ids
        assert ids[0] == 1 and tokeniser.decode(ids, skip_special_tokens=True) == text
    for name in ("small", "large-gptq"):
        model = AutoModelForCausalLM.from_pretrained(out / "checkpoints" / name, device_map={"": "cpu"})
        assert model(**tokeniser(PROMPT, return_tensors="pt")).logits.shape[-1] == MINIATURE.vocabulary


def test_the_miniature_gptq_layout(miniature):
    out, _ = miniature
    assert_gptq_v1(out / "checkpoints" / "small-gptq", layers=1)
    assert_gptq_v1(out / "checkpoints" / "large-gptq", layers=2)


def test_a_training_that_was_cut_off_goes_on(tmp_path):
    import torch

    from data.build.train import llama_config, train_model

    windows = torch.randint(3, 64, (64, 128), generator=torch.Generator().manual_seed(1))
    shape = {"hidden": 64, "inner": 64, "layers": 1, "heads": 2, "positions": 128}
    plan = {"steps": 6, "batch": 4, "peak": 1e-3, "warm_up": 2}

    class CutOff(Exception):
        pass

    def stop_after(limit):
        def say(line):
            if f"step {limit:5d} of" in line:
                raise CutOff

        return say

    whole, losses, _ = train_model(windows, llama_config(shape, 64), plan, 1, tmp_path / "whole.pt", lambda line: None, every=1)
    with pytest.raises(CutOff):
        train_model(windows, llama_config(shape, 64), plan, 1, tmp_path / "cut.pt", stop_after(5), every=1)
    said = []
    again, more, earlier = train_model(windows, llama_config(shape, 64), plan, 1, tmp_path / "cut.pt", said.append, every=1)
    assert "going on from step 4" in said[0]
    assert more == pytest.approx(losses) and earlier > 0
    for one, two in zip(whole.parameters(), again.parameters()):
        assert torch.allclose(one, two, atol=1e-6)


def test_outlier_channels_change_no_logit():
    import copy

    import torch
    from transformers import LlamaForCausalLM

    from data.build.outliers import FACTOR, add_outlier_channels
    from data.build.train import llama_config

    torch.manual_seed(0)
    config = llama_config({"hidden": 128, "inner": 256, "layers": 2, "heads": 2, "positions": 64}, 64)
    plain = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    rough = add_outlier_channels(copy.deepcopy(plain), seed=3)
    assert rough.model.norm.weight.max() == 1 and rough.model.layers[0].input_layernorm.weight.max() == FACTOR
    ids = torch.arange(32)[None]
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, rough(ids).logits)


def test_the_shipped_data_is_small():
    ignored = {".work", "__pycache__"}
    total = sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file() and not ignored & set(path.parts))
    assert total < 38e6


@pytest.fixture(scope="module")
def quality():
    return json.loads((DATA / "quality.json").read_text())


def test_the_shipped_models_meet_the_targets(quality):
    assert missed_targets(quality["models"]) == []


def test_the_shipped_checkpoints_are_those_described(quality):
    from math import prod

    for name, model in quality["models"].items():
        content = tensors(DATA / "checkpoints" / name)
        assert sum(prod(tensor.shape) for tensor in content.values()) == model["parameters"]
        assert {str(tensor.dtype) for tensor in content.values()} == {"torch.bfloat16"}
    assert 1.8 <= quality["models"]["large"]["parameters"] / quality["models"]["small"]["parameters"] <= 2.0


@pytest.mark.parametrize("name", ["small-gptq", "large-gptq"])
def test_the_shipped_gptq_layout(name):
    assert_gptq_v1(DATA / "checkpoints" / name, layers=4)


def test_the_shipped_text_is_what_the_generator_writes():
    train, heldout = make_documents(FULL)  # asserts as well that the splits share no sentence
    for name, documents in (("heldout", heldout), ("calibration", train[: FULL.calibration_documents])):
        lines = (DATA / "text" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        assert lines == [" ".join(document) for document in documents]
    training = {sentence for document in train for sentence in document}
    for line in (DATA / "text" / "heldout.txt").read_text(encoding="utf-8").splitlines():
        for sentence in split_sentences(line):
            assert sentence not in training and is_held_out(sentence, FULL.seed)


def test_the_card_quotes_the_measured_figures(quality):
    card = (DATA / "README.md").read_text(encoding="utf-8")
    for model in quality["models"].values():
        assert f"{model['parameters']:,}" in card
        for entry in model["formats"].values():
            assert f"{entry['perplexity']:.3f}" in card and entry["completion"] in card


def test_a_missed_target_is_named(quality):
    models = json.loads(json.dumps(quality["models"]))
    models["small"]["formats"]["int8"]["perplexity"] *= 1.05
    assert any("8-bit" in line for line in missed_targets(models))
