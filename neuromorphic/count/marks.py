"""What rows of numbers leave behind when they meet a weight: enough to work out the cost of all products at last.

`products.matrix_product` is the definition. Its operators read the rows several times; here they are read once, by
compiled code on all of torch's threads, and a row that comes alone by NumPy.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import torch

from .operands import BINARY, INTEGER, LARGEST_LEVEL, REAL, TERNARY, ZERO, classify_row

# below so many numbers a row of them is looked at by itself, for compiled code is loaded at its first use
FEW = 1 << 12
# below so many numbers a second thread costs more than it saves
SMALL = 1 << 17
PIECES_PER_THREAD = 2
# of one piece: sums of as many levels fit into 32 bits
MOST_ROWS = 1 << 24


class Marks:
    """How many rows of K numbers there were of each alphabet, and how often each number was not 0."""

    def __init__(self, K: int):
        # by alphabet
        self.rows, self.fired = np.zeros(REAL + 1, np.int64), np.zeros((REAL + 1, K), np.int64)
        # sums of the magnitudes in rows of levels, and the largest of them
        self.levels, self.largest_level = np.zeros(K, np.int64), 0

    def add_row(self, row: np.ndarray) -> None:
        nonzero = row != 0
        # the first number of a vector of real numbers shows a fraction
        if not row.item(0).is_integer():
            alphabet = REAL
        elif nonzero.astype(row.dtype).tobytes() == row.tobytes():
            alphabet = BINARY if nonzero.any() else ZERO
        else:
            alphabet = classify_row(row)
        self.rows[alphabet] += 1
        self.fired[alphabet] += nonzero
        if alphabet == INTEGER:
            levels = np.abs(row).astype(np.int64)
            self.levels += levels
            self.largest_level = max(self.largest_level, int(levels.max()))

    def add_rows(self, rows: np.ndarray) -> None:
        """Add rows (N, K) of float32 or float64."""
        if rows.size < FEW:
            for row in rows:
                self.add_row(row)
            return
        threads = 1 if rows.size < SMALL else torch.get_num_threads()
        pieces = max(1 if threads == 1 else PIECES_PER_THREAD * threads, -(-len(rows) // MOST_ROWS))
        cuts = [len(rows) * piece // pieces for piece in range(pieces + 1)]
        parts = [rows[start:end] for start, end in pairwise(cuts) if start < end]
        for numbers, fired, levels, largest_level in _map(_marks_of, parts):
            self.rows += numbers
            self.fired += fired
            self.levels += levels
            self.largest_level = max(self.largest_level, largest_level)


def _marks_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    K = rows.shape[1]
    numbers, fired, levels = np.zeros(REAL + 1, np.int64), np.zeros((REAL + 1, K), np.int32), np.zeros(K, np.int32)
    return numbers, fired, levels, _compiled()(np.ascontiguousarray(rows), numbers, fired, levels)


@cache
def _compiled() -> Callable[..., int]:
    # loaded at its first use, for that takes as long as loading torch does
    import numba

    return numba.njit(nogil=True, cache=True, error_model="numpy")(_mark)


def _mark(rows, numbers, fired, levels):
    """Add the marks of contiguous `rows` (N, K) to the arrays, and return the largest level."""
    largest_level = 0
    for n in range(rows.shape[0]):
        row = rows[n]
        alphabet = REAL
        # the first number of nearly all vectors of real numbers shows a fraction
        if row[0] == np.floor(row[0]):
            fractions = nonzeros = negatives = several = beyond = np.int32(0)
            for k in range(row.shape[0]):
                # written without branches, so that many numbers are looked at together; NaN is no whole number
                fractions += np.int32(row[k] != np.floor(row[k]))
                nonzeros += np.int32(row[k] != 0)
                negatives += np.int32(row[k] < 0)
                several += np.int32(abs(row[k]) > 1)
                beyond += np.int32(abs(row[k]) > LARGEST_LEVEL)
            if fractions == 0 and beyond == 0:
                alphabet = INTEGER if several else TERNARY if negatives else BINARY if nonzeros else ZERO
        numbers[alphabet] += 1
        fired_here = fired[alphabet]
        for k in range(row.shape[0]):
            fired_here[k] += np.int32(row[k] != 0)
        if alphabet == INTEGER:
            for k in range(row.shape[0]):
                levels[k] += np.int32(abs(row[k]))
                largest_level = max(largest_level, int(abs(row[k])))
    return largest_level


_pool: tuple[int, int, ThreadPoolExecutor] | None = None


def _map(function: Callable, parts: list[np.ndarray]) -> list:
    """Return `function` of each part, by as many threads as torch has; this one is among them."""
    global _pool
    helpers = min(torch.get_num_threads(), len(parts)) - 1
    if helpers < 1:
        return [function(part) for part in parts]
    # in a fork there are no threads
    if _pool is None or _pool[:2] != (os.getpid(), helpers):
        _pool = os.getpid(), helpers, ThreadPoolExecutor(helpers, thread_name_prefix="neuromorphic")
    own = -(-len(parts) // (helpers + 1))
    waiting = [_pool[2].submit(function, part) for part in parts[own:]]
    return [*map(function, parts[:own]), *(part.result() for part in waiting)]
