"""RWKV-4's two halves of a block, dense and spike-driven.

With `spiking` "input" every matrix product reads spikes, and the WKV is the event-driven one of value spikes; else both
halves are dense. With `shared_neurons` the products that read the stream read the same spikes, of one mix of tokens.
Parameter names and shapes are those of the official checkpoints, but for that mix.
Sources: github.com/BlinkDL/RWKV-LM, RWKV-v4neo/src/model.py; github.com/ridgerchu/SpikeGPT, src/model.py.
"""

import math
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from ...config import ModelConfig
from ...kernels import EventWKVState, WKVState, event_wkv, gate, wkv
from .contract import Firing, Mixed, Mixer, NeuronFactory, Site, mix_tokens, token_shift_cost

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


class _Half(Mixer):
    """What both halves do alike: their first products read neurons each, or all of them the same ones."""

    projections: ClassVar[tuple[str, ...]]
    """the products that read the stream"""
    mix_prefix: ClassVar[str] = "time_mix"
    """of the parameters that mix their tokens, before the first letter of a projection"""
    has_events: bool
    shares_neurons: bool
    time_mix: nn.Parameter
    """(1, 1, C), there if it shares neurons: the one mix of tokens"""
    # with perspectives they are matrices
    undecayed = frozenset(("time_mix", "time_mix_k", "time_mix_v", "time_mix_r"))
    op_cost = staticmethod(token_shift_cost)

    def _make_mixes(self, config: ModelConfig) -> None:
        self.has_events = config.spiking == "input"
        self.shares_neurons = self.has_events and config.shared_neurons
        self.perspectives = config.perspectives
        # one is stored as in the official checkpoints
        shape = (1, 1, config.n_embd) if self.perspectives == 1 else (self.perspectives, 1, 1, config.n_embd)
        for name in ("time_mix",) if self.shares_neurons else map(self._mix_name, self.projections):
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def _input_sites(self, config: ModelConfig) -> list[Site]:
        if self.shares_neurons:
            return [Site("input_neuron", self.projections, config.n_embd, config.neuron)]
        return [Site(f"{name}_neuron", name, config.n_embd, config.neuron) for name in self.projections]

    def _project(self, fire: Firing, x: Tensor, shift: Tensor | None) -> list[Tensor]:
        """The outcomes of `projections`, (B, T, out) each."""
        if self.shares_neurons:
            inputs = self._inputs(fire, ["input_neuron"], x, shift, [self.time_mix]) * len(self.projections)
        else:
            sites = [f"{name}_neuron" for name in self.projections]
            inputs = self._inputs(fire, sites, x, shift, [self.mix_of(name) for name in self.projections])
        return [getattr(self, name)(spikes) for name, spikes in zip(self.projections, inputs, strict=True)]

    def _inputs(
        self, fire: Firing, sites: list[str], x: Tensor, shift: Tensor | None, mixes: list[Tensor]
    ) -> list[Tensor]:
        """What neurons at `sites` make of their mixes of tokens x; every perspective, a part of the rows, has its own.

        mixes: of each site, (1, 1, C), or of several perspectives (P, 1, 1, C).
        """
        if self.perspectives == 1:
            return fire.shifted(sites, x, shift, mixes)
        before = [None] * self.perspectives if shift is None else shift.chunk(self.perspectives)
        own = zip(*mixes, strict=True)
        parts = [
            mix_tokens(part, previous, *shares)
            for part, previous, shares in zip(x.chunk(self.perspectives), before, own, strict=True)
        ]
        return [fire(site, torch.cat(mixed)) for site, mixed in zip(sites, zip(*parts, strict=True), strict=True)]

    def mix_of(self, projection: str) -> Tensor:
        """Return how much of its own token each channel keeps in what a projection reads, (1, 1, C).

        Of several perspectives (P, 1, 1, C).
        """
        return getattr(self, "time_mix" if self.shares_neurons else self._mix_name(projection))

    def _mix_name(self, projection: str) -> str:
        return f"{self.mix_prefix}_{projection[0]}"

    def _fill_mixes(self, **mixes: Tensor) -> None:
        """Let each projection's mix of tokens be the (C,) given by its name, or the shared one their mean."""
        if self.shares_neurons:
            mixes = {"all": torch.stack(list(mixes.values())).mean(dim=0)}
        for name, mix in mixes.items():
            self.get_parameter("time_mix" if self.shares_neurons else self._mix_name(name)).copy_(mix.view(1, 1, -1))

    def own_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        if not self.shares_neurons:
            return weights
        own = dict(weights)
        mixes = torch.stack([own.pop(self._mix_name(name)) for name in self.projections])
        # how much a change of a channel changes the outcome of a product
        energies = torch.stack([own[f"{name}.weight"].square().sum(dim=0) for name in self.projections])
        energies = energies.clamp(min=1e-30).unflatten(0, (-1, *[1] * (mixes.dim() - 2)))
        return {**own, "time_mix": (mixes * energies).sum(dim=0) / energies.sum(dim=0)}


class TimeMix(_Half):
    """output(sigmoid(receptance) * wkv(key, value)), each projection of a token-shift mix."""

    projections = "key", "value", "receptance"
    last_product = "output"
    # source: RWKV-v4neo, configure_optimizers
    rate_scales = {"time_decay": 2.0, "time_first": 3.0}  # noqa: RUF012 (the base class declares it)
    # the mean of values is in units of their spikes
    measured_in = {"output_neuron": "wkv_neuron"}  # noqa: RUF012

    def __init__(self, config: ModelConfig, make_neuron: NeuronFactory):
        super().__init__()
        C = config.n_embd
        self.time_decay = nn.Parameter(torch.empty(C))
        self.time_first = nn.Parameter(torch.empty(C))
        self._make_mixes(config)
        self.key = nn.Linear(C, C, bias=False)
        self.value = nn.Linear(C, C, bias=False)
        self.receptance = nn.Linear(C, C, bias=False)
        self.output = nn.Linear(C, C, bias=False)
        if self.has_events:
            values = Site("wkv_neuron", None, C, config.neuron)
            last = Site("output_neuron", "output", C, config.neuron, OUTPUT_RATE)
            self.place_neurons((*self._input_sites(config), values, last), make_neuron)

    def forward(self, x: Tensor, state: TimeMixState | None) -> Mixed:
        shift, sums, neurons = state or TimeMixState(None, None, None)
        fire = Firing(self, neurons)
        key, value, receptance = self._project(fire, x, shift)
        if self.has_events:
            # a neuron of somebody's own may spike in float32 where products are autocast
            value = fire("wkv_neuron", value).to(key.dtype)
            mean, sums = event_wkv(self.time_decay, self.time_first, key, value, cast(EventWKVState | None, sums))
            gated = fire.gated("output_neuron", receptance, mean)
        else:
            sums = cast(WKVState | None, sums)
            gated, sums = wkv(self.time_decay, self.time_first, key, value, sums, receptance=receptance)
        y = self.output(gated)
        return Mixed(y, TimeMixState(x[:, -1], sums, fire.after), fire.spikes)

    @torch.no_grad()
    def initialise(self, layer: int, n_layer: int) -> None:
        """Source: RWKV-v4neo `__init__` and `generate_init_weight`: zigzag time_first, power-law time_decay."""
        channel, depth, ramp = ramp_of(self.key.in_features, layer, n_layer)
        C = len(channel)
        self.time_decay.copy_(-5 + 8 * (channel / max(C - 1, 1)) ** (0.7 + 1.3 * depth))
        self.time_first.copy_(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        self._fill_mixes(key=ramp, value=ramp + 0.3 * depth, receptance=ramp.sqrt())
        if self.has_events:
            fill_for_spikes(self.key, self.value, self.receptance, self.output, last=self.output)
            return
        for matrix in (self.key, self.receptance, self.output):
            nn.init.zeros_(matrix.weight)
        nn.init.orthogonal_(self.value.weight, gain=1.0)


class ChannelMix(_Half):
    """sigmoid(receptance) * value(relu(key)^2), each projection of a token-shift mix."""

    projections = "key", "receptance"
    last_product = "value"
    key_gain: ClassVar[float] = 2.0
    """of the key's orthogonal matrix at the beginning"""

    def __init__(self, config: ModelConfig, make_neuron: NeuronFactory):
        super().__init__()
        C = config.n_embd
        self._make_mixes(config)
        self.key = nn.Linear(C, config.n_ffn, bias=False)
        self.value = nn.Linear(config.n_ffn, C, bias=False)
        self.receptance = nn.Linear(C, C, bias=False)
        if self.has_events:
            hidden = Site("value_neuron", "value", config.n_ffn, config.hidden_neuron, HIDDEN_RATE)
            self.place_neurons((*self._input_sites(config), hidden), make_neuron)

    def forward(self, x: Tensor, state: ChannelMixState | None) -> Mixed:
        shift, neurons = state or ChannelMixState(None, None)
        fire = Firing(self, neurons)
        key, receptance = self._project(fire, x, shift)
        y = gate(receptance, self.value(fire.squared_relu("value_neuron", key)))
        return Mixed(y, ChannelMixState(x[:, -1], fire.after), fire.spikes)

    @torch.no_grad()
    def initialise(self, layer: int, n_layer: int) -> None:
        """Source: RWKV-v4neo `__init__` and `generate_init_weight`."""
        _, _, ramp = ramp_of(self.key.in_features, layer, n_layer)
        self._fill_mixes(key=ramp, receptance=ramp)
        if self.has_events:
            fill_for_spikes(self.key, self.value, self.receptance, last=self.value)
            return
        for matrix in (self.value, self.receptance):
            nn.init.zeros_(matrix.weight)
        nn.init.orthogonal_(self.key.weight, gain=self.key_gain)


def ramp_of(channels: int, layer: int, n_layer: int) -> tuple[Tensor, float, Tensor]:
    """Return (channel numbers (C,), depth from 0 to 1, how much of this token the channels of a layer begin with)."""
    channel = torch.arange(channels, dtype=torch.float64)
    return channel, layer / max(n_layer - 1, 1), (channel / channels) ** (1 - layer / n_layer)


def fill_for_spikes(*matrices: nn.Linear, last: nn.Linear) -> None:
    """Draw matrices that read spikes, `last` half as large: it drives what is added to the residual stream.

    Zeros would leave the neurons behind them silent, and orthogonal ones learned no better.
    """
    for matrix in matrices:
        nn.init.normal_(matrix.weight, std=(0.5 if matrix is last else 1.0) / math.sqrt(matrix.in_features))
