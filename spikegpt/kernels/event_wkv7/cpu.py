"""Fast CPU version of `event_wkv7` in numba; reached only through its door.

The equations are in `reference.event_wkv7`. One task is one head of one text. Its matrix is turned: a column of keys is
a row in memory, so that an event reads or writes numbers that lie side by side.
"""

import numpy as np
import torch
from torch import Tensor

from ..compiling import compiled
from ..cpu import ZERO, as_arrays, as_words, exp_nonpositive, new_words, read, run_heads, write

inlined = compiled(fastmath={"contract"}, forceinline=True)
task = compiled(fastmath={"contract"})


def event_wkv7_forward(
    receptance: Tensor, log_decay: Tensor, key: Tensor, value: Tensor, a: Tensor, b: Tensor, matrix: Tensor,
    waiting: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (output (B, T, H, N) in the dtype of `key`, matrix (B, H, N, N), waiting (B, H, N)), both in float32."""
    output = new_words(key.shape, key.dtype)
    turned, waits = (part.clone(memory_format=torch.contiguous_format) for part in (matrix.mT, waiting))
    words = [as_words(tensor) for tensor in (receptance, key, value, a, b)]
    run_heads(_task, key.shape, *words, *as_arrays(log_decay, turned, waits), as_words(output))
    return output.to(key.dtype), turned.mT.contiguous(), waits


@task
def _task(row, head, receptance, key, value, a, b, log_decay, turned, waits, output):
    T, N = key.shape[1], key.shape[3]
    matrix, waiting = turned[row, head], waits[row, head]
    v, removed, total = np.empty(N, np.float32), np.empty(N, np.float32), np.empty(N, np.float32)
    # the columns of events, listed without a branch: which they are cannot be foretold
    edits, reads, factors = np.empty(N, np.int64), np.empty(N, np.int64), np.empty(N, np.float32)
    for t in range(T):
        keys, a_t, b_t, r = key[row, t, head], a[row, t, head], b[row, t, head], receptance[row, t, head]
        n_edits = n_reads = 0
        for j in range(N):
            edits[n_edits], reads[n_reads] = j, j
            n_edits += (read(keys[j]) != ZERO) | (read(a_t[j]) != ZERO) | (read(b_t[j]) != ZERO)
            n_reads += read(r[j]) != ZERO
        for i in range(n_edits):
            j = edits[i]
            factors[i] = read(a_t[j]) * exp_nonpositive(waiting[j])
        _sum_columns(matrix, edits[:n_edits], factors, removed)
        for j in range(N):
            v[j] = read(value[row, t, head, j])
            waiting[j] += log_decay[row, t, head, j]
        for i in range(n_edits):
            j = edits[i]
            _edit(matrix[j], exp_nonpositive(waiting[j]), read(b_t[j]), removed, read(keys[j]), v)
            waiting[j] = ZERO
        for i in range(n_reads):
            j = reads[i]
            factors[i] = read(r[j]) * exp_nonpositive(waiting[j])
        _sum_columns(matrix, reads[:n_reads], factors, total)
        for i in range(N):
            write(output[row, t, head], i, total[i])


@inlined
def _sum_columns(matrix, columns, factors, total):
    """Write the sum of the columns that are listed, each times its factor, two at a time."""
    total[:] = ZERO
    pairs = columns.size // 2
    for pair in range(pairs):
        first, second = matrix[columns[2 * pair]], matrix[columns[2 * pair + 1]]
        factor, other = factors[2 * pair], factors[2 * pair + 1]
        for i in range(total.size):
            total[i] += factor * first[i] + other * second[i]
    if columns.size > 2 * pairs:
        last, factor = matrix[columns[2 * pairs]], factors[2 * pairs]
        for i in range(total.size):
            total[i] += factor * last[i]


@inlined
def _edit(column, decay, b, removed, k, v):
    for i in range(column.size):
        column[i] = column[i] * decay + removed[i] * b + v[i] * k
