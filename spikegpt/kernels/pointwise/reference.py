"""The pointwise functions in plain torch. Written to be read; the fast versions are tested against this file."""

import torch
from torch import Tensor


def squared_relu(x: Tensor) -> Tensor:
    """Return max(x, 0)^2."""
    return torch.relu(x).square()


def gate(receptance: Tensor, y: Tensor) -> Tensor:
    """Return sigmoid(receptance) * y."""
    return torch.sigmoid(receptance) * y


def dropout(x: Tensor, rate: float) -> Tensor:
    """Return x with a share of `rate` of its numbers, drawn at random, set to 0 and the others over 1 - rate."""
    return torch.dropout(x, rate, train=True)


def rescale_columns(weights: list[Tensor], grads: list[Tensor], worths: list[Tensor]) -> list[Tensor]:
    """Divide the columns of weights, multiply those of their gradients; return sum(gradient * weight) of each."""
    sums = [(grad * weight).sum(dim=0) for weight, grad in zip(weights, grads, strict=True)]
    for weight, grad, worth in zip(weights, grads, worths, strict=True):
        grad.mul_(worth)
        weight.div_(worth)
    return sums


def firing_rate(spikes: Tensor) -> Tensor:
    """Return the share of neurons that fired (scalar): the mean of min(|spike|, 1)."""
    return spikes.float().abs().clamp(max=1).mean()
