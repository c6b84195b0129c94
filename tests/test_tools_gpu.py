"""make gpu: what it does without a GPU, and the folder that it leaves, filled here by a CPU and small models."""

import getpass
import json
import socket
import subprocess
import sys
import time

import pytest

from helpers import benchmark, ledger, plots
from tools import gpu


def test_without_a_gpu_it_says_so():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run([sys.executable, "-m", "tools.gpu", "--inside"], cwd=gpu.ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("This machine cannot do it: ") and done.stderr.count("\n") == 1


def test_the_folder_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SYNTHETIC_DIR", str(tmp_path / "synthetic"))
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    folder = tmp_path / "run"
    steps = ((3, "1.3B"), (1, "1.3B"), ("gptq-triton", "1.3B"), (4, "1.3B"))
    assert gpu.record(folder, steps, time.monotonic() + 600, device="cpu", layers=1, warmups=1, repeats=1) is False
    rows = ledger.read(folder / "ledger.jsonl")
    assert [row["variant"] for row in rows] == ["3", "1", "4"] and rows[0]["kernel"].endswith("gptqmodel's own choice on a CPU")
    assert (folder / "table.txt").read_text() == f"{plots.where(rows[0] | {'recorded': folder.name})}\n{benchmark.table(rows).to_string()}\n"
    text = (folder / "gpu.txt").read_text()
    assert "GPTQ kernels" in text and "Memory, GB" in text and "predicted" in text
    about = json.loads((folder / "machine.json").read_text())
    assert "CUDA GPUs" in about["left_out"]["gptq-triton, 1.3B"] and about["versions"]["torch"]
    assert {path.name for path in folder.iterdir()} == {"ledger.jsonl", "table.txt", "gpu.txt", "machine.json", "operations.png", "waterfall.png"}
    everything = "".join(path.read_text() for path in folder.iterdir() if path.suffix != ".png")
    for private in (str(tmp_path), str(gpu.ROOT), socket.gethostname(), f"{getpass.getuser()}@"):
        assert private not in everything, private
    assert set(rows[0]) >= set(ledger.recorded_rows()[-1]) - {"recorded", "peak_rss_loading_bytes"}


def test_when_the_minutes_are_used_up_the_rest_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    assert gpu.record(tmp_path / "run", ((3, "1.3B"),), 0, device="cpu") is True
    assert json.loads((tmp_path / "run" / "machine.json").read_text())["left_out"] == {"3, 1.3B": "the minutes were used up"}


def test_the_tests_that_need_a_gpu_are_marked_and_say_why(tmp_path):
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu", "tests/test_gpu.py"], cwd=gpu.ROOT, capture_output=True, text=True)
    assert "needs a CUDA GPU: make gpu" in done.stdout or " passed" in done.stdout
    assert "PytestUnknownMarkWarning" not in done.stdout
