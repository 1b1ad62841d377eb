"""The token shift in plain torch. Written to be read; the fast version is tested against this file.

Source: github.com/BlinkDL/RWKV-LM, RWKV-v4neo/src/model.py, `time_shift` and what follows it.
"""

import torch
from torch import Tensor


def shift_tokens(x: Tensor, previous: Tensor | None) -> Tensor:
    """Return x (B, T, C) moved one token later; the first token sees `previous` (B, C), or zeros."""
    first = x.new_zeros(x.shape[0], 1, x.shape[2]) if previous is None else previous.to(x.dtype).unsqueeze(1)
    return torch.cat([first, x[:, :-1]], dim=1)


def token_shift(x: Tensor, previous: Tensor | None, shares: list[Tensor]) -> list[Tensor]:
    """Return share * x + (1 - share) * (x one token earlier) for each of `shares`, each (B, T, C)."""
    shifted = shift_tokens(x, previous)
    return [torch.lerp(shifted, x, share.to(x.dtype)) for share in shares]
