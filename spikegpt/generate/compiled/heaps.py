"""The largest of many numbers, in compiled code: as a heap of the few that are kept, or of tokens, taken one by one."""

import numpy as np

from .team import fused


@fused
def _keep(heap, value):
    """Put a value into the place of the smallest of a heap, heap[0], and let it sink."""
    place = 0
    while True:
        child = 2 * place + 1
        if child >= heap.size:
            break
        if child + 1 < heap.size and heap[child + 1] < heap[child]:
            child += 1
        if not heap[child] < value:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = value


@fused
def clear(heap):
    """Empty a heap of the largest: each of its places holds -inf."""
    for place in range(heap.size):
        heap[place] = -np.inf


@fused
def offer(heap, value):
    """Keep `value` if it is among the largest; heap[0] is the smallest of those that are kept."""
    if value > heap[0]:
        _keep(heap, value)


@fused
def _is_before(weights, one, other):
    """Whether token `one` comes before `other`, the likelier first, of two alike the smaller."""
    return weights[one] > weights[other] or (weights[one] == weights[other] and one < other)


@fused
def _sift(weights, order, place, size):
    """Let the token at `place` of a heap sink to where it belongs."""
    while True:
        child = 2 * place + 1
        if child >= size:
            return
        if child + 1 < size and _is_before(weights, order[child + 1], order[child]):
            child += 1
        if not _is_before(weights, order[child], order[place]):
            return
        order[place], order[child] = order[child], order[place]
        place = child


@fused
def heapify(weights, order, size):
    """Order tokens order[:size] so that the likeliest is the first, and none stands before its heir."""
    for place in range(size // 2 - 1, -1, -1):
        _sift(weights, order, place, size)


@fused
def pop(weights, order, size):
    """Take the likeliest token from a heap of `size`; it is found behind the others."""
    order[0], order[size - 1] = order[size - 1], order[0]
    _sift(weights, order, 0, size - 1)
    return order[size - 1]
