"""Surrogates: what stands in the backward pass for the derivative of a step. Shared by every neuron that fires.

`atan` and `sigmoid` are SpikingJelly's (its alpha is our slope), `fast_sigmoid` is snnTorch's.
"""

import math

import torch
from torch import Tensor

SURROGATES = ("atan", "sigmoid", "fast_sigmoid", "rectangular")


def surrogate_derivative(distance: Tensor, surrogate: str, slope: float) -> Tensor:
    """Return the stand-in for the derivative of the Heaviside step, at `distance` = potential - threshold.

    `rectangular` is `slope` inside a window of width 1/slope and 0 outside; the others are written out below.
    """
    if surrogate == "atan":
        return slope / 2 / (1 + (math.pi / 2 * slope * distance) ** 2)
    if surrogate == "sigmoid":
        probability = torch.sigmoid(slope * distance)
        return slope * probability * (1 - probability)
    if surrogate == "fast_sigmoid":
        return 1 / (1 + slope * distance.abs()) ** 2
    if surrogate == "rectangular":
        return slope * (slope * distance.abs() <= 0.5).to(distance.dtype)
    raise ValueError(f"surrogate is {surrogate!r}; known: {', '.join(SURROGATES)}")


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, distance: Tensor, surrogate: str, slope: float) -> Tensor:
        ctx.save_for_backward(distance)
        ctx.surrogate, ctx.slope = surrogate, slope
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (distance,) = ctx.saved_tensors
        return grad * surrogate_derivative(distance, ctx.surrogate, ctx.slope), None, None


def heaviside(distance: Tensor, surrogate: str = "atan", slope: float = 2.0) -> Tensor:
    """Return 1 where `distance` >= 0 and 0 elsewhere, with a surrogate derivative in the backward pass."""
    return _Heaviside.apply(distance, surrogate, slope)
