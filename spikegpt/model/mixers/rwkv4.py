"""RWKV-4's two halves of a block, dense and spike-driven.

With `spiking` "input" every matrix product reads spikes, and the WKV is the event-driven one of value spikes; else both
halves are dense. Parameter names and shapes are those of the official checkpoints.
Sources: github.com/BlinkDL/RWKV-LM, RWKV-v4neo/src/model.py; github.com/ridgerchu/SpikeGPT, src/model.py.
"""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ...config import ModelConfig
from ...kernels import EventWKVState, WKVState, event_wkv, gate, wkv
from .contract import Firing, Mixed, Mixer, NeuronFactory, Site, token_shift_cost

# what the blocks add to the residual stream starts almost silent: spikes of untrained neurons there are noise that
# training has to undo, by making all neurons fire less
OUTPUT_RATE, HIDDEN_RATE = 0.05, 0.10


class TimeMixState(NamedTuple):
    """`shift` (B, C): the token before; the running sums of the WKV; what the neurons carry."""

    shift: Tensor | None
    wkv: WKVState | EventWKVState | None
    neurons: dict[str, Any] | None


class ChannelMixState(NamedTuple):
    """`shift` (B, C): the token before; what the neurons carry."""

    shift: Tensor | None
    neurons: dict[str, Any] | None


class TimeMix(Mixer):
    """output(sigmoid(receptance) * wkv(key, value)), each projection of a token-shift mix."""

    last_product = "output"
    # source: RWKV-v4neo, configure_optimizers
    rate_scales = {"time_decay": 2.0, "time_first": 3.0}  # noqa: RUF012 (the base class declares it)
    # the mean of values is in units of their spikes
    measured_in = {"output_neuron": "wkv_neuron"}  # noqa: RUF012
    op_cost = staticmethod(token_shift_cost)

    def __init__(self, config: ModelConfig, make_neuron: NeuronFactory):
        super().__init__()
        C = config.n_embd
        self.time_decay = nn.Parameter(torch.empty(C))
        self.time_first = nn.Parameter(torch.empty(C))
        self.time_mix_k, self.time_mix_v, self.time_mix_r = (nn.Parameter(torch.empty(1, 1, C)) for _ in range(3))
        self.key = nn.Linear(C, C, bias=False)
        self.value = nn.Linear(C, C, bias=False)
        self.receptance = nn.Linear(C, C, bias=False)
        self.output = nn.Linear(C, C, bias=False)
        self.has_events = config.spiking == "input"
        if self.has_events:
            inputs = (
                Site("key_neuron", "key", C, config.neuron),
                Site("value_neuron", "value", C, config.neuron),
                Site("receptance_neuron", "receptance", C, config.neuron),
                Site("wkv_neuron", None, C, config.neuron),
            )
            last = Site("output_neuron", "output", C, config.neuron, OUTPUT_RATE)
            self.place_neurons((*inputs, last), make_neuron)

    def forward(self, x: Tensor, state: TimeMixState | None) -> Mixed:
        shift, sums, neurons = state or TimeMixState(None, None, None)
        fire = Firing(self, neurons)
        sites = "key_neuron", "value_neuron", "receptance_neuron"
        shares = self.time_mix_k, self.time_mix_v, self.time_mix_r
        key, value, receptance = fire.shifted(sites, x, shift, shares)
        key, value, receptance = self.key(key), self.value(value), self.receptance(receptance)
        if self.has_events:
            # a neuron of somebody's own may spike in float32 where products are autocast
            value = fire("wkv_neuron", value).to(key.dtype)
            mean, sums = event_wkv(self.time_decay, self.time_first, key, value, cast(EventWKVState | None, sums))
            gated = gate(receptance, mean)
        else:
            sums = cast(WKVState | None, sums)
            gated, sums = wkv(self.time_decay, self.time_first, key, value, sums, receptance=receptance)
        y = self.output(fire("output_neuron", gated))
        return Mixed(y, TimeMixState(x[:, -1], sums, fire.after), fire.spikes)

    @torch.no_grad()
    def initialise(self, layer: int, n_layer: int) -> None:
        """Source: RWKV-v4neo `__init__` and `generate_init_weight`: zigzag time_first, power-law time_decay."""
        channel, depth, ramp = _ramp(self.key.in_features, layer, n_layer)
        C = len(channel)
        self.time_decay.copy_(-5 + 8 * (channel / max(C - 1, 1)) ** (0.7 + 1.3 * depth))
        self.time_first.copy_(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        self.time_mix_k.copy_(ramp.view(1, 1, C))
        self.time_mix_v.copy_((ramp + 0.3 * depth).view(1, 1, C))
        self.time_mix_r.copy_(ramp.sqrt().view(1, 1, C))
        if self.has_events:
            fill_for_spikes(self.key, self.value, self.receptance, self.output, last=self.output)
            return
        for matrix in (self.key, self.receptance, self.output):
            nn.init.zeros_(matrix.weight)
        nn.init.orthogonal_(self.value.weight, gain=1.0)


class ChannelMix(Mixer):
    """sigmoid(receptance) * value(relu(key)^2), each projection of a token-shift mix."""

    last_product = "value"
    op_cost = staticmethod(token_shift_cost)

    def __init__(self, config: ModelConfig, make_neuron: NeuronFactory):
        super().__init__()
        C = config.n_embd
        self.time_mix_k, self.time_mix_r = (nn.Parameter(torch.empty(1, 1, C)) for _ in range(2))
        self.key = nn.Linear(C, config.n_ffn, bias=False)
        self.value = nn.Linear(config.n_ffn, C, bias=False)
        self.receptance = nn.Linear(C, C, bias=False)
        self.has_events = config.spiking == "input"
        if self.has_events:
            inputs = (
                Site("key_neuron", "key", C, config.neuron),
                Site("receptance_neuron", "receptance", C, config.neuron),
            )
            hidden = Site("value_neuron", "value", config.n_ffn, config.hidden_neuron, HIDDEN_RATE)
            self.place_neurons((*inputs, hidden), make_neuron)

    def forward(self, x: Tensor, state: ChannelMixState | None) -> Mixed:
        shift, neurons = state or ChannelMixState(None, None)
        fire = Firing(self, neurons)
        sites = "key_neuron", "receptance_neuron"
        key, receptance = fire.shifted(sites, x, shift, (self.time_mix_k, self.time_mix_r))
        key, receptance = self.key(key), self.receptance(receptance)
        y = gate(receptance, self.value(fire.squared_relu("value_neuron", key)))
        return Mixed(y, ChannelMixState(x[:, -1], fire.after), fire.spikes)

    @torch.no_grad()
    def initialise(self, layer: int, n_layer: int) -> None:
        """Source: RWKV-v4neo `__init__` and `generate_init_weight`."""
        _, _, ramp = _ramp(self.key.in_features, layer, n_layer)
        for mix in (self.time_mix_k, self.time_mix_r):
            mix.copy_(ramp.view(1, 1, -1))
        if self.has_events:
            fill_for_spikes(self.key, self.value, self.receptance, last=self.value)
            return
        for matrix in (self.value, self.receptance):
            nn.init.zeros_(matrix.weight)
        nn.init.orthogonal_(self.key.weight, gain=2.0)


def _ramp(channels: int, layer: int, n_layer: int) -> tuple[Tensor, float, Tensor]:
    """(channel numbers (C,), depth from 0 to 1, how much of this token the channels of a layer begin with)."""
    channel = torch.arange(channels, dtype=torch.float64)
    return channel, layer / max(n_layer - 1, 1), (channel / channels) ** (1 - layer / n_layer)


def fill_for_spikes(*matrices: nn.Linear, last: nn.Linear) -> None:
    """Draw matrices that read spikes, `last` half as large: it drives what is added to the residual stream.

    Zeros would leave the neurons behind them silent, and orthogonal ones learned no better.
    """
    for matrix in matrices:
        nn.init.normal_(matrix.weight, std=(0.5 if matrix is last else 1.0) / math.sqrt(matrix.in_features))
