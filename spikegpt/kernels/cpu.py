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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from .compiling import compiled

# most channels of one task: long runs of memory, and the state of one step still fits the first-level cache
BLOCK = 512
LIF_SEGMENT = 64  # steps recomputed at once: BLOCK * 4 bytes each, 128 KiB
WKV_SEGMENT = 16  # steps recomputed at once: BLOCK * 6 * 4 bytes each, 192 KiB
SMALL = 1 << 15  # neuron-steps below which starting a second thread costs more than it saves
# the same of operations that are one pass over numbers, and about how many of those make a part
SMALL_PASS, PASS_PART = 1 << 18, 1 << 17
CALLS_PER_THREAD = 2
# columns that tokens of fewer channels are laid side by side to: what is done for each row is done less often
WIDE = 1024

ZERO, HALF, ONE, TWO = (np.float32(number) for number in (0, 0.5, 1, 2))

# neurons: every operation rounds as torch's does, so that spikes are bit-identical
# to the reference and to the recomputation
exact = compiled()
# gradients and wkv: a multiplication and an addition may become one fused instruction;
# NaN and infinity keep their meaning
fused = compiled(fastmath={"contract"})


def as_float32(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous()


def as_arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [as_words(as_float32(tensor)) for tensor in tensors]


def as_words(tensor: Tensor) -> np.ndarray:
    """Return the numbers as kernels that `read` and `write` take them, in the same memory unless it has gaps.

    float32 as it is, bfloat16 as its bits (uint16); other precisions as a float32 copy.
    """
    tensor = tensor.detach().contiguous()
    tensor = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor.float()
    # not .numpy(), after which torch refuses to free the memory early, as sharded training does with weights
    return np.from_dlpack(tensor)


def new_words(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor for a kernel to `write`: of `dtype` where kernels know it, else float32, to be converted."""
    return torch.empty(shape, dtype=torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)


def _read(word):
    """Return a number of `as_words` as float32, in compiled code."""


# a call that is left in a loop keeps it from being vectorised
@overload(_read, jit_options={"forceinline": True})
def _(word):
    if word == types.uint16:
        return lambda word: np.uint32(np.uint32(word) << np.uint32(16)).view(np.float32)
    return lambda word: word


def _write(row, place, number):
    """Put the float32 `number` into a row of `as_words`, to the nearest and of two the even, in compiled code."""


@overload(_write, jit_options={"forceinline": True})
def _(row, place, number):
    if row.dtype == types.uint16:

        def write(row, place, number):
            bits = np.float32(number).view(np.uint32)
            nearest = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
            row[place] = np.uint16(nearest if number == number else np.uint32(0x7FC0))

    else:

        def write(row, place, number):
            row[place] = number

    return write


def _write_exact(row, place, number):
    """Put a number that a row of `as_words` holds without rounding into it, such as a spike, in compiled code."""


@overload(_write_exact, jit_options={"forceinline": True})
def _(row, place, number):
    if row.dtype == types.uint16:

        def write_exact(row, place, number):
            row[place] = np.uint16(np.float32(number).view(np.uint32) >> np.uint32(16))

    else:

        def write_exact(row, place, number):
            row[place] = number

    return write_exact


def _rounded(row, number):
    """Return the float32 `number` as `read` would find it once `write` had put it into `row`, in compiled code."""


@overload(_rounded, jit_options={"forceinline": True})
def _(row, number):
    if row.dtype == types.uint16:

        def rounded(row, number):
            # what is not a number stays so: processors make only one kind of it, which rounds to itself
            bits = np.float32(number).view(np.uint32)
            nearest = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            return np.uint32(nearest & np.uint32(0xFFFF0000)).view(np.float32)

    else:

        def rounded(row, number):
            return number

    return rounded


# in Python they are nothing, for type checkers neither
read: Any = _read
write: Any = _write
write_exact: Any = _write_exact
rounded: Any = _rounded


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
    pieces = ((row, start, width) for row in range(B) for start in range(0, C, width))
    _share_out(task, pieces, small, arguments)


def run_heads(task, shape: Sequence[int], *arguments) -> None:
    """Call `task(batch row, head, *arguments)` for all heads of (B, T, heads, channels of one), on torch's threads."""
    rows, heads = shape[0], shape[2]
    pieces = ((row, head) for row in range(rows) for head in range(heads))
    _share_out(task, pieces, math.prod(shape) <= SMALL, arguments)


def run_passes(task, rows: int, width: int, *arguments) -> None:
    """Call `task(first part, end, parts, *arguments)` until all parts of (rows, width) are done, on torch's threads.

    Part p is the rows from rows * p // parts to rows * (p + 1) // parts. There are as many as `parts_of_pass` says, by
    the shape alone; how many a call gets depends on the threads, for between two calls a thread waits for Python.
    """
    parts = parts_of_pass(rows, width)
    calls = 1 if rows * width <= SMALL_PASS else min(CALLS_PER_THREAD * torch.get_num_threads(), parts)
    pieces = ((parts * call // calls, parts * (call + 1) // calls, parts) for call in range(calls))
    _share_out(task, pieces, calls == 1, arguments)


def parts_of_pass(rows: int, width: int) -> int:
    return min(rows, math.ceil(rows * width / PASS_PART))


def side_by_side(tokens: int, channels: int) -> tuple[int, int]:
    """Return (rows, width) of memory that is (tokens, channels)."""
    together = 1
    while 2 * together * channels <= WIDE and tokens % (2 * together) == 0:
        together *= 2
    return tokens // together, together * channels


def run_each(task, numbers: int, pieces: Iterable[tuple]) -> None:
    """Call `task(*piece)` for all pieces, of so many numbers together, on torch's threads."""
    _share_out(task, pieces, numbers <= SMALL_PASS, ())


def _share_out(task: Callable, pieces: Iterable[tuple], small: bool, arguments: Sequence[Any]) -> None:
    waiting = deque(pieces)

    def work():
        while waiting:
            try:
                piece = waiting.popleft()
            except IndexError:
                return
            task(*piece, *arguments)

    threads = 1 if small else min(torch.get_num_threads(), len(waiting))
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


# Kernels copy by these and not by `into[:] = row`: for that numba also compiles the words in which it would say that
# the lengths differ, which takes longer than most kernels.


@exact
def copy_row(row, into):
    for c in range(into.size):
        into[c] = row[c]


@exact
def copy_rows(rows, into):
    for i in range(rows.shape[0]):
        copy_row(rows[i], into[i])


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
