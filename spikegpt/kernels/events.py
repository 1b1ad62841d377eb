"""How many spikes there are in a tensor, counted in one pass on torch's threads, with numba."""

import numpy as np
from torch import Tensor

from .cpu import ZERO, as_words, exact, parts_of_pass, read, run_passes


def count_compiled(spikes: Tensor) -> tuple[int, int]:
    """Return what `operators.count_events` does, of spikes (..., C) on the CPU, at least one."""
    words = as_words(spikes).reshape(-1, spikes.shape[-1])
    found = np.zeros((parts_of_pass(*words.shape), 2), np.int64)
    run_passes(_count_pass, *words.shape, words, found)
    events, units = found.sum(axis=0).tolist()
    return events, units


@exact
def _count_pass(first, end, parts, words, found):
    rows, width = words.shape
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            events = units = np.int32(0)
            for c in range(width):
                spike = read(words[row, c])
                events += np.int32(spike != ZERO)
                units += np.int32(abs(spike))
            found[part, 0] += events
            found[part, 1] += units
