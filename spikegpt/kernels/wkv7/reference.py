"""RWKV-7's WKV, defined in plain torch and written to be read: one loop over time.

Gradients come from torch's autograd; the fast versions are tested against this file.
Equations: github.com/BlinkDL/RWKV-LM (RWKV-v7/rwkv_v7_demo.py).
"""

import torch
from torch import Tensor


def wkv7(
    receptance: Tensor, log_decay: Tensor, key: Tensor, value: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (output (B, T, H, N) in the dtype of `key`, state (B, H, N, N)); rows of it are values, columns are keys.

    S_t = S_{t-1} diag(exp(log_decay_t)) + (S_{t-1} a_t) b_t^T + v_t k_t^T;  output_t = S_t r_t.
    """
    inputs = (tensor.to(state.dtype).unbind(dim=1) for tensor in (receptance, log_decay, key, value, a, b))
    outputs = []
    for r, log_w, k, v, a_t, b_t in zip(*inputs, strict=True):
        # numbers of a row, and of a column, of the state of each head
        removed = (state @ a_t.unsqueeze(-1)) * b_t.unsqueeze(-2)
        state = state * torch.exp(log_w).unsqueeze(-2) + removed + v.unsqueeze(-1) * k.unsqueeze(-2)
        outputs.append((state @ r.unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, dim=1).to(key.dtype), state
