"""What the generations with a matrix in every head have in common: heads, their norm, what a channel has of its own."""

import torch
from torch import Tensor, nn

from ...config import ModelConfig
from .contract import Mixer

# times the square of 8, whatever the size of a head is
NORM_EPS = 64e-5
# of what spikes add to a parameter through a pair of matrices of few inner channels at the beginning
PAIR_STD = 0.3


class HeadedMixer(Mixer):
    """A mixer of H heads of N channels, whose outcomes are normalised head by head."""

    head_size: int
    ln_x: nn.GroupNorm

    def heads(self, x: Tensor) -> Tensor:
        """Return (..., H, N) of x (..., C)."""
        return x.unflatten(-1, (-1, self.head_size))

    def normed(self, y: Tensor) -> Tensor:
        """Return (B, T, C) of y (B, T, H, N), normalised in every head."""
        return self.ln_x(y.flatten(0, 1).flatten(1)).unflatten(0, y.shape[:2])

    @torch.no_grad()
    def fill_norm(self, layer: int, n_layer: int) -> None:
        self.ln_x.weight.fill_(((layer + 1) / n_layer) ** 0.7)
        nn.init.zeros_(self.ln_x.bias)


def norm_of_heads(config: ModelConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.n_embd // config.head_size, config.n_embd, eps=NORM_EPS)


def per_channel(channels: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(1, 1, channels))
