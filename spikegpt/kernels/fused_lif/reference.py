"""What the fused neurons compute: what makes their currents, then the memoryless integer neuron, one after the other.

Each step goes through its own door with the same `backend`; "reference" is plain torch all the way.
"""

import torch
from torch import Tensor

from ..integer_lif.door import integer_lif
from ..integer_lif.options import IntegerLIFOptions
from ..pointwise.door import gate, squared_relu
from ..token_shift.door import token_shift


def shifted_lif(
    x: Tensor, previous: Tensor | None, shares: list[Tensor], thresholds: list[float | Tensor],
    options: IntegerLIFOptions, backend: str, dtype: torch.dtype,
) -> list[Tensor]:  # fmt: skip
    """Return the spikes of neurons whose currents, in `dtype`, are the mixes of a token shift."""
    mixes = token_shift(x, previous, shares, backend, dtype=dtype)
    return [_spikes(mix, threshold, options, backend, dtype) for mix, threshold in zip(mixes, thresholds, strict=True)]


def squared_relu_lif(
    x: Tensor, threshold: float | Tensor, options: IntegerLIFOptions, backend: str, dtype: torch.dtype
) -> Tensor:
    """Return the spikes of neurons whose currents are max(x, 0)^2."""
    return _spikes(squared_relu(x, backend), threshold, options, backend, dtype)


def gated_lif(
    receptance: Tensor, y: Tensor, threshold: float | Tensor, options: IntegerLIFOptions, backend: str,
    dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return the spikes of neurons whose currents are sigmoid(receptance) * y."""
    return _spikes(gate(receptance, y, backend), threshold, options, backend, dtype)


def _spikes(
    current: Tensor, threshold: float | Tensor, options: IntegerLIFOptions, backend: str, dtype: torch.dtype
) -> Tensor:
    spikes, _ = integer_lif(current, threshold=threshold, options=options, backend=backend, dtype=dtype)
    return spikes
