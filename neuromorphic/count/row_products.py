"""Products of rows with one weight, on the CPU: each row leaves its mark, and their cost is worked out once at last.

`products.matrix_product` is the definition. For one row its operators take longer than the product that they count, and
for thousands numpy is several times faster.
"""

import numpy as np
import torch
from torch import Tensor

from .counts import Counts, Site
from .dispatch import unseen
from .operands import BINARY, INTEGER, LARGEST_LEVEL, REAL, TERNARY, ZERO, classify_row, count_by_column
from .products import EFFECTIVE, ELEMENTS, Weight, send_units, split
from .storages import storage_key

# numbers that are looked at in one go, so that they stay near the processor; threads would share nothing but the GIL
BLOCK = 1 << 17
FORMATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Marks:
    """What rows of K numbers have left: how many there were of each alphabet, and how often each number was not 0."""

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
            self._add_levels(np.abs(row[None]))

    def add_rows(self, rows: np.ndarray) -> None:
        step = max(BLOCK // rows.shape[1], 1)
        for start in range(0, len(rows), step):
            self._add_block(rows[start : start + step])

    def _add_block(self, rows: np.ndarray) -> None:
        nonzero, firsts = rows != 0, rows[:, 0]
        if not (firsts == np.floor(firsts)).any():
            # nearly always for real numbers
            self.rows[REAL] += len(rows)
            self.fired[REAL] += count_by_column(nonzero)
            return
        is_whole, lowest, highest = rows == np.floor(rows), rows.min(), rows.max()
        levels = None
        if is_whole.all() and lowest >= -LARGEST_LEVEL and highest <= LARGEST_LEVEL:
            # nearly always for spikes: to look at each row by itself would take longer than all of this
            levels = rows if lowest >= 0 else np.abs(rows)
            alphabets = _alphabets_of_levels(rows, levels, nonzero)
        else:
            are_real = _any_by_row(~is_whole)
            alphabets = np.full(len(rows), REAL)
            alphabets[~are_real] = [classify_row(row) for row in rows[~are_real]]
        numbers, fired = np.bincount(alphabets, minlength=REAL + 1), np.zeros_like(self.fired)
        # those of the commonest alphabet are what is left of all: to pick rows out is to copy them
        commonest = int(numbers.argmax())
        for alphabet in (BINARY, TERNARY, INTEGER, REAL):
            if numbers[alphabet] and alphabet != commonest:
                fired[alphabet] = count_by_column(nonzero[alphabets == alphabet])
        if commonest != ZERO:
            fired[commonest] = count_by_column(nonzero) - fired.sum(axis=0)
        self.rows += numbers
        self.fired += fired
        if numbers[INTEGER] and levels is not None:
            # every spike of another row is worth one
            self._add_levels(levels, fired[BINARY] + fired[TERNARY])
        elif numbers[INTEGER]:
            self._add_levels(np.abs(rows[alphabets == INTEGER]))

    def _add_levels(self, levels: np.ndarray, others: int | np.ndarray = 0) -> None:
        # sums of a block of levels are exact in float32
        self.levels += levels.sum(axis=0, dtype=np.float32).astype(np.int64) - others
        self.largest_level = max(self.largest_level, int(levels.max()))


class RowProducts:
    """The products at `site` of rows (1, N, K) with w (1, K, M), of which `weight` says what is known.

    The weight itself is not kept: it may be freed.
    """

    def __init__(self, site: Site, w: Tensor, weight: Weight):
        self.site, self.weight = site, weight
        self.memory, self.K, self.M = storage_key(w), w.shape[1], w.shape[2]
        self.is_closed = False
        self._version = _version(w)
        self._calls, self._marks = 0, Marks(self.K)
        self._before = (0, 0)

    @staticmethod
    def takes(x: Tensor, w: Tensor) -> bool:
        """True for the operands that `add` knows: one matrix of floating point on the CPU."""
        return x.shape[0] == 1 and x.dtype in FORMATS and x.device.type == "cpu" and not w.is_complex()

    def is_current(self, w: Tensor) -> bool:
        """False once the weight, of which `w` is any view, was written to."""
        return not self.is_closed and _version(w) == self._version

    def add(self, x: Tensor) -> None:
        """Take note of the rows (..., K) of one call; one row may have any shape."""
        if x.requires_grad or x.dtype == torch.bfloat16:
            # numpy knows neither
            with unseen():
                x = x.detach().float() if x.dtype == torch.bfloat16 else x.detach()
        self._calls += 1
        rows = x.numpy().reshape(-1, self.K)
        if len(rows) == 1:
            self._marks.add_row(rows[0])
            return
        self._marks.add_rows(rows)

    def new_events(self) -> tuple[int, int]:
        """Return how many numbers were not 0 since this was asked last, and what they repeat as unit spikes."""
        marks = self._marks
        events, repeated = int(marks.fired.sum()), int(marks.levels.sum() - marks.fired[INTEGER].sum())
        before, self._before = self._before, (events, repeated)
        return events - before[0], repeated - before[1]

    def counts(self) -> Counts:
        """Return the counts of all rows so far."""
        marks, met = self._marks, self.weight.nonzeros.numpy()[0]
        K, M, rows, fired = len(met), self.weight.fan_out, int(marks.rows.sum()), marks.fired.sum(axis=1)
        nonzeros = int(fired.sum())
        counts = Counts(
            calls=self._calls,
            dense_ops=rows * K * M,
            nonzeros=nonzeros,
            events_in=nonzeros - int(fired[REAL]),
            fan_out=M,
            largest_level=marks.largest_level,
            weights_per_event=nonzeros * M,
            weights_dense=rows * K * M,
            activation_reads=rows * K,
            activation_writes=rows * M,
            **{name: number * K for name, number in zip(ELEMENTS, marks.rows.tolist(), strict=True)},
        )
        effective = marks.fired @ met
        split(counts, {alphabet: int(effective[alphabet]) for alphabet in EFFECTIVE}, self.weight.alphabet)
        send_units(counts, marks.levels, marks.levels - marks.fired[INTEGER], met, self.weight)
        return counts

    def touched(self) -> Tensor:
        """(1, K) bool: inputs that were not 0 at least once."""
        return torch.from_numpy(self._marks.fired.any(axis=0)).unsqueeze(0)


def _version(w: Tensor) -> int | None:
    """A tensor of inference mode has no version; what operators write to it is seen, see `DescribedWeights.forget`."""
    return None if w.is_inference() else w._version


def _alphabets_of_levels(rows: np.ndarray, levels: np.ndarray, nonzero: np.ndarray) -> np.ndarray:
    """Return the alphabet of each row of whole numbers, as `operands.classify_rows` does; `levels` are magnitudes."""
    beyond = _any_by_row(levels > 1)
    if beyond.all():
        return np.full(len(rows), INTEGER)
    alphabets = np.where(_any_by_row(nonzero), BINARY, ZERO)
    if levels is not rows:
        alphabets[_any_by_row(rows < 0)] = TERNARY
    alphabets[beyond] = INTEGER
    return alphabets


def _any_by_row(flags: np.ndarray) -> np.ndarray:
    """(N,) bool: a flag of the row is set. Eight of them are looked at together, where their number allows it."""
    if flags.shape[1] % 8 or not flags.flags.c_contiguous:
        return np.asarray(flags.any(axis=1))
    return np.asarray(np.bitwise_or.reduce(flags.view(np.uint64), axis=1)).astype(bool)
