"""Weights of a few bits: the formats, and a matrix as whole codes with one step per output.

    weight[i, j] = codes[i, j] * step[i]

so that a sum over spikes is one of whole numbers, and is multiplied once per output.
Sources: OFQ (Liu et al. 2023, arXiv 2302.02210), StatsQ, of github.com/nbasyl/OFQ, quantizer/statsq.py; BitNet b1.58
(Ma et al. 2024, arXiv 2402.17764), absmean, there of a whole matrix, here of each output.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..config.values import check
from .mixers import Mixer
from .network import SpikeGPT


class Quantised(NamedTuple):
    """codes (out, in), int8; step (out,), in the precision of the weights."""

    codes: Tensor
    step: Tensor

    def numbers(self) -> Tensor:
        """Return the weights that the codes stand for, (out, in)."""
        return self.codes.to(self.step.dtype) * self.step[:, None]


class Places(NamedTuple):
    """Where weights (out, in) lie among the levels: whole numbers are the levels themselves; step (out,)."""

    places: Tensor
    step: Tensor


def by_largest(weight: Tensor) -> Places:
    """127 steps are the largest weight of an output."""
    step = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(weight.dtype).tiny)
    return Places(weight / step[:, None], step)


def by_mean(weight: Tensor, bits: int) -> Places:
    """StatsQ: 2^bits levels within twice the mean size of an output's weights, none of them 0."""
    n = 2 ** (bits - 1)
    scale = _mean_size(weight) * 2
    return Places((weight / scale[:, None]).clamp(-1, 1 - 1e-6) * n - 0.5, scale / (2 * n))


def ternary(weight: Tensor) -> Places:
    """A step is the mean size of an output's weights."""
    step = _mean_size(weight)
    return Places((weight / step[:, None]).clamp(-1, 1), step)


def _mean_size(weight: Tensor) -> Tensor:
    return weight.abs().mean(1).clamp(min=torch.finfo(weight.dtype).tiny)


class Format(NamedTuple):
    """How weights of so many bits are made, and how many of their codes a group of bytes of a file holds."""

    places: Callable[[Tensor], Places]
    levels: int
    is_odd: bool
    """codes are 1 - levels, 3 - levels ... levels - 1, two steps apart; else the whole numbers around 0"""
    codes: int
    bytes: int


# by bits of a weight; five ternary codes are a number below 3^5 = 243
FORMATS: dict[float, Format] = {
    8: Format(by_largest, 255, False, 1, 1),
    4: Format(partial(by_mean, bits=4), 16, True, 2, 1),
    3: Format(partial(by_mean, bits=3), 8, True, 8, 3),
    2: Format(partial(by_mean, bits=2), 4, True, 4, 1),
    1.58: Format(ternary, 3, False, 5, 1),
}
# of a model whose weights are float32 numbers
FULL = 32
# of the embedding and the head, which read and write tokens: at least so many
LEAST_OUTSIDE = 8


def quantise(weight: Tensor, bits: float) -> Quantised:
    """Return the codes and steps of weight (out, in).

    Raises:
        ValueError: there is no format of so many bits.
    """
    form = _format_of(bits)
    places, step = form.places(weight)
    whole = places.round()
    return Quantised((2 * whole + 1 if form.is_odd else whole).to(torch.int8), step)


def near_another_code(weight: Tensor, bits: float, within: float) -> Tensor:
    """Return which weights (out, in) lie `within` of a boundary between codes, as OFQ's cga.py has it, as bool.

    The distance is in levels; a boundary is half a level above some code between the least and the largest there are.

    Raises:
        ValueError: there is no format of so many bits.
    """
    places = _format_of(bits).places(weight).places
    whole, below = places.round(), (places - 0.5).round()
    is_there = (below >= whole.min()) & (below <= whole.max())
    return is_there & ((places - below - 0.5).abs() <= within)


def _format_of(bits: float) -> Format:
    check(bits in FORMATS, f"weights have {', '.join(f'{known:g}' for known in FORMATS)} bits, got {bits:g}")
    return FORMATS[bits]


def low_bit_matrices(model: SpikeGPT, bits: float) -> dict[str, tuple[nn.Parameter, float]]:
    """Return name -> (matrix (out, in), its bits): those of linear layers in the blocks, the embedding and the head.

    Pairs of matrices that steer a mixer (LoRA) stay as they are; so does all that is no matrix.
    """
    found: dict[str, tuple[nn.Parameter, float]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Mixer):
            layers = {inner: layer for inner, layer in module.named_modules() if isinstance(layer, nn.Linear)}
            found |= {f"{name}.{inner}.weight": (cast(nn.Parameter, at.weight), bits) for inner, at in layers.items()}
    for name, module in {"emb": model.emb, "head": model.head}.items():
        # a classifier has another head, of its own
        if isinstance(module, nn.Embedding | nn.Linear):
            found[f"{name}.weight"] = cast(nn.Parameter, module.weight), max(bits, LEAST_OUTSIDE)
    return found


def pack(codes: Tensor, bits: float) -> Tensor:
    """Return codes of `quantise` (out, in) as bytes (N,), row by row without gaps, the last ones filled up."""
    form = FORMATS[bits]
    digits = _digits(codes, form).reshape(-1)
    filled = np.concatenate([digits, np.zeros(-len(digits) % form.codes, np.uint64)])
    numbers = (filled.reshape(-1, form.codes) * _places(form)).sum(1, dtype=np.uint64)
    return torch.from_numpy(numbers.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : form.bytes].reshape(-1).copy())


def unpack(packed: Tensor, shape: tuple[int, ...], bits: float) -> Tensor:
    """Return the codes (out, in) that `pack` made bytes (N,) of.

    Raises:
        ValueError: there are more or fewer bytes than so many codes take, or they are no codes.
    """
    form, size = FORMATS[bits], int(np.prod(shape))
    groups = -(-size // form.codes)
    check(
        packed.shape == (groups * form.bytes,) and packed.dtype == torch.uint8,
        f"{size} codes of {bits} bits are {groups * form.bytes} bytes, got {packed.dtype} {tuple(packed.shape)}",
    )
    words = np.zeros((groups, 8), np.uint8)
    words[:, : form.bytes] = packed.numpy().reshape(groups, form.bytes)
    digits = words.view("<u8") // _places(form) % form.levels
    check(bool((words.view("<u8")[:, 0] < form.levels**form.codes).all()), f"bytes that are no codes of {bits} bits")
    codes = digits.reshape(-1)[:size].astype(np.int64)
    codes = 2 * codes - (form.levels - 1) if form.is_odd else codes - form.levels // 2
    return torch.from_numpy(codes.astype(np.int8)).view(shape)


def _digits(codes: Tensor, form: Format) -> np.ndarray:
    """Codes as whole numbers from 0 on."""
    whole = codes.numpy().astype(np.int64)
    return ((whole + form.levels - 1) // 2 if form.is_odd else whole + form.levels // 2).astype(np.uint64)


def _places(form: Format) -> np.ndarray:
    """What a digit counts by its place in a group."""
    return np.uint64(form.levels) ** np.arange(form.codes, dtype=np.uint64)


@torch.no_grad()
def quantise_model(model: SpikeGPT, bits: float) -> None:
    """Replace the matrices of `model` by what their codes stand for; `model.weight_steps` says in which steps.

    Raises:
        ValueError: there is no format of so many bits.
    """
    for name, (matrix, own_bits) in low_bit_matrices(model, bits).items():
        found = quantise(matrix, own_bits)
        matrix.copy_(found.numbers())
        model.weight_steps[name] = found.step


def packed(model: SpikeGPT, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, tuple[float, int, int]]]:
    """Return `weights` of `model` with codes in the place of its matrices of a few bits, and what these are.

    For each such matrix NAME.codes (N,) bytes and NAME.step (out,); and NAME -> its bits, outputs and inputs.

    Raises:
        ValueError: a weight is none of those that its codes stand for.
    """
    tensors, matrices = dict(weights), {}
    for name, (_, bits) in low_bit_matrices(model, model.config.weight_bits).items():
        weight, step = tensors.pop(name).cpu(), model.weight_steps[name].cpu()
        tensors[f"{name}.codes"], tensors[f"{name}.step"] = pack(codes_of(name, weight, step, bits), bits), step
        matrices[name] = (bits, *weight.shape)
    return tensors, matrices


def stored_bytes(model: SpikeGPT) -> int:
    """Return what the parameters of `model` take in a file."""
    low_bit = low_bit_matrices(model, model.config.weight_bits) if model.config.weight_bits < FULL else {}
    plain = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if name not in low_bit)
    return plain + sum(
        -(-matrix.numel() // FORMATS[bits].codes) * FORMATS[bits].bytes + 4 * len(matrix)
        for matrix, bits in low_bit.values()
    )


def codes_of(name: str, weight: Tensor, step: Tensor, bits: float) -> Tensor:
    """Return the codes (out, in) of a matrix that `quantise_model` made.

    Raises:
        ValueError: a weight is none of those that codes of so many bits stand for.
    """
    form, codes = FORMATS[bits], (weight.detach() / step[:, None]).round()
    is_code = (codes.abs() < form.levels) & (codes % 2 == 1 if form.is_odd else 2 * codes.abs() < form.levels)
    check(
        bool((is_code & (codes * step[:, None] == weight)).all()),
        f"{name} holds weights that are no codes of {bits} bits: they were changed; call quantise_model again",
    )
    return codes.to(torch.int8)
