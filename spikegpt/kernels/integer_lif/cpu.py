"""Fast CPU version of `integer_lif`, forward and backward, in numba; reached only through its door.

The equations are in `reference.integer_lif_step`; how tasks, lanes and segments work is told in `kernels/cpu.py`.
"""

import numpy as np
import torch
from torch import Tensor

from ..cpu import (
    BLOCK,
    HALF,
    LIF_SEGMENT,
    ONE,
    TWO,
    ZERO,
    as_arrays,
    as_float32,
    as_words,
    copy_row,
    exact,
    fused,
    new_words,
    parts_of_pass,
    read,
    run_passes,
    run_tasks,
    side_by_side,
    sum_over_batch,
    write,
    write_exact,
)
from .options import IntegerLIFOptions


def integer_lif_forward(
    current: Tensor, potential: Tensor, membrane_decay: Tensor, threshold: Tensor, options: IntegerLIFOptions
) -> tuple[Tensor, Tensor]:
    """Return (spikes (B, T, C) in the dtype of `current`, final membrane potential (B, C) float32)."""
    drive = as_float32(current)
    spikes, final = torch.empty_like(drive), torch.empty(potential.shape)
    arrays = as_arrays(drive, potential, membrane_decay, threshold, spikes, final)
    run_tasks(_forward_task, drive.shape, *arrays, *scalars_of(options))
    return spikes.to(current.dtype), final


def integer_lif_backward(
    grad_spikes: Tensor,
    grad_final: Tensor,
    current: Tensor,
    potential: Tensor,
    membrane_decay: Tensor,
    threshold: Tensor,
    options: IntegerLIFOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of (current (B, T, C), potential (B, C), membrane_decay (C,), threshold (C,))."""
    drive = as_float32(current)
    grad_current = torch.empty_like(drive)
    # of potential, membrane_decay and threshold: one row per batch row
    grads = [torch.empty(potential.shape) for _ in range(3)]
    arrays = as_arrays(
        as_float32(grad_spikes), grad_final, drive, potential, membrane_decay, threshold, grad_current, *grads
    )
    run_tasks(_backward_task, drive.shape, *arrays, *scalars_of(options))
    return grad_current.to(current.dtype), grads[0], sum_over_batch(grads[1]), sum_over_batch(grads[2])


def memoryless_forward(
    current: Tensor, threshold: Tensor, options: IntegerLIFOptions, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (spikes (B, T, C) in `dtype`, final potential (B, C) float32, firing rate) of neurons whose decay is 0."""
    B, T, C = current.shape
    spikes, final = new_words((B, T, C), dtype), torch.empty(B, C)
    rows, width = side_by_side(B * T, C)
    levels, below, keeps, taken, _ = scalars_of(options)
    x, thresholds, fired = as_words(current), as_words(threshold), np.zeros(parts_of_pass(rows, width), np.int64)
    arrays = x.reshape(rows, width), np.tile(thresholds, width // C), as_words(spikes).reshape(rows, width)
    run_passes(_memoryless_forward_pass, rows, width, *arrays, fired, levels, below)
    _leave(x[:, -1], thresholds, as_words(final), levels, below, keeps, taken)
    return spikes.to(dtype), final, torch.tensor(fired.sum() / spikes.numel(), dtype=torch.float32)


def memoryless_backward(
    grad_spikes: Tensor, grad_final: Tensor | None, grad_rate: Tensor | None, current: Tensor, threshold: Tensor,
    options: IntegerLIFOptions,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of (current (B, T, C), threshold (C,)); None for a gradient stands for zeros."""
    B, T, C = current.shape
    grad_current = new_words((B, T, C), current.dtype)
    rows, width = side_by_side(B * T, C)
    # one row per part
    grad_threshold = np.zeros((parts_of_pass(rows, width), width), np.float32)
    levels, below, keeps, *_ = scalars_of(options)
    x, thresholds, gx = as_words(current), as_words(threshold), as_words(grad_current)
    arrays = as_words(grad_spikes).reshape(rows, width), x.reshape(rows, width), np.tile(thresholds, width // C)
    of_spike = np.float32(0 if grad_rate is None else grad_rate.item() / current.numel())
    run_passes(
        _memoryless_backward_pass,
        rows,
        width,
        *arrays,
        gx.reshape(rows, width),
        grad_threshold,
        of_spike,
        levels,
        below,
    )
    if grad_final is not None:
        _learn_of_final(as_words(grad_final), x[:, -1], thresholds, gx[:, -1], levels, below, keeps)
    summed = grad_threshold.sum(axis=0).reshape(-1, C).sum(axis=0)
    return grad_current.to(current.dtype), torch.from_numpy(summed)


def scalars_of(options: IntegerLIFOptions) -> tuple[np.float32 | bool, ...]:
    """Return (levels, below, keeps, taken, decay_input).

    `below` multiplies a count where the potential is negative; a potential `keeps` what spikes do not take off it, each
    `taken` thresholds, or is put at 0.
    """
    levels, below = np.float32(options.levels), np.float32(-1 if options.signed else 0)
    taken = np.float32(options.reset == "subtract")
    return levels, below, options.reset != "zero", taken, options.decay_input


# rows of the working array of a task
DECAY, GAIN, THRESHOLD, TAKEN, POTENTIAL, GRAD, GRAD_DECAY, GRAD_THRESHOLD = range(8)


@exact
def _fill_lanes(lanes, decay, threshold, potential, taken, decay_input):
    for c in range(decay.size):
        lanes[DECAY, c] = decay[c]
        lanes[GAIN, c] = ONE - decay[c] if decay_input else ONE
        lanes[THRESHOLD, c] = threshold[c]
        lanes[TAKEN, c] = taken * threshold[c]
        lanes[POTENTIAL, c] = potential[c]


@exact
def _charge(decay, potential, gain, current):
    return decay * potential + gain * current


@exact
def count_of(quanta, levels, below):
    # written so that NaN passes the clamp
    whole = np.floor(abs(quanta))
    whole = levels if whole > levels else whole
    return below * whole if quanta < ZERO else whole


@exact
def _reset(charged, spikes, taken, keeps):
    if keeps:
        return charged - taken * spikes
    return charged if spikes == ZERO else ZERO


@exact
def _forward_task(
    row, start, width, current, potential, decay, threshold, spikes, final, levels, below, keeps, taken, decay_input
):
    T, C = current.shape[1:]
    end = min(start + width, C)
    n = end - start
    lanes = np.zeros((8, BLOCK), np.float32)
    _fill_lanes(lanes, decay[start:end], threshold[start:end], potential[row, start:end], taken, decay_input)
    for t in range(T):
        x, s = current[row, t, start:end], spikes[row, t, start:end]
        for c in range(n):
            charged = _charge(lanes[DECAY, c], lanes[POTENTIAL, c], lanes[GAIN, c], x[c])
            count = count_of(charged / lanes[THRESHOLD, c], levels, below)
            s[c] = count
            lanes[POTENTIAL, c] = _reset(charged, count, lanes[TAKEN, c], keeps)
    copy_row(lanes[POTENTIAL, :n], final[row, start:end])


@exact
def _recompute(x, before, lanes, levels, below, keeps):
    """Store the potential before the step of input `x` in `before` and take the step."""
    for c in range(x.size):
        before[c] = lanes[POTENTIAL, c]
        charged = _charge(lanes[DECAY, c], lanes[POTENTIAL, c], lanes[GAIN, c], x[c])
        count = count_of(charged / lanes[THRESHOLD, c], levels, below)
        lanes[POTENTIAL, c] = _reset(charged, count, lanes[TAKEN, c], keeps)


@fused
def _backward_task(
    row, start, width, grad_spikes, grad_final, current, potential, decay, threshold, grad_current, grad_potential,
    grad_decay, grad_threshold, levels, below, keeps, taken, decay_input,
):  # fmt: skip
    T, C = current.shape[1:]
    end = min(start + width, C)
    n = end - start
    lanes = np.zeros((8, BLOCK), np.float32)
    _fill_lanes(lanes, decay[start:end], threshold[start:end], potential[row, start:end], taken, decay_input)
    segments = (T + LIF_SEGMENT - 1) // LIF_SEGMENT
    # potential at the start of each segment; potential before each step of the segment at hand
    checkpoints = np.empty((segments, BLOCK), np.float32)
    before = np.empty((LIF_SEGMENT, BLOCK), np.float32)
    for segment in range(segments):
        copy_row(lanes[POTENTIAL, :n], checkpoints[segment, :n])
        if segment < segments - 1:
            for t in range(segment * LIF_SEGMENT, (segment + 1) * LIF_SEGMENT):
                _recompute(current[row, t, start:end], before[0], lanes, levels, below, keeps)
    copy_row(grad_final[row, start:end], lanes[GRAD, :n])
    own_input = ONE if decay_input else ZERO
    highest = levels + HALF
    lowest = -highest if below < ZERO else HALF
    for segment in range(segments - 1, -1, -1):
        first = segment * LIF_SEGMENT
        steps = min(LIF_SEGMENT, T - first)
        copy_row(checkpoints[segment, :n], lanes[POTENTIAL, :n])
        for i in range(steps):
            _recompute(current[row, first + i, start:end], before[i], lanes, levels, below, keeps)
        for i in range(steps - 1, -1, -1):
            x, v = current[row, first + i, start:end], before[i]
            gs, gx = grad_spikes[row, first + i, start:end], grad_current[row, first + i, start:end]
            for c in range(n):
                # both from exact functions: the same spikes as on the way forward
                quanta = _charge(lanes[DECAY, c], v[c], lanes[GAIN, c], x[c]) / lanes[THRESHOLD, c]
                count = count_of(quanta, levels, below)
                inside = ONE if (quanta >= lowest) & (quanta <= highest) else ZERO
                through_spikes = gs[c] * inside / lanes[THRESHOLD, c]
                kept = lanes[GRAD, c] if keeps | (count == ZERO) else ZERO
                grad_charged = through_spikes + kept
                gx[c] = lanes[GAIN, c] * grad_charged
                lanes[GRAD_DECAY, c] += grad_charged * (v[c] - own_input * x[c])
                lanes[GRAD_THRESHOLD, c] -= through_spikes * quanta
                lanes[GRAD, c] = lanes[DECAY, c] * grad_charged
    copy_row(lanes[GRAD, :n], grad_potential[row, start:end])
    copy_row(lanes[GRAD_DECAY, :n], grad_decay[row, start:end])
    copy_row(lanes[GRAD_THRESHOLD, :n], grad_threshold[row, start:end])


NONE = np.uint32(0)


@exact
def _memoryless_forward_pass(first, end, parts, current, threshold, spikes, fired, levels, below):
    rows = current.shape[0]
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            fired[part] += _fire(current[row], threshold, spikes[row], levels, below)


@exact
def _fire(current, threshold, spikes, levels, below):
    """Fill one row of spikes and return how many neurons fired."""
    fired = NONE
    for c in range(spikes.size):
        count = count_of(read(current[c]) / threshold[c], levels, below)
        write_exact(spikes, c, count)
        fired = one_more_if(count != ZERO, fired)
    return fired


@exact
def one_more_if(true, number):
    """How many there are after `number`, in 32 bits: with the 64 of numba's own sums a loop is half as fast."""
    return np.uint32(number + np.uint32(true))


@exact
def _leave(current, threshold, final, levels, below, keeps, taken):
    """Fill in the potentials (B, C) that the last tokens of texts leave."""
    for row in range(final.shape[0]):
        for c in range(final.shape[1]):
            charged = read(current[row, c])
            count = count_of(charged / threshold[c], levels, below)
            final[row, c] = _reset(charged, count, taken * threshold[c], keeps)


@fused
def _memoryless_backward_pass(
    first, end, parts, grad_spikes, current, threshold, grad_current, grad_threshold, of_spike, levels, below
):
    rows, per_threshold = current.shape[0], ONE / threshold
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            arrays = current[row], grad_spikes[row], per_threshold, grad_current[row], grad_threshold[part]
            _learn(*arrays, of_spike, levels, below)


@fused
def _learn(current, grad_spikes, per_threshold, grad_current, grad_threshold, of_spike, levels, below):
    """Fill in one row of the gradient and add to that of the thresholds."""
    for c in range(grad_current.size):
        # a quotient would take as long as all the rest
        quanta = read(current[c]) * per_threshold[c]
        through = through_spike(quanta, read(grad_spikes[c]), per_threshold[c], of_spike, levels, below)
        write(grad_current, c, through)
        grad_threshold[c] -= through * quanta


@fused
def through_spike(quanta, grad_spike, per_threshold, of_spike, levels, below):
    """What a current of `quanta` thresholds gets, of the gradients of its spikes and of the firing rate."""
    highest = levels + HALF
    lowest = -highest if below < ZERO else HALF
    # of the firing rate: of 1 spike its sign, of none and of several nothing
    size = abs(quanta)
    toward = of_spike if quanta > ZERO else -of_spike
    grad = grad_spike + toward if (size >= ONE) & (size < TWO) else grad_spike
    through = grad * per_threshold
    return through if (quanta >= lowest) & (quanta <= highest) else ZERO


@fused
def _learn_of_final(grad_final, current, threshold, grad_current, levels, below, keeps):
    """Add to the gradient of the last tokens (B, C) what the potentials that they leave give them."""
    for row in range(grad_current.shape[0]):
        for c in range(grad_current.shape[1]):
            count = count_of(read(current[row, c]) / threshold[c], levels, below)
            kept = grad_final[row, c] if keeps | (count == ZERO) else ZERO
            write(grad_current[row], c, read(grad_current[row, c]) + kept)
