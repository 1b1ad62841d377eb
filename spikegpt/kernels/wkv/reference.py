"""RWKV-4's WKV, defined in plain torch and written to be read: one loop over time.

Gradients come from torch's autograd; the fast versions are tested against this file.
Equations: github.com/BlinkDL/RWKV-LM (RWKV-v4neo).
"""

import torch
from torch import Tensor

from ..decay import log_decay_of

# far below any exponent that a key can reach, and still finite in float32
EMPTY_EXPONENT = -1e38


def wkv(
    time_decay: Tensor,
    time_first: Tensor,
    key: Tensor,
    value: Tensor,
    numerator: Tensor,
    denominator: Tensor,
    max_exponent: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (output (B, T, C) in the dtype of `key`, numerator, denominator, max_exponent), each state (B, C).

    output_t = (sum_{i<t} exp(k_i - (t-1-i) e^time_decay) v_i + exp(time_first + k_t) v_t) / (the same without v).
    The true sums are numerator * exp(max_exponent) and denominator * exp(max_exponent). max_exponent is only the
    scale they are written in, so no gradient passes through it; the gradient of the output is exact all the same.
    """
    state_dtype = numerator.dtype
    log_decay = log_decay_of(time_decay.to(state_dtype))
    time_first = time_first.to(state_dtype)
    max_exponent = max_exponent.detach()
    outputs = []
    for k, v in zip(key.to(state_dtype).unbind(dim=1), value.to(state_dtype).unbind(dim=1), strict=True):
        scale = torch.maximum(max_exponent, time_first + k).detach()
        past, present = torch.exp(max_exponent - scale), torch.exp(time_first + k - scale)
        outputs.append((past * numerator + present * v) / (past * denominator + present))

        scale = torch.maximum(max_exponent + log_decay, k).detach()
        past, present = torch.exp(max_exponent + log_decay - scale), torch.exp(k - scale)
        numerator = past * numerator + present * v
        denominator = past * denominator + present
        max_exponent = scale
    return torch.stack(outputs, dim=1).to(key.dtype), numerator, denominator, max_exponent
