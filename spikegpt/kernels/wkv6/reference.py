"""The WKV of RWKV-5 and -6, defined in plain torch and written to be read: one loop over time.

Gradients come from torch's autograd; the fast versions are tested against this file.
Equations: github.com/BlinkDL/RWKV-LM (RWKV-v5/cuda/wkv6_cuda.cu).
"""

import torch
from torch import Tensor


def wkv6(
    receptance: Tensor, log_decay: Tensor, key: Tensor, value: Tensor, time_first: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (output (B, T, H, N) in the dtype of `key`, state (B, H, N, N)); rows of it are keys, columns are values.

    output_t = (S_{t-1} + diag(time_first) k_t v_t^T)^T r_t;  S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T.
    """
    inputs = (tensor.to(state.dtype).unbind(dim=1) for tensor in (receptance, log_decay, key, value))
    outputs = []
    for r, log_w, k, v in zip(*inputs, strict=True):
        bonus = (r * time_first * k).sum(dim=-1, keepdim=True) * v
        outputs.append((r.unsqueeze(-2) @ state).squeeze(-2) + bonus)
        state = torch.exp(log_w).unsqueeze(-1) * state + k.unsqueeze(-1) * v.unsqueeze(-2)
    return torch.stack(outputs, dim=1).to(key.dtype), state
