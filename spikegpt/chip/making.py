"""A trained model in whole numbers: mantissas with shared exponents, thresholds, tables, and the places of each point.

A number with `places` places stands for number / 2^places. Where each point is, a text decides that is read in floats
first: nothing that occurs there comes nearer to the limit than `headroom_bits`. This file alone computes in floats;
what is computed with its outcome is defined in reference.py, and done by step.py.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..common.errors import SpikegptError
from ..kernels.decay import decay_of
from ..kernels.event_wkv.reference import EVENT_KEY_LIMIT
from ..model.mixers.rwkv4 import ChannelMix, TimeMix
from ..model.network import Block, SpikeGPT, evaluating
from ..neuron import LIF
from .program import FRACTION_BITS, NEAREST, NONE, SIGMOID_END_BITS, SITES, SQUARE, SUBTRACT, TOWARD_ZERO, ZERO, Program
from .targets import Target

# products of a weight of 8 bits and a spike, summed in 32 bits
MOST_INPUTS = 4096
# behind the point: with more, a product would leave 64 bits
MOST_PLACES = 24


def check_simulated(model: SpikeGPT) -> None:
    """Raise SpikegptError, with the reason, unless the arithmetic of this model is one that is known here."""
    config = model.config
    found = {
        f"mixer {config.mixer} has no integer arithmetic here": config.mixer != "rwkv4",
        f"spiking {config.spiking}: its products read real numbers, and no chip of spikes computes those": (
            config.spiking != "input"
        ),
        "shared_neurons: products share neurons, and here each has its own": config.shared_neurons,
        f"{config.perspectives} perspectives: here a text is read as one stream": config.perspectives > 1,
        f"neurons rest at {config.neuron.reset_potential}, here at 0": config.neuron.reset_potential != 0,
        f"n_embd {config.n_embd}: more than {MOST_INPUTS} channels overflow a sum": config.n_embd > MOST_INPUTS,
        "neurons of somebody's own": not all(isinstance(at.neuron, LIF) for at in model.sites().values()),
    }
    for reason, is_so in found.items():
        if is_so:
            raise SpikegptError(
                f"cannot be simulated in whole numbers: {reason}; rwkv4 with --spiking input and our neurons can"
            )


def make_program(model: SpikeGPT, tokens: np.ndarray, target: Target, headroom_bits: int = 2) -> Program:
    """Return `model` in the numbers of `target`, whose ranges are those that tokens (N,) need, and more.

    Args:
        headroom_bits: every range is 2^headroom_bits times what the tokens need.

    Raises:
        SpikegptError: the model is of a kind that cannot be simulated; the reason is named.
    """
    check_simulated(model)
    places = _Places(_ranges(model, tokens), target.state_bits - 1 - headroom_bits)
    with torch.no_grad():
        return _Maker(model, target, places).program()


class _Places:
    """Places behind the point of each quantity, from the largest number that it reached."""

    def __init__(self, largest: dict[str, float], bits: int):
        self._largest, self._bits = largest, bits

    def of(self, *names: str) -> int:
        largest = max(max(self._largest[name] for name in names), 2.0**-20)
        return min(self._bits - math.ceil(math.log2(largest)), MOST_PLACES)


@torch.no_grad()
def _ranges(model: SpikeGPT, tokens: np.ndarray) -> dict[str, float]:
    """Module -> largest |number| that it gave out, with "<" before its name that it was given, over the tokens."""
    largest: dict[str, float] = {}

    def note(name: str, numbers: Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), numbers.abs().max().item())

    # of every token, and of the least that a spike adds
    note("blocks.0.ln0", model.blocks[0].ln0(model.emb.weight))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            note(name, module.weight)
    ids, state = torch.from_numpy(tokens.astype(np.int64)).unsqueeze(0).to(model.device), None
    with _hooked(model, note), evaluating(model):
        for part in ids.split(512, dim=1):
            state = model(part, state).state
    return largest


@contextmanager
def _hooked(model: SpikeGPT, note: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook(name: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        note(f"<{name}", inputs[0])
        if isinstance(output, Tensor):
            note(name, output)

    handles = [
        module.register_forward_hook(partial(hook, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.LayerNorm | LIF)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Maker:
    """Puts the parameters of a model into whole numbers."""

    def __init__(self, model: SpikeGPT, target: Target, places: _Places):
        self.model, self.target, self.places = model, target, places
        self.layers = range(model.config.n_layer)
        norms = [f"blocks.{layer}.{norm}" for layer in self.layers for norm in ("ln1", "ln2")]
        self.stream = places.of(*(f"<{norm}" for norm in (*norms, "ln_out")), "blocks.0.ln0")
        self.spike_bits = (model.config.neuron.levels - 1).bit_length()
        # a mean of value spikes is no larger than their levels
        self.mean = target.state_bits - 2 - self.spike_bits

    def block(self, layer: int) -> tuple[Block, TimeMix, ChannelMix]:
        block = self.model.blocks[layer]
        return block, cast(TimeMix, block.att), cast(ChannelMix, block.ffn)

    def currents(self, layer: int) -> dict[str, int]:
        """Site -> places of its current; matrix -> those of its outcome."""
        place, name = self.places.of, f"blocks.{layer}"
        mixed = {
            "att": place(f"{name}.ln1", *(f"<{name}.{site}" for site in SITES[:3])),
            "ffn": place(f"{name}.ln2", *(f"<{name}.{site}" for site in SITES[5:7])),
        }
        return {
            **{site: mixed[site[:3]] for site in (*SITES[:3], *SITES[5:7])},
            "att.wkv_neuron": place(f"{name}.att.value"),
            "att.output_neuron": self.mean,
            "ffn.value_neuron": place(f"<{name}.ffn.value_neuron"),
            **{f"att.{matrix}": place(f"{name}.att.{matrix}") for matrix in ("key", "value", "receptance")},
            **{f"ffn.{matrix}": place(f"{name}.ffn.{matrix}") for matrix in ("key", "value", "receptance")},
            "att.output": self.stream,
        }

    def program(self) -> Program:
        model, target, config = self.model, self.target, self.model.config
        C, layers = config.n_embd, self.layers
        places = [self.currents(layer) for layer in layers]
        norms = [norm for layer in layers for norm in (self.block(layer)[0].ln1, self.block(layer)[0].ln2)]
        after_norms = [found[site] for found in places for site in (SITES[0], SITES[5])]
        last = self.places.of("ln_out", *(["<head_neuron"] if model.head_site else []))
        norm_rows = [self.norm(*pair) for pair in zip((*norms, model.ln_out), (*after_norms, last), strict=True)]
        rows = [self.neurons(layer, places[layer]) for layer in layers]
        squares = [[self.matrix(layer, name, places[layer]) for name in SQUARE] for layer in layers]
        hidden = [self.matrix(layer, "ffn.key", places[layer]) for layer in layers]
        back = [self.matrix(layer, "ffn.value", places[layer]) for layer in layers]
        first = [self.first(layer) for layer in layers]
        logits = self.places.of("head")
        head = self.mantissas(model.head.weight, logits if model.head_site else logits - last)
        embedding = self.mantissas(self.model.blocks[0].ln0(model.emb.weight), self.stream)
        epsilon = C * model.ln_out.eps * 4.0**self.stream
        neuron = config.neuron
        head_neuron = cast(LIF, model.head_neuron) if model.head_site else None
        head_threshold = self.thresholds(head_neuron, last) if head_neuron else np.ones(C, np.int64)
        return Program(
            rounding=NEAREST if target.rounding == "nearest" else TOWARD_ZERO,
            state_bits=target.state_bits,
            factor_bits=target.factor_bits,
            levels=neuron.levels,
            hidden_levels=config.hidden_neuron.levels,
            head_levels=config.head_neuron.levels if head_neuron else 0,
            signed=neuron.signed,
            reset={"zero": ZERO, "subtract": SUBTRACT, "none": NONE}[neuron.reset],
            remembers=not neuron.is_memoryless,
            stream_places=self.stream,
            epsilon=max(round(epsilon), 1),
            inverse_channels=round(2**24 / C),
            **tables(target.table_bits),
            embedding=embedding[0],
            embedding_shift=embedding[1],
            norm_weight=np.stack([row[0] for row in norm_rows]),
            norm_bias=np.stack([row[1] for row in norm_rows]),
            norm_shift=np.array([row[2] for row in norm_rows]),
            mix=np.stack([self.mixes(layer) for layer in layers]),
            threshold=np.stack([row[0] for row in rows]),
            membrane_decay=np.stack([row[1] for row in rows]),
            gain=np.stack([row[2] for row in rows]),
            square=np.stack([[matrix.T for matrix, _ in row] for row in squares]),
            square_shift=np.stack([[shift for _, shift in row] for row in squares]),
            hidden=np.stack([np.ascontiguousarray(matrix.T) for matrix, _ in hidden]),
            hidden_shift=np.stack([shift for _, shift in hidden]),
            squared_shift=np.array([2 * found["ffn.key"] - found["ffn.value_neuron"] for found in places]),
            back=np.stack([np.ascontiguousarray(matrix.T) for matrix, _ in back]),
            back_shift=np.stack([shift for _, shift in back]),
            back_places=np.array([found["ffn.value"] for found in places]),
            key_places=np.array([found["att.key"] for found in places]),
            key_limit=np.array(
                [min(round(EVENT_KEY_LIMIT * 2.0 ** found["att.key"]), target.limit) for found in places]
            ),
            receptance_places=np.array([[found["att.receptance"], found["ffn.receptance"]] for found in places]),
            first=np.stack([mantissa for mantissa, _ in first]),
            first_exponent=np.stack([exponent for _, exponent in first]),
            decay=np.stack([self.factors(decay_of(self.block(layer)[1].time_decay)) for layer in layers]),
            spike_bits=self.spike_bits,
            head_threshold=head_threshold,
            head=np.ascontiguousarray(head[0].T),
            head_shift=head[1],
            logit_places=logits,
        )

    def matrix(self, layer: int, name: str, places: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
        product = cast(nn.Linear, self.model.blocks[layer].get_submodule(name))
        return self.mantissas(product.weight, places[name])

    def mantissas(self, weight: Tensor, places: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (mantissas (out, in), int8; shift (out,) from their sums to numbers of so many places)."""
        most = 2 ** (self.target.weight_bits - 1) - 1
        numbers = _numpy(weight)
        largest = np.abs(numbers).max(axis=1)
        if self.target.exponent_of == "matrix":
            largest = np.full_like(largest, largest.max())
        # a row of zeros has any exponent
        exponent = np.floor(np.log2((most + 0.5) / np.where(largest > 0, largest, 1.0))).astype(np.int64)
        mantissas = np.clip(np.rint(numbers * 2.0 ** exponent[:, None]), -most, most)
        return mantissas.astype(np.int8), exponent - places

    def norm(self, norm: nn.LayerNorm, places: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return (weight (C,) of 16 bits, bias (C,), shift) of a norm whose outcome has so many places."""
        weight = _numpy(norm.weight) * math.sqrt(norm.weight.numel())
        weight_places = FRACTION_BITS - 1 - math.ceil(math.log2(max(np.abs(weight).max(), 2.0**-20)))
        shift = self.target.state_bits - 2 + weight_places - places
        bias = np.rint(_numpy(norm.bias) * 2.0**places)
        return _whole(weight * 2.0**weight_places), _whole(bias), shift

    def mixes(self, layer: int) -> np.ndarray:
        _, att, ffn = self.block(layer)
        mixes = [att.mix_of("key"), att.mix_of("value"), att.mix_of("receptance")]
        mixes += [ffn.mix_of("key"), ffn.mix_of("receptance")]
        return np.stack([_whole(_numpy(mix).reshape(-1) * 2**self.target.factor_bits) for mix in mixes])

    def neurons(self, layer: int, places: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (thresholds, membrane decays, gains), (N,) each, of the neurons of a block."""
        rows: list[list[np.ndarray]] = [[], [], []]
        for site in SITES:
            neuron = cast(LIF, self.model.blocks[layer].get_submodule(site))
            decay = torch.as_tensor(neuron.membrane_decay).expand(neuron.channels)
            gain = 1 - decay if neuron.config.decay_input else torch.ones_like(decay)
            for row, numbers in zip(rows, (self.thresholds(neuron, places[site]), self.factors(decay)), strict=False):
                row.append(numbers)
            rows[2].append(_whole(_numpy(gain) * 2**self.target.factor_bits))
        return np.concatenate(rows[0]), np.concatenate(rows[1]), np.concatenate(rows[2])

    def thresholds(self, neuron: LIF, places: int) -> np.ndarray:
        """Thresholds (channels,): at least the least that the target has, no larger than a state."""
        numbers = _numpy(torch.as_tensor(neuron.threshold).expand(neuron.channels)) * 2.0**places
        step = 2**self.target.threshold_places
        return np.clip(_whole(numbers / step), 1, self.target.limit // step) * step

    def factors(self, share: Tensor) -> np.ndarray:
        """Shares kept per step, below 1 as they are."""
        one = 2**self.target.factor_bits
        return np.minimum(_whole(_numpy(share) * one), one - 1)

    def first(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """(mantissas (C,), exponents (C,)) of exp(time_first)."""
        bonus = _numpy(self.block(layer)[1].time_first.clamp(-EVENT_KEY_LIMIT, EVENT_KEY_LIMIT))
        exponent = np.floor(bonus / math.log(2))
        return _whole(np.exp(bonus - exponent * math.log(2)) * 2 ** (FRACTION_BITS - 1)), exponent.astype(np.int64)


def tables(bits: int) -> dict[str, np.ndarray]:
    """Return the tables of 2^bits intervals by their names in Program, values of FRACTION_BITS bits."""
    at = np.arange(2**bits + 1) / 2**bits
    one = 2**FRACTION_BITS
    return {
        "exp_table": _whole(2.0**at * one / 2),
        "sigmoid_table": _whole(one / (1 + np.exp(-at * 2**SIGMOID_END_BITS))),
        "reciprocal_table": _whole(one / (1 + at)),
        "root_table": _whole(one / np.sqrt(np.maximum(4 * at, 2.0**-bits))),
    }


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _whole(numbers: np.ndarray) -> np.ndarray:
    return np.rint(numbers).astype(np.int64)
