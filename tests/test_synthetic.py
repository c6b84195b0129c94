"""The full-size tier, written small: the same files, the same loading call, the same bytes as the catalogue computes."""

import json
import math

import pytest
import torch

from helpers import loading, timing
from helpers.errors import DiskError, NotEnoughMemoryError
from helpers.models import catalogue, choose, files, synthetic
from tools import synthetic as command

TINY = catalogue.Shape(hidden_size=256, intermediate_size=384, num_hidden_layers=3, vocab_size=32000)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNTHETIC_DIR", str(tmp_path))
    monkeypatch.setitem(synthetic.LLAMA_2, "7B", TINY)
    return tmp_path


@pytest.mark.parametrize("number", [1, 2, 3])
def test_synthetic_steps_load_and_generate(tiny, number):
    step = choose.get_step(number, tier="synthetic")
    assert step.tier == "synthetic" and "random" in step.note and step.bytes == TINY.weight_bytes(step.format)
    model, tokenizer = loading.load(step)
    assert loading.weight_bytes(model) == step.bytes
    outliers = []
    hook = model.model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda _, inputs: outliers.append((inputs[0].abs() >= 6).any()))
    with torch.no_grad():
        logits = model(timing.tokenise(model, tokenizer)).logits
    hook.remove()
    assert math.isfinite(logits.float().abs().max().item()) and outliers[0]
    call, ids = timing.generate_once(model, tokenizer, new_tokens=4)
    assert call.new_tokens == len(ids) == 4
    assert isinstance(tokenizer.decode(ids), str)


@pytest.mark.parametrize(("format", "part"), [("bf16", "weight"), ("gptq", "qweight")])
def test_each_block_has_values_of_its_own(tiny, format, part):
    """ONNX Runtime keeps equal weights once, and reads less of a model of equal blocks than of a real one."""
    folder = synthetic.folder("7B", format)
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        first, *others = (files.read_tensor(folder, f"model.layers.{n}.{name}.{part}") for n in range(TINY.num_hidden_layers))
        assert not any(torch.equal(first, other) for other in others) and not torch.equal(*others)


def test_the_integers_have_no_mean(tiny):
    """With one, each block adds to the same direction: after 27 blocks of Llama-2 7B's shape float16 overflowed on a GPU."""
    folder = synthetic.folder("7B", "gptq")
    for name in ("self_attn.q_proj", "mlp.down_proj"):
        stored = {part: files.read_tensor(folder, f"model.layers.0.{name}.{part}") for part in ("qweight", "qzeros", "scales")}
        integers = torch.stack([stored["qweight"].long() >> 4 * n & 15 for n in range(8)])
        counts = integers.flatten().bincount(minlength=16) / integers.numel()
        assert counts[0] == 0 and counts[8] == pytest.approx(2 / 16, rel=0.05)
        assert counts[[1, 7, 9, 15]].tolist() == pytest.approx([1 / 16] * 4, rel=0.05)
        weights = (integers - ((stored["qzeros"][0, 0].item() & 15) + 1)) * stored["scales"][0, 0].item()
        assert abs(weights.mean()) < 0.01 * synthetic.STD and weights.std().item() == pytest.approx(synthetic.STD, rel=0.02)


def test_finished_checkpoint_is_reused(tiny):
    first = synthetic.folder("7B", "bf16")
    written = (first / "config.json").stat().st_mtime_ns
    assert synthetic.folder("7B", "int8") == first and (first / "config.json").stat().st_mtime_ns == written


def test_a_folder_with_equal_blocks_is_written_again(tiny, capsys):
    """As earlier versions left them: without the mark. A folder that somebody else named stays as it is."""
    folder = synthetic.folder("7B", "bf16")
    values = files.read_tensor(folder, "model.layers.2.mlp.down_proj.weight")
    capsys.readouterr()
    for old in (None, '{"version": 1}', "cut o"):
        (folder / synthetic.MARK).unlink() if old is None else (folder / synthetic.MARK).write_text(old)
        (folder / "left.txt").write_text("")
        assert synthetic.folder("7B", "bf16") == folder and not (folder / "left.txt").exists()
        assert "llama-2-7b-bf16 is of an earlier version of this course" in capsys.readouterr().out
    assert torch.equal(files.read_tensor(folder, "model.layers.2.mlp.down_proj.weight"), values)
    assert synthetic.folder("7B", "int8") == folder and not capsys.readouterr().out


def test_cut_off_write_leaves_nothing_that_looks_complete(tiny, monkeypatch):
    import safetensors.torch

    real, calls = safetensors.torch.save_file, []

    def stops(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*args, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", stops)
    with pytest.raises(KeyboardInterrupt):
        synthetic.folder("7B", "bf16")
    assert not list(tiny.iterdir())
    monkeypatch.undo()
    synthetic.write(TINY, "bf16", tiny / "llama-2-7b-bf16")
    files.check_folder(tiny / "llama-2-7b-bf16", "bf16")
    assert not list(tiny.glob("*.partial"))


def test_full_disk_is_said_before_writing(tmp_path):
    with pytest.raises(NotEnoughMemoryError, match="of the disk are free"):
        synthetic.write(catalogue.Shape(2**16, 2**18, 1000), "bf16", tmp_path / "huge")
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    synthetic.write(TINY, "bf16", tmp_path / "mine")
    assert not list((tmp_path / "mine").iterdir())


def test_gptq_layout(tmp_path):
    synthetic.write(TINY, "gptq", tmp_path / "gptq")
    config = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    assert (config["bits"], config["group_size"], config["desc_act"], config["sym"]) == (4, 128, False, True)


def test_the_command_writes_any_size_and_says_what_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SYNTHETIC_DIR", str(tmp_path))
    assert command.main(["1.3B", "gptq", "--layers", "2"]) == 0
    assert "timings are real, the text has no sense" in capsys.readouterr().out
    path = tmp_path / "llama-2-1.3b-2-layers-gptq"
    files.check_folder(path, "gptq")
    assert catalogue.Shape.from_config(path) == catalogue.Shape(2048, 5504, 2)
    assert command.main(["9B", "bf16"]) == 2 and "choose one of 1.3B, 2.7B, 7B, 13B" in capsys.readouterr().err
    assert command.main(["7B", "bf16", "--layers", "0"]) == 2 and "makes no sense" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["bf16", "gptq"])
def test_bytes_on_the_disk_are_the_models(tmp_path, format):
    """Headers and configuration come on top of the tensors: less than 0.1 % at this size, and less still at 7B's."""
    shape = catalogue.Shape(2048, 5504, 4)
    synthetic.write(shape, format, tmp_path / format)
    size = sum(file.stat().st_size for file in (tmp_path / format).glob("*.safetensors"))
    assert 0 <= size / shape.weight_bytes(format) - 1 < 0.001


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_activations_stay_finite_through_as_many_layers_as_13b_has(tmp_path, dtype):
    from transformers import AutoModelForCausalLM

    synthetic.write(catalogue.Shape(512, 1408, 40), "bf16", tmp_path / "deep")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "deep", dtype=dtype)
    with torch.no_grad():
        output = model(torch.arange(1, 65)[None], output_hidden_states=True)
    assert len(output.hidden_states) == 41 and all(state.isfinite().all() for state in output.hidden_states) and output.logits.isfinite().all()


def test_a_disk_that_fills_up_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    import safetensors.torch

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(DiskError, match="the disk is full: make room, or set SYNTHETIC_DIR"):
        synthetic.write(TINY, "bf16", tmp_path / "m")
    assert not list(tmp_path.iterdir())
