"""The hub tier through the real Hub client, against a server on the loopback interface that serves the embedded checkpoints."""

import json
import os
import subprocess
import sys

import pytest
from hub import COMMIT, Hub

from helpers.article import ROOT
from helpers.steps import CHECKPOINTS

PROGRAM = """
import json, sys
from helpers import ledger, loading, steps, timing
from helpers.errors import CourseError

steps.LLAMA_2["7B"] = steps.Shape.from_config(steps.CHECKPOINTS / "small")  # the size of what the server has
found = {}
for number in map(int, sys.argv[1:]):
    try:
        step = steps.get_step(number, tier="hub")
        model, tokenizer = loading.load(step)
        row = ledger.make_row(step, timing.measure(model, tokenizer, new_tokens=3, warmups=0, repeats=1), model)
        stored = loading.read_tensor(step, "model.norm.weight")
        found[number] = {k: row[k] for k in ("checkpoint", "revision", "layer_class", "note", "tier", "title")} | {"norm": len(stored)}
    except CourseError as error:
        found[number] = {"error": f"{type(error).__name__}: {error}"}
print(json.dumps(found))
"""


def run(hub, home, *numbers):
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, "-c", PROGRAM, *map(str, numbers)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return {int(n): row for n, row in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("hub-cache")


def test_hub_tier_with_access(home):
    own = {"meta-llama/Llama-2-7b-hf": CHECKPOINTS / "small", "TheBloke/Llama-2-7b-Chat-GPTQ": CHECKPOINTS / "small-gptq"}
    with Hub(own) as hub:
        rows = run(hub, home, 2, 3)
        assert rows[2] == {
            "checkpoint": "meta-llama/Llama-2-7b-hf", "revision": COMMIT, "layer_class": "Linear", "note": "", "tier": "hub",
            "title": "7B bf16", "norm": 256,
        }  # fmt: skip
        assert rows[3]["checkpoint"] == "TheBloke/Llama-2-7b-Chat-GPTQ" and rows[3]["layer_class"] not in ("Linear", "Linear8bitLt")
        assert ("meta-llama/Llama-2-7b-hf", "model.safetensors") in hub.asked


def test_hub_tier_while_the_licence_is_pending(home):
    with Hub({"NousResearch/Llama-2-7b-hf": CHECKPOINTS / "small"}, gated={"meta-llama/Llama-2-7b-hf"}) as hub:
        rows = run(hub, home, 1, 3)
    assert rows[1]["checkpoint"] == "NousResearch/Llama-2-7b-hf" and rows[1]["layer_class"] == "Linear8bitLt"
    assert "NousResearch/Llama-2-7b-hf instead of meta-llama/Llama-2-7b-hf" in rows[1]["note"] and "licence" in rows[1]["note"]
    assert rows[3]["error"].startswith("CheckpointError: TheBloke/Llama-2-7b-Chat-GPTQ cannot be read")
