"""Where does the time of one token go? The operations that a model calls, by torch's profiler. First used in notebook 06."""

import contextlib
import time
from statistics import median

KINDS = ("matrix products", "quantise and dequantise", "conversion and copies", "attention", "other operations", "Python and launching")
PRODUCTS = (
    "aten::mm", "addmm", "aten::bmm", "aten::baddbmm", "aten::matmul", "aten::linear", "_int_mm", "int4pack_mm", "mkldnn_linear", "int8_linear_matmul",
    "gemm", "gemv", "marlin", "exllama",
)  # fmt: skip
COPIES = ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::contiguous")
QUANTISATION = ("bitsandbytes::", "MatMul8bitLt", "MatMul4Bit", "CompiledFxGraph", "Torch-Compiled", "TorchDynamo", "triton_", "gptq", "dequant")
CACHES = ("past_key_values", "cache_params")  # names of what a model keeps of earlier tokens; the second is Mamba's
PROFILED, UNPROFILED = 7, 3  # decode steps, and those before them that warm up


def decode_step(model, ids):
    """Return {kind: seconds} of one decode step of ``model`` after the prompt ``ids``, shape (1, tokens): for each of KINDS the median of PROFILED steps.

    Each operation counts without the ones that it calls, on a GPU with its kernels' time; "Python and launching" is the rest of the wall time.
    What a quantisation library calls is "quantise and dequantise", unless it is a product or a copy itself; products that dequantise in the
    same kernel (NF4, GPTQ) are products. The profiler makes each step slower, Python most of all: read shares, not times.
    (https://docs.pytorch.org/docs/stable/profiler.html)
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = model.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    found = []
    with torch.no_grad():
        output = model(ids, use_cache=True)
        for number in range(UNPROFILED + PROFILED):
            token = output.logits[:, -1:].argmax(-1)
            with profile(activities=activities) if number >= UNPROFILED else contextlib.nullcontext() as profiler:
                start = time.perf_counter()
                output = model(token, **{name: output[name] for name in CACHES if name in output}, use_cache=True)
                if on_gpu:
                    torch.cuda.synchronize()
                wall = time.perf_counter() - start
            if number < UNPROFILED:
                continue
            sums = dict.fromkeys(KINDS, 0.0)
            for event in profiler.events():
                if event.device_type == torch.autograd.DeviceType.CPU:
                    sums[_kind(event)] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
            sums[KINDS[-1]] = max(0.0, wall - sum(sums.values()))
            found.append(sums)
    return {kind: median(sums[kind] for sums in found) for kind in KINDS}


def _kind(event):
    """The kind that ``event`` belongs to, by its own name, else by the names of the operations that called it."""

    def named(*names):
        return any(name in event.name for name in names)

    if named(*PRODUCTS):
        return "matrix products"
    if named("scaled_dot_product", "flash"):
        return "attention"
    if named(*COPIES):
        return "conversion and copies"
    while event is not None:
        if named(*QUANTISATION):
            return "quantise and dequantise"
        event = event.cpu_parent
    return "other operations"
