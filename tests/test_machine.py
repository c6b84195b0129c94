"""What machine is this, and does a step fit? GPUs are described by their driver's program, so that none is needed here."""

import json
import os
import subprocess
import sys

import pytest
from support.book import cells

from helpers import ROOT, machine
from helpers.models import choose
from helpers.models.catalogue import LLAMA_2

T4 = "0, Tesla T4, 7.5, 15360, 14910"
TWO = f"{T4}\n1, Tesla T4, 7.5, 15360, 15100"
P100 = "0, Tesla P100-PCIE-16GB, 6.0, 16384, 16280"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Put an nvidia-smi on the path that prints what it is told."""

    def install(output):
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{output}\nEND\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


def test_no_driver(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine.gpus() == []


def test_two_gpus(driver, monkeypatch):
    driver(TWO)
    first, second = machine.gpus()
    assert first.name == "Tesla T4" and first.capability == (7, 5) and first.free == 14910 * 2**20 and second.index == 1
    assert "bfloat16 only emulated" in first.sentence and first.supported and not first.native_bf16
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.index for gpu in machine.gpus()] == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpus() == []


def test_driver_that_says_nothing_useful(driver):
    driver("0, Old Card, [N/A], 2000, 1000")
    assert machine.gpus() == []


PROGRAM = """
import json, sys
import pandas as pd
from helpers import machine
from helpers.models import choose
from helpers.errors import DeviceError
tier, reason = choose.choose_tier("auto")
found = choose.survey()
torch_before = "torch" in sys.modules
try:
    asked = machine.get_device(0)
except DeviceError as error:
    asked = str(error)
exec(sys.argv[1])
print(json.dumps([tier, reason, machine.get_device(), asked, torch_before, rows]))
"""


def ask(output, driver):
    driver(output)
    settings = os.environ | {"TIER": "auto", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, *cells("00", "cell-machine")], env=settings, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_gpu_that_torch_no_longer_knows(driver):
    """P100: recognised without a CUDA call, the CPU takes its place."""
    tier, reason, device, asked, torch_imported, table = ask(P100, driver)
    assert tier == "embedded" and "today's PyTorch cannot use this GPU (Tesla P100" in reason
    assert device == "cpu" and "cannot use this GPU" in asked and not torch_imported
    assert "TOO OLD" in table["GPU 0"] and "✗" in table["Hugging Face Hub"]


def test_survey_does_not_import_torch(driver):
    tier, reason, device, asked, torch_imported, table = ask("", driver)
    assert not torch_imported and "no NVIDIA GPU" in table["GPU"] and tier == "embedded"


def survey(*gpus, speed=100e6, disk=100e9, online=""):
    return {"gpus": list(gpus), "free": 12e9, "speed": speed, "disk": disk, "online": online}


def gpu(free, index=0, capability=(7, 5)):
    return machine.Gpu(index, "GPU", capability, int(free), int(free))


def test_verdicts():
    assert choose.verdict(9, 10) == choose.FITS and choose.verdict(10, 10) == choose.TIGHT and choose.verdict(11, 10) == choose.TOO_LARGE
    for sign, word in (verdict.split(" ", 1) for verdict in (choose.FITS, choose.TIGHT, choose.TOO_LARGE)):
        assert len(sign) == 1 and word.isascii()


def test_steps_on_a_t4():
    table = choose.step_table(survey(gpu(15.4e9)), context=512)
    assert list(table["verdict"]) == [choose.FITS, choose.TIGHT, choose.FITS, choose.FITS]
    assert table.loc["2: 7B bf16", "weights"] == "13,476,831,232"
    assert table.loc["2: 7B bf16", "download, time, disk"] == f"13.5 GB, about 2 min, {choose.FITS}"
    assert LLAMA_2["7B"].kv_bytes_per_token == 524_288 and LLAMA_2["13B"].kv_bytes_per_token == 819_200
    longer = choose.step_table(survey(gpu(15.4e9)), context=4096)
    assert longer.loc["2: 7B bf16", "verdict"] == choose.TOO_LARGE and "shorter context" in longer.loc["2: 7B bf16", "what to do"]


def test_steps_on_two_small_gpus():
    table = choose.step_table(survey(gpu(9e9), gpu(9e9, 1)))
    assert "2 GPUs" in table.loc["2: 7B bf16", "free"] and table.loc["2: 7B bf16", "verdict"] != choose.TOO_LARGE
    assert "(GPU)" in table.loc["3: 7B GPTQ", "free"]


def test_steps_without_a_gpu_or_disk_or_network():
    assert "T4 GPU" in choose.step_table(survey()).loc["2: 7B bf16", "what to do"]
    assert "(host)" in choose.step_table(survey()).loc["2: 7B bf16", "free"]
    assert "HF_HOME" in choose.step_table(survey(gpu(20e9), disk=5e9)).loc["2: 7B bf16", "what to do"]
    assert "no network" in choose.step_table(survey(gpu(20e9), speed=None, online="no")).loc["1: 7B 8-bit", "what to do"]
