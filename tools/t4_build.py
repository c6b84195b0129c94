"""The process of tools.t4 in the environment with CUDA's torch: compile for one compute capability, and print a line of JSON for each extension."""

import json
import os
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import psutil  # noqa: E402
import pytest  # noqa: E402
from support.mocked_cuda import mock  # noqa: E402

from helpers import kernels  # noqa: E402


def gptq_block():
    """The library's CUDA loop over columns, for quantising."""
    from gptqmodel.quantization import gptq_cuda

    return "" if gptq_cuda.block_update_available() else "it does not build"


def triton_dequantisation(capability):
    """The Triton kernel that unpacks a layer's integers, compiled to machine code ahead of its first call, without the autotuner, which asks the GPU."""
    import triton
    from gptqmodel.nn_modules.triton_utils.dequant import dequant_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    fixed = {"out_dtype": triton.language.float16, "pack_bits": 32, "maxq": 15, "bits": 4, "out_features": 4096, "num_groups": 32, "X_BLOCK": 1024}
    pointers = {"g_idx_ptr": "*i32", "scales_ptr": "*fp16", "qweight_ptr": "*i32", "qzeros_ptr": "*i32", "out_ptr": "*fp16", "numels": "i32"}
    kernel = dequant_kernel.fn
    signature = {name: pointers.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, {(place,): fixed[name] for place, name in enumerate(kernel.arg_names) if name in fixed})
    code = triton.compile(source, target=GPUTarget("cuda", 10 * capability[0] + capability[1], 32)).asm
    return "" if "cubin" in code else "no machine code came out"


class Peak(threading.Thread):
    """Watches the memory of this process, beyond what it has now, and of all that it starts. highest: in bytes."""

    def __init__(self):
        super().__init__(daemon=True)
        self.highest, self.own = 0, psutil.Process().memory_info().rss
        self.start()

    def run(self):
        while True:
            total = -self.own
            for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:  # it has ended meanwhile
                    pass
            self.highest = max(self.highest, total)
            time.sleep(0.1)


def cpu_time():
    """Processor time of this process and of those that it started and that have ended, in seconds."""
    return sum(os.times()[:4])


def main(capability):
    """Compile everything for ``capability``, e.g. "7.5"."""
    numbers = tuple(int(part) for part in capability.split("."))
    mock(pytest.MonkeyPatch(), numbers)
    missing = kernels.missing_tools()
    if missing:
        sys.exit(f"cannot be found: {', '.join(missing)}")
    kernels.library()
    for build in (lambda: kernels.make_ready("exllama_v2"), gptq_block, lambda: triton_dequantisation(numbers)):
        peak, started, used = Peak(), time.perf_counter(), cpu_time()
        try:
            problem = build()
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"[:2000]
        print(
            "built: " + json.dumps({"seconds": time.perf_counter() - started, "cpu": cpu_time() - used, "peak": peak.highest, "problem": problem}), flush=True
        )


if __name__ == "__main__":
    main(sys.argv[1])
