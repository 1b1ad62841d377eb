"""Numbers as codes of a few bits, and the rotation that spreads outliers over the channels before.

Sources: RotateKV arXiv 2501.16383 and github.com/ZunhaiSu/RotateKV, fake_quant.py, whose scale divides by bits^2 - 1
(the same at 2 and 4 bits; ours is 2^bits - 1 always) and which makes NaN of a constant group; MiKV arXiv 2402.18096.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Codes(NamedTuple):
    """Codes (..., d), uint8; scale and offset (..., groups): a number is scale * code + offset."""

    codes: Tensor
    scale: Tensor
    offset: Tensor

    def numbers(self) -> Tensor:
        """Return what the codes stand for, (..., d), in the precision of the scale."""
        d, groups = self.codes.shape[-1], self.scale.shape[-1]
        width = math.ceil(d / groups)
        scale, offset = (part.repeat_interleave(width, dim=-1)[..., :d] for part in (self.scale, self.offset))
        return scale * self.codes + offset


def by_minimum(x: Tensor, bits: int, group: int) -> Codes:
    """Return x (..., d) by its distance from the least of each `group` of channels, as MiKV does."""
    low, high = _bounds(x, group)
    step = (high - low) / (2**bits - 1)
    # a group of equal numbers is its offset
    codes = _by_channel(x, low, torch.where(step > 0, step, 1.0), group).round()
    return Codes(codes.clamp(0, 2**bits - 1).to(torch.uint8), step, low)


def by_zero(x: Tensor, bits: int, group: int, clip: float = 1.0) -> tuple[Codes, Tensor]:
    """Return (x (..., d) with a code that stands for 0, as RotateKV has it; that code (..., groups), a whole number).

    Args:
        clip: share of the range between least and largest that is represented.
    """
    low, high = (clip * bound for bound in _bounds(x, group))
    step = (high - low) / (2**bits - 1)
    is_constant = step <= 0
    scale = torch.where(is_constant, torch.where(low == 0, 1.0, low / clip), step)
    zero = torch.where(is_constant, 0.0, (-low / scale).round())
    codes = _by_channel(x, torch.zeros_like(scale), scale, group).round()
    codes = (codes + _wide(zero, x.shape[-1], group)).clamp(0, 2**bits - 1)
    return Codes(codes.to(torch.uint8), scale, -scale * zero), zero


def hadamard(x: Tensor) -> Tensor:
    """Return x (..., n) times the Walsh-Hadamard matrix in Sylvester's order / sqrt(n), its own inverse.

    n log2(n) additions. n must be a power of two.
    """
    n = x.shape[-1]
    assert n & (n - 1) == 0, n
    shape, half = x.shape, 1
    while half < n:
        first, second = x.reshape(*shape[:-1], n // (2 * half), 2, half).unbind(dim=-2)
        x = torch.stack([first + second, first - second], dim=-2)
        half *= 2
    return x.reshape(shape) * n**-0.5


def rotated(x: Tensor, block: int) -> Tensor:
    """Return x (..., channels) with each `block` of neighbouring channels rotated."""
    return hadamard(x.unflatten(-1, (-1, block))).flatten(-2)


def largest_power_of_two(channels: int) -> int:
    """Return the largest power of two that divides `channels`."""
    return channels & -channels


def _bounds(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Least and largest (..., groups) of each group of channels."""
    low, high = zip(*(part.aminmax(dim=-1) for part in x.split(group, dim=-1)), strict=True)
    return torch.stack(low, dim=-1), torch.stack(high, dim=-1)


def _wide(part: Tensor, d: int, group: int) -> Tensor:
    return part.repeat_interleave(group, dim=-1)[..., :d]


def _by_channel(x: Tensor, offset: Tensor, scale: Tensor, group: int) -> Tensor:
    d = x.shape[-1]
    return (x - _wide(offset, d, group)) / _wide(scale, d, group)
