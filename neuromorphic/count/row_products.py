"""Products of one row after another with one weight, as in decoding: what they have in common is counted once at last.

`products.matrix_product` is the definition. For a row of a few hundred numbers its operators take longer than the
product that they count, so here each row only leaves its mark: which of its inputs were not 0, by its alphabet.
"""

import numpy as np
import torch
from torch import Tensor

from .counts import Counts, Site
from .dispatch import unseen
from .operands import BINARY, INTEGER, REAL, ZERO, classify_row, is_spikes
from .products import EFFECTIVE, ELEMENTS, Weight, split
from .storages import Member


class RowProducts:
    """The products at `site` of rows (1, 1, K) with w (1, K, M), of which `weight` and `member` say what is known."""

    def __init__(self, site: Site, w: Tensor, weight: Weight, member: Member):
        self.site, self.w, self.weight, self.member = site, w, weight, member
        self.is_closed = False
        self._version = None if w.is_inference() else w._version
        K = w.shape[1]
        self._rows = [0] * (REAL + 1)
        # alphabet -> how often each input was not 0 in a row of it
        self._fired = np.zeros((REAL + 1, K), np.int64)
        self._levels, self._largest_level = np.zeros(K, np.int64), 0
        self._last = np.zeros(K, bool)

    @staticmethod
    def takes(x: Tensor, w: Tensor) -> bool:
        """True for the operands that `add` knows: one row of floating point on the CPU."""
        return (
            x.shape[0] == x.shape[1] == 1
            and x.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
            and x.device.type == "cpu"
            and not w.is_complex()
        )

    def is_current(self) -> bool:
        """False once the weight was written to."""
        return not self.is_closed and (self._version is None or self.w._version == self._version)

    def add(self, x: Tensor) -> None:
        """Take note of one row, K numbers in any shape."""
        if x.requires_grad or x.dtype == torch.bfloat16:
            # numpy knows neither
            with unseen():
                x = x.detach().float() if x.dtype == torch.bfloat16 else x.detach()
        row = x.numpy().reshape(-1)
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
            levels = np.abs(row).astype(np.int64)
            self._levels += levels
            self._largest_level = max(self._largest_level, int(levels.max()))
        self._last = nonzero

    def last_nonzeros(self) -> int:
        """Return how many numbers of the last row were not 0."""
        return int(np.count_nonzero(self._last))

    def counts(self) -> Counts:
        """Return the counts of all rows so far."""
        K, M, rows = self.w.shape[1], self.weight.fan_out, sum(self._rows)
        met, fired = self.weight.nonzeros.numpy()[0], self._fired.sum(axis=1)
        nonzeros = int(fired.sum())
        counts = Counts(
            calls=rows,
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
        if not is_spikes(self.weight.alphabet):
            counts.unit_acs = int(self._levels @ met)
        return counts

    def touched(self) -> Tensor:
        """(1, K) bool: inputs that were not 0 at least once."""
        return torch.from_numpy(self._fired.any(axis=0)).unsqueeze(0)
