"""How fast does this machine read and compute? Measured, as data sheets promise more than programs get. First used in notebook 01.

Below each row of the ledger lies the time that reading its bytes takes at this speed.
"""

import time

from helpers import machine
from helpers.loading.memory import free_caches

LARGEST = max(2**29, 4 * machine.last_level_cache())  # bytes of the buffer: several times the last-level cache; half a GiB is filled in a quarter of a second
SMALLEST = 2**20  # below this, the start of a kernel takes longer than the reading
BUDGET = 0.35  # seconds of reading, after one warm-up read of each kernel


def bandwidth(device=None, size=LARGEST, clock=time.perf_counter):
    """Return the read bandwidth of ``device``'s memory over a working set of ``size`` bytes, in bytes per second.

    The fastest of repeated reads by a few real kernels of torch, each of which reads every byte once, as decoding reads the weights. Best of
    several, after a warm-up, is the rule of STREAM (McCalpin, 1995, https://www.cs.virginia.edu/stream/). A ``size`` that fits into a cache
    gives the cache's bandwidth: a small model is read from there as well; it is kept between 1 MiB and LARGEST, and below a quarter of the
    free memory. On a CPU all cores read, whatever number of threads a model has: the limit is the machine's. One thread is tried too: on a busy
    machine threads wait for each other. device: as for machine.get_device, and
    raises what that raises. First used in notebook 07.
    """
    import torch

    device = machine.get_device(device)
    on_gpu = device.startswith("cuda")
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else machine.host_memory()[1]
    size = int(max(SMALLEST, min(size, LARGEST, free / 4))) // SMALLEST * SMALLEST
    buffer = torch.ones(size // 4, device=device)  # ones, not zeros: the system maps untouched zeros to a single page
    threads = torch.get_num_threads()
    try:
        return max(_fastest(_kernels(buffer), size, device, clock, count, BUDGET / 2) for count in ((threads,) if on_gpu else {machine.cores(), 1}))
    finally:
        torch.set_num_threads(threads)
        del buffer
        if on_gpu:  # a CPU's buffer has gone back by now, and looking for garbage takes as long as reading
            free_caches()


def flops(device=None, dtype=None, clock=time.perf_counter):
    """Return the floating-point operations per second of matrix products in ``dtype`` on ``device``: the roof of a roofline.

    Best of several products of two square matrices, 2 x n^3 operations each. dtype: a torch.dtype, by default bfloat16. Raises DeviceError if
    there is no such device. First used in notebook 07.
    """
    import torch

    device = machine.get_device(device)
    on_gpu = device.startswith("cuda")
    before, rates = torch.get_num_threads(), []
    for side in (4096,) if on_gpu else (512, 1024):  # the small one for busy machines, the large one for many cores
        a, b = (torch.ones(side, side, device=device, dtype=dtype or torch.bfloat16) for _ in range(2))
        rates.append(_fastest([lambda a=a, b=b: a @ b], 2 * side**3, device, clock, before if on_gpu else machine.cores(), BUDGET / 2))
    torch.set_num_threads(before)
    del a, b
    if on_gpu:
        free_caches()
    return max(rates)


def duration(call, device, calls=1, clock=time.perf_counter):
    """Return the seconds that one ``call()`` takes on ``device``, the mean of ``calls`` in a row; on a GPU its work is waited for."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize(device)
    start = clock()
    for _ in range(calls):
        call()
    if device != "cpu":
        torch.cuda.synchronize(device)
    return (clock() - start) / calls


def _kernels(buffer):
    """Functions that read every byte of ``buffer`` once: sum, maximum, and matrix-vector products in float32 and, on a GPU, float16."""
    import torch

    kernels = [buffer.sum, buffer.amax]
    for dtype in (torch.float32, *((torch.float16,) if buffer.is_cuda else ())):  # 16-bit products are slow on many CPUs
        matrix = buffer.view(dtype).view(-1, 4096)
        vector = torch.ones(4096, dtype=dtype, device=buffer.device)
        kernels.append(lambda matrix=matrix, vector=vector: matrix @ vector)
    return kernels


def _fastest(kernels, work, device, clock, threads, budget):
    """Return the highest rate, ``work`` per second, that a call of one of ``kernels`` reached; each is called at least twice."""
    import torch

    torch.set_num_threads(threads)
    calls = 1 if device == "cpu" else max(8, 2**32 // work)  # a CPU's short call escapes other programs; a GPU's kernels must queue
    for kernel in kernels:
        duration(kernel, device, calls, clock)  # warm-up: pages, clock rate, compiled or chosen kernels
    best, start = float("inf"), clock()
    while True:
        best = min(best, *(duration(kernel, device, calls, clock) for kernel in kernels))
        if clock() - start > budget:
            return work / best
