"""The product of spikes and a weight, defined in plain torch."""

import torch
from torch import Tensor


def event_matvec(spikes: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return (N, out) in the dtype of `spikes`: the product spikes (N, in) @ weight (in, out), column j times scale[j].

    An input that fires n adds n times its row of the weight to every output; a silent one adds nothing, so that a
    finite row need not be read. weight in any dtype, scale (out,) as int8 weights have it. Sums in float32, or float64
    with float64 spikes.
    """
    real = torch.promote_types(spikes.dtype, torch.float32)
    total = spikes.to(real) @ weight.to(real)
    return (total if scale is None else total * scale).to(spikes.dtype)
