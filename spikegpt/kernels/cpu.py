"""What the fast CPU kernels, the `cpu` of each operation, share: how they are run, and the exponential they use.

One task is one batch row times up to BLOCK channels: time is the outer loop, channels the inner one, so that LLVM turns
the inner loop into vector instructions and the running state stays in the first-level cache. The backward passes keep
nothing from the forward pass but its inputs: they recompute the states, SEGMENT steps at a time, into a scratch buffer
that fits the cache, and walk back over it. Every task is computed the same way by whichever thread takes it, so results
do not depend on the number of threads.
"""

import math
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from .compiling import compiled

# most channels of one task: long runs of memory, and the state of one step still fits the first-level cache
BLOCK = 512
LIF_SEGMENT = 64  # steps recomputed at once: BLOCK * 4 bytes each, 128 KiB
WKV_SEGMENT = 16  # steps recomputed at once: BLOCK * 6 * 4 bytes each, 192 KiB
SMALL = 1 << 15  # neuron-steps below which starting a second thread costs more than it saves

ZERO, ONE = np.float32(0), np.float32(1)

# neurons: every operation rounds as torch's does, so that spikes are bit-identical
# to the reference and to the recomputation
exact = compiled()
# gradients and wkv: a multiplication and an addition may become one fused instruction;
# NaN and infinity keep their meaning
fused = compiled(fastmath={"contract"})


def as_float32(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous()


def as_arrays(*tensors: Tensor) -> list[np.ndarray]:
    # not .numpy(), after which torch refuses to free the memory early, as sharded training does with weights
    return [np.from_dlpack(as_float32(tensor)) for tensor in tensors]


def exp_of_few(exponents: Tensor) -> Tensor:
    """Return exp of a float32 tensor with one number per channel."""
    # by numpy: torch hands even these few numbers to all its threads,
    # and on a busy machine waits for them for milliseconds
    return torch.from_numpy(np.exp(np.from_dlpack(exponents.detach())))


def sum_over_batch(partial: Tensor) -> Tensor:
    """Return the sum over the rows, added one after the other, whatever the number of threads."""
    return torch.from_numpy(partial.numpy().sum(axis=0))


_pool: tuple[int, int, ThreadPoolExecutor] | None = None


def run_tasks(task, shape: Sequence[int], *arguments) -> None:
    """Call `task(batch row, first channel, channels, *arguments)` for all rows and channels, on torch's threads."""
    B, T, C = shape
    width, small = BLOCK, B * T * C <= SMALL
    # by the shape alone, never by the number of threads: the same rounding everywhere
    while not small and width > 64 and B * math.ceil(C / width) < 8:
        width //= 2
    tasks = deque((row, start) for row in range(B) for start in range(0, C, width))

    def work():
        while tasks:
            try:
                row, start = tasks.popleft()
            except IndexError:
                return
            task(row, start, width, *arguments)

    threads = 1 if small else min(torch.get_num_threads(), len(tasks))
    helpers = [helper_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        helper.result()


def helper_pool(threads: int) -> ThreadPoolExecutor:
    """Return a pool of at least `threads` threads, made at first use and again in a fork, where threads are gone."""
    global _pool
    if _pool is None or _pool[0] != os.getpid() or _pool[1] < threads:
        _pool = os.getpid(), threads, ThreadPoolExecutor(threads, thread_name_prefix="spikegpt")
    return _pool[2]


LOG2_E = np.float32(math.log2(math.e))
# ln 2 in two parts: the product of the first with a small whole number is exact
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# adding it rounds to a whole number n and leaves n + 127, the biased exponent of 2^n, in the low bits
ROUNDER = np.float32(3 * 2**22 + 127)
P2, P3, P4, P5, P6 = (np.float32(1 / math.factorial(i)) for i in range(2, 7))
LOWEST = np.float32(-88)  # exp of it is below the smallest normal float32; comes out as 0


@fused
def exp_nonpositive(x):
    """Return exp(x) for x <= 0, to about 1 unit in the last place; 0 below -87.7; NaN for NaN."""
    # written so that NaN passes the clamp
    x = LOWEST if x < LOWEST else x
    shifted = x * LOG2_E + ROUNDER
    whole = shifted - ROUNDER
    rest = x - whole * LN2_HIGH
    rest = rest - whole * LN2_LOW
    power = np.int32(np.float32(shifted).view(np.int32) << np.int32(23)).view(np.float32)
    series = P5 + rest * P6
    series = P4 + rest * series
    series = P3 + rest * series
    series = P2 + rest * series
    series = ONE + rest * series
    return power * (ONE + rest * series)
