"""What is cached of a layer, and what a policy is: four functions of it, state in and out.

A layer caches rows, one per token and head of keys and values, in the order of the text; heads may hold the rows of
different tokens, but each as many. What a row has beside its key and value (where it stood, what attention it
received, its codes of a few bits) lies in tensors (B, G, n, ...) beside them.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class New(NamedTuple):
    """What a layer makes of new tokens, and what a policy may want to know of them."""

    keys: Tensor
    """(B, G, T, d), rotated where the policy does not store them before their rotation"""
    values: Tensor
    """(B, G, T, d)"""
    queries: Tensor
    """(B, H, T, d), rotated"""
    positions: Tensor
    """(B, T)"""
    stream: Tensor
    """(B, T, C): what the block was given"""


class LowBits(NamedTuple):
    """Rows of codes, (B, G, n, d) bytes, of which a policy uses a few bits; a number is scale * code + offset."""

    is_low: Tensor
    """(B, G, n) bool: the row is codes, and its key and value are gone"""
    key_codes: Tensor
    key_scale: Tensor
    """(B, G, n, groups), as key_offset and those of values"""
    key_offset: Tensor
    value_codes: Tensor
    value_scale: Tensor
    value_offset: Tensor


class Cache(NamedTuple):
    """Rows of one layer, n of each head."""

    keys: Tensor
    """(B, G, n, d), zeros where the row is codes"""
    values: Tensor
    positions: Tensor
    """(B, G, n): which token of the text a row is"""
    statistics: Tensor
    """(B, G, n, numbers): what the policy keeps of each row"""
    low: LowBits | None = None
    balancer: Tensor | None = None
    """(B, G, d), by which keys are multiplied before they become codes"""
    prompt: int = 0
    """so many first rows are of a prompt that is never evicted"""

    @property
    def rows(self) -> int:
        return self.keys.shape[2]

    def take(self, rows: Tensor) -> "Cache":
        """Return the cache of these rows alone, (B, G, m) in ascending order."""
        low = None if self.low is None else LowBits(*(take(part, rows) for part in self.low))
        keys, values, positions, statistics = (
            take(part, rows) for part in (self.keys, self.values, self.positions, self.statistics)
        )
        return Cache(keys, values, positions, statistics, low, self.balancer, self.prompt)


class Policy(Protocol):
    """What is kept of a text, and how: see `policy.CachePolicy`, which is made of parts."""

    def append(self, cache: Cache | None, new: New) -> Cache:
        """Return the cache with the rows of new tokens behind those before, None at the beginning of a text."""

    def read(self, cache: Cache) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, G, n, d) as attention sees them, in the precision of what was cached."""

    def observe(self, cache: Cache, attention: Tensor) -> Cache:
        """Return the cache after attention (B, H, T, n) of the last T tokens was paid to its rows."""

    def bits(self, cache: Cache) -> dict[str, int]:
        """Return part -> bits that the cache of one text takes."""


def take(part: Tensor, rows: Tensor) -> Tensor:
    """Return part (B, G, n, ...) at `rows` (B, G, m)."""
    index = rows.view(*rows.shape, *(1,) * (part.dim() - 3)).expand(*rows.shape, *part.shape[3:])
    return part.gather(2, index)


def rows_but(evicted: Tensor, n: int) -> Tensor:
    """Return (B, G, n - e): the rows of n that are not among `evicted` (B, G, e), ascending."""
    is_kept = torch.ones(*evicted.shape[:2], n, dtype=torch.bool, device=evicted.device).scatter(2, evicted, False)
    return is_kept.nonzero()[:, 2].view(*evicted.shape[:2], n - evicted.shape[2])


def by_kv_head(attention: Tensor, kv_heads: int) -> Tensor:
    """Return attention (B, H, T, n) as (B, G, H / G, T, n)."""
    return attention.unflatten(1, (kv_heads, -1))


def joined(first: LowBits | None, second: LowBits | None) -> LowBits | None:
    """Return the rows of both, `second` behind."""
    if first is None or second is None:
        return first or second
    return LowBits(*(torch.cat(parts, dim=2) for parts in zip(first, second, strict=True)))
