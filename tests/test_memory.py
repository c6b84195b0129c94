"""Memory: loading streams, release() frees and names what it cannot free, running out is one sentence and the kernel goes on."""

import json
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from helpers import ROOT, loading
from helpers.models import catalogue, choose, synthetic

SHAPE = catalogue.Shape(2048, 5504, 16, 4000)  # 1.7 GB in bf16, a hundred times the small embedded model
WATCH = """
import json, sys, threading, time
from helpers import loading, timing
from helpers.models import catalogue, choose

number, folder = int(sys.argv[1]), sys.argv[2]
def status():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {name: int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon")}

model, tokenizer = loading.load(choose.get_step(number))  # the libraries' own memory does not count
timing.generate_once(model, tokenizer)
del model, tokenizer
loading.free_caches()
step = choose.get_step(number, checkpoint=folder)
before, peak, done = status(), {"VmRSS": 0, "RssAnon": 0}, []

def watch():
    while not done:
        for name, value in status().items():
            peak[name] = max(peak[name], value)
        time.sleep(0.002)

thread = threading.Thread(target=watch, daemon=True)
thread.start()
model, tokenizer = loading.load(step)
for tensor in model.state_dict().values():
    tensor.sum()  # touches what the file maps
done.append(True)
thread.join()
print(json.dumps({name: (peak[name] - before[name]) / step.bytes for name in peak}))
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    for format in ("bf16", "gptq"):
        synthetic.write(SHAPE, format, folder / format)
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("number, format, measure", [(2, "bf16", "VmRSS"), (3, "gptq", "VmRSS"), (1, "bf16", "RssAnon")], ids=["bf16", "gptq", "int8"])
def test_loading_streams(checkpoints, number, format, measure):
    """Peak at most 1.15 times the weights. (8-bit is made from the bf16 file: its mapped pages, which the system takes back when it
    needs them, are not counted there.)"""
    done = subprocess.run([sys.executable, "-c", WATCH, str(number), str(checkpoints / format)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    peak = json.loads(done.stdout.splitlines()[-1])
    assert 0.5 < peak[measure] <= 1.15, peak


OUT_OF_MEMORY = """
import resource, sys, torch
from helpers import loading, timing
from helpers.models import catalogue, choose
from helpers.errors import NotEnoughMemoryError

def used():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

def limited(room, action):
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used() + room, hard))
    try:
        action()
    except NotEnoughMemoryError as error:
        print(error)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

small, tokenizer = loading.load(choose.get_step(1))
timing.generate_once(small, tokenizer)
own = choose.get_step(1, checkpoint=sys.argv[1])
limited(1_100_000_000, lambda: loading.load(own))  # the file is mapped, then the copies are too much
model, tokenizer = loading.load(choose.get_step(2, checkpoint=sys.argv[1]))
timing.generate_once(model, tokenizer, new_tokens=2)
limited(10_000_000, lambda: timing.generate_once(model, tokenizer, "word " * 1500, new_tokens=2))  # before the attention, whose kernel looks at no allocation
print("parameters left:", sum(1 for _ in model.parameters()))
call, ids = timing.generate_once(small, tokenizer, new_tokens=3)
print("still usable:", len(ids))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_out_of_memory_is_one_sentence_and_the_kernel_goes_on(checkpoints):
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY, str(checkpoints / "bf16")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    loading, generating = [line for line in done.stdout.splitlines() if line.startswith("The memory of cpu ran out")]
    assert "ran out while loading: " in loading and " MB more were needed and " in loading and "released" in loading
    assert "ran out while generating: " in generating and " MB are free" in generating
    assert "parameters left: 0" in done.stdout and "still usable: 3" in done.stdout


class Part:
    """Something that can be held, as a layer can."""


def test_holders_are_named():
    part = Part()
    namespace = {"layer": part, "listed": [part], "mapped": {"a": (part,)}, "called": lambda: part, "_oh": {7: part}, "_7": part, "_": part}
    assert loading.holders([part], namespace) == ["Out[7]", "called", "layer", "listed", "mapped"]


def run_cells(*sources):
    """Run cells in one kernel; return what each printed."""
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    return ["".join(o.get("text", "") for o in cell.outputs if o.output_type == "stream" and o.name == "stdout") for cell in notebook.cells]


def test_release_in_a_notebook_names_variable_and_output():
    printed = run_cells(
        "import sys; sys.path.insert(0, '..')\nfrom helpers import loading\nfrom helpers.models import choose\nmodel, tokenizer = loading.load(choose.get_step(2))",
        "model",
        "layer = model.model.layers[0]; del model; loading.release();",
        "del layer; loading.release();",
        "%reset -f out\nloading.release();",
    )
    assert "held by Out[2], layer: del layer and %reset -f out, then" in printed[2]
    assert "held by Out[2]: %reset -f out, then" in printed[3]
    assert "still in memory" not in printed[4] and " MB now" in printed[4]
    assert not any("free again" in text for text in printed[2:4])


def test_a_gptq_model_that_was_loaded_first_is_gone():
    """The import of gptqmodel fails in a part and keeps the error, whose traceback held the function that was loading the model."""
    program = (
        "from helpers import loading, timing; from helpers.models import choose; model, tokenizer = loading.load(choose.get_step(3));"
        "timing.generate_once(model, tokenizer); del model; loading.release(); print(sum(part() is not None for part in loading._loaded['parts']))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "still in memory" not in done.stdout and done.stdout.split()[-1] == "0", done.stdout + done.stderr


def test_more_memory_after_than_before_is_explained(monkeypatch, capsys):
    """A model is gone, and the process has grown: its bytes are named as free. While a part of it is held, or where less is used than before, nothing is said."""
    step = choose.get_step(2)
    model, _ = loading.load(step, device="cpu")
    after, layer = loading._loaded["after"], model.model.layers[0]
    assert loading._loaded["bytes"] == loading.weight_bytes(model) == step.bytes
    del model
    for now, held in ((after + 50_000_000, True), (after + 50_000_000, False), (after - step.bytes, False)):
        if not held:
            layer = None
        monkeypatch.setattr(loading.machine, "in_use", lambda device, now=now: now)
        capsys.readouterr()
        assert loading.release() == now
        said = capsys.readouterr().out
        assert f"{now / 1e6:,.0f} MB now." in said and ("still in memory" in said) == held
        assert ("Its 8.4 MB are free again." in said) == (not held and now > after)
    assert layer is None


def test_the_next_notebook_fits_in_the_same_kernel():
    """All of 01, then all of 02 in one kernel: 01's model is gone when 02 loads its own."""
    one, two = (nbformat.read(ROOT / "notebooks" / name, as_version=4) for name in ("01_8bit_7b.ipynb", "02_bf16_7b.ipynb"))
    cells = [[cell.source for cell in notebook.cells if cell.cell_type == "code"] for notebook in (one, two)]
    check = "print('alive:', sum(part() is not None for part in loading._loaded['parts']))"
    printed = run_cells(*cells[0], check, *cells[1], check)
    assert [line for line in printed if line.startswith("alive")] == ["alive: 0\n", "alive: 0\n"]


def test_one_gpu_where_it_is_large_enough():
    assert choose.spread(14e9, [15.6e9, 15.6e9]) == [0]
    assert choose.spread(14e9, [9e9, 9e9]) == [0, 1] and choose.spread(14e9, [8e9, 8e9]) == []
    assert choose.spread(14e9, [8e9]) == [] and choose.spread(1e9, []) == []


def test_two_gpus_share_a_model():
    """accelerate, given the memory that load_arguments passes, puts layers on both."""
    from accelerate import infer_auto_device_map, init_empty_weights
    from accelerate.utils import get_balanced_memory
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(catalogue.CHECKPOINTS / "small"))
    size = sum(p.numel() * 2 for p in model.parameters())
    memory = get_balanced_memory(model, {0: int(0.8 * size), 1: int(0.8 * size)}, dtype="bfloat16", no_split_module_classes=["LlamaDecoderLayer"])
    places = infer_auto_device_map(model, memory, dtype="bfloat16", no_split_module_classes=["LlamaDecoderLayer"])
    assert set(places.values()) == {0, 1}
