"""Rotary position embedding: pairs of channels turned by an angle that grows with the position.

Half-split, as in LLaMA: pair j is the channels (j, j + d/2), and turns by theta_j = BASE^(-2j/d) per token. A score of
two rotated vectors depends on how far apart they stand only.
Source: arXiv 2104.09864, eq. 34, with the pairs of github.com/meta-llama's checkpoints in Hugging Face's layout.
"""

import torch
from torch import Tensor

BASE = 10_000.0


def frequencies(channels: int, base: float = BASE) -> Tensor:
    """Return theta (channels / 2,), float64: radians per token of each pair."""
    return base ** (-torch.arange(0, channels, 2, dtype=torch.float64) / channels)


def turns(positions: Tensor, thetas: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return (cos, sin) (..., pairs) of whole `positions` (...) and thetas (..., pairs): what `rotate` takes."""
    # float64: at position 1,000,000 a float32 angle is off by a sixteenth of a radian
    angles = positions.to(torch.float64).unsqueeze(-1) * thetas.to(positions.device)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x (..., d) with pair j turned by the angle whose cos and sin (..., d/2) are given; the dtype is x's."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
