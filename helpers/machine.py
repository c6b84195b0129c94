"""What machine is this? Platform, GPU, memory, disk, network: asked without importing torch."""

import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

OLDEST_CAPABILITY = (7, 5)  # Turing (T4, RTX 20): today's torch has no kernels for older GPUs, e.g. Kaggle's P100 (6.0)
NATIVE_BF16 = (8, 0)  # Ampere: NVIDIA, CUDA C++ Programming Guide, table of arithmetic by compute capability
SAMPLE = 8_000_000  # bytes fetched to measure the network's speed


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as its driver describes it. capability: (major, minor). total, free: bytes of its memory."""

    index: int
    name: str
    capability: tuple[int, int]
    total: int
    free: int

    @property
    def native_bf16(self):
        """Whether it computes in bfloat16 itself. (torch.cuda.is_bf16_supported() also says True where torch emulates it.)"""
        return self.capability >= NATIVE_BF16

    @property
    def supported(self):
        """Whether today's torch and kernels run on it."""
        return self.capability >= OLDEST_CAPABILITY

    @property
    def sentence(self):
        """The GPU in words."""
        bf16 = "native bfloat16" if self.native_bf16 else "bfloat16 only emulated"
        old = "" if self.supported else "; TOO OLD for today's PyTorch, it will not be used"
        memory = f"{self.free / 1e9:.1f} of {self.total / 1e9:.1f} GB free"
        return f"{self.name}, compute capability {'.'.join(map(str, self.capability))} ({bf16}), {memory}{old}"


def platform_name():
    """"Google Colab", "Kaggle", or the operating system."""
    if "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules:
        return "Google Colab"
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "Kaggle"
    return f"{platform.system()} {platform.machine()}"


def gpus():
    """Return the machine's NVIDIA GPUs (list of Gpu) that CUDA_VISIBLE_DEVICES leaves visible, asked of nvidia-smi; [] without a driver."""
    command = ["nvidia-smi", "--query-gpu=index,name,compute_cap,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found = []
    for line in done.stdout.splitlines() if done.returncode == 0 else []:
        try:
            index, name, capability, total, free = (part.strip() for part in line.split(","))
            major, minor = map(int, capability.split("."))
            found.append(Gpu(int(index), name, (major, minor), int(total) * 2**20, int(free) * 2**20))
        except ValueError:  # "[N/A]" and the like: a driver too old to say
            continue
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        chosen = [part.strip() for part in visible.split(",")]
        found = [gpu for gpu in found if str(gpu.index) in chosen]
    return found


@lru_cache(maxsize=1)
def unusable_gpu():
    """The first GPU's sentence if it is too old for today's torch, else "": asked before torch makes its first CUDA call."""
    found = gpus()
    return found[0].sentence if found and not found[0].supported else ""


def host_memory():
    """Return (total, available) bytes of the host's memory; in a container, of its share."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    try:  # Linux's cgroup v2; "max" means no limit
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        total, free = min(total, limit), min(free, limit - used)
    except (OSError, ValueError):
        pass
    return total, free


def disk(folder):
    """Free bytes on the disk of ``folder``, which need not exist yet."""
    folder = Path(folder)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def network_speed(repository, file):
    """Bytes a second from the Hub, measured on the first 8 MB of ``file`` or one second of it; None if nothing came."""
    from huggingface_hub import get_session, hf_hub_url

    count = 0
    headers = {"Range": f"bytes=0-{SAMPLE - 1}"}
    with get_session().stream("GET", hf_hub_url(repository, file), headers=headers, timeout=3, follow_redirects=True) as answer:
        started = time.perf_counter()
        if answer.status_code >= 400:
            return None
        for chunk in answer.iter_bytes(64 * 1024):
            count += len(chunk)
            if time.perf_counter() - started > 1 or count >= SAMPLE:
                break
    return count / max(time.perf_counter() - started, 1e-6) if count else None
