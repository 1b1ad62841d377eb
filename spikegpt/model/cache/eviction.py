"""Which rows are thrown out once a cache is full: by attention received (H2O, RoCo, TOVA), or the oldest.

Each head of keys and values decides for itself, by the mean attention of the heads that read it. Rows of a prompt stay
(`Cache.prompt`), the others are at most `budget`.
Sources: RoCo arXiv 2402.06262 and github.com/DRSY/EasyKV, easykv/easykv.py, which has all four; H2O arXiv 2306.14048;
TOVA arXiv 2401.06104; sinks arXiv 2309.17453. EasyKV protects the newest 10 whatever the budget, and throws out the
newest where it is small; ours protect a quarter of it then, and a variance that rounding makes negative is 0.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ...config.values import check
from .contract import Cache, by_kv_head, rows_but

# share of the budget that H2O spares as the newest, and RoCo as the most varied
SPARED = 0.3
PROTECTED = 10


@dataclass(frozen=True, kw_only=True)
class Eviction:
    """Holds at most `budget` rows beside those of a prompt.

    Args:
        sinks: so many first tokens of the text are never evicted.
    """

    budget: int
    sinks: int = 0
    statistics: ClassVar[int] = 0
    """numbers kept of each row"""
    is_alike: ClassVar[bool] = False
    """whether all heads keep the same rows"""

    def __post_init__(self):
        check(self.budget >= 1, f"a budget of {self.budget} tokens holds nothing; give at least 1")
        check(
            0 <= self.sinks < self.budget,
            f"{self.sinks} sinks leave no room in a budget of {self.budget}; give fewer of them or a larger budget",
        )

    @property
    def held(self) -> int:
        """Most rows that stay, those of a prompt left out."""
        return self.budget

    def observe(self, cache: Cache, attention: Tensor) -> Cache:
        """Return `cache` with attention (B, H, T, n) noted, and no more rows than are held."""
        received = by_kv_head(attention, cache.keys.shape[1]).mean(dim=2)
        cache = cache._replace(statistics=self.noted(cache.statistics, received))
        excess = cache.rows - cache.prompt - self.held
        if excess <= 0:
            return cache
        worth = self.worth(cache, received, excess)
        worth[..., : max(cache.prompt, self.sinks)] = math.inf
        evicted = worth.topk(excess, dim=2, largest=False).indices
        return cache.take(rows_but(evicted, cache.rows))

    def noted(self, statistics: Tensor, received: Tensor) -> Tensor:
        """Return statistics (B, G, n, numbers) after attention `received` (B, G, T, n) by heads of keys."""
        return statistics

    def worth(self, cache: Cache, received: Tensor, excess: int) -> Tensor:
        """Return a number per row (B, G, n), the least of which are evicted."""
        raise NotImplementedError


class Recency(Eviction):
    """The newest stay, and the sinks."""

    is_alike = True

    def worth(self, cache: Cache, received: Tensor, excess: int) -> Tensor:
        return cache.positions.to(torch.float64)


class Tova(Eviction):
    """What the newest token attends to stays."""

    def worth(self, cache: Cache, received: Tensor, excess: int) -> Tensor:
        return received[:, :, -1].clone()


class H2O(Eviction):
    """What received most attention in sum stays, and the newest."""

    statistics = 1

    def noted(self, statistics: Tensor, received: Tensor) -> Tensor:
        return statistics + received.sum(dim=2).unsqueeze(-1)

    def worth(self, cache: Cache, received: Tensor, excess: int) -> Tensor:
        sums = cache.statistics[..., 0].clone()
        sums[..., cache.rows - max(math.floor(SPARED * self.budget), 1) :] = math.inf
        return sums


@dataclass(frozen=True, kw_only=True)
class Roco(Eviction):
    """Of the rows whose attention varied least, those that received least in the mean are evicted.

    Args:
        spared: share of the budget that is spared as the most varied.
        protected: the newest so many are spared too; None takes 10, or a quarter of a budget below 40.
        stride: read a prompt in pieces of so many tokens, see `of_prompt`; 0 reads it token by token.
        recent: what `spared` is while a prompt is read in strides.
        limit: of a prompt in strides: rows that are kept.
    """

    spared: float = SPARED
    protected: int | None = None
    stride: int = 0
    recent: float = 0.1
    limit: int = 0
    statistics = 3

    def __post_init__(self):
        super().__post_init__()
        check(0 <= self.spared < 1, f"spared is {self.spared:g}, a share of the budget; give 0 to below 1")
        check(
            self.protected is None or 0 <= self.protected < self.budget,
            f"{self.protected} protected rows leave nothing to evict in a budget of {self.budget}; give fewer",
        )
        check(self.stride >= 0, f"stride is {self.stride}; give a number of tokens, or 0")

    @property
    def held(self) -> int:
        return self.limit or self.budget

    def of_prompt(self, tokens: int) -> Self:
        """Return the policy while a prompt of so many tokens is read in strides.

        Its first `limit - stride` tokens are read in one go. Up to `stride` rows more than the budget are kept.
        """
        most = self.budget + self.stride
        return replace(self, limit=most - (most - tokens) % self.stride)

    def observe(self, cache: Cache, attention: Tensor) -> Cache:
        # of a prompt in strides, attention counts where it decides something
        return cache if self.limit and cache.rows <= self.limit else super().observe(cache, attention)

    def noted(self, statistics: Tensor, received: Tensor) -> Tensor:
        T, n = received.shape[2:]
        queries = torch.full((n,), T, dtype=received.dtype, device=received.device)
        queries[n - T :] -= torch.arange(T, device=received.device)
        added = received.sum(dim=2), received.square().sum(dim=2), queries.expand_as(received[:, :, 0])
        return statistics + torch.stack(added, dim=-1)

    def worth(self, cache: Cache, received: Tensor, excess: int) -> Tensor:
        first = max(cache.prompt, self.sinks)
        sums, squares, queries = cache.statistics.unbind(dim=-1)
        means = sums / queries
        spread = (squares / queries - means.square()).clamp(min=0)
        protected = max(min(PROTECTED, self.budget // 4), 1) if self.protected is None else self.protected
        spread[..., cache.rows - protected :] = math.inf
        spread[..., :first] = math.inf
        candidates = self.budget - math.floor(self.spared * self.budget)
        if self.limit:
            most = self.budget + self.stride
            candidates = max(most - math.floor(self.recent * most) - self.sinks, excess)
        chosen = spread.topk(min(candidates, cache.rows), dim=2, largest=False).indices
        return torch.full_like(means, math.inf).scatter(2, chosen, means.gather(2, chosen))
