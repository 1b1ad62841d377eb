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


def product_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return the precision that autocast gives the inputs of a matrix product, None where it is off."""
    device = tensor.device.type
    is_on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_on else None


# numbers that are looked at in one go: they stay near the processor, and levels of them add up exactly in float32
BLOCK = 1 << 15


def count_events(spikes: Tensor) -> tuple[int, int]:
    """Return how many numbers are not 0, and how many unit spikes they are: the sum of their magnitudes.

    On the CPU in a small part of the time that torch takes.
    """
    if spikes.device.type != "cpu" or spikes.dtype not in (torch.float32, torch.float64):
        return int(spikes.count_nonzero()), int(spikes.abs().sum(dtype=torch.float64))
    events, units, flat = 0, 0.0, spikes.detach().numpy().reshape(-1)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        events += int(np.count_nonzero(block != 0))
        units += float(np.abs(block).sum())
    return events, int(units)


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
