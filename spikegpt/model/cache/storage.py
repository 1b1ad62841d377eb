"""How rows are stored: as they are, or as codes of a few bits.

Bits are those that a row needs; in memory here a code takes a byte, and a row of codes keeps zeros in the place of its
key and value.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...config.values import check
from .contract import Cache, LowBits, New, by_kv_head, joined, take
from .quantise import Codes, by_minimum, by_zero, largest_power_of_two, rotated

# channels of a group with a scale of its own; smaller heads are one group
GROUP = 128
# heads whose channels are rotated together, and of a prompt, how many of the largest numbers name tokens to spare
HEADS, OUTLIERS = 4, 20
# of a scale or an offset, and of a sum of attention
SCALE_BITS, STATISTIC_BITS = 16, 32


@dataclass(frozen=True, kw_only=True)
class Exact:
    """Rows in the precision `dtype`."""

    dtype: torch.dtype = torch.float16
    statistics: ClassVar[int] = 0
    stores_unrotated: ClassVar[bool] = False
    """whether keys are cached before they are turned by their position"""
    reads_prompt: ClassVar[bool] = False
    """whether a prompt is read in one go, for what it says of the text"""

    def cached(self, new: New, is_prompt: bool, statistics: int) -> Cache:
        """Return the rows of new tokens as a cache of their own."""
        keys, values = new.keys.to(self.dtype), new.values.to(self.dtype)
        B, G, T = keys.shape[:3]
        positions = new.positions.view(-1, 1, T).expand(B, G, T)
        return Cache(keys, values, positions, torch.zeros(B, G, T, statistics, device=keys.device))

    def read(self, cache: Cache) -> tuple[Tensor, Tensor]:
        return cache.keys, cache.values

    def observe(self, cache: Cache, attention: Tensor) -> Cache:
        return cache

    def bits(self, cache: Cache) -> dict[str, int]:
        """Return part -> bits of one text."""
        parts = {"keys": cache.keys[0], "values": cache.values[0]}
        found = {name: part.numel() * 8 * part.element_size() for name, part in parts.items()}
        return {**found, "statistics": cache.statistics[0].numel() * STATISTIC_BITS}


@dataclass(frozen=True, kw_only=True)
class LowStorage(Exact):
    """Rows as codes of `bits` bits, but for some."""

    code_bits: int = 2

    def __post_init__(self):
        check(2 <= self.code_bits <= 8, f"codes of {self.code_bits} bits are not known; give 2 to 8")

    def _with_codes(self, cache: Cache, is_low: Tensor, rows: Tensor, keys: Codes, values: Codes) -> Cache:
        """`cache` with `is_low` (B, G, n) rows zeroed, and the codes of `rows` (B, G, m) put beside them."""
        codes = (part for coded in (keys, values) for part in self._as_stored(coded))
        if cache.low is None:
            n = cache.rows
            parts = [
                part.new_zeros(*part.shape[:2], n, part.shape[3]).scatter(2, _wide(rows, part), part) for part in codes
            ]
        else:
            parts = [old.scatter(2, _wide(rows, old), new) for old, new in zip(cache.low[1:], codes, strict=True)]
        gone = is_low.unsqueeze(-1)
        exact = cache.keys.masked_fill(gone, 0), cache.values.masked_fill(gone, 0)
        return cache._replace(keys=exact[0], values=exact[1], low=LowBits(is_low, *parts))

    def _as_stored(self, codes: Codes) -> Codes:
        return Codes(codes.codes, codes.scale.to(self.dtype), codes.offset.to(self.dtype))

    def read(self, cache: Cache) -> tuple[Tensor, Tensor]:
        if cache.low is None:
            return cache.keys, cache.values
        low = cache.low
        is_low = low.is_low.unsqueeze(-1)
        keys = Codes(low.key_codes, low.key_scale, low.key_offset).numbers()
        values = Codes(low.value_codes, low.value_scale, low.value_offset).numbers()
        if cache.balancer is not None:
            keys = keys / cache.balancer.unsqueeze(2)
        return torch.where(is_low, keys, cache.keys), torch.where(is_low, values, cache.values)

    def bits(self, cache: Cache) -> dict[str, int]:
        d = cache.keys.shape[3], cache.values.shape[3]
        low = 0 if cache.low is None else int(cache.low.is_low[0].sum())
        exact = cache.positions[0].numel() - low
        width = 8 * cache.keys.element_size()
        groups = sum(math.ceil(channels / GROUP) for channels in d)
        parts = {name: exact * channels * width for name, channels in zip(("keys", "values"), d, strict=True)}
        parts |= {"codes": low * sum(d) * self.code_bits, "scales": low * groups * 2 * SCALE_BITS}
        parts["statistics"] = cache.statistics[0].numel() * STATISTIC_BITS
        if cache.balancer is not None:
            parts["balancer"] = cache.balancer[0].numel() * SCALE_BITS
            # what became codes stays codes, and its importance matters no more
            parts["statistics"] = exact * STATISTIC_BITS
        return parts


@dataclass(frozen=True, kw_only=True)
class Rotate(LowStorage):
    """RotateKV: keys rotated over neighbouring heads and reordered before their positions turn them, values per head.

    What the rotations are is fused into the projections, so keys and values come rotated; keys are turned back on read.
    Where the channels of 4 heads are no power of two, blocks of the largest one that divides them are rotated.

    Args:
        order: (G d,) channel that each place holds, of the layer; None leaves them as they are.
        outliers: of a prompt, so many largest numbers of the stream name tokens that stay exact.
    """

    heads: int = HEADS
    clip: float | None = None
    outliers: int = OUTLIERS
    order: tuple[int, ...] | None = None
    stores_unrotated = True
    reads_prompt = True

    @property
    def clipped(self) -> float:
        """Share of the range that codes represent: 0.8 at 2 bits, as published, all of it with more."""
        return self.clip if self.clip is not None else 0.8 if self.code_bits == 2 else 1.0

    def block_of(self, kv_heads: int, channels: int) -> int:
        """Return how many neighbouring channels of the keys are rotated together."""
        return largest_power_of_two(math.gcd(self.heads, kv_heads) * channels)

    def turned(self, keys: Tensor) -> Tensor:
        """Return keys (B, G, T, d) rotated and reordered: what is fused into their projection."""
        G, d = keys.shape[1], keys.shape[3]
        flat = rotated(keys.transpose(1, 2).flatten(2), self.block_of(G, d))
        if self.order is not None:
            flat = flat[..., torch.tensor(self.order, device=keys.device)]
        return flat.unflatten(-1, (G, d)).transpose(1, 2)

    def turned_back(self, keys: Tensor) -> Tensor:
        """Return keys (B, G, n, d) as they were before `turned`."""
        G, d = keys.shape[1], keys.shape[3]
        flat = keys.transpose(1, 2).flatten(2)
        if self.order is not None:
            flat = flat[..., torch.tensor(self.order, device=keys.device).argsort()]
        return rotated(flat, self.block_of(G, d)).unflatten(-1, (G, d)).transpose(1, 2)

    def turned_values(self, values: Tensor) -> Tensor:
        """Return values (..., d) rotated per head; its own inverse."""
        return rotated(values, largest_power_of_two(values.shape[-1]))

    def cached(self, new: New, is_prompt: bool, statistics: int) -> Cache:
        cache = super().cached(new, is_prompt, statistics)
        is_low = torch.ones_like(cache.positions, dtype=torch.bool)
        if is_prompt and self.outliers:
            is_low &= ~outlier_tokens(new.stream, self.outliers).unsqueeze(1)
        # half precision would round the step before it is used
        parts = (part.to(_at_least_single(part.dtype)) for part in (cache.keys, cache.values))
        keys, values = (by_zero(part, self.code_bits, GROUP, self.clipped)[0] for part in parts)
        rows = torch.arange(cache.rows, device=cache.keys.device).expand_as(cache.positions)
        return self._with_codes(cache, is_low, rows, keys, values)

    def read(self, cache: Cache) -> tuple[Tensor, Tensor]:
        keys, values = super().read(cache)
        return self.turned_back(keys.to(_at_least_single(keys.dtype))), values


def outlier_tokens(stream: Tensor, outliers: int) -> Tensor:
    """Return (B, T) bool: the tokens that the `outliers` largest |numbers| of stream (B, T, C) stand in."""
    B, T, C = stream.shape
    largest = stream.abs().flatten(1).topk(min(outliers, T * C), dim=1).indices // C
    return torch.zeros(B, T, dtype=torch.bool, device=stream.device).scatter(1, largest, True)


@dataclass(frozen=True, kw_only=True)
class MiKV(LowStorage):
    """MiKV: nothing is evicted; all rows but the most important become codes, and stay so.

    Important are, as in H2O, those that received most attention in sum, and the newest. Keys are coded as they are
    cached, turned by their position, times a balancer: per channel, from the largest query and key of the prompt.

    Args:
        share: of all rows, that stay exact.
        newest: of these, the share that is spared as the newest.
    """

    share: float = 0.25
    newest: float = 0.3
    statistics = 1
    reads_prompt = True

    def __post_init__(self):
        super().__post_init__()
        check(0 <= self.share < 1, f"share is {self.share:g}, of the rows that stay exact; give 0 to below 1")
        check(0 <= self.newest <= 1, f"newest is {self.newest:g}, a share of the exact rows; give 0 to 1")

    def cached(self, new: New, is_prompt: bool, statistics: int) -> Cache:
        cache = super().cached(new, is_prompt, statistics)
        return cache._replace(balancer=balancer(new.queries, new.keys).to(self.dtype)) if is_prompt else cache

    def observe(self, cache: Cache, attention: Tensor) -> Cache:
        received = by_kv_head(attention, cache.keys.shape[1]).mean(dim=2).sum(dim=2)
        sums = cache.statistics[..., -1] + received
        cache = cache._replace(statistics=torch.cat([cache.statistics[..., :-1], sums.unsqueeze(-1)], dim=-1))
        exact = math.floor(self.share * cache.rows)
        rank = sums.clone()
        if cache.low is not None:
            rank.masked_fill_(cache.low.is_low, -math.inf)
        rank[..., cache.rows - math.floor(self.newest * exact) :] = math.inf
        kept = rank.topk(exact, dim=2).indices
        is_low = torch.ones_like(sums, dtype=torch.bool).scatter(2, kept, False)
        demoted = is_low
        if cache.low is not None:
            demoted = is_low & ~cache.low.is_low
            is_low = is_low | cache.low.is_low
        # as many in each head
        rows = demoted.nonzero()[:, 2].view(*demoted.shape[:2], -1)
        return self._coded(cache, is_low, rows) if rows.numel() else cache

    def _coded(self, cache: Cache, is_low: Tensor, rows: Tensor) -> Cache:
        assert cache.balancer is not None
        wide = _at_least_single(cache.keys.dtype)
        keys, values = (take(part, rows).to(wide) for part in (cache.keys, cache.values))
        keys = keys * cache.balancer.to(wide).unsqueeze(2)
        coded = (by_minimum(part, self.code_bits, GROUP) for part in (keys, values))
        return self._with_codes(cache, is_low, rows, *coded)


def balancer(queries: Tensor, keys: Tensor) -> Tensor:
    """Return (B, G, d): sqrt(max |q| / max |k|) of each channel over queries (B, H, T, d) and keys (B, G, T, d).

    1 where either is 0 throughout.
    """
    largest_query = by_kv_head(queries, keys.shape[1]).abs().amax(dim=(2, 3))
    largest_key = keys.abs().amax(dim=2)
    is_silent = (largest_query == 0) | (largest_key == 0)
    return torch.where(is_silent, 1.0, largest_query / largest_key.clamp(min=torch.finfo(keys.dtype).tiny)).sqrt()


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _wide(rows: Tensor, part: Tensor) -> Tensor:
    """`rows` (B, G, m) as an index into part (B, G, n, width)."""
    return rows.unsqueeze(-1).expand(*rows.shape, part.shape[3])


def appended(cache: Cache, new: Cache) -> Cache:
    """Return the rows of both, `new` behind."""
    parts = ((getattr(cache, name), getattr(new, name)) for name in ("keys", "values", "positions", "statistics"))
    keys, values, positions, statistics = (torch.cat(pair, dim=2) for pair in parts)
    low = joined(cache.low, new.low)
    if low is not None and low.is_low.shape[2] < cache.rows + new.rows:
        low = _filled(low, new.rows)
    return Cache(keys, values, positions, statistics, low, cache.balancer, cache.prompt)


def _filled(low: LowBits, rows: int) -> LowBits:
    """`low` with so many more rows that are no codes."""
    empty = (part.new_zeros(*part.shape[:2], rows, *part.shape[3:]) for part in low)
    return LowBits(*(torch.cat(pair, dim=2) for pair in zip(low, empty, strict=True)))
