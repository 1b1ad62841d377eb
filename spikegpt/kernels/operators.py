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


# below so many numbers NumPy is faster than a call of compiled code
FEW = 1 << 13


def count_events(spikes: Tensor) -> tuple[int, int]:
    """Return how many numbers are not 0, and how many unit spikes they are: the sum of their magnitudes.

    On the CPU in a small part of the time that torch takes.
    """
    if spikes.device.type != "cpu" or spikes.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        return int(spikes.count_nonzero()), int(spikes.abs().sum(dtype=torch.float64))
    if spikes.numel() >= FEW and spikes.dtype != torch.float64:
        # loaded with the first kernel
        from .events import count_compiled

        return count_compiled(spikes)
    array = (spikes.float() if spikes.dtype == torch.bfloat16 else spikes).detach().numpy()
    return int(np.count_nonzero(array)), int(np.abs(array).sum(dtype=np.float64))


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
