"""Fast CPU version of `wkv7`, forward and backward, in numba; reached only through its door.

The equations are in `reference.wkv7`. One task is one head of one text: its state stays in the first-level cache, and
each row of it, which is one channel of values, is read and written once per token. The backward pass keeps the state
before every SEGMENT tokens, and recomputes those between.
"""

import numpy as np
import torch
from torch import Tensor

from ..cpu import as_arrays, as_words, copy_rows, new_words, run_heads
from ..heads import LANES, add_outer, dot_rows, exp_of, give, inlined, multiply_by, sum_rows, take, task

# tokens recomputed at once: one state each, 16 KiB for heads of 64
SEGMENT = 16
# rows of what a token brings, and of its gradients
RECEPTANCE, DECAY, KEY, VALUE, A, B, REMOVED, OUTPUT = range(8)


def wkv7_forward(
    receptance: Tensor, log_decay: Tensor, key: Tensor, value: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (output (B, T, H, N) in the dtype of `key`, state (B, H, N, N) in float32)."""
    output, last = new_words(key.shape, key.dtype), torch.empty(state.shape)
    arrays = [*_words(receptance, log_decay, key, value, a, b), *as_arrays(state), as_words(output), *as_arrays(last)]
    run_heads(_forward_task, key.shape, *arrays)
    return output.to(key.dtype), last


def wkv7_backward(
    grad_output: Tensor, grad_state: Tensor, receptance: Tensor, log_decay: Tensor, key: Tensor, value: Tensor,
    a: Tensor, b: Tensor, state: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of (receptance, log_decay, key, value, a, b, state)."""
    inputs = receptance, log_decay, key, value, a, b
    grads = [torch.empty(key.shape) if tensor is log_decay else new_words(key.shape, key.dtype) for tensor in inputs]
    grad_first = torch.empty(state.shape)
    arrays = [as_words(grad_output), *as_arrays(grad_state), *_words(*inputs), *as_arrays(state)]
    arrays += [*map(as_words, grads), *as_arrays(grad_first)]
    run_heads(_backward_task, key.shape, *arrays)
    return *(grad.to(tensor.dtype) for grad, tensor in zip(grads, inputs, strict=True)), grad_first


def _words(receptance: Tensor, log_decay: Tensor, *others: Tensor) -> list[np.ndarray]:
    return [as_words(receptance), *as_arrays(log_decay), *map(as_words, others)]


@inlined
def _fill(x, row, t, head, receptance, log_decay, key, value, a, b):
    """Put what token t brings into the rows of x."""
    take(receptance[row, t, head], x[RECEPTANCE])
    take(key[row, t, head], x[KEY])
    take(value[row, t, head], x[VALUE])
    take(a[row, t, head], x[A])
    take(b[row, t, head], x[B])
    exp_of(log_decay[row, t, head], x[DECAY])


@inlined
def _sum_products(left, right, total):
    """Write the sum of the products of rows of two matrices."""
    total[:] = 0
    for i in range(0, left.shape[0], 2):
        left0, left1, right0, right1 = left[i], left[i + 1], right[i], right[i + 1]
        for j in range(total.size):
            total[j] += left0[j] * right0[j] + left1[j] * right1[j]


@inlined
def _decay_and_add(matrix, decay, factors, vector):
    """Multiply each row by the decay, and add the vector times the row's factor."""
    for i in range(matrix.shape[0]):
        row, factor = matrix[i], factors[i]
        for j in range(row.size):
            row[j] = row[j] * decay[j] + factor * vector[j]


@inlined
def _step(matrix, x):
    """Turn the state before a token into that after it; write x[REMOVED]."""
    dot_rows(matrix, x[A], x[REMOVED])
    removed, value, w, b, k = x[REMOVED], x[VALUE], x[DECAY], x[B], x[KEY]
    for i in range(matrix.shape[0]):
        row, u, v = matrix[i], removed[i], value[i]
        for j in range(row.size):
            row[j] = row[j] * w[j] + u * b[j] + v * k[j]


@inlined
def _step_back(grad, before, after, x, g):
    """Turn the gradient of the state after a token into that of the one before it; write the rows of g.

    x[OUTPUT] is the gradient of the output.
    """
    add_outer(grad, x[OUTPUT], x[RECEPTANCE])
    sum_rows(after, x[OUTPUT], g[RECEPTANCE])
    dot_rows(grad, x[KEY], g[VALUE])
    sum_rows(grad, x[VALUE], g[KEY])
    dot_rows(grad, x[B], g[REMOVED])
    sum_rows(grad, x[REMOVED], g[B])
    sum_rows(before, g[REMOVED], g[A])
    _sum_products(before, grad, g[DECAY])
    _decay_and_add(grad, x[DECAY], g[REMOVED], x[A])


@task
def _forward_task(row, head, receptance, log_decay, key, value, a, b, state, output, last):
    T, N = key.shape[1], key.shape[3]
    P = LANES * ((N + LANES - 1) // LANES)
    matrix, x = np.zeros((P, P), np.float32), np.zeros((8, P), np.float32)
    copy_rows(state[row, head], matrix[:N, :N])
    for t in range(T):
        _fill(x, row, t, head, receptance, log_decay, key, value, a, b)
        _step(matrix, x)
        dot_rows(matrix, x[RECEPTANCE], x[OUTPUT])
        give(x[OUTPUT], output[row, t, head])
    copy_rows(matrix[:N, :N], last[row, head])


@task
def _backward_task(
    row, head, grad_output, grad_state, receptance, log_decay, key, value, a, b, state, grad_receptance,
    grad_log_decay, grad_key, grad_value, grad_a, grad_b, grad_first,
):  # fmt: skip
    T, N = key.shape[1], key.shape[3]
    P = LANES * ((N + LANES - 1) // LANES)
    segments = (T + SEGMENT - 1) // SEGMENT
    # the state before each segment, and within one before and after each token
    checkpoints, kept = np.zeros((segments, P, P), np.float32), np.zeros((SEGMENT + 1, P, P), np.float32)
    xs, g = np.zeros((SEGMENT, 8, P), np.float32), np.zeros((8, P), np.float32)
    matrix = kept[0]
    copy_rows(state[row, head], matrix[:N, :N])
    for segment in range(segments):
        copy_rows(matrix, checkpoints[segment])
        if segment < segments - 1:
            for t in range(segment * SEGMENT, (segment + 1) * SEGMENT):
                _fill(xs[0], row, t, head, receptance, log_decay, key, value, a, b)
                _step(matrix, xs[0])
    grad = np.zeros((P, P), np.float32)
    copy_rows(grad_state[row, head], grad[:N, :N])
    for segment in range(segments - 1, -1, -1):
        first = segment * SEGMENT
        tokens = min(SEGMENT, T - first)
        copy_rows(checkpoints[segment], kept[0])
        for i in range(tokens):
            _fill(xs[i], row, first + i, head, receptance, log_decay, key, value, a, b)
            # in place: of two matrices that may be one, the compiler makes no vector instructions
            copy_rows(kept[i], kept[i + 1])
            _step(kept[i + 1], xs[i])
        for i in range(tokens - 1, -1, -1):
            t, x = first + i, xs[i]
            take(grad_output[row, t, head], x[OUTPUT])
            _step_back(grad, kept[i], kept[i + 1], x, g)
            multiply_by(x[DECAY], g[DECAY])
            give(g[RECEPTANCE], grad_receptance[row, t, head])
            give(g[DECAY], grad_log_decay[row, t, head])
            give(g[KEY], grad_key[row, t, head])
            give(g[VALUE], grad_value[row, t, head])
            give(g[A], grad_a[row, t, head])
            give(g[B], grad_b[row, t, head])
    copy_rows(grad[:N, :N], grad_first[row, head])
