"""Which numbers of which weight were needed at a site: perfect reuse over batch and time needs each of them once."""

from collections.abc import Hashable

import torch
from torch import Tensor

from .counts import Site
from .storages import Member


class WeightUse:
    """Remembers by site what was needed of each weight, and sums it up when asked."""

    def __init__(self) -> None:
        self._views: dict[Site, dict[Hashable, dict[Hashable, Tensor]]] = {}
        self._sizes: dict[Hashable, int] = {}

    def add(self, site: Site, view: Hashable, member: Member, touched: Tensor) -> None:
        """Note that of a weight, the `view` of `member` that `view_key` names, so many numbers were needed.

        `touched` has one element for each input, or one for all.
        """
        views, touched = self._views_of(site, member), touched.cpu()
        seen = views.get(view)
        views[view] = torch.maximum(seen, touched) if seen is not None and seen.shape == touched.shape else touched

    def add_rows(self, site: Site, view: Hashable, member: Member, ids: Tensor, rows: int, row: int) -> None:
        """Note that of a weight of so many `rows` those of `ids` were needed, with the `row` numbers of each."""
        views = self._views_of(site, member)
        seen = views.get(view)
        if seen is None or seen.shape != (rows,):
            seen = views[view] = torch.zeros(rows, dtype=torch.int64)
        # by NumPy, for a tensor of inference mode is not to be changed outside of it
        seen.numpy()[ids.numpy(force=True)] = row

    def _views_of(self, site: Site, member: Member) -> dict[Hashable, Tensor]:
        self._sizes[member.name] = member.size
        return self._views.setdefault(site, {}).setdefault(member.name, {})

    def declare(self, site: Site, size: int) -> None:
        """Note that an operator needs `size` weights, the same in each of its calls."""
        name = ("declared", site)
        # nearly always it is known
        if self._sizes.get(name) != size:
            self._sizes[name] = size
            self._views.setdefault(site, {})[name] = {None: torch.tensor(size)}

    def update(self, other: "WeightUse") -> None:
        """Note all that `other` has noted."""
        self._sizes |= other._sizes
        for site, weights in other._views.items():
            for name, views in weights.items():
                self._views.setdefault(site, {}).setdefault(name, {}).update(views)

    def needed(self, site: Site) -> int:
        """Return how many distinct weights were needed at `site`: of each weight no more than it has."""
        return sum(
            min(sum(int(touched.sum()) for touched in views.values()), self._sizes[name])
            for name, views in self._views.get(site, {}).items()
        )


def sweeps(weight: Tensor, result: Tensor, outputs: int) -> int:
    """How often an elementwise operator reads a whole weight: once per vector of `result` that it is spread over."""
    shape = [*weight.shape]
    while shape and shape[0] == 1:
        shape.pop(0)
    vector = result.shape[result.dim() - len(shape) :].numel() if shape else result.numel()
    return outputs // max(vector, 1)
