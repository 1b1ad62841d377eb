"""RWKV-5's (Eagle's, 5.2) two halves of a block, dense and spike-driven; RWKV-6's are built on them.

With `spiking` "input" every matrix product reads spikes; gate, decay, the matrices of the WKV and their norm stay real,
and are used elementwise only. Parameter names and shapes are those of the official checkpoints.
Source: github.com/BlinkDL/RWKV-LM, RWKV-v5/src/model.py, classes x052.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config import ModelConfig
from ...kernels import wkv6
from ...kernels.decay import log_decay_of
from .contract import Firing, Mixed, NeuronFactory, Site, token_shift_cost
from .heads import HeadedMixer, norm_of_heads, per_channel
from .rwkv4 import OUTPUT_RATE, ChannelMix, fill_for_spikes, ramp_of

# scale of keys and gates at the beginning, as published
SMALL_GAIN = 0.1


class TimeMix5State(NamedTuple):
    """`shift` (B, C): the token before; the matrices of the WKV (B, H, N, N); what the neurons carry."""

    shift: Tensor | None
    wkv: Tensor | None
    neurons: dict[str, Any] | None


class GatedHeads(HeadedMixer):
    """output(norm(wkv) * silu(gate)): what the time mixes of RWKV-5 and -6 have in common."""

    last_product = "output"
    # source: RWKV-v5/src/model.py, configure_optimizers
    rate_scales = {"time_decay": 2.0}  # noqa: RUF012 (the base class declares it)
    time_decay: nn.Parameter
    """of each channel, in the shape of the generation's checkpoints"""
    op_cost = staticmethod(token_shift_cost)

    def __init__(self, config: ModelConfig):
        super().__init__()
        C, N = config.n_embd, config.head_size
        self.head_size = N
        self.has_events = config.spiking == "input"
        self.time_faaaa = nn.Parameter(torch.empty(C // N, N))
        self.receptance, self.key, self.value = (nn.Linear(C, C, bias=False) for _ in range(3))
        self.output, self.gate = (nn.Linear(C, C, bias=False) for _ in range(2))
        self.ln_x = norm_of_heads(config)

    def mix(self, fire: Firing, projected: list[Tensor], log_decay: Tensor, matrices: Tensor | None) -> tuple:
        """Return (what is added to the stream, the matrices after the last token).

        Args:
            projected: key, value, receptance and the gate before its activation, (B, T, C) each.
            log_decay: (B, T, H, N).
        """
        k, v, r, gate = projected
        y, matrices = wkv6(self.heads(r), log_decay, self.heads(k), self.heads(v), self.time_faaaa, matrices)
        return self.output(fire("output_neuron", self.normed(y) * F.silu(gate))), matrices

    @torch.no_grad()
    def fill_heads(self, layer: int, n_layer: int) -> None:
        """Fill what is not a mix of tokens. Source: RWKV-v5/src/model.py, `__init__`, `generate_init_weight`."""
        channel, depth, _ = ramp_of(self.key.in_features, layer, n_layer)
        along = channel / max(len(channel) - 1, 1)
        self.time_decay.copy_((-6 + 5 * along ** (0.7 + 1.3 * depth)).view_as(self.time_decay))
        zigzag = 0.1 * ((channel + 1) % 3 - 1)
        self.time_faaaa.copy_((depth * (1 - along) + zigzag).view_as(self.time_faaaa))
        self.fill_norm(layer, n_layer)
        if self.has_events:
            matrices = self.receptance, self.key, self.value, self.gate, self.output
            fill_for_spikes(*matrices, last=self.output)
            self.scale("key", SMALL_GAIN)
            self.scale("gate", SMALL_GAIN)
            return
        nn.init.orthogonal_(self.receptance.weight)
        nn.init.orthogonal_(self.value.weight)
        nn.init.orthogonal_(self.key.weight, gain=SMALL_GAIN)
        nn.init.orthogonal_(self.gate.weight, gain=SMALL_GAIN)
        nn.init.zeros_(self.output.weight)


class TimeMix5(GatedHeads):
    """RWKV-5's: a decay for each channel, the same at every token."""

    # the products that read the stream
    projections = "key", "value", "receptance", "gate"
    undecayed = frozenset(("time_decay", "time_faaaa"))

    def __init__(self, config: ModelConfig, make_neuron: NeuronFactory):
        super().__init__(config)
        C = config.n_embd
        self.time_mix_k, self.time_mix_v, self.time_mix_r, self.time_mix_g = (per_channel(C) for _ in range(4))
        self.time_decay = nn.Parameter(torch.empty(C // config.head_size, config.head_size))
        if self.has_events:
            stream = [Site(f"{name}_neuron", name, C, config.neuron) for name in self.projections]
            last = Site("output_neuron", "output", C, config.neuron, OUTPUT_RATE)
            self.place_neurons((*stream, last), make_neuron)

    def forward(self, x: Tensor, state: TimeMix5State | None) -> Mixed:
        shift, matrices, neurons = state or TimeMix5State(None, None, None)
        fire = Firing(self, neurons)
        shares = [self.time_mix_k, self.time_mix_v, self.time_mix_r, self.time_mix_g]
        inputs = fire.shifted([f"{name}_neuron" for name in self.projections], x, shift, shares)
        projected = [getattr(self, name)(mixed) for name, mixed in zip(self.projections, inputs, strict=True)]
        log_decay = log_decay_of(self.time_decay).expand(*x.shape[:2], -1, -1)
        y, matrices = self.mix(fire, projected, log_decay, matrices)
        return Mixed(y, TimeMix5State(x[:, -1], matrices, fire.after), fire.spikes)

    @torch.no_grad()
    def initialise(self, layer: int, n_layer: int) -> None:
        _, depth, ramp = ramp_of(self.key.in_features, layer, n_layer)
        self.time_mix_k.copy_(ramp)
        self.time_mix_v.copy_(ramp + 0.3 * depth)
        self.time_mix_r.copy_(ramp.sqrt())
        self.time_mix_g.copy_(ramp.sqrt())
        self.fill_heads(layer, n_layer)


class ChannelMix5(ChannelMix):
    """RWKV-4's, three and a half times as wide as the stream."""

    key_gain = 1.0
