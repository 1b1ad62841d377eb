"""RWKV-7's two halves of a block, dense and spike-driven.

With `spiking` "input" every matrix product reads spikes, those of the pairs of few inner channels too; decay, values,
rate of learning, gate and the norms stay real, and are used elementwise only. With `state_neurons` receptance and key
are spikes as well: the matrices of the WKV are read and edited at their events alone. Parameter names and shapes are
those of the official checkpoints.
Source: github.com/BlinkDL/RWKV-LM, RWKV-v7/train_temp/src/model.py and RWKV-v7/rwkv_v7_demo.py.
"""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config import ModelConfig
from ...kernels import EventWKV7State, event_wkv7, wkv7
from .contract import Firing, Mixed, Mixer, NeuronFactory, Site, token_shift_cost
from .heads import PAIR_STD, HeadedMixer, norm_of_heads, per_channel
from .rwkv4 import HIDDEN_RATE, OUTPUT_RATE, ChannelMixState, fill_for_spikes

# pairs of matrices of few inner channels, whose product is added to a parameter -> inner channels / sqrt(n_embd)
PAIRS = {"w": 2.5, "a": 2.5, "v": 1.7, "g": 5.0}
# layers of neurons that read the stream, and those between products and the matrices of the WKV
STREAM_SITES = "receptance_neuron", "w1_neuron", "key_neuron", "value_neuron", "a1_neuron", "g1_neuron"
STATE_SITES = "wkv_receptance_neuron", "wkv_key_neuron"
# scale of keys at the beginning, as published
KEY_GAIN = 0.1


class TimeMix7State(NamedTuple):
    """`shift` (B, C): the token before; the matrices of the WKV (B, H, N, N), or of events; what the neurons carry."""

    shift: Tensor | None
    wkv: Tensor | EventWKV7State | None
    neurons: dict[str, Any] | None


class TimeMix7(HeadedMixer):
    """output((norm(wkv) + bonus) * gate): decay, value, rate of learning and gate are functions of the token."""

    last_product = "output"
    takes_first = True
    unread_in_first = frozenset(("v0", "v1", "v2"))
    # source: RWKV-v7/train_temp/src/model.py, configure_optimizers
    rate_scales = {"w0": 2.0}  # noqa: RUF012 (the base class declares it)
    undecayed = frozenset(("r_k", *(f"{pair}{side}" for pair in PAIRS for side in (1, 2))))
    op_cost = staticmethod(token_shift_cost)

    def __init__(self, config: ModelConfig, make_neuron: NeuronFactory):
        super().__init__()
        C, N = config.n_embd, config.head_size
        self.head_size = N
        self.has_events = config.spiking == "input"
        self.has_state_neurons = self.has_events and config.state_neurons
        self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g = (per_channel(C) for _ in range(6))
        self.w0, self.a0, self.v0, self.k_k, self.k_a = (per_channel(C) for _ in range(5))
        w, a, v, g = config.lora_ranks or published_ranks(C)
        self.w1, self.a1, self.v1, self.g1 = (nn.Parameter(torch.empty(C, rank)) for rank in (w, a, v, g))
        self.w2, self.a2, self.v2, self.g2 = (nn.Parameter(torch.empty(rank, C)) for rank in (w, a, v, g))
        self.r_k = nn.Parameter(torch.empty(C // N, N))
        self.receptance, self.key, self.value, self.output = (nn.Linear(C, C, bias=False) for _ in range(4))
        self.ln_x = norm_of_heads(config)
        if self.has_state_neurons:
            self.r_worth, self.k_worth = per_channel(C), per_channel(C)
        if self.has_events:
            self.place_neurons(self._sites(config, (w, a, v, g)), make_neuron)

    def _sites(self, config: ModelConfig, ranks: tuple[int, ...]) -> tuple[Site, ...]:
        C, neuron, (w, a, v, g) = config.n_embd, config.neuron, ranks
        readers: tuple[str | tuple[str, ...], ...] = "receptance", "w1", "key", ("value", "v1"), "a1", "g1"
        stream = [Site(site, reader, C, neuron) for site, reader in zip(STREAM_SITES, readers, strict=True)]
        state = [Site(site, None, C, neuron) for site in STATE_SITES] if self.has_state_neurons else []
        inner = [Site(f"{pair}2_neuron", f"{pair}2", rank, neuron) for pair, rank in (("w", w), ("v", v), ("a", a))]
        # behind a sigmoid nothing is negative
        gate = Site("g2_neuron", "g2", g, config.hidden_neuron)
        return *stream, *state, *inner, gate, Site("output_neuron", "output", C, neuron, OUTPUT_RATE)

    def forward(self, x: Tensor, state: TimeMix7State | None, first: Tensor | None = None) -> Mixed:
        """Return what is added to the stream; `first` are the values (B, T, C) of the first block, None in it."""
        shift, matrices, neurons = state or TimeMix7State(None, None, None)
        fire = Firing(self, neurons)
        shares = [1 - share for share in (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g)]
        for_r, for_w, for_k, for_v, for_a, for_g = fire.shifted(STREAM_SITES, x, shift, shares)
        r, k, v = self.receptance(for_r), self.key(for_k), self.value(for_v)
        dtype = r.dtype
        if self.has_state_neurons:
            r, k = fire(STATE_SITES[0], r) * self.r_worth, fire(STATE_SITES[1], k) * self.k_worth
        inner = fire("w2_neuron", torch.tanh(self.product("w1", for_w)))
        log_decay = -math.exp(-0.5) * torch.sigmoid(self.w0 + self.product("w2", inner))
        if first is not None:
            inner = fire("v2_neuron", self.product("v1", for_v))
            v = v + (first - v) * torch.sigmoid(self.v0 + self.product("v2", inner))
        inner = fire("a2_neuron", self.product("a1", for_a))
        rate = torch.sigmoid(self.a0 + self.product("a2", inner))
        inner = fire("g2_neuron", torch.sigmoid(self.product("g1", for_g)))
        gate = self.product("g2", inner)
        removed = F.normalize(self.heads(k * self.k_k), dim=-1)
        k = k * (1 + (rate - 1) * self.k_a)
        parts = *map(self.heads, (r, k, v)), -removed, removed * self.heads(rate)
        # under autocast the products of matrices are in its precision, what parameters are added to is not
        r_heads, k_heads, v_heads, a, b = (part.to(dtype) for part in parts)
        inputs = r_heads, self.heads(log_decay), k_heads, v_heads, a, b
        if self.has_state_neurons:
            y, matrices = event_wkv7(*inputs, cast(EventWKV7State | None, matrices))
        else:
            y, matrices = wkv7(*inputs, cast(Tensor | None, matrices))
        bonus = (self.heads(r * k) * self.r_k).sum(dim=-1, keepdim=True) * self.heads(v)
        y = self.normed(y) + bonus.flatten(2)
        y = self.output(fire("output_neuron", y * gate))
        after = TimeMix7State(x[:, -1], matrices, fire.after)
        return Mixed(y, after, fire.spikes, v if first is None else first)

    def absorb(self, site: str, worths: dict[str, Tensor]) -> None:
        if site in STATE_SITES:
            (self.r_worth if site == STATE_SITES[0] else self.k_worth).mul_(worths[site])
        else:
            super().absorb(site, worths)

    def own_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.has_state_neurons:
            return weights
        return {**weights, "r_worth": torch.ones_like(self.r_worth), "k_worth": torch.ones_like(self.k_worth)}

    @torch.no_grad()
    def initialise(self, layer: int, n_layer: int) -> None:
        """Source: RWKV-v7/train_temp/src/model.py, `__init__`, `generate_init_weight`; not of matrices for spikes."""
        channel = torch.arange(self.key.in_features, dtype=torch.float64)
        C, N = len(channel), self.head_size
        depth, left, share = layer / max(n_layer - 1, 1), 1 - layer / n_layer, channel / C
        along = channel / max(C - 1, 1)
        middle = max((N - 1) / 2, 0.5)
        zigzag = (channel % N - (N - 1) / 2) / middle
        zigzag = zigzag * zigzag.abs()
        for parameter, power in zip(
            (self.x_r, self.x_w, self.x_k, self.x_v, self.x_a, self.x_g), (0.2, 0.9, 0.7, 0.7, 0.9, 0.2), strict=True
        ):
            parameter.copy_(1 - share ** (power * left))
        self.w0.copy_(-6 + 6 * along ** (1 + depth**0.3) + 0.5 + 2.5 * zigzag)
        self.a0.copy_(-0.19 + 0.3 * zigzag + 0.4 * (along - 0.5))
        self.v0.copy_(0.73 - 0.4 * (along - 0.5))
        self.k_k.copy_(0.71 - 0.1 * (along - 0.5))
        self.k_a.fill_(1.02)
        self.r_k.fill_(-0.04)
        self.fill_norm(layer, n_layer)
        if self.has_events:
            fill_for_spikes(self.receptance, self.key, self.value, self.output, last=self.output)
            self.scale("key", KEY_GAIN)
            for pair in PAIRS:
                for side, std in ((1, 1.0), (2, PAIR_STD)):
                    matrix = self.get_parameter(f"{pair}{side}")
                    nn.init.normal_(matrix, std=std / math.sqrt(len(matrix)))
            if self.has_state_neurons:
                nn.init.ones_(self.r_worth)
                nn.init.constant_(self.k_worth, KEY_GAIN)
            return
        for pair in PAIRS:
            nn.init.zeros_(self.get_parameter(f"{pair}1"))
            nn.init.orthogonal_(self.get_parameter(f"{pair}2"), gain=0.1)
        nn.init.orthogonal_(self.receptance.weight)
        nn.init.orthogonal_(self.key.weight, gain=KEY_GAIN)
        nn.init.orthogonal_(self.value.weight)
        nn.init.zeros_(self.output.weight)


class ChannelMix7(Mixer):
    """value(relu(key)^2), the key of a token-shift mix."""

    last_product = "value"
    op_cost = staticmethod(token_shift_cost)

    def __init__(self, config: ModelConfig, make_neuron: NeuronFactory):
        super().__init__()
        self.x_k = nn.Parameter(torch.empty(1, 1, config.n_embd))
        self.key = nn.Linear(config.n_embd, config.n_ffn, bias=False)
        self.value = nn.Linear(config.n_ffn, config.n_embd, bias=False)
        self.has_events = config.spiking == "input"
        if self.has_events:
            stream = Site("key_neuron", "key", config.n_embd, config.neuron)
            hidden = Site("value_neuron", "value", config.n_ffn, config.hidden_neuron, HIDDEN_RATE)
            self.place_neurons((stream, hidden), make_neuron)

    def forward(self, x: Tensor, state: ChannelMixState | None) -> Mixed:
        shift, neurons = state or ChannelMixState(None, None)
        fire = Firing(self, neurons)
        (mixed,) = fire.shifted(["key_neuron"], x, shift, [1 - self.x_k])
        y = self.value(fire.squared_relu("value_neuron", self.key(mixed)))
        return Mixed(y, ChannelMixState(x[:, -1], fire.after), fire.spikes)

    @torch.no_grad()
    def initialise(self, layer: int, n_layer: int) -> None:
        """Source: as of `TimeMix7.initialise`."""
        share = torch.arange(self.key.in_features, dtype=torch.float64) / self.key.in_features
        self.x_k.copy_(1 - share ** ((1 - layer / n_layer) ** 4))
        if self.has_events:
            fill_for_spikes(self.key, self.value, last=self.value)
            return
        # a gain of 1 for sides of any ratio, as published
        nn.init.orthogonal_(self.key.weight)
        nn.init.zeros_(self.value.weight)


def published_ranks(n_embd: int) -> tuple[int, ...]:
    """Return the inner channels of the pairs w, a, v, g. Source: RWKV-v7/train_temp/src/model.py."""
    return tuple(max(32, 32 * round(factor * math.sqrt(n_embd) / 32)) for factor in PAIRS.values())
