"""A set of tensors by the memory they lie in: it neither keeps it alive nor mistakes it for later memory."""

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def has_storage(tensor: Tensor) -> bool:
    """False for sparse and nested tensors, which lie in several memories."""
    return tensor.layout == torch.strided and not tensor.is_nested


def width(*tensors: Tensor) -> int:
    """Return how many real numbers an element is: two if it is complex."""
    return 1 + any(tensor.is_complex() for tensor in tensors)


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensors with memory of their own that `tensor` wraps: itself, or none of them.

    Wrappers are those of torch.func (vmap, grad, jvp) and of subclasses, such as jagged or quantised tensors. A lazy
    parameter has no memory yet, a sparse tensor none that a product could be counted by.
    """
    if type(tensor) is Tensor and has_storage(tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        # nearly always
        yield tensor
        return
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    # for type checkers no tensor is one
    wrapper: Any = tensor
    if is_traceable_wrapper_subclass(wrapper):
        for name in wrapper.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(wrapper, name))
    elif not is_lazy(tensor) and has_storage(tensor):
        yield tensor


def storage_key(tensor: Tensor) -> int:
    """Return a number that all views of one memory share."""
    return tensor.untyped_storage()._cdata


def view_key(tensor: Tensor) -> Hashable:
    """Return what tells one view of a memory from another."""
    return tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def version(tensor: Tensor) -> int | None:
    """Return what grows with each write to the memory; None for tensors of inference mode, which do not know it."""
    return None if tensor.is_inference() else tensor._version


class Member(NamedTuple):
    reference: StorageWeakRef
    name: Any
    """stays the same when the tensor is made again in the same way"""
    size: int
    """distinct numbers in it, which copies do not multiply"""
    roots: frozenset[Hashable]
    """the buffers that it was computed from"""
    mark: Any
    """what the owner of the set says of it"""


class StorageSet:
    """Tensors and all their views; a member leaves with its memory."""

    def __init__(self):
        self.members: dict[int, Member] = {}
        """memory, as `storage_key` names it, -> what is known of it"""
        self._limit = 64

    def add(
        self,
        tensor: Tensor,
        name: Hashable = None,
        size: int = 0,
        roots: frozenset[Hashable] = frozenset(),
        mark: Any = None,
    ) -> None:
        if not has_storage(tensor):
            return
        if len(self.members) >= self._limit:
            self.forget_freed()
            self._limit = 64 + 2 * len(self.members)
        storage = tensor.untyped_storage()
        # a weak reference keeps the key from being given to other memory
        self.members[storage._cdata] = Member(StorageWeakRef(storage), name, size, roots, mark)

    def discard(self, tensor: Tensor) -> None:
        if has_storage(tensor):
            self.members.pop(storage_key(tensor), None)

    def member(self, tensor: Tensor) -> Member:
        return self.members[storage_key(tensor)]

    def forget_freed(self) -> None:
        self.members = {key: member for key, member in self.members.items() if not member.reference.expired()}

    def __contains__(self, tensor: Tensor) -> bool:
        return has_storage(tensor) and storage_key(tensor) in self.members

    def __bool__(self) -> bool:
        return bool(self.members)
