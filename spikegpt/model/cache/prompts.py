"""Which rows of a prompt are kept once it is read: FastKV in each layer for itself, DynamicKV over all layers.

Both ask what the last `window` queries attend to, pooled over neighbouring tokens; both leave decoding alone. Short
prompts, of no more tokens than are kept, are kept whole.
Sources: FastKV arXiv 2502.01068, github.com/dongwonjo/FastKV, baselines/fastkv/utils.py; DynamicKV arXiv 2412.14838,
github.com/DreamMr/DynamicKV, kv_compression/token_drop/methods/dynamic_v11.py, whose slices may run into the window
and keep its tokens twice. Ours are cut at what a layer still holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...config.values import check


@dataclass(frozen=True, kw_only=True)
class PromptRule:
    """What FastKV and DynamicKV have in common.

    Args:
        window: last queries that are asked; their own tokens are always kept.
        kernel: odd number of neighbours that are pooled.
    """

    window: int = 8
    kernel: int = 7
    pooling: Literal["avg", "max"] = "avg"

    def __post_init__(self):
        check(self.window >= 1, f"a window of {self.window} queries asks nobody; give at least 1")
        check(self.kernel >= 1 and self.kernel % 2 == 1, f"kernel is {self.kernel}; give an odd number of at least 1")
        check(self.pooling in ("avg", "max"), f"pooling is {self.pooling!r}; give avg or max")

    def pooled(self, attention: Tensor) -> Tensor:
        """Return (B, H, T - W): what attention (B, H, W, T) of the window says of each token before it."""
        window = attention.shape[2]
        sums = attention[..., : attention.shape[3] - window].sum(dim=2)
        padding = self.kernel // 2
        if self.pooling == "avg":
            return F.avg_pool1d(sums, self.kernel, stride=1, padding=padding, count_include_pad=True)
        return F.max_pool1d(sums, self.kernel, stride=1, padding=padding)


@dataclass(frozen=True, kw_only=True)
class FastKV(PromptRule):
    """Keeps a share of the prompt; behind one layer only a share of its tokens goes on at all.

    Args:
        rate: share of the prompt that is kept in each layer.
        tsp: share of its tokens that layers behind layer `layer` read (token-selective propagation).
        layer: the one that chooses them; None takes the last of the first half.
    """

    rate: float = 0.1
    tsp: float = 1.0
    layer: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check(0 < self.rate < 1, f"rate is {self.rate:g}, the share of a prompt that is kept; give above 0 to below 1")
        check(0 < self.tsp <= 1, f"tsp is {self.tsp:g}, the share of tokens that go on; give above 0 to 1")
        check(
            self.tsp >= self.rate, f"tsp {self.tsp:g} is below rate {self.rate:g}: less would go on than is kept of it"
        )

    def layer_of(self, n_layer: int) -> int:
        """Return the layer behind which fewer tokens go on."""
        return max(n_layer // 2 - 1, 0) if self.layer is None else self.layer

    def capacity(self, tokens: int, is_behind: bool) -> int:
        """Return how many of the tokens that a layer reads are kept; `is_behind`: fewer have gone on to it."""
        return self._at_least_window(int(tokens * (self.rate / self.tsp if is_behind else self.rate)), tokens, "rate")

    def propagated(self, tokens: int) -> int:
        """Return how many of so many tokens go on."""
        return self._at_least_window(int(tokens * self.tsp), tokens, "tsp")

    def _at_least_window(self, kept: int, tokens: int, name: str) -> int:
        check(
            kept > self.window,
            f"fastkv keeps {kept} of {tokens} tokens by its {name}, no more than its window of {self.window}; give a "
            f"longer text, a larger {name} or a smaller window",
        )
        return kept

    def rows(self, pooled: Tensor, kv_heads: int, capacity: int) -> Tensor:
        """Return the rows (B, G, capacity) that a layer keeps, ascending, by `pooled` (B, H, T - W)."""
        group = pooled.unflatten(1, (kv_heads, -1)).sum(dim=2)
        return self._with_window(group.topk(capacity - self.window, dim=2).indices, pooled.shape[2])

    def tokens(self, pooled: Tensor, count: int) -> Tensor:
        """Return the tokens (B, count) that go on, in the order of the text."""
        return self._with_window(pooled.sum(dim=1).topk(count - self.window, dim=1).indices, pooled.shape[2])

    def _with_window(self, chosen: Tensor, before: int) -> Tensor:
        last = torch.arange(before, before + self.window, device=chosen.device)
        return torch.cat([chosen.sort(dim=-1).values, last.expand(*chosen.shape[:-1], -1)], dim=-1)


@dataclass(frozen=True, kw_only=True)
class DynamicKV(PromptRule):
    """Keeps `capacity` tokens a layer in the mean: each gets a share by where the highest scores of all layers lie.

    Args:
        r_max: a layer keeps no more than so many times that, its window left out, when it is read.
        every: shares are given anew behind so many layers, and behind the last one.
    """

    capacity: int
    r_max: int = 10
    every: int = 4

    def __post_init__(self):
        super().__post_init__()
        check(
            self.capacity > self.window,
            f"a capacity of {self.capacity} tokens is not above the window of {self.window}, which is always kept; "
            "give a larger one or a smaller window",
        )
        check(self.r_max >= 1 and self.every >= 1, f"r_max {self.r_max} and every {self.every} must be at least 1")

    @property
    def base(self) -> int:
        """Tokens a layer in the mean, without the window."""
        return self.capacity - self.window

    def ranked(self, pooled: Tensor, kv_heads: int) -> tuple[Tensor, Tensor]:
        """Return (scores, tokens) (B, G, at most r_max * base), best first: what a layer holds when it is read.

        A head of keys is scored by the mean of those that read it, where the published code stores a copy for each.
        """
        scores = pooled.unflatten(1, (kv_heads, -1)).mean(dim=2)
        return tuple(scores.topk(min(self.r_max * self.base, scores.shape[2]), dim=2))

    def shares(self, scores: Sequence[Tensor], n_layer: int) -> list[int]:
        """Return how many tokens each of the layers read so far gets, by their `scores` (G, T - W) of one text."""
        pool = torch.stack([layer.flatten() for layer in scores])
        heads = scores[0].shape[0]
        best = pool.flatten().topk(min(self.base * heads * len(pool), pool.numel())).indices // pool.shape[1]
        counts = torch.bincount(best, minlength=len(pool)).tolist()
        total = self.base * n_layer
        # whole numbers: a share of exactly 2 must not become 1
        given = [count * total // sum(counts) for count in counts]
        given[-1] += total - sum(given)
        return given
