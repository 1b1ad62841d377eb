"""Fast CPU version of `token_shift`, forward and backward, in numba; reached only through its door.

All mixes of a token are made, and their gradients taken back, in one pass over the memory.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..cpu import (
    HALF,
    ONE,
    ZERO,
    as_words,
    copy_row,
    fused,
    new_words,
    parts_of_pass,
    read,
    run_passes,
    side_by_side,
    write,
)


def token_shift_forward(
    x: Tensor, previous: Tensor | None, shares: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Return the mixes, each (B, T, C) in `dtype`."""
    inputs, mixes = ShiftedRows(x, previous), [new_words(x.shape, dtype) for _ in shares]
    run_passes(_forward_pass, *inputs.shape, *inputs.arrays, inputs.per_channel(shares), tuple(map(inputs.of, mixes)))
    return [mix.to(dtype) for mix in mixes]


def token_shift_backward(
    grads: Sequence[Tensor], x: Tensor, previous: Tensor | None, shares: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of (x (B, T, C), previous (B, C), the shares (shares, C)); None as in the forward pass."""
    B, _, C = x.shape
    inputs = ShiftedRows(x, previous)
    grad_x, grad_previous = new_words(x.shape, x.dtype), torch.empty(B, C)
    # of each share one row per part
    grad_shares = np.zeros((inputs.parts, len(shares), inputs.shape[1]), np.float32)
    arrays = tuple(map(inputs.of, grads)), *inputs.arrays, inputs.per_channel(shares)
    run_passes(_backward_pass, *inputs.shape, *arrays, inputs.of(grad_x), grad_previous.numpy(), grad_shares)
    return grad_x.to(x.dtype), grad_previous.to(x.dtype), inputs.summed(grad_shares)


class ShiftedRows:
    """x (B, T, C) as rows, each of as many tokens of a text as lie side by side; `arrays` are what a pass begins with.

    Those are x (rows, width), what the first token of every text sees (B, C), and how many rows a text is.
    """

    def __init__(self, x: Tensor, previous: Tensor | None):
        B, T, self._channels = x.shape
        of_text, width = side_by_side(T, self._channels)
        self.shape = B * of_text, width
        self.parts = parts_of_pass(*self.shape)
        first = x.new_zeros(B, self._channels) if previous is None else previous.to(x.dtype)
        self.arrays = self.of(x), as_words(first), of_text

    def of(self, tensor: Tensor) -> np.ndarray:
        return as_words(tensor).reshape(self.shape)

    def per_channel(self, values: Sequence[Tensor]) -> np.ndarray:
        """Return (values, width), each (C,) as often as tokens lie side by side."""
        rows = np.stack([as_words(value.float()).reshape(-1) for value in values])
        return np.tile(rows, self.shape[1] // self._channels)

    def summed(self, partial: np.ndarray) -> Tensor:
        """Return (values, C) of sums (parts, values, width)."""
        whole = partial.sum(axis=0)
        return torch.from_numpy(whole.reshape(len(whole), -1, self._channels).sum(axis=1))


@fused
def earlier_tokens(x, previous, row, of_text, beginning):
    """The tokens before those of a row; `beginning` is filled with them where a text begins."""
    width, C = x.shape[1], previous.shape[1]
    if row % of_text:
        return x.reshape(-1)[row * width - C : (row + 1) * width - C]
    copy_row(previous[row // of_text], beginning[:C])
    copy_row(x[row, : width - C], beginning[C:])
    return beginning


@fused
def _forward_pass(first, end, parts, x, previous, of_text, shares, mixes):
    rows, beginning = x.shape[0], np.empty_like(x[0])
    for row in range(rows * first // parts, rows * end // parts):
        earlier = earlier_tokens(x, previous, row, of_text, beginning)
        for which in range(len(mixes)):
            _mix(x[row], earlier, shares[which], mixes[which][row])


# what is done to the channels of a row are functions of their own: as loops within loops they are not vectorised


@fused
def _mix(own, before, share, mix):
    for c in range(mix.size):
        write(mix, c, mixed(read(own[c]), read(before[c]), share[c]))


@fused
def mixed(here, there, share):
    # as torch.lerp: exact at both ends
    is_small = share < HALF
    factor = share if is_small else share - ONE
    return (there if is_small else here) + factor * (here - there)


@fused
def _backward_pass(first, end, parts, grads, x, previous, of_text, shares, grad_x, grad_previous, grad_shares):
    rows, width = x.shape
    C, total = previous.shape[1], np.zeros(width, np.float32)
    beginning, last = np.empty_like(x[0]), np.zeros_like(grads[0][0])
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            earlier = earlier_tokens(x, previous, row, of_text, beginning)
            for which in range(len(grads)):
                own = grads[which][row]
                if (row + 1) % of_text:
                    later = grads[which].reshape(-1)[row * width + C : (row + 1) * width + C]
                else:
                    # after the last token of a text comes nothing
                    copy_row(own[C:], last[: width - C])
                    later = last
                learn_mix(own, later, x[row], earlier, shares[which], total, grad_shares[part, which])
            take_total(total, grad_x[row])
            if row % of_text == 0:
                for which in range(len(grads)):
                    for c in range(C):
                        total[c] += (ONE - shares[which, c]) * read(grads[which][row, c])
                take_total(total[:C], grad_previous[row // of_text])


@fused
def learn_mix(grad, later, own, before, share, total, grad_share):
    """Add what a token gets from a mix of its own and from that of the one after it, and what their share gets."""
    for c in range(total.size):
        g, kept = read(grad[c]), share[c]
        total[c] += kept * g + (ONE - kept) * read(later[c])
        grad_share[c] += g * (read(own[c]) - read(before[c]))


@fused
def take_total(total, result):
    """Move what was added up into `result`."""
    for c in range(total.size):
        write(result, c, total[c])
        total[c] = ZERO
