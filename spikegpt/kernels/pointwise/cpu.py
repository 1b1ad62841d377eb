"""Fast CPU versions of the pointwise functions, forward and backward, in numba; reached only through their door.

All numbers are one row, cut into runs; everything is computed in float32 and rounded once.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..compiling import compiled
from ..cpu import (
    ONE,
    TWO,
    ZERO,
    as_words,
    exact,
    exp_nonpositive,
    fused,
    new_words,
    parts_of_pass,
    read,
    run_each,
    run_passes,
    write,
)

RUN = 1 << 10


def squared_relu_forward(x: Tensor) -> Tensor:
    return _run(_squared_relu_pass, x.dtype, x)


def squared_relu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return _run(_squared_relu_backward_pass, x.dtype, grad, x)


def gate_forward(receptance: Tensor, y: Tensor) -> Tensor:
    return _run(_gate_pass, y.dtype, receptance, y)


def gate_backward(grad: Tensor, receptance: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of (receptance, y)."""
    grad_y = new_words(y.shape, y.dtype)
    grad_receptance = _run(_gate_backward_pass, receptance.dtype, grad, receptance, y, _flat(grad_y))
    return grad_receptance, grad_y.to(y.dtype)


def dropout(x: Tensor, rate: float, seed: int) -> Tensor:
    """Return x dropped out as `seed` (64 bits) says; of a gradient the same numbers are dropped."""
    # a number is dropped where a draw of 32 bits is below
    limit = np.uint32(min(round(rate * 2**32), 2**32 - 1))
    low, high = np.uint32(seed & 0xFFFFFFFF), np.uint32(seed >> 32)
    return _run(_dropout_pass, x.dtype, x, low, high, limit, np.float32(1 / (1 - rate)))


def firing_rate_forward(spikes: Tensor) -> Tensor:
    runs = _runs(spikes.numel())
    sums = np.zeros(parts_of_pass(runs, RUN), np.float64)
    run_passes(_add_up_parts, runs, RUN, sums, _flat(spikes))
    return torch.tensor(sums.sum() / spikes.numel(), dtype=torch.float32)


def firing_rate_backward(grad: Tensor, spikes: Tensor) -> Tensor:
    return _run(_firing_rate_backward_pass, spikes.dtype, spikes, np.float32(grad.item() / spikes.numel()))


def rescale_columns(weights: Sequence[Tensor], grads: Sequence[Tensor], worths: Sequence[Tensor]) -> list[Tensor]:
    """As the reference, in the memory of `weights` and `grads`, which have no gaps."""
    pieces, sums = [], []
    for matrix in zip(weights, grads, worths, strict=True):
        rows, width = matrix[0].shape
        parts = parts_of_pass(rows, width)
        # one row per part
        sums.append(np.zeros((parts, width), np.float32))
        pieces.append((parts, *map(as_words, matrix), sums[-1]))
    run_each(_rescale_matrix, sum(weight.numel() for weight in weights), pieces)
    return [torch.from_numpy(of_parts.sum(axis=0)) for of_parts in sums]


def _runs(numbers: int) -> int:
    return -(-numbers // RUN)


def _flat(tensor: Tensor) -> np.ndarray:
    return as_words(tensor).reshape(-1)


def _run(task, dtype: torch.dtype, first: Tensor, *others) -> Tensor:
    """Return what `task` writes, shaped as `first` and of `dtype`."""
    result = new_words(first.shape, dtype)
    arguments = [_flat(other) if isinstance(other, Tensor) else other for other in (first, *others)]
    run_passes(_in_runs, _runs(first.numel()), RUN, task, _flat(result), *arguments)
    return result.to(dtype)


def _in_runs(first, end, parts, task, result, *arguments):
    runs = _runs(result.size)
    own = slice(runs * first // parts * RUN, runs * end // parts * RUN)
    task(own.start, *(given[own] if isinstance(given, np.ndarray) else given for given in (result, *arguments)))


@fused
def _squared_relu_pass(start, result, x):
    for i in range(result.size):
        write(result, i, squared_relu_of(read(x[i])))


@fused
def squared_relu_of(x):
    # written so that NaN passes
    positive = ZERO if x < ZERO else x
    return positive * positive


@fused
def _squared_relu_backward_pass(start, result, grad, x):
    for i in range(result.size):
        write(result, i, through_squared_relu(read(grad[i]), read(x[i])))


@fused
def through_squared_relu(grad, x):
    positive = ZERO if x < ZERO else x
    return TWO * positive * grad


@fused
def sigmoid(x):
    small = exp_nonpositive(-abs(x))
    share = ONE / (ONE + small)
    return small * share if x < ZERO else share


@fused
def through_sigmoid(grad, share):
    return grad * share * (ONE - share)


@fused
def _gate_pass(start, result, receptance, y):
    for i in range(result.size):
        write(result, i, sigmoid(read(receptance[i])) * read(y[i]))


@fused
def _gate_backward_pass(start, result, grad, receptance, y, grad_y):
    for i in range(result.size):
        share, g = sigmoid(read(receptance[i])), read(grad[i])
        write(grad_y, i, share * g)
        write(result, i, through_sigmoid(g * read(y[i]), share))


def _add_up_parts(first, end, parts, sums, spikes):
    runs = _runs(spikes.size)
    for part in range(first, end):
        sums[part] = _firing_sum(spikes[runs * part // parts * RUN : runs * (part + 1) // parts * RUN])


# sums may be taken in any order: in one order alone they are not vectorised
@compiled(fastmath={"contract", "reassoc"})
def _firing_sum(spikes):
    total = ZERO
    for i in range(spikes.size):
        size = abs(read(spikes[i]))
        total += ONE if size > ONE else size
    return total


@fused
def _firing_rate_backward_pass(start, result, spikes, grad):
    for i in range(result.size):
        # as torch: the clamp lets the gradient of 1 through, and what is silent has none
        spike = read(spikes[i])
        sign = ONE if spike > ZERO else -ONE if spike < ZERO else ZERO
        write(result, i, sign * grad if abs(spike) <= ONE else ZERO)


@fused
def _rescale_matrix(parts, weight, grad, worth, sums):
    rows = weight.shape[0]
    for part in range(parts):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            _rescale(weight[row], grad[row], worth, sums[part])


@fused
def _rescale(weight, grad, worth, sums):
    for c in range(weight.size):
        sums[c] += grad[c] * weight[c]
        grad[c] *= worth[c]
        weight[c] /= worth[c]


@exact
def _mixed(bits):
    """The finalizer of MurmurHash3: every bit of the outcome depends on all of `bits`."""
    # numba makes 64 bits of what 32 bits are combined to
    bits = np.uint32(bits ^ (bits >> np.uint32(16)))
    bits = np.uint32(bits * np.uint32(0x85EBCA6B))
    bits = np.uint32(bits ^ (bits >> np.uint32(13)))
    bits = np.uint32(bits * np.uint32(0xC2B2AE35))
    return np.uint32(bits ^ (bits >> np.uint32(16)))


@exact
def _dropout_pass(start, result, x, low, high, limit, scale):
    low = np.uint32(low + np.uint32(start))
    for i in range(result.size):
        draw = _mixed(np.uint32(_mixed(np.uint32(np.uint32(i) + low)) ^ high))
        # read whether it is kept or not: one that is left out holds up the others
        kept = read(x[i]) * scale
        write(result, i, ZERO if draw < limit else kept)
