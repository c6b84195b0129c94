"""What machine is this? Platform, GPU, memory, disk, network: asked without importing torch. And what it prints while it works."""

import contextlib
import io
import logging
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import warnings
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
    visible = _hidden.get("before", os.environ.get("CUDA_VISIBLE_DEVICES"))
    chosen = None if visible is None else [part.strip() for part in visible.split(",") if part.strip()]
    if chosen is not None and all(part.isdigit() for part in chosen):  # identifiers of another kind are left to CUDA
        found = [gpu for gpu in found if str(gpu.index) in chosen]
    return found


_hidden = {}  # what CUDA_VISIBLE_DEVICES was before hide_unusable changed it


def hide_unusable():
    """Hide GPUs that are too old from torch, which could not run on them, before it makes its first CUDA call; number them as here."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    found = gpus()
    usable = [gpu for gpu in found if gpu.supported]
    if len(usable) < len(found) and not _hidden:
        _hidden["before"] = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(gpu.index) for gpu in usable)


@lru_cache(maxsize=1)
def unusable_gpu():
    """The sentence of a GPU that is too old for today's torch, if there is no other one, else ""; makes no CUDA call."""
    found = gpus()
    return found[0].sentence if found and not any(gpu.supported for gpu in found) else ""


def host_memory():
    """Return (total, available) bytes of the host's memory; in a container, of its share."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    try:  # Linux's cgroup v2; "max" means no limit
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        parts = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        used -= int(parts["inactive_file"])  # cached files, which the system gives up when programs need the memory
        total, free = min(total, limit), min(free, limit - used)
    except (OSError, ValueError, KeyError):
        pass
    return total, free


@contextlib.contextmanager
def quiet(keep_stderr=False):
    """Hide what the libraries print on import and while loading; progress bars (stderr) stay with ``keep_stderr``."""
    for name in ("torchao", "torch.utils._pytree", "gptqmodel", "transformers", "optimum"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.nullcontext() if keep_stderr else contextlib.redirect_stderr(io.StringIO()):
            yield


@contextlib.contextmanager
def waiting(what, patience=2):
    """Show, from ``patience`` seconds on, that silent work goes on: ``what`` with the time that has passed, in a line of its own."""
    done = threading.Event()

    def show():
        if done.wait(patience):
            return
        from tqdm.auto import tqdm

        with tqdm(desc=what, bar_format="{desc}: {elapsed}") as line:
            while not done.wait(1):
                line.refresh()

    watcher = threading.Thread(target=show, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


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
        for chunk in answer.iter_raw():  # as it comes
            count += len(chunk)
            if time.perf_counter() - started > 1 or count >= SAMPLE:
                break
    return count / max(time.perf_counter() - started, 1e-6) if count else None
