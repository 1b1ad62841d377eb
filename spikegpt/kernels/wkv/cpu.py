"""Fast CPU version of `wkv`, forward and backward, in numba; reached only through its door.

The equations are in `reference.wkv`; how tasks, lanes and segments work is told in `kernels/cpu.py`.
"""

import numpy as np
import torch
from torch import Tensor

from ..cpu import (
    BLOCK,
    ONE,
    WKV_SEGMENT,
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
from ..decay import log_decay_of, time_decay_gradient


def wkv_forward(
    time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, numerator: Tensor, denominator: Tensor,
    max_exponent: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (output (B, T, C) in the dtype of `key`, numerator, denominator, max_exponent), the state in float32."""
    output = new_words(key.shape, key.dtype)
    last_numerator, last_denominator, last_exponent = (torch.empty(numerator.shape) for _ in range(3))
    arrays = as_arrays(log_decay_of(as_float32(time_decay), exp_of_few), time_first)
    arrays += [*map(as_words, (key, value)), *as_arrays(numerator, denominator, max_exponent), as_words(output)]
    arrays += as_arrays(last_numerator, last_denominator, last_exponent)
    run_tasks(_wkv_forward_task, key.shape, *arrays)
    return output.to(key.dtype), last_numerator, last_denominator, last_exponent


def wkv_backward(
    grad_output: Tensor, grad_numerator: Tensor, grad_denominator: Tensor, time_decay: Tensor, time_first: Tensor,
    key: Tensor, value: Tensor, numerator: Tensor, denominator: Tensor, max_exponent: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of (time_decay, time_first, key, value, numerator, denominator)."""
    log_decay = log_decay_of(as_float32(time_decay), exp_of_few)
    grad_key, grad_value = (new_words(key.shape, key.dtype) for _ in range(2))
    # of the log decay, of time_first, of the incoming numerator and denominator: one row per batch row
    grads = [torch.empty(numerator.shape) for _ in range(4)]
    arrays = [as_words(grad_output), *as_arrays(grad_numerator, grad_denominator, log_decay, time_first)]
    arrays += [*map(as_words, (key, value)), *as_arrays(numerator, denominator, max_exponent)]
    arrays += [*map(as_words, (grad_key, grad_value)), *as_arrays(*grads)]
    run_tasks(_wkv_backward_task, key.shape, *arrays)
    grad_decay = time_decay_gradient(sum_over_batch(grads[0]), time_decay, log_decay)
    grad_first = sum_over_batch(grads[1])
    return grad_decay, grad_first, grad_key.to(key.dtype), grad_value.to(key.dtype), grads[2], grads[3]


@fused
def _weights(past_exponent, present_exponent):
    """Return exp of both, divided by the larger one: one of the two is 1, so there is one exponential to compute."""
    small = exp_nonpositive(-abs(past_exponent - present_exponent))
    return (ONE, small) if past_exponent >= present_exponent else (small, ONE)


# rows of the working array of a wkv task
NUMERATOR, DENOMINATOR, MAX_EXPONENT, LOG_DECAY, TIME_FIRST = range(5)


@fused
def _fill_wkv_lanes(lanes, log_decay, time_first, numerator, denominator, max_exponent):
    for c in range(log_decay.size):
        lanes[NUMERATOR, c], lanes[DENOMINATOR, c], lanes[MAX_EXPONENT, c] = (
            numerator[c],
            denominator[c],
            max_exponent[c],
        )
        lanes[LOG_DECAY, c], lanes[TIME_FIRST, c] = log_decay[c], time_first[c]


@fused
def _wkv_forward_task(
    row, start, width, log_decay, time_first, key, value, numerator, denominator, max_exponent, output,
    last_numerator, last_denominator, last_exponent,
):  # fmt: skip
    T, C = key.shape[1:]
    end = min(start + width, C)
    n = end - start
    state = numerator[row, start:end], denominator[row, start:end], max_exponent[row, start:end]
    lanes = np.empty((5, BLOCK), np.float32)
    _fill_wkv_lanes(lanes, log_decay[start:end], time_first[start:end], *state)
    for t in range(T):
        k, v, y = key[row, t, start:end], value[row, t, start:end], output[row, t, start:end]
        for c in range(n):
            a, b, p = lanes[NUMERATOR, c], lanes[DENOMINATOR, c], lanes[MAX_EXPONENT, c]
            past, present = _weights(p, lanes[TIME_FIRST, c] + read(k[c]))
            write(y, c, (past * a + present * read(v[c])) / (past * b + present))
            decayed = p + lanes[LOG_DECAY, c]
            past, present = _weights(decayed, read(k[c]))
            lanes[NUMERATOR, c] = past * a + present * read(v[c])
            lanes[DENOMINATOR, c] = past * b + present
            lanes[MAX_EXPONENT, c] = decayed if decayed >= read(k[c]) else read(k[c])
    copy_row(lanes[NUMERATOR, :n], last_numerator[row, start:end])
    copy_row(lanes[DENOMINATOR, :n], last_denominator[row, start:end])
    copy_row(lanes[MAX_EXPONENT, :n], last_exponent[row, start:end])


# what the walk forward keeps of each step for that backward: the state before it, its share and the present token's in
# the output (weight / sum of weights), and their weights in the next state
BEFORE_NUMERATOR, BEFORE_DENOMINATOR, PAST_SHARE, PRESENT_SHARE, PAST, PRESENT = range(6)
# rows of the gradients carried back
G_NUMERATOR, G_DENOMINATOR, G_LOG_DECAY, G_TIME_FIRST = range(4)


@fused
def _wkv_backward_task(
    row, start, width, grad_output, grad_numerator, grad_denominator, log_decay, time_first, key, value, numerator,
    denominator, max_exponent, grad_key, grad_value, grad_decay, grad_first, grad_numerator_in, grad_denominator_in,
):  # fmt: skip
    T, C = key.shape[1:]
    end = min(start + width, C)
    n = end - start
    state = numerator[row, start:end], denominator[row, start:end], max_exponent[row, start:end]
    lanes = np.empty((5, BLOCK), np.float32)
    _fill_wkv_lanes(lanes, log_decay[start:end], time_first[start:end], *state)
    segments = (T + WKV_SEGMENT - 1) // WKV_SEGMENT
    # the state at the start of each segment
    checkpoints = np.empty((segments, 3, BLOCK), np.float32)
    for segment in range(segments):
        copy_rows(lanes[:3, :n], checkpoints[segment, :, :n])
        if segment == segments - 1:
            break
        for t in range(segment * WKV_SEGMENT, (segment + 1) * WKV_SEGMENT):
            k, v = key[row, t, start:end], value[row, t, start:end]
            for c in range(n):
                decayed = lanes[MAX_EXPONENT, c] + lanes[LOG_DECAY, c]
                past, present = _weights(decayed, read(k[c]))
                lanes[NUMERATOR, c] = past * lanes[NUMERATOR, c] + present * read(v[c])
                lanes[DENOMINATOR, c] = past * lanes[DENOMINATOR, c] + present
                lanes[MAX_EXPONENT, c] = decayed if decayed >= read(k[c]) else read(k[c])

    kept = np.empty((WKV_SEGMENT, 6, BLOCK), np.float32)
    grads = np.zeros((4, BLOCK), np.float32)
    copy_row(grad_numerator[row, start:end], grads[G_NUMERATOR, :n])
    copy_row(grad_denominator[row, start:end], grads[G_DENOMINATOR, :n])
    for segment in range(segments - 1, -1, -1):
        first = segment * WKV_SEGMENT
        steps = min(WKV_SEGMENT, T - first)
        copy_rows(checkpoints[segment, :, :n], lanes[:3, :n])
        for i in range(steps):
            k, v, step = key[row, first + i, start:end], value[row, first + i, start:end], kept[i]
            for c in range(n):
                a, b, p = lanes[NUMERATOR, c], lanes[DENOMINATOR, c], lanes[MAX_EXPONENT, c]
                past, present = _weights(p, lanes[TIME_FIRST, c] + read(k[c]))
                inverse = ONE / (past * b + present)
                step[BEFORE_NUMERATOR, c] = a
                step[BEFORE_DENOMINATOR, c] = b
                step[PAST_SHARE, c] = past * inverse
                step[PRESENT_SHARE, c] = present * inverse
                decayed = p + lanes[LOG_DECAY, c]
                past, present = _weights(decayed, read(k[c]))
                step[PAST, c] = past
                step[PRESENT, c] = present
                lanes[NUMERATOR, c] = past * a + present * read(v[c])
                lanes[DENOMINATOR, c] = past * b + present
                lanes[MAX_EXPONENT, c] = decayed if decayed >= read(k[c]) else read(k[c])
        for i in range(steps - 1, -1, -1):
            v, gy, step = value[row, first + i, start:end], grad_output[row, first + i, start:end], kept[i]
            gk, gv = grad_key[row, first + i, start:end], grad_value[row, first + i, start:end]
            for c in range(n):
                a, b, ga, gb = (
                    step[BEFORE_NUMERATOR, c],
                    step[BEFORE_DENOMINATOR, c],
                    grads[G_NUMERATOR, c],
                    grads[G_DENOMINATOR, c],
                )
                y = step[PAST_SHARE, c] * a + step[PRESENT_SHARE, c] * read(v[c])
                g_past, g_present = read(gy[c]) * step[PAST_SHARE, c], read(gy[c]) * step[PRESENT_SHARE, c]
                g_boosted_key = g_present * (read(v[c]) - y)
                write(gk, c, g_boosted_key + step[PRESENT, c] * (ga * read(v[c]) + gb))
                write(gv, c, g_present + step[PRESENT, c] * ga)
                grads[G_TIME_FIRST, c] += g_boosted_key
                grads[G_LOG_DECAY, c] += step[PAST, c] * (ga * a + gb * b)
                grads[G_NUMERATOR, c] = step[PAST, c] * ga + g_past
                grads[G_DENOMINATOR, c] = step[PAST, c] * gb - g_past * y
    copy_row(grads[G_LOG_DECAY, :n], grad_decay[row, start:end])
    copy_row(grads[G_TIME_FIRST, :n], grad_first[row, start:end])
    copy_row(grads[G_NUMERATOR, :n], grad_numerator_in[row, start:end])
    copy_row(grads[G_DENOMINATOR, :n], grad_denominator_in[row, start:end])
