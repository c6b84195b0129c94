"""What machine is this? Platform, GPU, memory, disk, how busy it is, and what it prints while it works.

The GPUs are asked of their driver, without importing torch, which comes in only where a device is to be used. First used in notebook 00.
"""

import contextlib
import io
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from helpers.errors import DeviceError, NotEnoughMemoryError
from helpers.machine import network, share

try:
    from resource import RUSAGE_SELF, getrusage  # finer than os.times, which counts in hundredths
except ImportError:  # Windows
    getrusage = None
OLDEST_CAPABILITY = (7, 5)  # Turing (T4, RTX 20): today's torch has no kernels for older GPUs, e.g. Kaggle's P100 (6.0)
network.direct()
TICK = 0.01  # seconds: what processor time is counted in
QUIET = 0.3  # cores: what other programs may use while something is measured
NATIVE_BF16 = (8, 0)  # Ampere: NVIDIA, CUDA C++ Programming Guide, table of arithmetic by compute capability


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
    """ "Google Colab", "Kaggle", or the operating system."""
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
        with contextlib.suppress(ValueError):  # "[N/A]" and the like: a driver too old to say
            index, name, capability, total, free = (part.strip() for part in line.split(","))
            major, minor = map(int, capability.split("."))
            found.append(Gpu(int(index), name, (major, minor), int(total) * 2**20, int(free) * 2**20))
    visible = _hidden.get("before", os.environ.get("CUDA_VISIBLE_DEVICES"))
    chosen = None if visible is None else [part.strip() for part in re.split(r"(?:^|,)\s*-1", visible)[0].split(",") if part.strip()]  # -1 hides the rest
    if chosen is not None and all(part.isdecimal() for part in chosen):  # identifiers of another kind are left to CUDA
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
    """Return (total, available) bytes of the host's memory; in a container or a job with a limit, of its share."""
    import psutil

    memory = psutil.virtual_memory()
    limits = [(memory.total, memory.available), *share.memory()]
    return min(total for total, _ in limits), min(free for _, free in limits)


@contextlib.contextmanager
def quiet(keep_stderr=False, show=""):
    """Hide what the libraries print on import and while loading; progress bars (stderr) stay with ``keep_stderr``. show: see ``waiting``."""
    for name in ("torchao", "torch.utils._pytree", "gptqmodel", "transformers", "optimum"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        with contextlib.nullcontext() if keep_stderr else contextlib.redirect_stderr(io.StringIO()), waiting(show) if show else contextlib.nullcontext():
            yield


@contextlib.contextmanager
def variable(name, value, when=True):
    """Set the environment variable ``name`` to ``value`` meanwhile, unless it is set already. when: False changes nothing."""
    ours = when and name not in os.environ
    if ours:
        os.environ[name] = value
    try:
        yield
    finally:
        if ours:
            del os.environ[name]


@contextlib.contextmanager
def waiting(what, patience=2):
    """Show, from ``patience`` seconds on, that silent work goes on: ``what`` with the time that has passed, in a line of its own."""

    def show(done):
        if done.wait(patience):
            return
        from tqdm.auto import tqdm

        with tqdm(desc=what, bar_format="{desc}: {elapsed}") as line:
            while not done.wait(1):
                line.refresh()

    with _beside(show):
        yield


@contextlib.contextmanager
def _beside(function):
    """Call ``function`` with a threading.Event in a thread; the event is set when the block ends."""
    done = threading.Event()
    thread = threading.Thread(target=function, args=(done,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def disk(folder):
    """Free bytes on the disk of ``folder``, which need not exist yet."""
    folder = Path(folder)
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def get_device(device=None):
    """Return the torch device to use, as a string: ``device`` if this machine has it, by default the first GPU, else the CPU."""
    old = unusable_gpu()
    if old:
        if str(device).startswith("cuda") or isinstance(device, int):
            raise DeviceError(f"Today's PyTorch cannot use this GPU ({old}): leave the device out, or pass 'cpu'.")
        return "cpu"
    import torch

    if device is None:
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    device = f"cuda:{device}" if isinstance(device, int) else str(device)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"{device} was asked for, and this machine has no CUDA GPU: leave the device out, or pass 'cpu'.")
    known = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
    device = "cuda:0" if device == "cuda" else device
    if device not in known:
        raise DeviceError(f"There is no device {device!r} here: choose one of {', '.join(known)}.")
    return device


def gpu_count():
    """How many GPUs torch can use here."""
    if unusable_gpu():
        return 0
    import torch

    return torch.cuda.device_count()


def device_of(model):
    """Name of the device that ``model`` is on, e.g. "Tesla T4"; where GPUs share it, of all of them: "Tesla T4 + Tesla T4"."""
    places = getattr(model, "hf_device_map", {}).values()
    gpus = sorted({f"cuda:{place}" for place in places if isinstance(place, int)} | {str(p) for p in places if str(p).startswith("cuda:")})
    return " + ".join(map(device_name, gpus)) if len(gpus) > 1 else device_name(str(model.device))


def device_name(device=None):
    """Return the device in words: the GPU's product name, or the processor's with its number of usable cores."""
    import torch

    device = get_device(device)
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    name, count = platform.processor() or platform.machine(), cores()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"CPU ({name}, {count} core{'s' * (count != 1)})"


def cores():
    """How many cores this process may use (a hyperthread counts as one): those that it may run on, at most as many whole ones as its quota pays for."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, max(1, int(share.cores() or count)))


def last_level_cache():
    """Bytes of the processor's largest cache (one of several in a large server) as Linux tells it; 0 where it does not."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            sizes.append(int(path.read_text().strip().removesuffix("K")) * 1024)
    return max(sizes)


def in_use(device):
    """Bytes that this process uses on ``device``: allocated by torch on all GPUs, or the resident set on the host."""
    import psutil
    import torch

    if device.startswith("cuda"):
        return sum(torch.cuda.memory_allocated(n) for n in range(torch.cuda.device_count()))
    return psutil.Process().memory_info().rss


def peak(device, function):
    """Call ``function`` and return the most bytes ``in_use`` on ``device`` meanwhile. On the host this slows the call: never time the same one."""
    import torch

    if device.startswith("cuda"):
        gpus = range(torch.cuda.device_count())
        for gpu in gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        function()
        return sum(torch.cuda.max_memory_allocated(gpu) for gpu in gpus)
    highest = in_use(device)

    def watch(done):
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, in_use(device))

    with _beside(watch):
        function()
    return max(highest, in_use(device))


def free_memory(device):
    """Free bytes on ``device``: of the GPU's memory, or of the host's that programs can still get (in a container: its share)."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return host_memory()[1]


def out_of_memory(error, device, doing, report=""):
    """Return the NotEnoughMemoryError for ``error`` if memory ran out, else None. report: what a library wrote into its log instead of it."""
    said = f"{error}\n{report}"
    signs = ("out of memory", "can't allocate memory", "Cannot allocate memory", "ALLOC_FAILED")
    if not isinstance(error, MemoryError) and not any(sign in said for sign in signs):
        return None
    asked = re.search(r"(?:[Tt]ried to allocate|unable to mmap) ([\d.]+) ?(bytes|[KMG]iB)?", said)
    needed = "more memory was"
    if asked:
        size = float(asked.group(1)) * {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}.get(asked.group(2), 1)
        needed = f"{size / 1e6:,.0f} MB more were"
    return NotEnoughMemoryError(
        f"The memory of {device} ran out while {doing}: {needed} needed and {free_memory(device) / 1e6:,.0f} MB are free. The model was released;"
        " use a shorter prompt or fewer tokens, close other notebooks, or set TIER=embedded, then load it again."
    )


class Load:
    """How busy the machine is with other things, from its making until ``stop``.

    others: cores that other programs used, on average. steal: cores that the host took from this virtual machine. switches: how often this
    process was made to leave its core (involuntary context switches, getrusage(2)); None on Windows. Systems count in hundredths of a second, so
    two of them are taken off: what remains is sure, and a stretch of a few milliseconds says 0.
    """

    def __init__(self):
        self.before, self.others, self.steal, self.switches = self._now(), 0.0, 0.0, None

    @staticmethod
    def _now():
        import psutil

        times = psutil.cpu_times()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0)
        steal, switches = getattr(times, "steal", 0.0), getrusage(RUSAGE_SELF).ru_nivcsw if getrusage else None
        return time.perf_counter(), busy - steal, sum(os.times()[:4]), steal, switches  # os.times: this process and its children

    def stop(self):
        """Note the figures, and return this Load."""
        (start, busy, own, steal, switches), (end, *now) = self.before, self._now()
        span = max(end - start, 1e-9)
        shares = ((value - 2 * TICK) / span for value in (now[0] - busy - (now[1] - own), now[2] - steal))
        self.others, self.steal = (max(0.0, min(share, os.cpu_count() or 1)) for share in shares)
        self.switches = None if switches is None else now[3] - switches
        return self

    def figures(self):
        """The three figures until now, as a row of the ledger keeps them."""
        self.stop()
        return {"others_cores": self.others, "steal_cores": self.steal, "involuntary_switches": self.switches}


def busy_cores():
    """How many cores are busy now, before our own process starts."""
    load = Load()
    time.sleep(0.3)
    return load.stop().others


def free_cores(others):
    """How many cores are left where other programs use ``others``, at least 1: one that they use is none for threads that wait for each other."""
    return max(1, round(cores() - others))


def cpu_times():
    """(user, sys) seconds of this process over all its threads."""
    return (getrusage(RUSAGE_SELF) if getrusage else os.times())[:2]


def peak_rss():
    """Highest resident set of this process so far, in bytes. (Linux's getrusage goes on from that of the process that started this one.)"""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    if getrusage:
        return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    import psutil

    return psutil.Process().memory_info().peak_wset
