"""Attention in which few pairs of channels are turned by their position, and all else is made of few numbers: EliteKV.

Cached of a token are the turned keys of the chosen pairs, and `kv_dim` numbers of which the other channels of the keys
and all values of all heads are made. Which pairs a head keeps, and the matrices, come from trained attention:
`train/elite.py`.
Source: arXiv 2503.01586; github.com/CiaranZhou/EliteKV, convert/convert.py.
"""

import math

import torch
from torch import Tensor, nn

from ...config import ModelConfig
from ..rope import frequencies, rotate, turns
from .attention import Attention
from .contract import NeuronFactory


def attention_half(config: ModelConfig, make_neuron: NeuronFactory) -> Attention:
    """Return the attention that a configuration asks for."""
    return (EliteAttention if config.elite_pairs else Attention)(config, make_neuron)


class EliteAttention(Attention):
    """`Attention` whose cache holds `keys` (B, H, n, 2r), turned, and `values` (B, 1, n, kv_dim), of which all is made.

    A query has its turned channels first: the first halves of the pairs, the second halves, then the other channels.
    """

    pairs: Tensor

    def __init__(self, config: ModelConfig, make_neuron: NeuronFactory):
        super().__init__(config, make_neuron)
        C, H, r = config.n_embd, config.n_head, config.elite_pairs
        self.turned_channels, self.head_size = 2 * r, C // H
        self.key = nn.Linear(C, 2 * r * H, bias=False)
        self.value = nn.Linear(C, config.kv_dim, bias=False)
        self.expand = nn.Linear(config.kv_dim, H * (2 * self.head_size - 2 * r), bias=False)
        # whole numbers, in the kind of number that checkpoints hold
        self.register_buffer("pairs", torch.empty(H, r))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, H, T, d), keys (B, H, T, 2r), and what is expanded (B, 1, T, kv_dim), none rotated."""
        query, key = (part(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in (self.query, self.key))
        return query, key, self.value(x).unsqueeze(1)

    def angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return (cos, sin) (B, H, T, r) of positions (B, T)."""
        thetas = frequencies(self.head_size).to(positions.device)[self.pairs.round().long()]
        return turns(positions.unsqueeze(1), thetas.unsqueeze(1), dtype)

    def turned(self, query: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned, other = query.split([self.turned_channels, query.shape[-1] - self.turned_channels], dim=-1)
        return torch.cat([rotate(turned, cos, sin), other], dim=-1)

    def expanded(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        other, value = (
            self.expand(values.squeeze(1))
            .unflatten(-1, (self.n_head, -1))
            .transpose(1, 2)
            .split([self.head_size - self.turned_channels, self.head_size], dim=-1)
        )
        return torch.cat([keys, other], dim=-1), value

    def parts_of_expand(self) -> tuple[Tensor, Tensor]:
        """Return what makes the other channels of the keys (H, d - 2r, kv_dim), and the values (H, d, kv_dim)."""
        whole = self.expand.weight.unflatten(0, (self.n_head, -1))
        other, value = whole.split([self.head_size - self.turned_channels, self.head_size], dim=1)
        return other, value

    @torch.no_grad()
    def initialise(self, layer: int, n_layer: int) -> None:
        """As attention begins; the pairs that turn fastest, until others are chosen."""
        super().initialise(layer, n_layer)
        nn.init.normal_(self.expand.weight, std=1 / math.sqrt(self.expand.in_features))
        self.pairs.copy_(torch.arange(self.pairs.shape[1]).expand_as(self.pairs))
