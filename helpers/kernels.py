"""Which kernel multiplies with a GPTQ checkpoint's integers on this machine, and is it ready?

Left to itself, gptqmodel 7.6 takes Marlin on every GPU from compute capability 7.5 on. It is compiled for minutes while the model loads,
and for a T4 (7.5) it cannot be compiled at all: half of its sources is left out below 8.0 (gptqmodel_ext/marlin/dequant.h), and loading
fails. So on a GPU the course asks for a kernel by name, the fastest that is ready within a minute, and goes on to the next one if it fails:

exllama_v2  compiled once on a machine, 26 s for a T4 on two cores; dequantises inside of the product
triton      nothing to compile beforehand; dequantises, then multiplies
torch       the same in plain PyTorch; on a CPU it stays uncompiled (``remember``)

For up to 50 tokens at a time ExLlamaV2 adds eight products of an integer and an input in float16, which ends at 65,504, before it applies the
scale (dot22_8_f in gptqmodel_ext/exllamav2/cuda/q_gemm_kernel_gptq.cuh); it adds the parts of a row in float16 too. For Llama-2 that is enough.
Qwen2.5's GPTQ checkpoints are known to overflow so, and then write "!" without an end (https://github.com/vllm-project/vllm/issues/10656). So
``loading`` looks at one pass of a model that is no Llama before it keeps that kernel; the others have sums of 32 bits.

Marlin is taken only where somebody asks for it. On a CPU gptqmodel's own choice stands (TorchAtenLinear for the article's checkpoints), after it
has computed a small layer as one does by hand: its classes declare groups that they then refuse. First used in notebook 03.
"""

import json
import os
import re
import shutil
import sys
import sysconfig
import weakref
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

from helpers import machine, process
from helpers.errors import DeviceError
from helpers.models import files

ORDER = ("exllama_v2", "triton", "torch")  # on a GPU: the fastest first
NAMES = {"exllama_v2": "ExLlamaV2", "triton": "Triton", "torch": "plain PyTorch", "marlin": "Marlin", "torch_aten": "ATen's CPU kernel"}
COMPILED = {"exllama_v2": ("exllamav2", "half a minute to a minute on two cores"), "marlin": ("marlin_fp16", "ten minutes or more on two cores")}
SUMS_OF_16_BITS = ("exllama_v2",)
MARLIN_CAPABILITY = (8, 0)
_failed = {}  # kernel: why it could not be made ready in this process; the library does not try again either
_used = weakref.WeakKeyDictionary()  # model: (sentence on the kernel that it was loaded with, its Plan)


@dataclass
class Plan:
    """Which kernels to try, gptqmodel's names, the best first ("" is its own choice), and {kernel: why not} for those left out."""

    kernels: list
    left_out: dict = field(default_factory=dict)

    @property
    def kernel(self):
        """The kernel to try now."""
        return self.kernels[0]

    def fail(self, why):
        """Leave the kernel that was tried out, because of ``why`` (a clause), and go on to the next. Raises DeviceError if there is none."""
        self.left_out[self.kernels.pop(0)] = why
        if not self.kernels:
            raise DeviceError(f"No kernel for this GPTQ checkpoint works here: {_reasons(self.left_out)}. Set TIER=embedded, or take a step in another format.")

    @property
    def sentence(self):
        """Which kernel it is, and why not a faster one."""
        name = NAMES.get(self.kernel, self.kernel) if self.kernel else "gptqmodel's own choice on a CPU"
        faster = {kernel: why for kernel, why in self.left_out.items() if self.kernel in ORDER and ORDER.index(kernel) < ORDER.index(self.kernel)}
        return f"{name} ({_reasons(faster)})" if faster else name


def _reasons(left_out):
    """Why kernels were left out, in clauses."""
    return "; ".join(f"not {NAMES[kernel]}, because {why}" for kernel, why in left_out.items())


def library():
    """Import gptqmodel and return it: without its banner, and without its settings for the memory of all of torch.

    It sets PYTORCH_ALLOC_CONF at import (gptqmodel/models/auto.py), which would give the GPTQ steps another allocator than the steps that
    they are compared with.
    """
    settings, first = "backend:native", "gptqmodel" not in sys.modules  # torch's default, in words; torch reads it at its first CUDA call
    with machine.variable("PYTORCH_ALLOC_CONF", settings, when=first), machine.quiet():
        import gptqmodel
    if first:
        _let_go()
    return gptqmodel


def _let_go():
    """Take the traceback from errors that gptqmodel keeps of imports that failed: it holds every function that was running, and the model that one of them loads."""
    for module in [module for name, module in sys.modules.items() if name.startswith("gptqmodel.")]:
        for kept in vars(module).values():
            if isinstance(kept, BaseException):
                kept.with_traceback(None)


def plan(settings, capability=None, asked="", widths=()):
    """Return the Plan for a checkpoint with ``settings`` (its quantization_config) on a GPU of ``capability``, on the CPU if that is None.

    asked: gptqmodel's name of the kernel that the reader wants, and no other. widths: the numbers of inputs that its layers have. Nothing is
    compiled here. Raises DeviceError, a sentence, if the kernel that was asked for cannot work here, or if none can.
    """
    if capability is None:
        if asked in ("triton", *COMPILED):
            raise DeviceError(f"{NAMES[asked]} is a kernel for CUDA GPUs, and this step would run on the CPU: leave it out, or take gptq-torch.")
        layers = json.dumps(settings), tuple(sorted(widths))
        if why := _fails_on_cpu(*layers, asked):
            able = [NAMES[kernel] for kernel in ORDER if not _unsupported(kernel, settings, MARLIN_CAPABILITY)]
            there = f"load it on a machine with a CUDA GPU, where {able[0]} can" if able else "take a checkpoint with other settings"
            there = "take gptq-torch, which can" if not _fails_on_cpu(*layers, "torch") else there
            raise DeviceError(f"{NAMES.get(asked, 'The kernel that gptqmodel takes')} cannot compute this GPTQ checkpoint on this CPU ({why}): {there}.")
        return Plan([asked])
    found = Plan([], {})
    for kernel in (asked,) if asked else ORDER:
        if why := _unsupported(kernel, settings, capability) or _failed.get(kernel) or _cannot_be_compiled(kernel):
            found.left_out[kernel] = why
        else:
            found.kernels.append(kernel)
    if asked and found.left_out:
        raise DeviceError(
            f"{NAMES[asked]} cannot be used here: {found.left_out[asked]}. Leave it out, or take step 3: the course then chooses a kernel that can."
        )
    if not found.kernels:
        raise DeviceError(
            f"No kernel can read this GPTQ checkpoint on this GPU: {_reasons(found.left_out)}. Take another checkpoint of the model, or load it on the CPU."
        )
    return found


def plan_for(step, device):
    """Return the Plan for ``step`` (a GPTQ step) on ``device``; with several GPUs ("cuda:0", "cuda:1"), for the oldest of them."""
    devices = [device] if isinstance(device, str) else list(device)
    capability = None
    if devices[0].startswith("cuda"):
        import torch

        capability = min(torch.cuda.get_device_capability(each) for each in devices)
    return plan(step.quantization, capability, step.kernel, {inputs for inputs, _ in step.shape.quantised.values()})


@lru_cache(maxsize=64)
def _fails_on_cpu(settings, widths, kernel):
    """Why ``kernel`` ("": gptqmodel's choice) cannot compute layers of ``widths`` inputs and such ``settings`` (JSON) on this CPU, in a clause, or "".

    A layer of random integers and 64 outputs is computed with it for each width, and by hand. (gptqmodel 7.6 takes TorchFusedLinear for one group a
    row, and TorchAtenLinear for groups of 16: ATen refuses both at the first token; the former leaves zero points out.)
    """
    import numpy as np
    import torch

    library()
    from gptqmodel.quantization import METHOD
    from gptqmodel.utils.importer import hf_select_quant_linear_v2

    settings, random, outputs = json.loads(settings), np.random.default_rng(0), 64
    bits, group = settings.get("bits", 4), settings.get("group_size", 128)
    kind = {"bits": bits, "group_size": group, "desc_act": bool(settings.get("desc_act")), "sym": bool(settings.get("sym", True))}

    def codes(words):  # (words, columns) of int32: a stream of bits in each column, the lowest first
        stream = np.unpackbits(np.ascontiguousarray(words.T).view(np.uint8), axis=1, bitorder="little")
        return (stream.reshape(len(stream), -1, bits) << np.arange(bits)).sum(-1).T

    try:
        with machine.quiet(), torch.no_grad():
            layer_class = hf_select_quant_linear_v2(
                **kind, format=layout(settings), quant_method=METHOD.GPTQ, pack=False, device_map={"": "cpu"}, backend=f"gptq_{kernel}" if kernel else "auto"
            )
            for width in widths:
                layer = layer_class(**kind, in_features=width, out_features=outputs, bias=False)
                layer.optimized = True  # plain PyTorch's kernel would be compiled for seconds
                index = np.arange(width) // (width if group == -1 else group)
                index = random.permutation(index) if kind["desc_act"] else index
                words = random.integers(-(2**31), 2**31, (width * bits // 32, outputs), dtype=np.int32)
                middle = np.packbits(np.tile([0] * (bits - 1) + [1], outputs), bitorder="little").view(np.int32)  # the zero point of symmetric ones
                zeros = (
                    np.tile(middle, (index.max() + 1, 1)) if kind["sym"] else random.integers(-(2**31), 2**31, (index.max() + 1, len(middle)), dtype=np.int32)
                )
                scales = random.uniform(0.5, 1, (len(zeros), outputs)).astype(np.float16)
                parts = {"qweight": words, "qzeros": zeros, "scales": scales, "g_idx": index.astype(np.int32)}
                layer.load_state_dict({name: torch.from_numpy(part) for name, part in parts.items()})
                layer.qzero_format(format=2)  # zero points as they are
                layer.post_init()
                x = torch.from_numpy(random.standard_normal((2, width), dtype=np.float32)).bfloat16()
                wanted = x.float().numpy() @ (scales[index] * (codes(words) - codes(zeros.T).T[index])).astype(np.float32)
                if not np.linalg.norm(layer.eval()(x).float().numpy() - wanted) <= 0.05 * np.linalg.norm(wanted):
                    return f"{layer_class.__name__} computes something else"
    except Exception as error:  # whatever a library has to say about a kernel: another one may do
        return f"{bits} bits in groups of {group}: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    return ""


def layout(settings):
    """The layout of a checkpoint: "gptq" (v1, zero points stored minus 1), "gptq_v2", …"""
    return settings.get("checkpoint_format") or settings.get("format") or "gptq"


def _unsupported(kernel, settings, capability):
    """Why ``kernel`` cannot read such a checkpoint on such a GPU, or "": as the library's own classes declare it."""
    if kernel == "marlin" and capability < MARLIN_CAPABILITY:
        return f"it cannot be compiled for compute capability {'.'.join(map(str, capability))}; it needs {'.'.join(map(str, MARLIN_CAPABILITY))} or newer"
    library()
    from gptqmodel.quantization import FORMAT, METHOD
    from gptqmodel.utils.backend import BACKEND
    from gptqmodel.utils.importer import get_kernel_for_backend

    try:
        layer = get_kernel_for_backend(BACKEND(f"gptq_{kernel}"), METHOD.GPTQ, FORMAT(layout(settings)))
    except ValueError:
        return f"it does not know the layout {layout(settings)!r}"
    bits, group = settings.get("bits", 4), settings.get("group_size", 128)
    if bits not in layer.SUPPORTS_BITS:
        return f"it knows {' and '.join(map(str, layer.SUPPORTS_BITS))} bits, and the checkpoint has {bits}"
    if group not in layer.SUPPORTS_GROUP_SIZE:
        return f"it does not know groups of {group}"
    if bool(settings.get("sym", True)) not in layer.SUPPORTS_SYM or bool(settings.get("desc_act")) not in layer.SUPPORTS_DESC_ACT:
        return "it does not know this checkpoint's zero points or order of columns"
    if [each.value for each in layer.SUPPORTS_DEVICES] == ["cpu"]:
        return "it is a kernel for CPUs"
    return ""


def _cannot_be_compiled(kernel):
    """Which tool is missing to compile ``kernel``, in a clause; "" if it is all here, or nothing has to be compiled."""
    if kernel == "triton":
        import importlib.util

        return "" if importlib.util.find_spec("triton") else "the package triton is missing"
    if kernel not in COMPILED or missing_tools() == []:
        return ""
    return f"it has to be compiled and {' and '.join(missing_tools())} cannot be found"


def missing_tools():
    """Return what a CUDA extension needs to be compiled and is not here (list of str). Puts this Python's own ninja on the PATH.

    torch calls plain ``ninja`` (torch.utils.cpp_extension), which an environment that was not activated does not have on its PATH.
    """
    beside = sysconfig.get_path("scripts")
    if beside not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join(filter(None, [os.environ.get("PATH"), beside]))  # at the end: what is there stays first
    from torch.utils.cpp_extension import CUDA_HOME  # where torch will look for nvcc: CUDA_HOME, CUDA_PATH, or nvcc on the PATH

    found = {
        "ninja": shutil.which("ninja"),
        "nvcc (the CUDA compiler)": CUDA_HOME and shutil.which("nvcc", path=Path(CUDA_HOME) / "bin"),
        "a C++ compiler (g++)": shutil.which(os.environ.get("CXX") or "c++") or shutil.which("g++"),
        "Python.h (Debian: python3-dev)": (Path(sysconfig.get_path("include")) / "Python.h").is_file(),
    }
    return [name for name, there in found.items() if not there]


def make_ready(kernel):
    """Compile ``kernel`` if this machine has not done so before, and say how long it takes; return "", or why it failed (a clause)."""
    if kernel not in COMPILED:
        return ""
    extension, usually = COMPILED[kernel]
    library()
    from gptqmodel import extension as extensions

    here, kept = _builds(extension)
    if kept:
        _copy(kept, here)
    try:
        with machine.quiet(keep_stderr=True, show=f"Compiling the GPU kernel {NAMES[kernel]}, once on this machine, usually {usually}"):
            extensions.load(name=extension)
    except Exception as error:  # whatever a build can raise: the next kernel takes over
        _failed[kernel] = f"its compilation failed ({_what_failed(str(error))})"
        return _failed[kernel]
    if kept:
        _copy(here, kept)
    return ""


def _what_failed(log):
    """The compiler's own words in ``log``, in one line: its first error, else the build's first line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in lines:  # of a compiler: "file(70): error: …", "fatal error: x.h: …", "error C2039: …"; of a linker: "cannot find -l…"
        if re.search(r"\berror( C\d+)?: |: cannot find -l", line) and not line.startswith("-"):
            return line[:300]
    said = next((line for line in lines if not line.startswith("Extension load failed")), "no reason given")
    return re.sub(r"^- .*? JIT extension: ", "", said.split(" | ")[0])[:300]


def _builds(extension):
    """The folders of compiled ``extension``: the library's own, and the one in KERNELS_DIR that outlives this machine (None without it)."""
    from gptqmodel.utils.cpp import default_torch_ops_build_root

    kept = os.environ.get("KERNELS_DIR")
    return default_torch_ops_build_root(extension), Path(kept) / extension if kept else None


def _copy(source, target):
    """Copy the compiled libraries below ``source`` that ``target`` lacks, each whole; say so where that cannot be done (a read-only data set)."""
    for path in (*source.glob("*/*.so"), *source.glob("*/*.pyd")):
        copy = target / path.relative_to(source)
        if not copy.exists():
            try:
                with files.whole(copy, setting="KERNELS_DIR") as part:
                    shutil.copyfile(path, part)
            except OSError as error:
                print(f"The compiled kernel could not be copied to {target} ({error.strerror or error}); it works all the same.")


def remember(model, found):
    """Note that ``model`` was loaded by the Plan ``found``, and return the sentence of ``used``: the class of its layers comes first.

    On a CPU gptqmodel would compile how plain PyTorch's layers dequantise, in the first call: half a minute and a C++ compiler, for a fifth of a
    token's time. It is left out.
    """
    for part in model.modules() if model.device.type == "cpu" else ():
        if type(part).__name__ == "TorchLinear":
            vars(part).pop("dequantize_weight", None)  # the compiled one, which stands before the class's own
    layer = next((type(part).__name__ for part in model.modules() if type(part).__module__.startswith("gptqmodel.")), "no GPTQ layer")
    _used[model] = f"{layer}: {found.sentence}", found
    return used(model)


def used(model):
    """Return the sentence that says which GPTQ kernel computes ``model`` and why not a faster one; "" for other formats."""
    return _used.get(model, ("", None))[0]


def plan_of(model):
    """Return the Plan by which ``model`` was loaded; None for other formats."""
    return _used.get(model, ("", None))[1]


def prepare(step, device):
    """Make the GPTQ kernel of ``step`` ready in a process of its own, which gives the GPU back, and return its Plan.

    For models that another process will load, whose messages nobody would see: the time that compiling takes is shown here. The reply is
    kept, so that it is asked for once. Raises DeviceError as ``plan`` does.
    """
    return _prepare(json.dumps(step.quantization, sort_keys=True), device, step.kernel)


@lru_cache(maxsize=16)
def _prepare(settings, device, asked):
    job = {"settings": json.loads(settings), "device": device, "asked": asked}
    with machine.waiting("Making the GPU kernel for GPTQ ready; where it has to be compiled, half a minute to a minute, once on this machine"):
        try:
            return Plan(**process.call("helpers.kernels.plan_and_ready", job))
        except process.ProcessError as error:
            raise DeviceError(f"The kernel for GPTQ could not be made ready: its process failed ({error}) Or set TIER=embedded.") from None


def ready(found):
    """Make the first kernel of the Plan ``found`` that can be made ready its ``kernel``; each one that fails is said."""
    while why := make_ready(found.kernel):
        print(f"{NAMES[found.kernel]}: {why}.")
        found.fail(why)
    return found


def pin(kernel):
    """Leave only ``kernel`` in gptqmodel's automatic choice in this process: for a program, as ``transformers serve``, that takes no name."""
    library()
    from gptqmodel.quantization import METHOD
    from gptqmodel.utils import importer

    for choices in importer.AUTO_BACKEND_KERNEL_MAPPING[METHOD.GPTQ].values():
        for backend in [each for each in choices if each.value != f"gptq_{kernel}"]:
            del choices[backend]


def plan_and_ready(job):
    """The work of ``prepare``'s process: return the Plan (a dict) for ``job``, its first kernel made ready."""
    import torch

    return asdict(ready(plan(job["settings"], torch.cuda.get_device_capability(job["device"]), job["asked"])))
