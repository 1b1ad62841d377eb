"""Fast CPU version of `commitment_error`, forward and backward, in numba; reached only through its door."""

import numpy as np
import torch
from torch import Tensor

from ..cpu import HALF, ONE, ZERO, as_words, fused, new_words, parts_of_pass, read, run_passes, side_by_side, write

# rows of the sums of a part
ERROR, ENERGY = range(2)


def commitment_forward(current: Tensor, threshold: Tensor, levels: int, signed: bool) -> tuple[Tensor, Tensor]:
    """Return (error / energy, energy), scalars in float32."""
    x, per_threshold, scalars = _arrays(current, threshold, levels, signed)
    sums = np.zeros((parts_of_pass(*x.shape), 2, x.shape[1]), np.float32)
    run_passes(_forward_pass, *x.shape, x, per_threshold, sums, *scalars)
    error, energy = sums.sum(axis=(0, 2), dtype=np.float64)
    energy = max(energy, 1e-30)
    return torch.tensor(error / energy, dtype=torch.float32), torch.tensor(energy, dtype=torch.float32)


def commitment_backward(
    grad: Tensor, share: Tensor, energy: Tensor, current: Tensor, threshold: Tensor, levels: int, signed: bool
) -> Tensor:
    """Return the gradient of the currents."""
    x, per_threshold, scalars = _arrays(current, threshold, levels, signed)
    result = new_words(current.shape, current.dtype)
    of_error = 2 * grad.item() / energy.item()
    factors = np.float32(of_error), np.float32(-of_error * share.item())
    run_passes(_backward_pass, *x.shape, x, per_threshold, as_words(result).reshape(x.shape), *factors, *scalars)
    return result.to(current.dtype)


def _arrays(
    current: Tensor, threshold: Tensor, levels: int, signed: bool
) -> tuple[np.ndarray, np.ndarray, tuple[np.float32, np.float32]]:
    """(currents as rows, 1/threshold of their columns, (levels, factor of negative currents))."""
    B, T, C = current.shape
    rows, width = side_by_side(B * T, C)
    per_threshold = np.tile(ONE / as_words(threshold), width // C)
    return as_words(current).reshape(rows, width), per_threshold, (np.float32(levels), np.float32(-1 if signed else 0))


@fused
def _forward_pass(first, end, parts, x, per_threshold, sums, levels, below):
    rows = x.shape[0]
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            _add_row(x[row], per_threshold, sums[part, ERROR], sums[part, ENERGY], levels, below)


@fused
def _add_row(x, per_threshold, errors, energies, levels, below):
    for c in range(x.size):
        size = _size_of(read(x[c]) * per_threshold[c], below)
        error = size - _target_of(size, levels)
        errors[c] += error * error
        energies[c] += size * size


@fused
def _backward_pass(first, end, parts, x, per_threshold, result, of_error, of_energy, levels, below):
    rows = x.shape[0]
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            _learn_row(x[row], per_threshold, result[row], of_error, of_energy, levels, below)


@fused
def _learn_row(x, per_threshold, result, of_error, of_energy, levels, below):
    for c in range(x.size):
        quanta = read(x[c]) * per_threshold[c]
        size = _size_of(quanta, below)
        grad = of_error * (size - _target_of(size, levels)) + of_energy * size
        # of the size; a current of the sign that never fires has a size of 0, and gets nothing
        sign = ONE if quanta > ZERO else below
        write(result, c, grad * sign * per_threshold[c])


@fused
def _size_of(quanta, below):
    return quanta if quanta > ZERO else below * quanta


@fused
def _target_of(size, levels):
    """The middle of the currents that emit as many spikes."""
    spikes = min(np.floor(size), levels)
    return spikes + HALF if spikes >= ONE else ZERO
