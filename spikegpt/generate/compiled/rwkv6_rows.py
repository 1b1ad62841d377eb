"""RWKV-5 and -6 as their token step in rwkv6.py reads them: a model's numbers packed, its state taken and given back.

Their channel mix is RWKV-4's.
"""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ...kernels.decay import TIME_DECAY_LIMIT
from ...model.mixers import Rows, product_of
from ...model.mixers.rwkv5 import GatedHeads, TimeMix5, TimeMix5State
from ...model.mixers.rwkv6 import MIXES, PAIRS, READERS, TimeMix6
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
from .rwkv4_rows import ChannelMixRows, give_channel_mix, pack_channel_mix, take_channel_mix

TIME_MIX_SITES = *(f"{name}_neuron" for name in (*PAIRS[:2], *READERS, PAIRS[3])), "output_neuron"
# of one layer, in `WKV6Rows.channels`, each under its name in `GatedHeads`
CHANNELS = "time_decay", "time_faaaa", "ln_x.weight", "ln_x.bias"
TIME_DECAY, TIME_FIRST, LN_WEIGHT, LN_BIAS = range(len(CHANNELS))


class WKV6Rows(NamedTuple):
    """What the heads of every layer calculate with: channels (L, CHANNELS, C); matrix (texts, L, H, N, N): the state.

    No decay is stronger than that of `decay_limit`.
    """

    channels: np.ndarray
    matrix: np.ndarray
    decay_limit: np.floating


class TimeMix6Rows(NamedTuple):
    """A time mix of every layer: maa (MIXES, L, C), the shares of the token before; shift (texts, L, C): the state.

    own_share (L, C) is that of the token itself in what the pair of the mixes reads. RWKV-5 has no pairs; what stands
    in their place is not read.
    """

    norm: Norm
    own_share: np.ndarray
    maa: np.ndarray
    wkv: WKV6Rows
    time_maa_w1: Product
    time_maa_w2: Product
    time_decay_w1: Product
    time_decay_w2: Product
    key: Product
    value: Product
    receptance: Product
    gate: Product
    output: Product
    time_maa_w1_neuron: Neurons
    time_maa_w2_neuron: Neurons
    time_decay_w1_neuron: Neurons
    key_neuron: Neurons
    value_neuron: Neurons
    receptance_neuron: Neurons
    gate_neuron: Neurons
    time_decay_w2_neuron: Neurons
    output_neuron: Neurons
    neuron_behind: Neurons
    shift: np.ndarray
    has_pairs: bool


class Layers(NamedTuple):
    """All blocks of a model."""

    att: TimeMix6Rows
    ffn: ChannelMixRows


class Shared(NamedTuple):
    """Where threads see each other's columns: stream and mixed (texts, C).

    projected (texts, 4 C + all inner channels, or F + C) are receptance, key, value, gate and the inner channels of the
    pairs, or hidden and receptance of the channel mix. added (texts, 5 C) are the mixes of tokens, or their spikes, and
    later what the pair of the decay makes.
    """

    stream: np.ndarray
    projected: np.ndarray
    added: np.ndarray
    mixed: np.ndarray


# --- packing -------------------------------------------------------------------------------------------------------


def pack(packer: Packer) -> Layers:
    """Return the blocks of the packer's model."""
    blocks = packer.model.blocks
    att = [cast(GatedHeads, block.att) for block in blocks]
    C, N = packer.model.config.n_embd, att[0].head_size
    names = *READERS[1:], "output"
    has_pairs = isinstance(att[0], TimeMix6)
    matrices: dict[str, Any] = {
        name: packer.product([cast(Rows, product_of(half, name)) for half in att])
        for name in (*(PAIRS if has_pairs else ()), *names)
    }
    time_mix = TimeMix6Rows(
        norm=packer.norm([block.ln1 for block in blocks]),
        own_share=packer.rows([1 - _maa_of(half, "x") for half in att]),
        maa=np.stack([packer.rows([_maa_of(half, name) for half in att]) for name in MIXES]),
        wkv=WKV6Rows(
            np.stack([packer.rows([half.get_parameter(name) for half in att]) for name in CHANNELS], axis=1),
            np.zeros((1, len(blocks), C // N, N, N), packer.dtype),
            packer.dtype.type(TIME_DECAY_LIMIT),
        ),
        **{**dict.fromkeys(PAIRS, matrices["key"]), **matrices},
        **neurons_of(packer, att, TIME_MIX_SITES),
        neuron_behind=packer.neurons(blocks, "time_mix_neuron"),
        shift=np.zeros((1, len(blocks), C), packer.dtype),
        has_pairs=has_pairs,
    )
    return Layers(time_mix, pack_channel_mix(packer))


def _maa_of(half: GatedHeads, name: str) -> Tensor:
    """How much of the token before is in what a product reads, (1, 1, C)."""
    if not isinstance(half, TimeMix5):
        return half.get_parameter(f"time_maa_{name}")
    return torch.zeros(1, 1, half.key.in_features) if name in "xw" else 1 - half.get_parameter(f"time_mix_{name}")


def share(layers: Layers, texts: int) -> Shared:
    """Return the memory in which the threads that share so many texts see each other's columns."""
    att = layers.att
    _, F, C = layers.ffn.value.weights.shape
    inner = att.time_maa_w1.weights.shape[2] + att.time_decay_w1.weights.shape[2] if att.has_pairs else 0
    widths = C, max(4 * C + inner, F + C), len(MIXES) * C, C
    return Shared(*(np.zeros((texts, width), att.maa.dtype) for width in widths))


def products(layers: Layers) -> dict[str, Product]:
    """Return the matrix products by their names in a block."""
    return products_of(layers, () if layers.att.has_pairs else PAIRS)


# --- state ---------------------------------------------------------------------------------------------------------


def take(layers: Layers, state: State) -> Layers:
    """Return the layers with the memory of `state`, copied."""
    halves = [cast(TimeMix5State, block.time_mix) for block in state]
    att = remembering(layers.att, TIME_MIX_SITES, halves, [block.time_mix_neuron for block in state])
    wkv = att.wkv._replace(matrix=memory_of([half.wkv for half in halves], att.shift.dtype))
    return Layers(att._replace(wkv=wkv), take_channel_mix(layers.ffn, state))


def of_texts(layers: Layers, texts: slice) -> Layers:
    """Return the layers with the memory of some of the texts, not copied."""
    att, ffn = (memory_of_texts(rows, ("shift",), texts) for rows in layers)
    return Layers(att._replace(wkv=memory_of_texts(att.wkv, ("matrix",), texts)), ffn)


def give(layers: Layers) -> State:
    """Return the memory of the layers as the model's state, copied."""
    att, ffn = layers.att, layers.ffn
    blocks = []
    for layer in range(len(att.norm.weight)):
        inner = potentials(att, TIME_MIX_SITES, layer)
        time_mix = TimeMix5State(copied(att.shift[:, layer]), copied(att.wkv.matrix[:, layer]), inner)
        behind = att.neuron_behind.potential_of(layer), ffn.neuron_behind.potential_of(layer)
        blocks.append(BlockState(time_mix, behind[0], give_channel_mix(ffn, layer), behind[1]))
    return tuple(blocks)
