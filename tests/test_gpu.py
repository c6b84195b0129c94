"""What only a CUDA GPU can show. ``make gpu`` runs these; elsewhere they are skipped."""

import json
from dataclasses import replace

import pytest
import torch

from helpers import kernels, ledger, limits, loading, machine, quality, timing
from helpers.benchmark import profile
from helpers.engines import serving
from helpers.errors import DeviceError, NotEnoughMemoryError
from helpers.models import choose

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: make gpu")]
MIB = 2**20


@pytest.fixture(scope="module")
def reference():
    """The unquantised small model's predictions on a part of the held-out text."""
    model, tokenizer = loading.load(choose.get_step("fp16"))
    encoded = quality.encode(tokenizer, quality.lines()[:64])
    yield encoded, quality.keep(model, encoded)


@pytest.fixture(autouse=True)
def empty():
    yield
    loading.free_caches()


@pytest.mark.parametrize("key", [1, 2, 3, 4, "fp16", "nf4", "int8-no-outliers", "gptq-triton", "gptq-torch", "gptq-exllama_v2"])
def test_every_format_loads_and_writes_on_the_gpu(key, reference):
    step = choose.get_step(key)
    model, tokenizer = loading.load(step)
    call, ids = timing.generate_once(model, tokenizer)
    assert model.device.type == "cuda" and len(ids) == timing.NEW_TOKENS and 0 < call.ttft < call.wall
    if step.model == "7B":  # the same model as the reference: close to it
        encoded, kept = reference
        figures, _ = quality.score(quality.batches(model, encoded), kept)
        assert figures["kl_mean"] < 0.1 and figures["same_top"] > 0.8


def test_step_3_takes_the_kernel_that_is_compiled_within_a_minute(capsys):
    step = choose.get_step(3)
    expected = kernels.ready(kernels.plan_for(step, "cuda:0")).kernel
    model, _ = loading.load(step)
    layer = type(model.model.layers[0].self_attn.q_proj).__name__
    assert layer == {"exllama_v2": "ExllamaV2Linear", "triton": "TritonV2Linear", "torch": "TorchLinear"}[expected]
    assert f"GPTQ kernel {layer}: " in capsys.readouterr().out and layer != "MarlinLinear"


def test_kernels_agree(reference):
    """The same integers through each kernel: what differs is rounding."""
    encoded, _ = reference
    predictions = {}
    for key in ("gptq-torch", "gptq-triton", 3):
        model, _ = loading.load(choose.get_step(key))
        predictions[key] = quality.keep(model, encoded)
        del model
        loading.free_caches()
    for key in ("gptq-triton", 3):
        figures, _ = quality.score(predictions[key], predictions["gptq-torch"])
        assert figures["kl_mean"] < 1e-4 and figures["same_top"] > 0.98, key


def test_marlin_is_asked_for_on_an_old_gpu():
    if torch.cuda.get_device_capability(0) >= kernels.MARLIN_CAPABILITY:
        pytest.skip("Marlin can be compiled here, for minutes")
    with pytest.raises(DeviceError, match="Marlin cannot be used here"):
        loading.load(choose.get_step("gptq-marlin"))


def test_release_gives_all_memory_back():
    before = machine.in_use("cuda:0")
    model, tokenizer = loading.load(choose.get_step(3))
    timing.generate_once(model, tokenizer)
    assert machine.in_use("cuda:0") > before
    del model
    assert loading.release() - before < 40 * MIB  # cuBLAS keeps a workspace: 32 MiB on compute capability 9.0, 8 MiB on older ones


def test_the_scratch_space_is_what_was_computed():
    step = choose.get_step(3)
    model, _ = loading.load(step)
    if type(model.model.layers[0].self_attn.q_proj).__name__ == "ExllamaV2Linear":
        (scratch,) = model.device_tensors.values()
        assert abs(scratch.scratch.nbytes - step.shape.exllama_bytes) < MIB


def test_too_little_memory_is_said_before_loading():
    free = torch.cuda.mem_get_info(0)[0]
    with pytest.raises(NotEnoughMemoryError, match="needs about"):
        choose.check_memory(free, "cuda:0")


def test_out_of_memory_while_generating_leaves_the_gpu_usable():
    model, tokenizer = loading.load(choose.get_step("fp16"))
    timing.generate_once(model, tokenizer)
    block = torch.empty(max(0, torch.cuda.mem_get_info(0)[0] - 8 * MIB), dtype=torch.uint8, device="cuda")
    ids = timing.prompt_ids(model, tokenizer, 200, batch=4096)
    with pytest.raises(NotEnoughMemoryError, match="ran out while generating"):
        timing.generate_once(model, tokenizer, ids)
    del block, ids, model
    loading.free_caches()
    model, tokenizer = loading.load(choose.get_step("fp16"))
    assert len(timing.generate_once(model, tokenizer)[1]) == timing.NEW_TOKENS


@pytest.mark.parametrize("key", [1, "nf4"])
def test_out_of_memory_in_a_conversion(key, monkeypatch):
    """No room is left after the checks: bitsandbytes' own error arrives as ours."""
    monkeypatch.setattr(choose, "check_memory", lambda *_: None)
    torch.cuda.set_per_process_memory_fraction(1e-5, 0)
    try:
        with pytest.raises(NotEnoughMemoryError, match="ran out while loading"):
            loading.load(choose.get_step(key))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)


def test_bandwidth_is_below_the_data_sheets_and_above_nothing():
    speed = limits.bandwidth("cuda:0")
    assert 20e9 < speed < 20e12
    card = {"T4": 320e9, "H100 80GB HBM3": 3350e9, "H200": 4800e9, "A100-SXM4-80GB": 2039e9, "RTX 3090": 936e9, "RTX 4090": 1008e9}
    for name, sheet in card.items():
        if torch.cuda.get_device_name(0).endswith(name):
            assert 0.5 * sheet < speed < 1.05 * sheet


def test_a_row_and_a_profile():
    step = choose.get_step(2)
    model, tokenizer = loading.load(step)
    row = ledger.make_row(step, timing.measure(model, tokenizer, warmups=1, repeats=2), model)
    assert json.dumps(row, allow_nan=False) and row["peak_gpu_reserved_bytes"] >= row["peak_gpu_allocated_bytes"] > step.bytes
    kinds = profile.decode_step(model, timing.tokenise(model, tokenizer))
    assert kinds["matrix products"] > 0


def test_the_server_gets_the_kernel_that_was_made_ready():
    step = choose.get_step(3)
    with serving.transformers(step, readers=2) as server:
        log = server.log.read_text(encoding="utf-8", errors="replace")
        assert "Compiling extension: Marlin" not in log and serving.healthy(server.url)


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_on_two_gpus(monkeypatch):
    step = replace(choose.get_step(2))
    monkeypatch.setattr(choose, "spread", lambda *_: [0, 1])
    model, tokenizer = loading.load(step)
    assert len(timing.generate_once(model, tokenizer)[1]) == timing.NEW_TOKENS and " + " in machine.device_of(model)
