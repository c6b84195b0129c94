"""Every branch of the course that only a machine with a CUDA GPU takes, taken here: torch says that it has one (tests/support/mocked_cuda.py)."""

import ast
import contextlib
import re
import sys
from dataclasses import replace

import pytest
import torch
from support.mocked_cuda import PretendCuda, mock

from helpers import ROOT, benchmark, kernels, ledger, limits, loading, machine, process, timing
from helpers.benchmark import profile
from helpers.engines import old_stack, serving
from helpers.errors import DeviceError, ImpossibleFigureError, NotEnoughMemoryError
from helpers.machine import speed
from helpers.models import choose

HELPERS = ROOT / "helpers"
ON_GPU = re.compile(r"cuda|on_gpu|gpus\b|gpu\b")
seen = {}  # {file name: lines that ran}


@contextlib.contextmanager
def noted():
    """Note every line of the course that runs meanwhile."""
    before = sys.gettrace()

    def line(frame, event, argument):
        seen.setdefault(frame.f_code.co_filename, set()).add(frame.f_lineno)
        return line

    sys.settrace(lambda frame, event, argument: line if frame.f_code.co_filename.startswith(str(HELPERS)) else None)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.fixture
def gpu(monkeypatch, models):
    """One T4, and the small bf16 model, which says that it is on it."""
    mock(monkeypatch)
    _, model, tokenizer = models[2]
    with PretendCuda(), noted():
        yield model, tokenizer


def test_devices(gpu, monkeypatch):
    model, _ = gpu
    assert machine.get_device() == machine.get_device(0) == machine.get_device("cuda") == "cuda:0" and machine.gpu_count() == 1
    assert machine.device_of(model) == machine.device_name() == "Tesla T4"
    with pytest.raises(DeviceError, match="There is no device 'cuda:1' here: choose one of cpu, cuda:0"):
        machine.get_device(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="this machine has no CUDA GPU"):
        machine.get_device("cuda:0")


def test_a_gpu_that_is_too_old(gpu, monkeypatch):
    monkeypatch.setattr(machine, "unusable_gpu", lambda: "Tesla P100")
    assert machine.get_device() == "cpu" and machine.gpu_count() == 0 and "Tesla P100" in choose._why_not_hub.__wrapped__()
    with pytest.raises(DeviceError, match="cannot use this GPU"):
        machine.get_device("cuda:0")


def test_the_kernel_is_chosen_for_this_gpu(gpu, monkeypatch):
    monkeypatch.setattr(kernels, "missing_tools", lambda: [])
    assert kernels.plan_for(choose.get_step(3), "cuda:0").kernel == "exllama_v2"


def test_a_model_on_two_gpus_names_both(gpu, monkeypatch):
    model, _ = gpu
    mock(monkeypatch, count=2)
    monkeypatch.setattr(model, "hf_device_map", {"model.embed_tokens": 0, "lm_head": 1}, raising=False)
    assert machine.device_of(model) == "Tesla T4 + Tesla T4"


def test_memory(gpu):
    assert machine.in_use("cuda:0") == 1000 and machine.free_memory("cuda:0") == 15_634_000_000
    loading.free_caches()
    called = []
    assert machine.peak("cuda:0", lambda: called.append(1)) == 2000 and called
    with pytest.raises(NotEnoughMemoryError, match="needs about 21.6 GB on cuda:0 and 15.6 GB are free"):
        choose.check_memory(20.8e9, "cuda:0")


def test_out_of_memory_on_the_gpu(gpu, monkeypatch):
    model, tokenizer = gpu

    def generate(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(model, "generate", generate)
    monkeypatch.setattr(loading.memory, "hollow", lambda model: None)  # other tests need it
    with pytest.raises(NotEnoughMemoryError, match="The memory of cuda:0 ran out while generating: 2,147 MB more were needed"):
        timing.generate_once(model, tokenizer)


def test_timing_waits_for_the_gpu_and_reports_its_memory(gpu, monkeypatch):
    model, tokenizer = gpu
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    found = timing.measure(model, tokenizer, new_tokens=3, warmups=0, repeats=1)
    assert waits == 2 * [0, 0, 0]  # at the start, at the first token, at the end of both calls
    assert (found.peak_gpu_allocated, found.peak_gpu_reserved) == (2000, 3000)
    monkeypatch.setattr(speed, "BUDGET", 0.01)
    with pytest.raises(ImpossibleFigureError, match="a token reads 7,.* bytes of weights, and only 2,000 are in the memory"):
        ledger.make_row(choose.get_step(2), found, model)
    row = ledger.make_row(choose.get_step(2), replace(found, peak_gpu_allocated=10**7), model)
    assert row["device"] == "Tesla T4" and row["peak_gpu_reserved_bytes"] == 3000


def test_bandwidth(gpu, monkeypatch):
    monkeypatch.setattr(speed, "BUDGET", 0.01)
    assert limits.bandwidth(size=2**22) > 0 and limits.flops(dtype=torch.float32) > 0
    with PretendCuda():
        assert len(speed._kernels(torch.ones(4096 * 4))) == 4  # float16 too


def test_profile(gpu, monkeypatch):
    model, tokenizer = gpu
    monkeypatch.setattr(profile, "PROFILED", 1)
    monkeypatch.setattr(profile, "UNPROFILED", 1)
    found = profile.decode_step(model, timing.tokenise(model, tokenizer))
    assert set(found) == set(profile.KINDS) and found[profile.KINDS[-1]] > 0


def test_this_machine_in_the_calculator(gpu, monkeypatch):
    monkeypatch.setattr(speed, "BUDGET", 0.01)
    monkeypatch.setattr(limits, "flops", lambda device: 1e12)
    here = limits.this_machine()
    assert here["memory"] == pytest.approx(15.634) and here["device"] == "cuda:0" and here["bandwidth"] > 0 and here["tflops"] == 1


def test_a_load_that_is_shared_and_a_load_that_is_not(gpu, monkeypatch):
    assert "max_memory" not in loading.load_arguments(choose.get_step(2))
    mock(monkeypatch, count=2, free=5_000_000)
    monkeypatch.setattr(choose, "OVERHEAD", 100)
    assert loading.load_arguments(choose.get_step(2))["device_map"] == "sequential"


def test_the_benchmark_makes_the_kernel_ready_first(gpu, monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "prepare", lambda step, device: asked.append((step.key, device)))
    monkeypatch.setattr(process.subprocess, "Popen", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    for key in (3, 2):
        with pytest.raises(KeyboardInterrupt):
            benchmark._in_a_process(benchmark.Job(key, "embedded"))
    assert asked == [(3, "cuda:0")]


def test_the_servers_type(gpu, monkeypatch):
    started = []
    monkeypatch.setattr(serving, "_start", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(process, "call", lambda function, job, _: {"kernel": "triton" * (job["step"]["format"] == "gptq"), "sentence": "x", "overflows": ""})
    serving._tried.cache_clear()
    for key in (2, 3):
        serving.transformers(choose.get_step(key))
    assert [arguments[2][3] for arguments in started] == ["float16", "float16"]


def test_the_old_stack_on_a_gpu(gpu, monkeypatch):
    assert old_stack.too_new() == ""
    mock(monkeypatch, (10, 0))
    assert "compute capability 10.0" in old_stack.too_new()


def branches():
    """(file, line of the `if`, lines of its body, condition) of every `if` whose condition asks for a GPU."""
    for path in sorted(HELPERS.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.If) and ON_GPU.search(condition := ast.get_source_segment(source, node.test)) and not condition.startswith("not "):
                yield path, node.lineno, range(node.body[0].lineno, node.body[-1].end_lineno + 1), condition


def test_no_branch_for_gpus_is_dead():
    """Runs last: each body of an `if` that asks for a GPU has run in this module."""
    dead = [f"{path.name}:{number} if {condition}" for path, number, body, condition in branches() if not seen.get(str(path), set()) & set(body)]
    assert not dead, "\n".join(dead)
