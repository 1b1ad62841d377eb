"""RWKV-7 as its token step in rwkv7.py reads it: a model's numbers packed, its state taken over and given back."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ...kernels import EventWKV7State
from ...model.mixers import Rows, product_of
from ...model.mixers.rwkv4 import ChannelMixState
from ...model.mixers.rwkv7 import PAIRS, STATE_SITES, STREAM_SITES, ChannelMix7, TimeMix7, TimeMix7State
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
    products_of,
    remembering,
)

TIME_MIX_SITES = *STREAM_SITES, *STATE_SITES, "w2_neuron", "v2_neuron", "a2_neuron", "g2_neuron", "output_neuron"
CHANNEL_MIX_SITES = "key_neuron", "value_neuron"
# of `TimeMix7Rows.mixes` and, of one layer, in `WKV7Rows.channels`, each under its name in `TimeMix7`
MIXES = "x_r", "x_w", "x_k", "x_v", "x_a", "x_g"
X_R, X_W, X_K, X_V, X_A, X_G = range(len(MIXES))
CHANNELS = "w0", "a0", "v0", "k_k", "k_a", "r_k", "r_worth", "k_worth", "ln_x.weight", "ln_x.bias"
W0, A0, V0, K_K, K_A, R_K, R_WORTH, K_WORTH, LN_WEIGHT, LN_BIAS = range(len(CHANNELS))


class WKV7Rows(NamedTuple):
    """What the heads of every layer calculate with: channels (L, CHANNELS, C), few arrays, for they are handed over.

    The state: matrix (texts, L, H, N, N), turned: a column of keys is a row; waiting (texts, L, C), the logarithm of
    the decay that each column has yet to undergo, whether or not the model lets it wait.
    """

    channels: np.ndarray
    matrix: np.ndarray
    waiting: np.ndarray


class TimeMix7Rows(NamedTuple):
    """A time mix of every layer: mixes (MIXES, L, C), the shares of the token before; shift (texts, L, C): state."""

    norm: Norm
    mixes: np.ndarray
    wkv: WKV7Rows
    receptance: Product
    key: Product
    value: Product
    output: Product
    w1: Product
    a1: Product
    v1: Product
    g1: Product
    w2: Product
    a2: Product
    v2: Product
    g2: Product
    receptance_neuron: Neurons
    w1_neuron: Neurons
    key_neuron: Neurons
    value_neuron: Neurons
    a1_neuron: Neurons
    g1_neuron: Neurons
    wkv_receptance_neuron: Neurons
    wkv_key_neuron: Neurons
    w2_neuron: Neurons
    v2_neuron: Neurons
    a2_neuron: Neurons
    g2_neuron: Neurons
    output_neuron: Neurons
    neuron_behind: Neurons
    shift: np.ndarray


class ChannelMix7Rows(NamedTuple):
    """A channel mix of every layer: x_k (L, C), the share of the token before; shift (texts, L, C): the state."""

    norm: Norm
    x_k: np.ndarray
    key: Product
    value: Product
    key_neuron: Neurons
    value_neuron: Neurons
    neuron_behind: Neurons
    shift: np.ndarray


class Layers(NamedTuple):
    """All blocks of a model."""

    att: TimeMix7Rows
    ffn: ChannelMix7Rows


class Shared(NamedTuple):
    """Where threads see each other's columns: stream and mixed (texts, C); first (texts, C), values of the first block.

    projected (texts, 3 C + all inner channels, or F) are receptance, key, value and the inner channels of the pairs w,
    a, v and g, or the hidden channels of the channel mix. added (texts, 4 C) is what these pairs make.
    """

    stream: np.ndarray
    projected: np.ndarray
    added: np.ndarray
    mixed: np.ndarray
    first: np.ndarray


# --- packing -------------------------------------------------------------------------------------------------------


def pack(packer: Packer) -> Layers:
    """Return the blocks of the packer's model."""
    blocks = packer.model.blocks
    att = [cast(TimeMix7, block.att) for block in blocks]
    ffn = [cast(ChannelMix7, block.ffn) for block in blocks]
    C, N = packer.model.config.n_embd, att[0].head_size
    state = np.zeros((1, len(blocks), C // N, N, N), packer.dtype)
    nothing = np.zeros((1, len(blocks), C), packer.dtype)
    # without neurons on them receptance and key are worth what they are
    unworthy = {} if att[0].has_state_neurons else dict.fromkeys(("r_worth", "k_worth"), torch.ones(C))
    channels = [
        packer.rows([unworthy[name] if name in unworthy else half.get_parameter(name) for half in att])
        for name in CHANNELS
    ]

    def product(halves: Sequence[TimeMix7] | Sequence[ChannelMix7], name: str) -> Product:
        return packer.product([cast(Rows, product_of(half, name)) for half in halves])

    names = "receptance", "key", "value", "output", *(f"{pair}{side}" for pair in PAIRS for side in (1, 2))
    matrices: dict[str, Any] = {name: product(att, name) for name in names}
    time_mix = TimeMix7Rows(
        norm=packer.norm([block.ln1 for block in blocks]),
        mixes=np.stack([packer.rows([1 - half.get_parameter(name) for half in att]) for name in MIXES]),
        wkv=WKV7Rows(np.stack(channels, axis=1), state, nothing.copy()),
        **matrices,
        **neurons_of(packer, att, TIME_MIX_SITES),
        neuron_behind=packer.neurons(blocks, "time_mix_neuron"),
        shift=nothing.copy(),
    )
    channel_mix = ChannelMix7Rows(
        norm=packer.norm([block.ln2 for block in blocks]),
        x_k=packer.rows([1 - half.x_k for half in ffn]),
        key=product(ffn, "key"),
        value=product(ffn, "value"),
        **neurons_of(packer, ffn, CHANNEL_MIX_SITES),
        neuron_behind=packer.neurons(blocks, "channel_mix_neuron"),
        shift=nothing.copy(),
    )
    return Layers(time_mix, channel_mix)


def share(layers: Layers, texts: int) -> Shared:
    """Return the memory in which the threads that share so many texts see each other's columns."""
    att = layers.att
    _, F, C = layers.ffn.value.weights.shape
    inner = sum(pair.weights.shape[2] for pair in (att.w1, att.a1, att.v1, att.g1))
    widths = C, max(3 * C + inner, F), 4 * C, C, C
    return Shared(*(np.zeros((texts, width), att.mixes.dtype) for width in widths))


def products(layers: Layers) -> dict[str, Product]:
    """Return the matrix products by their names in a block."""
    return products_of(layers)


# --- state ---------------------------------------------------------------------------------------------------------


def take(layers: Layers, state: State) -> Layers:
    """Return the layers with the memory of `state`, copied."""
    time_mixes = [cast(TimeMix7State, block.time_mix) for block in state]
    channel_mixes = [cast(ChannelMixState, block.channel_mix) for block in state]
    matrices = [cast(Tensor | EventWKV7State, half.wkv) for half in time_mixes]
    events = [
        part if isinstance(part, EventWKV7State) else EventWKV7State(part, torch.zeros(part.shape[:-1]))
        for part in matrices
    ]
    att = remembering(layers.att, TIME_MIX_SITES, time_mixes, [block.time_mix_neuron for block in state])
    ffn = remembering(layers.ffn, CHANNEL_MIX_SITES, channel_mixes, [block.channel_mix_neuron for block in state])
    wkv = att.wkv._replace(
        matrix=memory_of([part.matrix.mT for part in events], att.shift.dtype),
        waiting=memory_of([part.waiting.flatten(1) for part in events], att.shift.dtype),
    )
    return Layers(att._replace(wkv=wkv), ffn)


def of_texts(layers: Layers, texts: slice) -> Layers:
    """Return the layers with the memory of some of the texts, not copied."""
    att, ffn = (memory_of_texts(rows, ("shift",), texts) for rows in layers)
    return Layers(att._replace(wkv=memory_of_texts(att.wkv, ("matrix", "waiting"), texts)), ffn)


def give(layers: Layers) -> State:
    """Return the memory of the layers as the model's state, copied."""
    att, ffn = layers.att, layers.ffn
    blocks = []
    for layer in range(len(att.norm.weight)):
        matrix = copied(att.wkv.matrix[:, layer]).mT.contiguous()
        waiting = copied(att.wkv.waiting[:, layer]).view(matrix.shape[:-1])
        wkv: Tensor | EventWKV7State = EventWKV7State(matrix, waiting)
        if not att.wkv_key_neuron.exist:
            wkv = matrix * torch.exp(waiting).unsqueeze(-2)
        # nothing is added to the values of the first block
        sites = [site for site in TIME_MIX_SITES if layer or site != "v2_neuron"]
        time_mix = TimeMix7State(copied(att.shift[:, layer]), wkv, potentials(att, sites, layer))
        channel_mix = ChannelMixState(copied(ffn.shift[:, layer]), potentials(ffn, CHANNEL_MIX_SITES, layer))
        behind = att.neuron_behind.potential_of(layer), ffn.neuron_behind.potential_of(layer)
        blocks.append(BlockState(time_mix, behind[0], channel_mix, behind[1]))
    return tuple(blocks)
