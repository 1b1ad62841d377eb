"""RWKV-6's (Finch's, x060) two halves of a block, dense and spike-driven: mixes of tokens and decay are of the token.

With `spiking` "input" every matrix product reads spikes, those of the pairs of few inner channels too; what the pairs
add to, the mixes, decay and gate stay real, and are used elementwise only. Parameter names and shapes are those of the
official checkpoints.
Source: github.com/BlinkDL/RWKV-LM, RWKV-v5/src/model.py, classes x060.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...config import ModelConfig
from ...kernels.decay import log_decay_of
from ...kernels.token_shift.reference import shift_tokens
from .contract import Firing, Mixed, NeuronFactory, Site
from .heads import PAIR_STD, per_channel
from .rwkv4 import OUTPUT_RATE, ramp_of
from .rwkv5 import ChannelMix5, GatedHeads, TimeMix5State

# what the mixes of tokens are for, in the order of the checkpoints, and the products that read them
MIXES = "w", "k", "v", "r", "g"
READERS = "time_decay_w1", "key", "value", "receptance", "gate"
# matrices of few inner channels, whose products are added to a parameter: of the mixes, and of the decay
PAIRS = "time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2"
# of what is drawn as published of the second of a pair
PAIR_RANGE = 0.01


class TimeMix6(GatedHeads):
    """RWKV-6's: how much of the token before each product reads, and the decay of each channel, are of the token."""

    undecayed = frozenset(("time_faaaa", *PAIRS))

    def __init__(self, config: ModelConfig, make_neuron: NeuronFactory):
        super().__init__(config)
        C, neuron = config.n_embd, config.neuron
        mix, decay = config.lora_ranks or published_ranks(C)
        self.time_maa_x, self.time_maa_w, self.time_maa_k = (per_channel(C) for _ in range(3))
        self.time_maa_v, self.time_maa_r, self.time_maa_g = (per_channel(C) for _ in range(3))
        self.time_maa_w1 = nn.Parameter(torch.empty(C, len(MIXES) * mix))
        self.time_maa_w2 = nn.Parameter(torch.empty(len(MIXES), mix, C))
        self.time_decay = per_channel(C)
        self.time_decay_w1 = nn.Parameter(torch.empty(C, decay))
        self.time_decay_w2 = nn.Parameter(torch.empty(decay, C))
        if self.has_events:
            pair = Site("time_maa_w1_neuron", "time_maa_w1", C, neuron)
            inner = Site("time_maa_w2_neuron", "time_maa_w2", len(MIXES) * mix, neuron)
            stream = [Site(f"{name}_neuron", name, C, neuron) for name in READERS]
            decay_inner = Site("time_decay_w2_neuron", "time_decay_w2", decay, neuron)
            last = Site("output_neuron", "output", C, neuron, OUTPUT_RATE)
            self.place_neurons((pair, inner, *stream, decay_inner, last), make_neuron)

    def forward(self, x: Tensor, state: TimeMix5State | None) -> Mixed:
        shift, matrices, neurons = state or TimeMix5State(None, None, None)
        fire = Firing(self, neurons)
        (mixed,) = fire.shifted(["time_maa_w1_neuron"], x, shift, [1 - self.time_maa_x])
        inner = fire("time_maa_w2_neuron", torch.tanh(self.product("time_maa_w1", mixed)))
        added = self._products_of_mixes(inner).unbind(dim=-2)
        back = shift_tokens(x, shift) - x
        bases = [self.get_parameter(f"time_maa_{name}") for name in MIXES]
        for_w, *inputs = [
            fire(f"{name}_neuron", x + back * (base + more))
            for name, base, more in zip(READERS, bases, added, strict=True)
        ]
        projected = [getattr(self, name)(mixed) for name, mixed in zip(READERS[1:], inputs, strict=True)]
        inner = fire("time_decay_w2_neuron", torch.tanh(self.product("time_decay_w1", for_w)))
        log_decay = log_decay_of(self.time_decay + self.product("time_decay_w2", inner))
        y, matrices = self.mix(fire, projected, self.heads(log_decay), matrices)
        return Mixed(y, TimeMix5State(x[:, -1], matrices, fire.after), fire.spikes)

    def _products_of_mixes(self, inner: Tensor) -> Tensor:
        """Return (B, T, MIXES, C): for each mix, its part of the inner channels (B, T, all) times its matrix."""
        matrix, parts = cast(Any, self.time_maa_w2), inner.unflatten(-1, (len(MIXES), -1))
        if isinstance(matrix, nn.Module):
            # a decoder's has the rows of all mixes one after the other: each part is read with the others silent
            alone = torch.eye(len(MIXES), dtype=inner.dtype, device=inner.device).unsqueeze(-1) * parts.unsqueeze(-3)
            return matrix(alone.flatten(-2))
        products = torch.bmm(parts.flatten(0, 1).transpose(0, 1), matrix)
        return products.transpose(0, 1).unflatten(0, inner.shape[:2])

    @torch.no_grad()
    def initialise(self, layer: int, n_layer: int) -> None:
        """Source: as of `GatedHeads.fill_heads`; not of matrices for spikes."""
        _, depth, ramp = ramp_of(self.key.in_features, layer, n_layer)
        for base in (self.time_maa_x, self.time_maa_w, self.time_maa_k):
            base.copy_(1 - ramp)
        self.time_maa_v.copy_(1 - (ramp + 0.3 * depth))
        self.time_maa_r.copy_(1 - ramp.sqrt())
        self.time_maa_g.copy_(1 - ramp.sqrt())
        self.fill_heads(layer, n_layer)
        for name in PAIRS:
            matrix, is_first = self.get_parameter(name), name.endswith("w1")
            if self.has_events:
                nn.init.normal_(matrix, std=(1.0 if is_first else PAIR_STD) / math.sqrt(matrix.shape[-2]))
            elif is_first:
                nn.init.zeros_(matrix)
            else:
                nn.init.uniform_(matrix, -PAIR_RANGE, PAIR_RANGE)


class ChannelMix6(ChannelMix5):
    """RWKV-5's, under RWKV-6's names: a mix of tokens is what the token before has in it."""

    mix_prefix = "time_maa"

    def mix_of(self, projection: str) -> Tensor:
        return 1 - super().mix_of(projection)

    @torch.no_grad()
    def initialise(self, layer: int, n_layer: int) -> None:
        """Source: RWKV-v5/src/model.py, `RWKV_CMix_x060`."""
        super().initialise(layer, n_layer)
        channel = torch.arange(self.key.in_features, dtype=torch.float64)
        share = (channel / len(channel)) ** ((1 - layer / n_layer) ** 3)
        for projection in self.projections:
            base = self.get_parameter(self._mix_name(projection))
            base.copy_((1 - share).view_as(base))


def published_ranks(n_embd: int) -> tuple[int, int]:
    """Return the inner channels of the pairs of the mixes and of the decay, as in released models."""
    return (64, 128) if n_embd >= 4096 else (32, 64)
