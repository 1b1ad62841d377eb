"""Fast CPU version of `wkv6`, forward and backward, in numba; reached only through its door.

The equations are in `reference.wkv6`. One task is one head of one text: its state stays in the first-level cache. The
backward pass keeps the state before every SEGMENT tokens, and recomputes those between: nothing is divided by a decay,
which may be 0.
"""

import numpy as np
import torch
from torch import Tensor

from ..cpu import as_arrays, as_words, copy_row, copy_rows, new_words, run_heads, sum_over_batch
from ..heads import LANES, exp_of, give, inlined, multiply_by, sum_rows, take, task

# tokens recomputed at once: one state each, 16 KiB for heads of 64
SEGMENT = 16
# rows of what a token brings
RECEPTANCE, DECAY, KEY, VALUE, OUTPUT, FIRST = range(6)


def wkv6_forward(
    receptance: Tensor, log_decay: Tensor, key: Tensor, value: Tensor, time_first: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (output (B, T, H, N) in the dtype of `key`, state (B, H, N, N) in float32)."""
    output, last = new_words(key.shape, key.dtype), torch.empty(state.shape)
    words = [as_words(tensor) for tensor in (receptance, key, value)]
    run_heads(_forward_task, key.shape, *words, *as_arrays(log_decay, time_first, state, last), as_words(output))
    return output.to(key.dtype), last


def wkv6_backward(
    grad_output: Tensor, grad_state: Tensor, receptance: Tensor, log_decay: Tensor, key: Tensor, value: Tensor,
    time_first: Tensor, state: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of (receptance, log_decay, key, value, time_first, state)."""
    words = [as_words(tensor) for tensor in (grad_output, receptance, key, value)]
    grads = [new_words(key.shape, key.dtype) for _ in range(3)]
    grad_log_decay, grad_state_before = torch.empty(key.shape), torch.empty(state.shape)
    grad_first = torch.empty(key.shape[0], *time_first.shape)
    arrays = as_arrays(log_decay, time_first, state, grad_state, grad_log_decay, grad_first, grad_state_before)
    run_heads(_backward_task, key.shape, *words, *arrays, *map(as_words, grads))
    grad_receptance, grad_key, grad_value = (grad.to(key.dtype) for grad in grads)
    return grad_receptance, grad_log_decay, grad_key, grad_value, sum_over_batch(grad_first), grad_state_before


@inlined
def _fill(x, row, t, head, receptance, log_decay, key, value):
    """Put what token t brings into the rows of x."""
    take(receptance[row, t, head], x[RECEPTANCE])
    exp_of(log_decay[row, t, head], x[DECAY])
    take(key[row, t, head], x[KEY])
    take(value[row, t, head], x[VALUE])


@inlined
def _dot(x, y):
    total = np.float32(0)
    for j in range(x.size):
        total += x[j] * y[j]
    return total


@inlined
def _sum_of_products(x, y, z):
    total = np.float32(0)
    for j in range(x.size):
        total += x[j] * y[j] * z[j]
    return total


@inlined
def _add(factor, vector, total):
    for j in range(total.size):
        total[j] += factor * vector[j]


@inlined
def _add_product(factor, x, y, total):
    for j in range(total.size):
        total[j] += factor * x[j] * y[j]


# where one matrix may be the other, the compiler makes no vector instructions: hence in place, and into another


@inlined
def _step(matrix, decay, factors, vector):
    """Multiply each row by its decay, and add the vector times the row's factor."""
    for i in range(matrix.shape[0]):
        row, w, factor = matrix[i], decay[i], factors[i]
        for j in range(row.size):
            row[j] = w * row[j] + factor * vector[j]


@inlined
def _step_and_read(after, before, decay, factors, vector, reader, products):
    """Write what `_step` makes of the matrix `before`, and the products of its rows, as they were, with the reader."""
    for i in range(before.shape[0]):
        new, old, w, factor = after[i], before[i], decay[i], factors[i]
        product = np.float32(0)
        for j in range(new.size):
            product += old[j] * reader[j]
            new[j] = w * old[j] + factor * vector[j]
        products[i] = product


@inlined
def _step_back(grad, before, x, g):
    """Turn the gradient of the state after a token into that of the one before it; write the sums over its rows."""
    value, upstream = x[VALUE], x[OUTPUT]
    for i in range(grad.shape[0]):
        row, old, w, factor = grad[i], before[i], x[DECAY, i], x[RECEPTANCE, i]
        written = kept = np.float32(0)
        for j in range(row.size):
            written += row[j] * value[j]
            kept += row[j] * old[j]
            row[j] = w * row[j] + factor * upstream[j]
        g[KEY, i], g[DECAY, i] = written, kept


@task
def _forward_task(row, head, receptance, key, value, log_decay, time_first, state, last, output):
    T, N = key.shape[1], key.shape[3]
    P = LANES * ((N + LANES - 1) // LANES)
    matrix, x = np.zeros((P, P), np.float32), np.zeros((6, P), np.float32)
    copy_rows(state[row, head], matrix[:N, :N])
    copy_row(time_first[head], x[FIRST, :N])
    for t in range(T):
        _fill(x, row, t, head, receptance, log_decay, key, value)
        sum_rows(matrix, x[RECEPTANCE], x[OUTPUT])
        _add(_sum_of_products(x[RECEPTANCE], x[FIRST], x[KEY]), x[VALUE], x[OUTPUT])
        _step(matrix, x[DECAY], x[KEY], x[VALUE])
        give(x[OUTPUT], output[row, t, head])
    copy_rows(matrix[:N, :N], last[row, head])


@task
def _backward_task(
    row, head, grad_output, receptance, key, value, log_decay, time_first, state, grad_state, grad_log_decay,
    grad_first, grad_state_before, grad_receptance, grad_key, grad_value,
):  # fmt: skip
    T, N = key.shape[1], key.shape[3]
    P = LANES * ((N + LANES - 1) // LANES)
    segments = (T + SEGMENT - 1) // SEGMENT
    # the state before each segment, and within one before each token
    checkpoints, kept = np.zeros((segments, P, P), np.float32), np.zeros((SEGMENT + 1, P, P), np.float32)
    xs, g, bonus = np.zeros((SEGMENT, 6, P), np.float32), np.zeros((6, P), np.float32), np.zeros(P, np.float32)
    first, reads = np.zeros(P, np.float32), np.zeros((SEGMENT, P), np.float32)
    copy_row(time_first[head], first[:N])
    matrix = kept[0]
    copy_rows(state[row, head], matrix[:N, :N])
    for segment in range(segments):
        copy_rows(matrix, checkpoints[segment])
        if segment < segments - 1:
            for t in range(segment * SEGMENT, (segment + 1) * SEGMENT):
                _fill(xs[0], row, t, head, receptance, log_decay, key, value)
                _step(matrix, xs[0, DECAY], xs[0, KEY], xs[0, VALUE])
    grad = np.zeros((P, P), np.float32)
    copy_rows(grad_state[row, head], grad[:N, :N])
    for segment in range(segments - 1, -1, -1):
        start = segment * SEGMENT
        tokens = min(SEGMENT, T - start)
        copy_rows(checkpoints[segment], kept[0])
        for i in range(tokens):
            x = xs[i]
            _fill(x, row, start + i, head, receptance, log_decay, key, value)
            take(grad_output[row, start + i, head], x[OUTPUT])
            _step_and_read(kept[i + 1], kept[i], x[DECAY], x[KEY], x[VALUE], x[OUTPUT], reads[i])
        for i in range(tokens - 1, -1, -1):
            t, x = start + i, xs[i]
            r, k = x[RECEPTANCE], x[KEY]
            sum_rows(grad, k, g[VALUE])
            _add(_sum_of_products(r, first, k), x[OUTPUT], g[VALUE])
            _step_back(grad, kept[i], x, g)
            own = _dot(x[OUTPUT], x[VALUE])
            _add_product(own, first, k, reads[i])
            _add_product(own, first, r, g[KEY])
            _add_product(own, r, k, bonus)
            multiply_by(x[DECAY], g[DECAY])
            give(reads[i], grad_receptance[row, t, head])
            give(g[DECAY], grad_log_decay[row, t, head])
            give(g[KEY], grad_key[row, t, head])
            give(g[VALUE], grad_value[row, t, head])
    copy_row(bonus[:N], grad_first[row, head])
    copy_rows(grad[:N, :N], grad_state_before[row, head])
