"""RWKV-4 as its token step in rwkv4.py reads it: a model's numbers packed, its state taken over and given back."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ...kernels import EventWKVState, WKVState
from ...kernels.decay import decay_of, log_decay_of
from ...kernels.event_wkv.reference import EVENT_KEY_LIMIT
from ...model.mixers.rwkv4 import ChannelMix, ChannelMixState, TimeMix, TimeMixState
from ...model.state import BlockState, State
from .rows import (
    Neurons,
    Norm,
    Packer,
    Product,
    copied,
    memory_of,
    memory_of_texts,
    neurons_of,
    potentials,
    remembering,
)

TIME_MIX_SITES = "input_neuron", "key_neuron", "value_neuron", "receptance_neuron", "wkv_neuron", "output_neuron"
CHANNEL_MIX_SITES = "input_neuron", "key_neuron", "receptance_neuron", "value_neuron"


class TimeMixRows(NamedTuple):
    """A time mix of every layer: mixes, decay and first (L, C).

    decay and first are the logarithm of the decay and time_first, or, if it `has_events`, their exponentials.
    shift, numerator, denominator, max_exponent (texts, L, C): the state.
    If it `shares_neurons`, mix_k and input_neuron are those of all three, and each of key, value and receptance is all
    three, side by side.
    """

    norm: Norm
    mix_k: np.ndarray
    mix_v: np.ndarray
    mix_r: np.ndarray
    decay: np.ndarray
    first: np.ndarray
    key: Product
    value: Product
    receptance: Product
    output: Product
    input_neuron: Neurons
    key_neuron: Neurons
    value_neuron: Neurons
    receptance_neuron: Neurons
    wkv_neuron: Neurons
    output_neuron: Neurons
    neuron_behind: Neurons
    shift: np.ndarray
    numerator: np.ndarray
    denominator: np.ndarray
    max_exponent: np.ndarray
    has_events: bool
    shares_neurons: bool


class ChannelMixRows(NamedTuple):
    """A channel mix of every layer: mixes (L, C); shift (texts, L, C): the state.

    If it `shares_neurons`, mix_k and input_neuron are those of both, and key and receptance each are both, side by
    side.
    """

    norm: Norm
    mix_k: np.ndarray
    mix_r: np.ndarray
    key: Product
    receptance: Product
    value: Product
    input_neuron: Neurons
    key_neuron: Neurons
    receptance_neuron: Neurons
    value_neuron: Neurons
    neuron_behind: Neurons
    shift: np.ndarray
    shares_neurons: bool


class Layers(NamedTuple):
    """All blocks of a model."""

    att: TimeMixRows
    ffn: ChannelMixRows


class Shared(NamedTuple):
    """Where threads see each other's columns: stream and mixed (texts, C).

    projected (texts, F + C) are key, value and receptance of the time mix, or hidden and receptance of the channel mix.
    """

    stream: np.ndarray
    projected: np.ndarray
    mixed: np.ndarray


# --- packing -------------------------------------------------------------------------------------------------------


def pack(packer: Packer) -> Layers:
    """Return the blocks of the packer's model."""
    blocks = packer.model.blocks
    att = [cast(TimeMix, block.att) for block in blocks]
    has_events, shares_neurons = att[0].has_events, att[0].shares_neurons
    decay: Callable[[Tensor], Tensor] = decay_of if has_events else log_decay_of
    first: Callable[[Tensor], Tensor] = _event_first if has_events else torch.clone
    nothing = np.zeros((1, len(blocks), packer.model.config.n_embd), packer.dtype)
    time_mix = TimeMixRows(
        norm=packer.norm([block.ln1 for block in blocks]),
        mix_k=packer.rows([half.mix_of("key") for half in att]),
        mix_v=packer.rows([half.mix_of("value") for half in att]),
        mix_r=packer.rows([half.mix_of("receptance") for half in att]),
        decay=packer.rows([decay(half.time_decay) for half in att]),
        first=packer.rows([first(half.time_first) for half in att]),
        **_projections(packer, att),
        output=packer.product([half.output for half in att]),
        **neurons_of(packer, att, TIME_MIX_SITES),
        neuron_behind=packer.neurons(blocks, "time_mix_neuron"),
        shift=nothing.copy(),
        numerator=nothing.copy(),
        denominator=nothing.copy(),
        max_exponent=nothing.copy(),
        has_events=has_events,
        shares_neurons=shares_neurons,
    )
    return Layers(time_mix, pack_channel_mix(packer))


def pack_channel_mix(packer: Packer) -> ChannelMixRows:
    """Return the channel mixes of the packer's model."""
    blocks = packer.model.blocks
    ffn = [cast(ChannelMix, block.ffn) for block in blocks]
    return ChannelMixRows(
        norm=packer.norm([block.ln2 for block in blocks]),
        mix_k=packer.rows([half.mix_of("key") for half in ffn]),
        mix_r=packer.rows([half.mix_of("receptance") for half in ffn]),
        **_projections(packer, ffn),
        value=packer.product([half.value for half in ffn]),
        **neurons_of(packer, ffn, CHANNEL_MIX_SITES),
        neuron_behind=packer.neurons(blocks, "channel_mix_neuron"),
        shift=np.zeros((1, len(blocks), packer.model.config.n_embd), packer.dtype),
        shares_neurons=ffn[0].shares_neurons,
    )


def _projections(packer: Packer, halves: Sequence[TimeMix | ChannelMix]) -> dict[str, Any]:
    """The products of a half that read the stream, by name; all of them side by side under every name, if they read
    the same spikes."""
    first = halves[0]
    matrices = [[getattr(half, name) for half in halves] for name in first.projections]
    if first.shares_neurons:
        return dict.fromkeys(first.projections, packer.product(*matrices))
    return {name: packer.product(layers) for name, layers in zip(first.projections, matrices, strict=True)}


def _event_first(time_first: Tensor) -> Tensor:
    return torch.exp(time_first.clamp(-EVENT_KEY_LIMIT, EVENT_KEY_LIMIT))


def share(layers: Layers, texts: int) -> Shared:
    """Return the memory in which the threads that share so many texts see each other's columns."""
    _, F, C = layers.ffn.value.weights.shape
    dtype = layers.att.decay.dtype
    return Shared(np.zeros((texts, C), dtype), np.zeros((texts, F + C), dtype), np.zeros((texts, C), dtype))


def products(layers: Layers) -> dict[str, Product]:
    """Return the matrix products by their names in a block; those that lie side by side by the name of the first."""
    att, ffn = layers.att, layers.ffn
    found = {"att.key": att.key, "att.output": att.output, "ffn.key": ffn.key, "ffn.value": ffn.value}
    if not att.shares_neurons:
        found |= {"att.value": att.value, "att.receptance": att.receptance, "ffn.receptance": ffn.receptance}
    return found


# --- state ---------------------------------------------------------------------------------------------------------


def take(layers: Layers, state: State) -> Layers:
    """Return the layers with the memory of `state`, copied."""
    time_mixes = [cast(TimeMixState, block.time_mix) for block in state]
    att = remembering(layers.att, TIME_MIX_SITES, time_mixes, [block.time_mix_neuron for block in state])
    dtype = att.shift.dtype
    sums = [cast(WKVState | EventWKVState, half.wkv) for half in time_mixes]
    has_scale = isinstance(sums[0], WKVState)
    att = att._replace(
        numerator=memory_of([part.numerator for part in sums], dtype),
        denominator=memory_of([part.denominator for part in sums], dtype),
        max_exponent=memory_of([part.max_exponent for part in cast(list[WKVState], sums)], dtype)
        if has_scale
        else att.max_exponent,
    )
    return Layers(att, take_channel_mix(layers.ffn, state))


def take_channel_mix(ffn: ChannelMixRows, state: State) -> ChannelMixRows:
    """Return the channel mixes with the memory of `state`, copied."""
    halves = [cast(ChannelMixState, block.channel_mix) for block in state]
    return remembering(ffn, CHANNEL_MIX_SITES, halves, [block.channel_mix_neuron for block in state])


def of_texts(layers: Layers, texts: slice) -> Layers:
    """Return the layers with the memory of some of the texts, not copied."""
    sums = "shift", "numerator", "denominator", "max_exponent"
    return Layers(memory_of_texts(layers.att, sums, texts), memory_of_texts(layers.ffn, ("shift",), texts))


def give(layers: Layers) -> State:
    """Return the memory of the layers as the model's state, copied."""
    att, ffn = layers.att, layers.ffn

    blocks = []
    for layer in range(len(att.decay)):
        numerator, denominator = copied(att.numerator[:, layer]), copied(att.denominator[:, layer])
        wkv: WKVState | EventWKVState = EventWKVState(numerator, denominator)
        if not att.has_events:
            wkv = WKVState(numerator, denominator, copied(att.max_exponent[:, layer]))
        inner = potentials(att, TIME_MIX_SITES, layer)
        time_mix = TimeMixState(copied(att.shift[:, layer]), wkv, inner)
        channel_mix = give_channel_mix(ffn, layer)
        behind = att.neuron_behind.potential_of(layer), ffn.neuron_behind.potential_of(layer)
        blocks.append(BlockState(time_mix, behind[0], channel_mix, behind[1]))
    return tuple(blocks)


def give_channel_mix(ffn: ChannelMixRows, layer: int) -> ChannelMixState:
    """Return the memory of the channel mix of a layer as the model's state, copied."""
    return ChannelMixState(copied(ffn.shift[:, layer]), potentials(ffn, CHANNEL_MIX_SITES, layer))
