"""What the torch custom operators of the doors have in common: new results, declared costs, and options made flat.

A schema of torch holds numbers, words and tensors only, so checked options go through an operator field by field.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def new_like(tensor: Tensor) -> Tensor:
    """Return an empty tensor of the same shape, contiguous whatever `tensor` is: kernels fill new arrays."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def count_events(spikes: Tensor) -> int:
    """Return how many numbers are not 0; on the CPU in a small part of the time that torch's count_nonzero takes."""
    if spikes.device.type == "cpu" and spikes.dtype in (torch.float32, torch.float64):
        return int(np.count_nonzero(spikes.detach().numpy() != 0))
    return int(spikes.count_nonzero())


def declare_cost(overload: Any, op_cost: Callable[[tuple, dict, Any], dict[str, int | str]]) -> None:
    """Let the operator `overload` say what a call of it computes; dispatch-mode counters ask for `op_cost`."""
    overload.op_cost = op_cost


def flatten(options: "DataclassInstance") -> tuple[Any, ...]:
    """Return the fields of `options`, in order."""
    return tuple(vars(options).values())


@functools.lru_cache(maxsize=256)
def rebuild(kind: type[Options], values: tuple[Any, ...]) -> Options:
    """Return the options of class `kind` that `flatten` made `values` of, checked the first time."""
    return kind(**dict(zip(kind.__dataclass_fields__, values, strict=True)))
