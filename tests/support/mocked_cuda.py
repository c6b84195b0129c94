"""A torch that says it has CUDA GPUs, so that the course and its libraries choose as they would there. Nothing can be computed on them."""

import bitsandbytes  # noqa: F401  before anything is mocked: at import it loads its library for CUDA, or for the CPU
import torch
import torch.overrides


def mock(monkeypatch, capability=(7, 5), name="Tesla T4", memory=15_634_000_000, free=None, count=1):
    """Give torch ``count`` GPUs of that kind for one test."""

    class Properties:
        major, minor = capability
        multi_processor_count, total_memory, uuid = 40, memory, "0"

    Properties.name = name
    monkeypatch.setattr(torch.version, "cuda", torch.version.cuda or "12.8")  # a CPU build of torch says None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda"))
    for function, answer in {
        "is_available": True, "is_initialized": True, "device_count": count, "current_device": 0, "get_device_capability": capability,
        "get_device_properties": Properties, "get_device_name": name, "get_arch_list": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
        "mem_get_info": (memory if free is None else free, memory), "memory_allocated": 1000, "max_memory_allocated": 2000,
        "max_memory_reserved": 3000, "reset_peak_memory_stats": None, "empty_cache": None, "synchronize": None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, function, lambda *_, answer=answer, **__: answer)


class PretendCuda(torch.overrides.TorchFunctionMode):
    """While it is active, all tensors say that they are on ``cuda:0``, and whoever asks for CUDA gets the CPU: whole GPU code paths run.

    Needs ``mock`` for the questions that are asked of torch.cuda itself.
    """

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function == torch.Tensor.device.__get__:
            return torch.device("cuda:0")
        if function == torch.Tensor.is_cuda.__get__:
            return True
        return function(*map(_on_cpu, arguments), **{name: _on_cpu(value) for name, value in (keywords or {}).items()})


def _on_cpu(value):
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    return "cpu" if isinstance(value, str) and value.startswith("cuda") else value
