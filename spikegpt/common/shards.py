"""Tensors of which each process holds a part: the whole from the parts, and the own part of a whole.

All processes call these functions together, in the same order. A tensor that is here whole is returned, or filled.
"""

from typing import Any, TypeGuard

import torch
from torch import Tensor


# of the class DTensor, which is not imported where nothing is distributed
def is_sharded(tensor: Tensor) -> TypeGuard[Any]:
    """Whether this process holds only a part of `tensor`."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """Return all of `tensor`."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def own_columns(matrix: Tensor) -> slice:
    """Return which columns of `matrix` this process holds: all, or where it is seen transposed a part."""
    if not is_sharded(matrix) or matrix.placements[0].dim == 0:
        return slice(None)
    columns = -(-matrix.shape[1] // matrix.device_mesh.size())
    first = columns * matrix.device_mesh.get_local_rank()
    return slice(first, first + columns)


def part_of(values: Tensor, like: Tensor) -> Tensor:
    """Return of `values`, which every process has whole, the part that this one holds of `like`: sharded as that is."""
    if not is_sharded(like):
        return values
    own = torch.empty_like(like.detach(), dtype=values.dtype)
    fill(own, values)
    return own


def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy `values`, which every process has whole, into `tensor`, whose rows are divided where it is sharded."""
    if not is_sharded(tensor):
        tensor.copy_(values)
        return
    own, mesh = tensor.to_local(), tensor.device_mesh
    # as torch.chunk divides them: the last processes may have fewer, or none
    rows = -(-len(values) // mesh.size())
    own.copy_(values[rows * mesh.get_local_rank() :][: len(own)])
