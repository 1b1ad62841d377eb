"""Where counts are added up: at once, or for the time until it is known whether they are work or a preparation."""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager

from .counts import MAXIMA, Counts, Site
from .weights import WeightUse


class Account:
    """Counts by site, and which weights were needed there."""

    def __init__(self) -> None:
        self.sites: dict[Site, Counts] = {}
        self.use = WeightUse()

    def add(self, site: Site, counts: Counts) -> None:
        """Add `counts`, which nobody else changes."""
        if self.sites.setdefault(site, counts) is not counts:
            self.add_some(site, vars(counts))

    def add_some(self, site: Site, quantities: Mapping[str, int]) -> None:
        """Add some of the quantities of Counts; in place, for it is done for every operator."""
        known = self.sites.get(site)
        if known is None:
            known = self.sites[site] = Counts()
        values = vars(known)
        for name, value in quantities.items():
            if value:
                values[name] = max(values[name], value) if name in MAXIMA else values[name] + value

    def update(self, other: "Account") -> None:
        for site, counts in other.sites.items():
            self.add(site, counts)
        self.use.update(other.use)


class Accounts:
    """`current` is where counts go; `settled` is what was certainly computed."""

    def __init__(self) -> None:
        self.current = self.settled = Account()
        self._pending: dict[frozenset[Hashable], Account] = {}

    @contextmanager
    def deferred(self, buffers: frozenset[Hashable]) -> Iterator[None]:
        """Within this block counts are those of a preparation, unless one of the buffers proves to be a state."""
        self.current = self._pending.setdefault(buffers, Account())
        try:
            yield
        finally:
            self.current = self.settled

    def settle(self, states: set[Hashable]) -> None:
        """Add what was computed from buffers that are known to be states by now."""
        for buffers in [buffers for buffers in self._pending if buffers & states]:
            self.settled.update(self._pending.pop(buffers))
