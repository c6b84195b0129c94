"""The catalogue's sizes are those of the real files, and it refuses what it does not have."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import machine
from helpers.errors import CheckpointError, CourseError, DeviceError, UnknownFormatError, UnknownStepError, UnknownTierError
from helpers.models import catalogue, choose


@pytest.mark.parametrize(
    ("model", "format", "size"),
    [  # counted tensor by tensor from Llama-2's shapes
        ("7B", "bf16", 13_476_831_232),
        ("7B", "int8", 7_006_265_344),
        ("7B", "gptq", 3_893_862_400),
        ("13B", "gptq", 7_255_009_280),
    ],
)
def test_llama_2_sizes(model, format, size):
    assert catalogue.LLAMA_2[model].weight_bytes(format) == size


def test_a_token_reads_all_but_the_embedding_table():
    """The bytes behind the floors of decoding on a T4 (320 GB/s): 41.3, 21.1, 11.4 and 21.7 ms a token."""
    cases = [("7B", "bf16", 41.3), ("7B", "int8", 21.1), ("7B", "gptq", 11.4), ("13B", "gptq", 21.7)]
    for model, format, floor in cases:
        assert catalogue.LLAMA_2[model].read_bytes(format) / 320e9 * 1000 == pytest.approx(floor, abs=0.06)


def test_llama_2_parameters():
    assert catalogue.LLAMA_2["7B"].parameters == 6_738_415_616
    assert catalogue.LLAMA_2["13B"].parameters == 13_015_864_320


@pytest.mark.parametrize("number", [2, 3, 4])
def test_embedded_sizes_are_those_of_the_files(number):
    step = choose.get_step(number)
    with open(Path(step.checkpoint) / "model.safetensors", "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    header.pop("__metadata__", None)
    assert step.bytes == sum(end - start for start, end in (t["data_offsets"] for t in header.values()))


def test_steps_follow_the_article():
    assert [choose.get_step(n).title for n in (1, 2, 3, 4)] == ["small 8-bit", "small bf16", "small GPTQ", "large GPTQ"]
    assert [catalogue.STEPS[n].title for n in (1, 2, 3, 4)] == ["7B 8-bit", "7B bf16", "7B GPTQ", "13B GPTQ"]
    assert choose.get_step(1).checkpoint == choose.get_step(2).checkpoint


@pytest.mark.parametrize("number", [0, 5, "1", None])
def test_unknown_step(number):
    with pytest.raises(UnknownStepError, match="has steps 1, 2, 3, 4"):
        choose.get_step(number)


def test_unknown_tier(monkeypatch):
    with pytest.raises(UnknownTierError, match="embedded"):
        choose.get_step(1, tier="gpu")
    monkeypatch.setenv("TIER", "huge")
    with pytest.raises(UnknownTierError, match="'huge'"):
        choose.get_step(1)


def test_missing_folder():
    with pytest.raises(CheckpointError, match="no folder ./nowhere"):
        choose.get_step(1, checkpoint="./nowhere")


def test_own_checkpoint_folder():
    own = catalogue.CHECKPOINTS / "large"
    step = choose.get_step(2, checkpoint=str(own))
    assert step.bytes == catalogue.Shape.from_config(own).weight_bytes("bf16") and step.tier == "own" and step.title == "large bf16"
    other = choose.get_step(3, checkpoint="TheBloke/Llama-2-7B-GPTQ")
    assert other.checkpoint == "TheBloke/Llama-2-7B-GPTQ" and other.tier == "hub" and other.title == "7B GPTQ"
    foreign = choose.get_step(3, checkpoint="somebody/Another-Llama-GPTQ")
    assert foreign.tier == "own" and foreign.title == "Another-Llama-GPTQ GPTQ"


def test_unknown_format():
    with pytest.raises(UnknownFormatError, match="bf16, fp16, int8, nf4, gptq"):
        catalogue.LLAMA_2["7B"].weight_bytes("int3")


def test_auto_tier_says_why(monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here: auto may choose the hub")
    tier, reason = choose.choose_tier("auto")
    assert tier == "embedded" and "no CUDA GPU" in reason and "TIER=laptop takes small real models instead: 2.6 GB to download" in reason


def test_cuda_asked_for_on_a_cpu():
    import torch

    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(DeviceError, match="no CUDA GPU"):
        machine.get_device("cuda:0")
    with pytest.raises(DeviceError, match="no CUDA GPU"):
        machine.get_device(0)


def test_unknown_device():
    for device in ("tpu", "cpufoo", "cpu:3"):
        with pytest.raises(DeviceError, match=f"no device '{device}' here: choose one of cpu"):
            machine.get_device(device)


def test_errors_show_one_sentence_in_a_notebook():
    assert CourseError("what, and what next")._render_traceback_() == ["CourseError: what, and what next"]


@pytest.mark.parametrize("module", ["helpers", "helpers.models.choose", "helpers.engines.serving", "helpers.article.claims", "tools.run"])
def test_import_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
