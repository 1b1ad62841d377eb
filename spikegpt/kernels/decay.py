"""The decay per step of the WKVs, exp(-exp(time_decay)): its limit, its logarithm, and its gradient.

No .cu file and no njit body repeats this: they are given the numbers made here.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# beyond it everything is forgotten in one step: exp(60) is 1e26, which no key can make up for, and still finite, so
# that a gradient of 0 stays 0 when it is multiplied by it
TIME_DECAY_LIMIT = 60.0

Exponential = Callable[[Tensor], Tensor]


def log_decay_of(time_decay: Tensor, exp: Exponential = torch.exp) -> Tensor:
    """Return -exp(time_decay), time_decay limited to TIME_DECAY_LIMIT; `exp` is what computes exponentials."""
    return -exp(time_decay.clamp(max=TIME_DECAY_LIMIT))


def decay_of(time_decay: Tensor, exp: Exponential = torch.exp) -> Tensor:
    """Return exp(-exp(time_decay)), in [0, 1]: the share of the running sums that one step keeps."""
    return exp(log_decay_of(time_decay, exp))


def time_decay_gradient(grad_log_decay: Tensor, time_decay: Tensor, log_decay: Tensor) -> Tensor:
    """Return the gradient of `time_decay` from that of `log_decay_of(time_decay)`, as autograd; 0 beyond the limit."""
    return torch.where(time_decay.detach() > TIME_DECAY_LIMIT, 0.0, grad_log_decay * log_decay)
