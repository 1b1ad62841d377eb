"""Fast CPU version of `event_wkv`, forward and backward, in numba; reached only through its door.

The equations are in `reference.event_wkv`; how tasks, lanes and segments work is told in `kernels/cpu.py`. Every
channel of a token is computed alike, and what a silent one must not have is left out by selection: eight or sixteen
exponentials at once cost less than finding the few that are needed. Listing the events of each token, computing their
weights in short arrays and stepping over the rest without an exponential was slower at every rate of events from 0.02
to 1.
"""

import numpy as np
import torch
from torch import Tensor

from ..cpu import (
    BLOCK,
    ONE,
    WKV_SEGMENT,
    ZERO,
    as_arrays,
    as_float32,
    as_words,
    copy_row,
    copy_rows,
    exp_nonpositive,
    exp_of_few,
    fused,
    new_words,
    read,
    run_tasks,
    sum_over_batch,
    write,
)
from ..decay import decay_of, log_decay_of, time_decay_gradient
from .reference import EVENT_KEY_LIMIT

LIMIT = np.float32(EVENT_KEY_LIMIT)
# what only decays ends among the subnormal numbers, where many processors are slow, some a hundred times;
# below this it is 0
SMALLEST = np.float32(1e-37)


def event_wkv_forward(
    time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, numerator: Tensor, denominator: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (output (B, T, C) in the dtype of `key`, numerator, denominator), the state (B, C) in float32."""
    keys = as_float32(key)
    decay, first = decay_of(as_float32(time_decay), exp_of_few), _first(time_first)
    output = torch.empty_like(keys)
    last_numerator, last_denominator = (torch.empty(numerator.shape) for _ in range(2))
    arrays = [*as_arrays(decay, first), *map(as_words, (key, value)), *as_arrays(numerator, denominator)]
    arrays += [as_words(output), *as_arrays(last_numerator, last_denominator)]
    run_tasks(_forward_task, key.shape, *arrays)
    return output.to(key.dtype), last_numerator, last_denominator


def event_wkv_backward(
    grad_output: Tensor, grad_numerator: Tensor, grad_denominator: Tensor, time_decay: Tensor, time_first: Tensor,
    key: Tensor, value: Tensor, numerator: Tensor, denominator: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of (time_decay, time_first, key, value, numerator, denominator)."""
    log_decay = log_decay_of(as_float32(time_decay), exp_of_few)
    grad_key, grad_value = (new_words(key.shape, key.dtype) for _ in range(2))
    # of the log decay, of time_first, of the incoming numerator and denominator: one row per batch row
    grads = [torch.empty(numerator.shape) for _ in range(4)]
    decay, first = exp_of_few(log_decay), _first(time_first)
    arrays = [as_words(grad_output), *as_arrays(grad_numerator, grad_denominator, decay, first)]
    arrays += [*map(as_words, (key, value)), *as_arrays(numerator, denominator)]
    arrays += [*map(as_words, (grad_key, grad_value)), *as_arrays(*grads)]
    run_tasks(_backward_task, key.shape, *arrays)
    grad_decay = time_decay_gradient(sum_over_batch(grads[0]), time_decay, log_decay)
    # as the reference's clamp: nothing beyond the limits
    grad_first = torch.where(time_first.detach().abs() <= EVENT_KEY_LIMIT, sum_over_batch(grads[1]), 0.0)
    return grad_decay, grad_first, grad_key.to(key.dtype), grad_value.to(key.dtype), grads[2], grads[3]


def _first(time_first: Tensor) -> Tensor:
    return exp_of_few(time_first.detach().float().clamp(-EVENT_KEY_LIMIT, EVENT_KEY_LIMIT))


@fused
def _weight(key, value):
    """`reference.event_weight`: exp of the limited key at an event, NaN for NaN; 1 where silent, whatever the key."""
    key = LIMIT if key > LIMIT else key
    key = -LIMIT if key < -LIMIT else key
    # the series of exp_nonpositive holds on either side of 0, its power of two up to 2^127
    weight = exp_nonpositive(key)
    return weight if value != ZERO else ONE


@fused
def _decayed(decay, number):
    kept = decay * number
    # written so that NaN passes
    return ZERO if abs(kept) < SMALLEST else kept


# rows of the working array of a task
NUMERATOR, DENOMINATOR, DECAY, FIRST = range(4)


@fused
def _fill_lanes(lanes, decay, first, numerator, denominator):
    for c in range(decay.size):
        lanes[NUMERATOR, c], lanes[DENOMINATOR, c] = numerator[c], denominator[c]
        lanes[DECAY, c], lanes[FIRST, c] = decay[c], first[c]


@fused
def _forward_task(
    row, start, width, decay, first, key, value, numerator, denominator, output, last_numerator, last_denominator
):
    T, C = key.shape[1:]
    end = min(start + width, C)
    n = end - start
    lanes = np.empty((4, BLOCK), np.float32)
    _fill_lanes(lanes, decay[start:end], first[start:end], numerator[row, start:end], denominator[row, start:end])
    for t in range(T):
        k, v, y = key[row, t, start:end], value[row, t, start:end], output[row, t, start:end]
        for c in range(n):
            spike = read(v[c])
            a, b, weight = lanes[NUMERATOR, c], lanes[DENOMINATOR, c], _weight(read(k[c]), spike)
            present = lanes[FIRST, c] * weight
            lanes[NUMERATOR, c] = _decayed(lanes[DECAY, c], a) + weight * spike
            lanes[DENOMINATOR, c] = lanes[DECAY, c] * b + weight
            write(y, c, (a + present * spike) / (b + present))
    copy_row(lanes[NUMERATOR, :n], last_numerator[row, start:end])
    copy_row(lanes[DENOMINATOR, :n], last_denominator[row, start:end])


# what the walk forward keeps of each step for that backward: the state before it, the weight, 1 / (sum of weights)
BEFORE_NUMERATOR, BEFORE_DENOMINATOR, WEIGHT, INVERSE = range(4)
# rows of the gradients carried back
G_NUMERATOR, G_DENOMINATOR, G_LOG_DECAY, G_TIME_FIRST = range(4)


@fused
def _backward_task(
    row, start, width, grad_output, grad_numerator, grad_denominator, decay, first, key, value, numerator,
    denominator, grad_key, grad_value, grad_decay, grad_first, grad_numerator_in, grad_denominator_in,
):  # fmt: skip
    T, C = key.shape[1:]
    end = min(start + width, C)
    n = end - start
    lanes = np.empty((4, BLOCK), np.float32)
    _fill_lanes(lanes, decay[start:end], first[start:end], numerator[row, start:end], denominator[row, start:end])
    segments = (T + WKV_SEGMENT - 1) // WKV_SEGMENT
    # the state at the start of each segment
    checkpoints = np.empty((segments, 2, BLOCK), np.float32)
    for segment in range(segments):
        copy_rows(lanes[:2, :n], checkpoints[segment, :, :n])
        if segment == segments - 1:
            break
        for t in range(segment * WKV_SEGMENT, (segment + 1) * WKV_SEGMENT):
            k, v = key[row, t, start:end], value[row, t, start:end]
            for c in range(n):
                weight = _weight(read(k[c]), read(v[c]))
                lanes[NUMERATOR, c] = _decayed(lanes[DECAY, c], lanes[NUMERATOR, c]) + weight * read(v[c])
                lanes[DENOMINATOR, c] = lanes[DECAY, c] * lanes[DENOMINATOR, c] + weight

    kept = np.empty((WKV_SEGMENT, 4, BLOCK), np.float32)
    grads = np.zeros((4, BLOCK), np.float32)
    copy_row(grad_numerator[row, start:end], grads[G_NUMERATOR, :n])
    copy_row(grad_denominator[row, start:end], grads[G_DENOMINATOR, :n])
    for segment in range(segments - 1, -1, -1):
        start_time = segment * WKV_SEGMENT
        steps = min(WKV_SEGMENT, T - start_time)
        copy_rows(checkpoints[segment, :, :n], lanes[:2, :n])
        for i in range(steps):
            k, v, step = key[row, start_time + i, start:end], value[row, start_time + i, start:end], kept[i]
            for c in range(n):
                a, b, weight = lanes[NUMERATOR, c], lanes[DENOMINATOR, c], _weight(read(k[c]), read(v[c]))
                step[BEFORE_NUMERATOR, c] = a
                step[BEFORE_DENOMINATOR, c] = b
                step[WEIGHT, c] = weight
                step[INVERSE, c] = ONE / (b + lanes[FIRST, c] * weight)
                lanes[NUMERATOR, c] = _decayed(lanes[DECAY, c], a) + weight * read(v[c])
                lanes[DENOMINATOR, c] = lanes[DECAY, c] * b + weight
        for i in range(steps - 1, -1, -1):
            t, step = start_time + i, kept[i]
            k, v, gy = key[row, t, start:end], value[row, t, start:end], grad_output[row, t, start:end]
            gk, gv = grad_key[row, t, start:end], grad_value[row, t, start:end]
            for c in range(n):
                a, b, ga, gb = (
                    step[BEFORE_NUMERATOR, c],
                    step[BEFORE_DENOMINATOR, c],
                    grads[G_NUMERATOR, c],
                    grads[G_DENOMINATOR, c],
                )
                present = lanes[FIRST, c] * step[WEIGHT, c]
                y = (a + present * read(v[c])) * step[INVERSE, c]
                g_past = read(gy[c]) * step[INVERSE, c]
                g_present = g_past * present
                # v - y, written so that nothing cancels where the present token outweighs the past and y is nearly v
                g_boosted_key = g_present * (b * read(v[c]) - a) * step[INVERSE, c]
                g_key = g_boosted_key + step[WEIGHT, c] * (ga * read(v[c]) + gb)
                write(gk, c, g_key if (read(v[c]) != ZERO) & (abs(read(k[c])) <= LIMIT) else ZERO)
                write(gv, c, g_present + step[WEIGHT, c] * ga)
                grads[G_TIME_FIRST, c] += g_boosted_key
                grads[G_LOG_DECAY, c] += lanes[DECAY, c] * (ga * a + gb * b)
                grads[G_NUMERATOR, c] = _decayed(lanes[DECAY, c], ga) + g_past
                grads[G_DENOMINATOR, c] = _decayed(lanes[DECAY, c], gb) - g_past * y
    copy_row(grads[G_LOG_DECAY, :n], grad_decay[row, start:end])
    copy_row(grads[G_TIME_FIRST, :n], grad_first[row, start:end])
    copy_row(grads[G_NUMERATOR, :n], grad_numerator_in[row, start:end])
    copy_row(grads[G_DENOMINATOR, :n], grad_denominator_in[row, start:end])
