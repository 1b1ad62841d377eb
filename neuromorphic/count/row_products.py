"""Products of rows with one weight, on the CPU: each row leaves its mark, and their cost is worked out once at last.

`products.matrix_product` is the definition. For one row its operators take longer than the product that they count, and
for thousands numpy is several times faster.
"""

import numpy as np
import torch
from torch import Tensor

from .counts import Counts, Site
from .dispatch import unseen
from .operands import BINARY, INTEGER, LARGEST_LEVEL, PROBE, REAL, TERNARY, ZERO, classify_row
from .products import EFFECTIVE, ELEMENTS, Weight, send_units, split
from .storages import Member

# numbers that are looked at in one go, so that they stay near the processor
BLOCK = 1 << 17
# sums of so many flags fit into a byte
FLAGS = 255
FORMATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class RowProducts:
    """The products at `site` of rows (1, N, K) with w (1, K, M), of which `weight` and `member` say what is known."""

    def __init__(self, site: Site, w: Tensor, weight: Weight, member: Member | None):
        self.site, self.w, self.weight, self.member = site, w, weight, member
        self.is_closed = False
        self._version = None if w.is_inference() else w._version
        self._calls, K = 0, w.shape[1]
        # rows by alphabet, and how often each input was not 0 in them
        self._rows, self._fired = [0] * (REAL + 1), np.zeros((REAL + 1, K), np.int64)
        self._levels, self._largest_level = np.zeros(K, np.int64), 0
        self._before = (0, 0)

    @staticmethod
    def takes(x: Tensor, w: Tensor) -> bool:
        """True for the operands that `add` knows: one matrix of floating point on the CPU."""
        return x.shape[0] == 1 and x.dtype in FORMATS and x.device.type == "cpu" and not w.is_complex()

    def is_current(self) -> bool:
        """False once the weight was written to."""
        return not self.is_closed and (self._version is None or self.w._version == self._version)

    def add(self, x: Tensor) -> None:
        """Take note of the rows (..., K) of one call; one row may have any shape."""
        if x.requires_grad or x.dtype == torch.bfloat16:
            # numpy knows neither
            with unseen():
                x = x.detach().float() if x.dtype == torch.bfloat16 else x.detach()
        self._calls += 1
        K = self.w.shape[1]
        rows = x.numpy().reshape(-1, K)
        if len(rows) == 1:
            self._add_row(rows[0])
            return
        step = max(BLOCK // K, 1)
        for start in range(0, len(rows), step):
            self._add_rows(rows[start : start + step])

    def _add_row(self, row: np.ndarray) -> None:
        nonzero = row != 0
        # the first number of a vector of real numbers shows a fraction
        if not row.item(0).is_integer():
            alphabet = REAL
        elif nonzero.astype(row.dtype).tobytes() == row.tobytes():
            alphabet = BINARY if nonzero.any() else ZERO
        else:
            alphabet = classify_row(row)
        self._rows[alphabet] += 1
        self._fired[alphabet] += nonzero
        if alphabet == INTEGER:
            self._add_levels(row[None])

    def _add_rows(self, rows: np.ndarray) -> None:
        nonzero = rows != 0
        maybe = np.flatnonzero(_are_whole(rows[:, :PROBE]))
        if len(maybe) == 0:
            self._note(REAL, nonzero)
            return
        if nonzero[maybe].astype(rows.dtype).tobytes() == rows[maybe].tobytes():
            codes = np.where(nonzero[maybe].any(axis=1), BINARY, ZERO)
        else:
            codes = _alphabets(rows[maybe])
        alphabets = np.full(len(rows), REAL)
        alphabets[maybe] = codes
        for alphabet in np.unique(alphabets):
            chosen = alphabets == alphabet
            self._note(alphabet, nonzero if chosen.all() else nonzero[chosen])
            if alphabet == INTEGER:
                self._add_levels(rows[chosen])

    def _note(self, alphabet: int, nonzero: np.ndarray) -> None:
        self._rows[alphabet] += len(nonzero)
        flags = nonzero.view(np.uint8)
        for start in range(0, len(flags), FLAGS):
            self._fired[alphabet] += np.add.reduce(flags[start : start + FLAGS], axis=0, dtype=np.uint8)

    def _add_levels(self, rows: np.ndarray) -> None:
        levels = np.abs(rows)
        # sums of a block of levels are exact in float32
        self._levels += levels.sum(axis=0, dtype=np.float32).astype(np.int64)
        self._largest_level = max(self._largest_level, int(levels.max()))

    def new_events(self) -> tuple[int, int]:
        """Return how many numbers were not 0 since this was asked last, and what they repeat as unit spikes."""
        events = int(self._fired.sum())
        repeated = int(self._levels.sum() - self._fired[INTEGER].sum())
        before, self._before = self._before, (events, repeated)
        return events - before[0], repeated - before[1]

    def counts(self) -> Counts:
        """Return the counts of all rows so far."""
        K, M, rows = self.w.shape[1], self.weight.fan_out, sum(self._rows)
        met, fired = self.weight.nonzeros.numpy()[0], self._fired.sum(axis=1)
        nonzeros = int(fired.sum())
        counts = Counts(
            calls=self._calls,
            dense_ops=rows * K * M,
            nonzeros=nonzeros,
            events_in=nonzeros - int(fired[REAL]),
            fan_out=M,
            largest_level=self._largest_level,
            weights_per_event=nonzeros * M,
            weights_dense=rows * K * M,
            activation_reads=rows * K,
            activation_writes=rows * M,
            **{name: number * K for name, number in zip(ELEMENTS, self._rows, strict=True)},
        )
        effective = self._fired @ met
        split(counts, {alphabet: int(effective[alphabet]) for alphabet in EFFECTIVE}, self.weight.alphabet)
        send_units(counts, self._levels, self._levels - self._fired[INTEGER], met, self.weight)
        return counts

    def touched(self) -> Tensor:
        """(1, K) bool: inputs that were not 0 at least once."""
        return torch.from_numpy(self._fired.any(axis=0)).unsqueeze(0)


def _are_whole(rows: np.ndarray) -> np.ndarray:
    """(N,) bool: every element of the row is a whole number; NaN is not."""
    return (rows == np.floor(rows)).all(axis=1)


def _alphabets(rows: np.ndarray) -> np.ndarray:
    """Return the alphabet of each row, as `operands.classify_rows` does."""
    codes = np.full(len(rows), REAL)
    lowest, highest = rows.min(axis=1), rows.max(axis=1)
    for alphabet, least, most in (
        (INTEGER, -LARGEST_LEVEL, LARGEST_LEVEL),
        (TERNARY, -1, 1),
        (BINARY, 0, 1),
        (ZERO, 0, 0),
    ):
        codes[(lowest >= least) & (highest <= most)] = alphabet
    codes[~_are_whole(rows)] = REAL
    return codes
