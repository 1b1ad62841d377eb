"""RWKV-7's WKV by events, defined in plain torch and written to be read: one loop over time.

The event is defined here: what a kernel skips must be visible in this file. It is `wkv7.reference.wkv7`, computed where
something is not 0: decay commutes with all that happens to other columns, so it waits, as one exponent per column.
"""

import torch
from torch import Tensor


def event_wkv7(
    receptance: Tensor,
    log_decay: Tensor,
    key: Tensor,
    value: Tensor,
    a: Tensor,
    b: Tensor,
    matrix: Tensor,
    waiting: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (output (B, T, H, N) in the dtype of `key`, matrix (B, H, N, N), waiting (B, H, N)).

    The state is S = matrix diag(exp(waiting)), rows are values, columns are keys. Of each token, with S as it was:

        removed = sum of S_j a_j over the columns j where a_j != 0
        waiting <- waiting + log_decay
        matrix_j <- matrix_j exp(waiting_j) + removed b_j + value k_j,  waiting_j <- 0      where k_j, a_j or b_j != 0
        output = sum of matrix_j exp(waiting_j) r_j over the columns j where r_j != 0

    No other column is touched: without an event it stays what it is to the last bit, and so does the whole matrix of a
    head whose keys are silent.
    """
    inputs = (tensor.to(matrix.dtype).unbind(dim=1) for tensor in (receptance, log_decay, key, value, a, b))
    outputs = []
    for r, log_w, k, v, a_t, b_t in zip(*inputs, strict=True):
        removed = matrix @ (a_t * torch.exp(waiting)).unsqueeze(-1)
        waiting = waiting + log_w
        is_event = (k != 0) | (a_t != 0) | (b_t != 0)
        edited = matrix * torch.exp(waiting).unsqueeze(-2) + removed * b_t.unsqueeze(-2)
        edited = edited + v.unsqueeze(-1) * k.unsqueeze(-2)
        matrix = torch.where(is_event.unsqueeze(-2), edited, matrix)
        waiting = torch.where(is_event, torch.zeros_like(waiting), waiting)
        outputs.append((matrix @ (r * torch.exp(waiting)).unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, dim=1).to(key.dtype), matrix, waiting
