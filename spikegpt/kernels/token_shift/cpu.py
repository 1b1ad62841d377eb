"""Fast CPU version of `token_shift`, forward and backward, in numba; reached only through its door.

All mixes of a token are made, and their gradients taken back, in one pass over the memory.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..cpu import HALF, ONE, ZERO, as_words, fused, new_words, parts_of_pass, read, run_passes, write


def token_shift_forward(
    x: Tensor, previous: Tensor | None, shares: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Return the mixes, each (B, T, C) in `dtype`."""
    B, T, C = x.shape
    mixes = [new_words((B, T, C), dtype) for _ in shares]
    rows = tuple(as_words(mix).reshape(B * T, C) for mix in mixes)
    run_passes(_forward_pass, B * T, C, as_words(x).reshape(B * T, C), first_tokens(x, previous), stack_shares(shares), rows, T)
    return [mix.to(dtype) for mix in mixes]


def token_shift_backward(
    grads: Sequence[Tensor], x: Tensor, previous: Tensor | None, shares: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of (x (B, T, C), previous (B, C), the shares (shares, C)); None as in the forward pass."""
    B, T, C = x.shape
    grad_x, grad_previous = new_words((B, T, C), x.dtype), torch.empty(B, C)
    # of each share one row per part
    grad_shares = np.zeros((parts_of_pass(B * T, C), len(shares), C), np.float32)
    rows = tuple(as_words(grad).reshape(B * T, C) for grad in grads)
    arrays = as_words(x).reshape(B * T, C), first_tokens(x, previous), stack_shares(shares), as_words(grad_x).reshape(B * T, C)
    nothing = as_words(torch.zeros(C, dtype=grads[0].dtype))
    run_passes(_backward_pass, B * T, C, rows, *arrays, grad_previous.numpy(), grad_shares, nothing, T)
    return grad_x.to(x.dtype), grad_previous.to(x.dtype), torch.from_numpy(grad_shares.sum(axis=0))


def first_tokens(x: Tensor, previous: Tensor | None) -> np.ndarray:
    """What the first token of every text sees, (B, C) in the precision of `x`."""
    B, _, C = x.shape
    return as_words(x.new_zeros(B, C) if previous is None else previous.to(x.dtype))


def stack_shares(shares: Sequence[Tensor]) -> np.ndarray:
    return np.stack([as_words(share.float()).reshape(-1) for share in shares])


@fused
def _forward_pass(first, end, parts, x, previous, shares, mixes, T):
    rows = x.shape[0]
    for row in range(rows * first // parts, rows * end // parts):
        before = x[row - 1] if row % T else previous[row // T]
        for which in range(len(mixes)):
            mix_token(x[row], before, shares[which], mixes[which][row])


# what is done to the channels of one token are functions of their own: as loops within loops they are not vectorised


@fused
def mix_token(own, before, share, mix):
    for c in range(mix.size):
        here, there = read(own[c]), read(before[c])
        # as torch.lerp: exact at both ends
        is_small = share[c] < HALF
        factor = share[c] if is_small else share[c] - ONE
        write(mix, c, (there if is_small else here) + factor * (here - there))


@fused
def _backward_pass(first, end, parts, grads, x, previous, shares, grad_x, grad_previous, grad_shares, nothing, T):
    rows, total = x.shape[0], np.zeros(x.shape[1], np.float32)
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            before = x[row - 1] if row % T else previous[row // T]
            for which in range(len(grads)):
                later = grads[which][row + 1] if (row + 1) % T else nothing
                learn_mix(grads[which][row], later, x[row], before, shares[which], total, grad_shares[part, which])
            take_total(total, grad_x[row])
            if row % T == 0:
                for which in range(len(grads)):
                    share = shares[which]
                    for c in range(share.size):
                        total[c] += (ONE - share[c]) * read(grads[which][row, c])
                take_total(total, grad_previous[row // T])


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
