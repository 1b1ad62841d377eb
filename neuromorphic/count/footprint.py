"""What a model keeps in memory: its parameters, how many of them are 0, its buffers and its state."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .counts import Footprint
from .storages import has_storage, plain_tensors, storage_key

# integers that torch stores, and integers of the same width that it computes with
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def footprint(
    parameters: list[nn.Parameter], buffers: list[Tensor], state_elements: Mapping[Any, int], peak_activations: int
) -> Footprint:
    """Return how many numbers there are; parameters that share their memory count once."""
    dense = {storage_key(part): part.detach() for whole in parameters for part in plain_tensors(whole)}
    sparse = [whole for whole in parameters if not has_storage(whole) and not whole.is_nested]
    numbers = {part: part.numel() * (1 + part.is_complex()) for part in (*dense.values(), *sparse)}
    return Footprint(
        parameters=sum(numbers.values()),
        zero_parameters=sum(numbers.values()) - sum(map(_nonzeros, numbers)),
        buffers=sum(buffer.numel() for buffer in buffers),
        state=sum(state_elements.values()),
        peak_activations=peak_activations,
    )


def _nonzeros(parameter: Tensor) -> int:
    if not has_storage(parameter):
        return parameter._nnz()
    return int(_countable(parameter).count_nonzero())


def _countable(parameter: Tensor) -> Tensor:
    """Return numbers of which as many are 0, in a format that torch does not only store."""
    if parameter.is_complex():
        return torch.view_as_real(parameter)
    if not parameter.is_floating_point():
        return parameter.view(INTEGERS[parameter.element_size()])
    if parameter.element_size() > 1:
        return parameter
    # 8 bits have a zero of either sign; two numbers of 4 bits are one byte
    return parameter.view(torch.int8) if parameter.dtype == torch.float4_e2m1fn_x2 else parameter.float()
