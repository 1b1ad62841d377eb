"""Products of rows with one weight, on the CPU: each row leaves its mark, and their cost is worked out once at last.

`products.matrix_product` is the definition. For one row its operators take longer than the product that they count, and
for thousands `marks` is many times faster.
"""

import torch
from torch import Tensor

from .counts import Counts, Site
from .dispatch import unseen
from .marks import Marks
from .operands import INTEGER, REAL
from .products import EFFECTIVE, ELEMENTS, Weight, send_units, split
from .storages import storage_key, version

FORMATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class RowProducts:
    """The products at `site` of rows (1, N, K) with w (1, K, M), of which `weight` says what is known.

    The weight itself is not kept: it may be freed.
    """

    def __init__(self, site: Site, w: Tensor, weight: Weight):
        self.site, self.weight = site, weight
        self.memory, self.K, self.M = storage_key(w), w.shape[1], w.shape[2]
        self.is_closed = False
        self._version = version(w)
        self._calls, self._marks = 0, Marks(self.K)
        self._before = (0, 0)

    @staticmethod
    def takes(x: Tensor, w: Tensor) -> bool:
        """True for the operands that `add` knows: one matrix of floating point on the CPU."""
        return x.shape[0] == 1 and x.dtype in FORMATS and x.device.type == "cpu" and not w.is_complex()

    def is_current(self, w: Tensor) -> bool:
        """False once the weight, of which `w` is any view, was written to."""
        return not self.is_closed and version(w) == self._version

    def add(self, x: Tensor) -> None:
        """Take note of the rows (..., K) of one call; one row may have any shape."""
        is_half = x.dtype in (torch.bfloat16, torch.float16)
        if x.requires_grad or is_half:
            with unseen():
                x = x.detach().float() if is_half else x.detach()
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
