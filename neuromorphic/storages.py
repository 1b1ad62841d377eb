"""A set of tensors by the memory they lie in, which neither keeps that memory alive nor mistakes it for later memory."""

from collections.abc import Hashable

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


def storage_key(tensor: Tensor) -> int:
    """Return a number that all views of one memory share."""
    return tensor.untyped_storage()._cdata


class StorageSet:
    """Tensors and all their views, each with a name that stays when it is made again; a member leaves with its memory."""

    def __init__(self):
        self._members: dict[int, tuple[StorageWeakRef, Hashable]] = {}
        self._limit = 64

    def add(self, tensor: Tensor, name: Hashable = None) -> None:
        if len(self._members) >= self._limit:
            self.forget_freed()
            self._limit = 64 + 2 * len(self._members)
        # a weak reference keeps the key from being given to other memory
        self._members[storage_key(tensor)] = (StorageWeakRef(tensor.untyped_storage()), name)

    def discard(self, tensor: Tensor) -> None:
        self._members.pop(storage_key(tensor), None)

    def name(self, tensor: Tensor) -> Hashable:
        return self._members[storage_key(tensor)][1]

    def forget_freed(self) -> None:
        self._members = {key: member for key, member in self._members.items() if not member[0].expired()}

    def __contains__(self, tensor: Tensor) -> bool:
        return storage_key(tensor) in self._members

    def __bool__(self) -> bool:
        return bool(self._members)
