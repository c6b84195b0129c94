"""How fast can this machine read its memory, how fast can it multiply, and where does the one begin to matter more than the other?"""

import time

from helpers import machine, tiers

LARGEST = 2**29  # bytes of the buffer: more than a large server's cache, and filled in a quarter of a second
SMALLEST = 2**20  # below this, the start of a kernel takes longer than the reading
BUDGET = 0.35  # seconds of reading, after one warm-up read of each kernel


def measure(device="cpu", size=LARGEST, clock=time.perf_counter):
    """Return the read bandwidth of ``device``'s memory over a working set of ``size`` bytes, in bytes per second.

    The fastest of repeated reads by a few real kernels of torch (sums, matrix-vector products), each of which reads every byte once, as
    decoding reads the weights: what no model's kernels should beat. Best of several, after a warm-up, is the rule of STREAM (McCalpin,
    1995, https://www.cs.virginia.edu/stream/); unlike STREAM, nothing is written. A ``size`` that fits into a cache gives the cache's
    bandwidth: a small model is read from there as well. size: kept between 1 MiB and 512 MiB, and below a quarter of the free memory.
    On a CPU, all threads and one thread are both tried, because on a busy machine threads wait for each other. Raises DeviceError if
    there is no such device.
    """
    import torch

    device = tiers.get_device(device)
    on_gpu = device.startswith("cuda")
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else machine.host_memory()[1]
    size = int(max(SMALLEST, min(size, LARGEST, free / 4))) // SMALLEST * SMALLEST
    buffer = torch.ones(size // 4, device=device)  # ones, not zeros: the system maps untouched zeros to a single page
    threads = torch.get_num_threads()
    try:
        return max(_fastest(_kernels(buffer), size, device, clock, count, BUDGET / 2) for count in ((threads,) if on_gpu else {threads, 1}))
    finally:
        torch.set_num_threads(threads)
        del buffer
        _give_back(device)


def compute(device="cpu", dtype=None, clock=time.perf_counter):
    """Return the floating-point operations per second of matrix products in ``dtype`` on ``device``: the roof of a roofline.

    Best of several products of two square matrices, 2 x n^3 operations each (Williams, Waterman and Patterson, 2009, "Roofline",
    https://doi.org/10.1145/1498765.1498785). dtype: a torch.dtype, by default bfloat16. Raises DeviceError if there is no such device.
    """
    import torch

    device = tiers.get_device(device)
    threads, rates = torch.get_num_threads(), []
    for side in (4096,) if device.startswith("cuda") else (512, 1024):  # the small one for busy machines, the large one for many cores
        a, b = (torch.ones(side, side, device=device, dtype=dtype or torch.bfloat16) for _ in range(2))
        rates.append(_fastest([lambda a=a, b=b: a @ b], 2 * side**3, device, clock, threads, BUDGET / 2))
    del a, b
    _give_back(device)
    return max(rates)


def knee(counts, times):
    """Return where a flat time turns into a proportional one, or None if it stays flat: (shortest time) / (shortest time per count).

    counts: tokens that one step works on, rising. times: seconds of each step. It stays flat if the longest is not twice the shortest.
    """
    if max(times) < 2 * min(times):
        return None
    return min(times) / min(time / count for count, time in zip(counts, times))


def sweep(counts, run, longest=10, budget=10, clock=time.perf_counter):
    """Return (counts, seconds): ``run(count)`` gives seconds, the best of three counts.

    Ends once one takes ``longest`` times the shortest, or when ``budget`` seconds are spent, but not before two counts.
    """
    done, start = {}, clock()
    for count in counts:
        done[count] = min(run(count) for _ in range(3))
        if done[count] > longest * min(done.values()) or len(done) > 1 and clock() - start > budget:
            break
    return list(done), list(done.values())


def _kernels(buffer):
    """Functions that read every byte of ``buffer`` once: sum, maximum, and matrix-vector products in float32 and, on a GPU, float16."""
    import torch

    kernels = [buffer.sum, buffer.amax]
    for dtype in (torch.float32, *((torch.float16,) if buffer.is_cuda else ())):  # 16-bit products are slow on many CPUs
        matrix = buffer.view(dtype).view(-1, 4096)
        kernels.append(lambda matrix=matrix, vector=torch.ones(4096, dtype=dtype, device=buffer.device): matrix @ vector)
    return kernels


def _give_back(device):
    """Let the GPU's driver have the memory again that torch keeps for later, so that a model can be loaded into it."""
    import torch

    if device != "cpu":
        torch.cuda.empty_cache()


def seconds(call, device="cpu", calls=1, clock=time.perf_counter):
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


def _fastest(kernels, work, device, clock, threads, budget):
    """Return the highest rate, ``work`` per second, that a call of one of ``kernels`` reached; each is called at least twice."""
    import torch

    torch.set_num_threads(threads)
    calls = 1 if device == "cpu" else max(8, 2**32 // work)  # a CPU's short call escapes other programs; a GPU's kernels must queue
    for kernel in kernels:
        seconds(kernel, device, calls, clock)  # warm-up: pages, clock rate, compiled or chosen kernels
    best, start = float("inf"), clock()
    while True:
        best = min(best, *(seconds(kernel, device, calls, clock) for kernel in kernels))
        if clock() - start > budget:
            return work / best
