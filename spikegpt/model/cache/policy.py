"""A policy made of parts: which rows of a prompt are kept, which are evicted later, and how rows are stored."""

from dataclasses import dataclass, field

from torch import Tensor

from .contract import Cache, New
from .eviction import Eviction
from .prompts import PromptRule
from .storage import Exact, appended


@dataclass(frozen=True, kw_only=True)
class CachePolicy:
    """The four functions of `contract.Policy`; without parts, the full cache."""

    name: str = "full"
    prompt: PromptRule | None = None
    eviction: Eviction | None = None
    storage: Exact = field(default_factory=Exact)

    @property
    def observes(self) -> bool:
        """Whether it has to see what attention was paid."""
        return self._statistics > 0 or self.eviction is not None

    @property
    def reads_prompt(self) -> bool:
        """Whether a prompt is read in one go."""
        return self.prompt is not None or self.storage.reads_prompt

    @property
    def _statistics(self) -> int:
        return self.storage.statistics + (self.eviction.statistics if self.eviction else 0)

    def append(self, cache: Cache | None, new: New) -> Cache:
        is_prompt = cache is None
        rows = self.storage.cached(new, is_prompt, self._statistics)
        return rows if cache is None else appended(cache, rows)

    def read(self, cache: Cache) -> tuple[Tensor, Tensor]:
        return self.storage.read(cache)

    def observe(self, cache: Cache, attention: Tensor) -> Cache:
        if self.eviction is not None:
            cache = self.eviction.observe(cache, attention)
        return self.storage.observe(cache, attention) if self.storage.statistics else cache

    def bits(self, cache: Cache) -> dict[str, int]:
        return self.storage.bits(cache)
