"""What is known of the values of weights, so that a product looks at one side only, and the rows that met them."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .accounts import Accounts
from .counts import Site
from .products import describe_weight
from .provenance import Provenance
from .row_products import RowProducts
from .storages import Member, storage_key, version, view_key


class Meeting(NamedTuple):
    """Rows that met one view of a weight one by one."""

    rows: RowProducts
    view: Hashable
    member: Member


class DescribedWeights:
    """Looks at each weight once, until it is written to or freed."""

    def __init__(self, provenance: Provenance, accounts: Accounts):
        self._provenance, self._accounts = provenance, accounts
        # memory of a weight -> a reference that keeps its key from other memory, way to look at it -> what was seen
        self._described: dict[int, tuple[StorageWeakRef, dict[Hashable, Any]]] = {}
        # memory of a weight -> site and way to look at it -> the rows that met it one by one
        self._rows: dict[int, dict[Hashable, Meeting]] = {}

    def describe(self, w: Tensor, describe: Callable, *options: Any) -> Any:
        """Return describe(w, *options), computed once while the weight stays as it is."""
        memory = storage_key(w)
        if memory not in self._described:
            self._described[memory] = (StorageWeakRef(w.untyped_storage()), {})
        views = self._described[memory][1]
        # where there is no version, what operators write is seen, see `forget`
        key = (view_key(w), version(w), describe, repr(options))
        if key not in views:
            views[key] = describe(w, *options)
        return views[key]

    def rows(self, site: Site, w: Tensor) -> RowProducts | None:
        """Return the rows that meet w (1, K, M) at `site`; None if it is no parameter or buffer itself."""
        memory, member = storage_key(w), self._provenance.member(w)
        if member is None or member.name != memory or self._accounts.current is not self._accounts.settled:
            return None
        of_weight = self._rows.setdefault(memory, {})
        key = site, view_key(w)
        known = of_weight.get(key)
        if known is not None and known.rows.is_current(w):
            return known.rows
        if known is not None:
            self._settle(known)
        rows = RowProducts(site, w, self.describe(w, describe_weight))
        of_weight[key] = Meeting(rows, view_key(w), member)
        # the site stands in the order in which sites did their work
        self._accounts.settled.add_some(site, {})
        return rows

    def settle_rows(self) -> None:
        """Add up all rows; those to come meet their weights anew."""
        for memory in list(self._rows):
            self._settle_rows_of(memory)

    def _settle_rows_of(self, memory: int) -> None:
        for meeting in self._rows.pop(memory, {}).values():
            self._settle(meeting)

    def _settle(self, meeting: Meeting) -> None:
        rows, view, member = meeting
        rows.is_closed, account = True, self._accounts.settled
        account.add_some(rows.site, vars(rows.counts()))
        account.use.add(rows.site, view, member, rows.touched() * rows.M)

    def forget(self, weight: Tensor) -> None:
        """It was written to."""
        if self._described:
            self._forget(storage_key(weight))

    def forget_all(self) -> None:
        self._described.clear()
        self.settle_rows()

    def forget_freed(self) -> None:
        for memory in [memory for memory, (reference, _) in self._described.items() if reference.expired()]:
            self._forget(memory)

    def _forget(self, memory: int) -> None:
        # the key may be given to other memory only after its rows are added up
        self._settle_rows_of(memory)
        self._described.pop(memory, None)
