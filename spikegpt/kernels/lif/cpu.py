"""Fast CPU version of `lif`, forward and backward, in numba; reached only through its door.

The equations are in `reference.lif_step`; how tasks, lanes and segments work is told in `kernels/cpu.py`.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ..cpu import (
    BLOCK,
    LIF_SEGMENT,
    ONE,
    ZERO,
    as_arrays,
    as_float32,
    copy_row,
    exact,
    exp_nonpositive,
    fused,
    run_tasks,
    sum_over_batch,
)
from ..surrogates import SURROGATES
from .options import LIFOptions

ATAN, SIGMOID, FAST_SIGMOID, RECTANGULAR = (
    SURROGATES.index(name) for name in ("atan", "sigmoid", "fast_sigmoid", "rectangular")
)
HALF_PI = np.float32(math.pi / 2)


def lif_forward(
    current: Tensor, potential: Tensor, membrane_decay: Tensor, options: LIFOptions
) -> tuple[Tensor, Tensor]:
    """Return (spikes (B, T, C) in the dtype of `current`, final membrane potential (B, C) float32)."""
    drive = as_float32(current)
    spikes, final = torch.empty_like(drive), torch.empty(potential.shape)
    arrays = as_arrays(drive, potential, membrane_decay, spikes, final)
    run_tasks(_lif_forward_task, drive.shape, *arrays, *_lif_scalars(options))
    return spikes.to(current.dtype), final


def lif_backward(
    grad_spikes: Tensor,
    grad_final: Tensor,
    current: Tensor,
    potential: Tensor,
    membrane_decay: Tensor,
    options: LIFOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of (current (B, T, C), potential (B, C), membrane_decay (C,))."""
    drive = as_float32(current)
    grad_current, grad_potential, grad_decay = (
        torch.empty_like(drive),
        torch.empty(potential.shape),
        torch.empty(potential.shape),
    )
    arrays = as_arrays(
        as_float32(grad_spikes), grad_final, drive, potential, membrane_decay, grad_current, grad_potential, grad_decay
    )
    surrogate = SURROGATES.index(options.surrogate), np.float32(options.slope)
    run_tasks(_lif_backward_task, drive.shape, *arrays, *_lif_scalars(options), options.detach_reset, *surrogate)
    return grad_current.to(current.dtype), grad_potential, sum_over_batch(grad_decay)


def _lif_scalars(options: LIFOptions) -> tuple[np.float32 | bool, ...]:
    """Return (threshold, keep, offset, rest, decay_input)."""
    numbers = options.threshold, *options.after_spike, options.reset_potential
    return *map(np.float32, numbers), options.decay_input


@exact
def _charge(decay, potential, gain, current, pull):
    return decay * potential + gain * current + pull


# rows of the working array of a lif task. One array, because LLVM gives up on a loop over many that might overlap,
# and made inside the task, because LLVM must see its constant row length
DECAY, GAIN, PULL, POTENTIAL, GRAD, GRAD_DECAY, DISTANCE, SLOPE = range(8)


@exact
def _fill_lif_lanes(lanes, decay, potential, rest, decay_input):
    for c in range(decay.size):
        lanes[DECAY, c] = decay[c]
        lanes[GAIN, c] = ONE - decay[c] if decay_input else ONE
        lanes[PULL, c] = (ONE - decay[c]) * rest
        lanes[POTENTIAL, c] = potential[c]


@exact
def _lif_forward_task(
    row, start, width, current, potential, decay, spikes, final, threshold, keep, offset, rest, decay_input
):
    T, C = current.shape[1:]
    end = min(start + width, C)
    n = end - start
    lanes = np.zeros((8, BLOCK), np.float32)
    _fill_lif_lanes(lanes, decay[start:end], potential[row, start:end], rest, decay_input)
    for t in range(T):
        x, s = current[row, t, start:end], spikes[row, t, start:end]
        for c in range(n):
            charged = _charge(lanes[DECAY, c], lanes[POTENTIAL, c], lanes[GAIN, c], x[c], lanes[PULL, c])
            s[c] = ONE if charged >= threshold else ZERO
            lanes[POTENTIAL, c] = keep * charged + offset if charged >= threshold else charged
    copy_row(lanes[POTENTIAL, :n], final[row, start:end])


@exact
def _lif_recompute(x, before, lanes, threshold, keep, offset):
    """Store the potential before the step of input `x` in `before` and take the step."""
    for c in range(x.size):
        before[c] = lanes[POTENTIAL, c]
        charged = _charge(lanes[DECAY, c], lanes[POTENTIAL, c], lanes[GAIN, c], x[c], lanes[PULL, c])
        lanes[POTENTIAL, c] = keep * charged + offset if charged >= threshold else charged


@exact
def _lif_distance(x, before, lanes, threshold):
    for c in range(x.size):
        lanes[DISTANCE, c] = _charge(lanes[DECAY, c], before[c], lanes[GAIN, c], x[c], lanes[PULL, c]) - threshold


@fused
def _lif_backward_task(
    row, start, width, grad_spikes, grad_final, current, potential, decay, grad_current, grad_potential, grad_decay,
    threshold, keep, offset, rest, decay_input, detach_reset, surrogate, slope,
):  # fmt: skip
    T, C = current.shape[1:]
    end = min(start + width, C)
    n = end - start
    lanes = np.zeros((8, BLOCK), np.float32)
    _fill_lif_lanes(lanes, decay[start:end], potential[row, start:end], rest, decay_input)
    segments = (T + LIF_SEGMENT - 1) // LIF_SEGMENT
    # potential at the start of each segment; potential before each step of the segment at hand
    checkpoints = np.empty((segments, BLOCK), np.float32)
    before = np.empty((LIF_SEGMENT, BLOCK), np.float32)
    for segment in range(segments):
        copy_row(lanes[POTENTIAL, :n], checkpoints[segment, :n])
        if segment < segments - 1:
            for t in range(segment * LIF_SEGMENT, (segment + 1) * LIF_SEGMENT):
                _lif_recompute(current[row, t, start:end], before[0], lanes, threshold, keep, offset)
    copy_row(grad_final[row, start:end], lanes[GRAD, :n])
    own_input = ONE if decay_input else ZERO
    through_reset = ZERO if detach_reset else ONE
    for segment in range(segments - 1, -1, -1):
        first = segment * LIF_SEGMENT
        steps = min(LIF_SEGMENT, T - first)
        copy_row(checkpoints[segment, :n], lanes[POTENTIAL, :n])
        for i in range(steps):
            _lif_recompute(current[row, first + i, start:end], before[i], lanes, threshold, keep, offset)
        for i in range(steps - 1, -1, -1):
            x, v = current[row, first + i, start:end], before[i]
            gs, gx = grad_spikes[row, first + i, start:end], grad_current[row, first + i, start:end]
            _lif_distance(x, v, lanes, threshold)
            _surrogate_derivative(lanes[DISTANCE, :n], lanes[SLOPE, :n], surrogate, slope)
            for c in range(n):
                charged = lanes[DISTANCE, c] + threshold
                jump = through_reset * (keep * charged + offset - charged)
                kept = keep * lanes[GRAD, c] if lanes[DISTANCE, c] >= ZERO else lanes[GRAD, c]
                grad_charged = kept + (gs[c] + lanes[GRAD, c] * jump) * lanes[SLOPE, c]
                gx[c] = lanes[GAIN, c] * grad_charged
                lanes[GRAD_DECAY, c] += grad_charged * (v[c] - own_input * x[c] - rest)
                lanes[GRAD, c] = lanes[DECAY, c] * grad_charged
    copy_row(lanes[GRAD, :n], grad_potential[row, start:end])
    copy_row(lanes[GRAD_DECAY, :n], grad_decay[row, start:end])


@fused
def _surrogate_derivative(distance, out, surrogate, slope):
    n = distance.size
    if surrogate == ATAN:
        height, steepness = slope / np.float32(2), HALF_PI * slope
        for c in range(n):
            scaled = steepness * distance[c]
            out[c] = height / (ONE + scaled * scaled)
    elif surrogate == SIGMOID:
        for c in range(n):
            small = exp_nonpositive(-abs(slope * distance[c]))
            out[c] = slope * small / ((ONE + small) * (ONE + small))
    elif surrogate == FAST_SIGMOID:
        for c in range(n):
            scaled = ONE + slope * abs(distance[c])
            out[c] = ONE / (scaled * scaled)
    else:
        for c in range(n):
            out[c] = slope if slope * abs(distance[c]) <= np.float32(0.5) else ZERO
