"""What does one decode step spend its time on? From torch.profiler, summed over kinds of operation.

https://docs.pytorch.org/docs/stable/profiler.html
"""

import time
from statistics import median

KINDS = ("matrix products", "quantise and dequantise", "conversion and copies", "attention", "other operations", "Python and launching")
PRODUCTS = (
    "aten::mm", "addmm", "aten::bmm", "aten::baddbmm", "aten::matmul", "aten::linear", "_int_mm", "int4pack_mm", "mkldnn_linear", "int8_linear_matmul",
    "gemm", "gemv", "marlin", "exllama",
)  # fmt: skip
COPIES = ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::contiguous")
QUANTISATION = ("bitsandbytes::", "MatMul8bitLt", "MatMul4Bit", "CompiledFxGraph", "Torch-Compiled", "TorchDynamo", "triton_", "gptq", "dequant")
STEPS, WARM = 7, 3


def decode_step(model, ids):
    """Return {kind: seconds} of one decode step of ``model`` after the prompt ``ids``, shape (1, tokens): for each of KINDS the median of STEPS steps.

    Each operation counts without the ones that it calls. On a GPU its time is that of its kernels; "Python and launching" is the rest of the
    step's wall time, in which the device has nothing to do. An operation inside of a quantisation library's counts as "quantise and
    dequantise", unless it is a product or a copy itself; products that dequantise in the same kernel (NF4, GPTQ) are products. The profiler
    itself makes each step slower, Python most of all: read shares, not times.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = model.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    found = []
    with torch.no_grad():
        output = model(ids, use_cache=True)
        cache = output.past_key_values
        for number in range(WARM + STEPS):
            token = output.logits[:, -1:].argmax(-1)
            if number < WARM:
                output = model(token, past_key_values=cache, use_cache=True)
                continue
            with profile(activities=activities) as profiler:
                start = time.perf_counter()
                output = model(token, past_key_values=cache, use_cache=True)
                if on_gpu:
                    torch.cuda.synchronize()
                wall = time.perf_counter() - start
            sums = dict.fromkeys(KINDS, 0.0)
            for event in profiler.events():
                if event.device_type == torch.autograd.DeviceType.CPU:
                    sums[_kind(event)] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
            sums[KINDS[-1]] = max(0.0, wall - sum(sums.values()))
            found.append(sums)
    return {kind: median(sums[kind] for sums in found) for kind in KINDS}


def _kind(event):
    """The kind that ``event`` belongs to, by its own name, else by the names of the operations that called it."""
    if _named(event, PRODUCTS):
        return "matrix products"
    if "scaled_dot_product" in event.name or "flash" in event.name:
        return "attention"
    if _named(event, COPIES):
        return "conversion and copies"
    while event is not None:
        if _named(event, QUANTISATION):
            return "quantise and dequantise"
        event = event.cpu_parent
    return "other operations"


def _named(event, names):
    return any(name in event.name for name in names)
