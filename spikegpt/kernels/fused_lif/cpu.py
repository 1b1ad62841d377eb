"""Fast CPU versions of what `reference` defines, forward and backward, in numba; reached only through their door.

A row of currents is made, fired and forgotten while it is near the processor. It is made by the functions, and rounded
to the precision, of the kernels that make currents alone: the spikes are the same, bit for bit.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..cpu import ONE, ZERO, as_words, exact, fused, new_words, parts_of_pass, read, run_passes, write
from ..integer_lif.cpu import fire, learn, scalars_of, side_by_side
from ..integer_lif.options import IntegerLIFOptions
from ..pointwise.cpu import gate_backward_pass, gate_pass, squared_relu_backward_pass, squared_relu_pass
from ..token_shift.cpu import first_tokens, learn_mix, mix_token, stack_shares, take_total


def shifted_forward(
    x: Tensor, previous: Tensor | None, shares: Sequence[Tensor], thresholds: Sequence[Tensor],
    options: IntegerLIFOptions, dtype: torch.dtype,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Return (spikes, each (B, T, C) in `dtype`; their firing rates)."""
    inputs = _Shifted(x, previous, shares, thresholds)
    spikes = [new_words(x.shape, dtype) for _ in shares]
    fired = np.zeros((parts_of_pass(inputs.rows, inputs.width), len(shares)), np.int64)
    outputs = tuple(as_words(part).reshape(inputs.rows, inputs.width) for part in spikes)
    levels, below, *_ = scalars_of(options)
    run_passes(_shifted_forward_pass, inputs.rows, inputs.width, *inputs.arrays, outputs, fired, levels, below)
    return spikes, [_rate(number, x) for number in fired.sum(axis=0)]


def shifted_backward(
    grad_spikes: Sequence[Tensor], grad_rates: Sequence[Tensor | None], x: Tensor, previous: Tensor | None,
    shares: Sequence[Tensor], thresholds: Sequence[Tensor], options: IntegerLIFOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of (x (B, T, C), previous (B, C), shares (shares, C), thresholds (shares, C))."""
    B, _, C = x.shape
    inputs = _Shifted(x, previous, shares, thresholds)
    grad_x, grad_previous = new_words(x.shape, x.dtype), torch.empty(B, C)
    # one row per part
    sums = parts_of_pass(inputs.rows, inputs.width), len(shares), inputs.width
    grad_shares, grad_thresholds = np.zeros(sums, np.float32), np.zeros(sums, np.float32)
    grads = tuple(as_words(grad).reshape(inputs.rows, inputs.width) for grad in grad_spikes)
    of_spikes = np.array([_of_spike(grad, x) for grad in grad_rates])
    outputs = as_words(grad_x).reshape(inputs.rows, inputs.width), grad_previous.numpy(), grad_shares, grad_thresholds
    levels, below, *_ = scalars_of(options)
    run_passes(
        _shifted_backward_pass, inputs.rows, inputs.width, grads, of_spikes, *inputs.arrays, *outputs, levels, below
    )
    summed = (
        torch.from_numpy(part.sum(axis=0).reshape(len(shares), -1, C).sum(axis=1))
        for part in (grad_shares, grad_thresholds)
    )
    return grad_x, grad_previous.to(x.dtype), *summed


class _Shifted:
    """The inputs of a pass: rows of as many tokens of a text as lie side by side."""

    def __init__(self, x: Tensor, previous: Tensor | None, shares: Sequence[Tensor], thresholds: Sequence[Tensor]):
        B, T, C = x.shape
        of_text, self.width = side_by_side(T, C)
        self.rows, together = B * of_text, self.width // C
        rows = as_words(x).reshape(self.rows, self.width)
        per_channel = (np.tile(stack_shares(part), together) for part in (shares, thresholds))
        self.arrays = rows, first_tokens(x, previous), *per_channel, of_text


def pointwise_forward(
    function: str, inputs: Sequence[Tensor], threshold: Tensor, options: IntegerLIFOptions, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return (spikes (B, T, C) in `dtype`, firing rate)."""
    B, T, C = inputs[0].shape
    rows, width = side_by_side(B * T, C)
    spikes, fired = new_words((B, T, C), dtype), np.zeros(parts_of_pass(rows, width), np.int64)
    arrays = (as_words(part).reshape(rows, width) for part in (*inputs, spikes))
    levels, below, *_ = scalars_of(options)
    thresholds = np.tile(as_words(threshold), width // C)
    run_passes(_FORWARD[function], rows, width, *arrays, thresholds, fired, levels, below)
    return spikes, _rate(fired.sum(), spikes)


def pointwise_backward(
    grad_spikes: Tensor, grad_rate: Tensor | None, function: str, inputs: Sequence[Tensor], threshold: Tensor,
    options: IntegerLIFOptions,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients of inputs (B, T, C) and threshold (C,)."""
    B, T, C = inputs[0].shape
    rows, width = side_by_side(B * T, C)
    grads = [new_words((B, T, C), part.dtype) for part in inputs]
    # one row per part
    grad_threshold = np.zeros((parts_of_pass(rows, width), width), np.float32)
    arrays = (as_words(part).reshape(rows, width) for part in (grad_spikes, *inputs, *grads))
    levels, below, *_ = scalars_of(options)
    thresholds, of_spike = np.tile(as_words(threshold), width // C), _of_spike(grad_rate, grad_spikes)
    run_passes(_BACKWARD[function], rows, width, *arrays, thresholds, grad_threshold, of_spike, levels, below)
    return [*grads, torch.from_numpy(grad_threshold.sum(axis=0).reshape(-1, C).sum(axis=0))]


def _rate(fired: np.int64, spikes: Tensor) -> Tensor:
    return torch.tensor(fired / spikes.numel(), dtype=torch.float32)


def _of_spike(grad_rate: Tensor | None, spikes: Tensor) -> np.float32:
    """What a spike gets of the gradient of the firing rate; None stands for zero."""
    return np.float32(0 if grad_rate is None else grad_rate.item() / spikes.numel())


@fused
def _earlier(x, previous, row, of_text, beginning):
    """The tokens before those of a row; `beginning` is filled with them where a text begins."""
    width, C = x.shape[1], previous.shape[1]
    if row % of_text:
        return x.reshape(-1)[row * width - C : (row + 1) * width - C]
    beginning[:C] = previous[row // of_text]
    beginning[C:] = x[row, : width - C]
    return beginning


@exact
def _shifted_forward_pass(
    first, end, parts, x, previous, shares, thresholds, of_text, spikes, fired, levels, below
):
    rows, width = x.shape
    beginning, current = np.empty(width, x.dtype), np.empty_like(spikes[0][0])
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            earlier = _earlier(x, previous, row, of_text, beginning)
            for which in range(len(spikes)):
                mix_token(x[row], earlier, shares[which], current)
                fired[part, which] += fire(current, thresholds[which], spikes[which][row], levels, below)


# rows whose gradients are made before any of them is passed on: they stay in the second-level cache
ROWS = 32


@fused
def _shifted_backward_pass(
    first, end, parts, grad_spikes, of_spikes, x, previous, shares, thresholds, of_text, grad_x, grad_previous,
    grad_shares, grad_thresholds, levels, below,
):  # fmt: skip
    rows, width = x.shape
    C, per_threshold = previous.shape[1], ONE / thresholds
    beginning, current, last = np.empty(width, x.dtype), np.empty_like(grad_spikes[0][0]), np.zeros_like(grad_spikes[0][0])
    # of the currents
    grads = np.empty((len(grad_spikes), (ROWS + 1) * width), grad_spikes[0].dtype)
    total, of_others = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for part in range(first, end):
        last_row = rows * (part + 1) // parts
        for start in range(rows * part // parts, last_row, ROWS):
            stop = min(start + ROWS, last_row)
            for which in range(len(grad_spikes)):
                # the row behind them too, for its first token: what its thresholds learn is not theirs
                for row in range(start, min(stop + 1, rows)):
                    mix_token(x[row], _earlier(x, previous, row, of_text, beginning), shares[which], current)
                    of_threshold = grad_thresholds[part, which] if row < stop else of_others
                    own = grads[which, (row - start) * width : (row - start + 1) * width]
                    learn(current, grad_spikes[which][row], per_threshold[which], own, of_threshold, of_spikes[which], levels, below)
            for row in range(start, stop):
                earlier = _earlier(x, previous, row, of_text, beginning)
                place = (row - start) * width
                for which in range(len(grad_spikes)):
                    own, later = grads[which, place : place + width], grads[which, place + C : place + C + width]
                    if (row + 1) % of_text == 0:
                        last[: width - C] = own[C:]
                        later = last
                    learn_mix(own, later, x[row], earlier, shares[which], total, grad_shares[part, which])
                take_total(total, grad_x[row])
                if row % of_text == 0:
                    for which in range(len(grad_spikes)):
                        for c in range(C):
                            total[c] += (ONE - shares[which, c]) * read(grads[which, place + c])
                    take_total(total[:C], grad_previous[row // of_text])


@exact
def _squared_relu_forward_pass(first, end, parts, x, spikes, threshold, fired, levels, below):
    rows, current = x.shape[0], np.empty_like(x[0])
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            squared_relu_pass(0, current, x[row])
            fired[part] += fire(current, threshold, spikes[row], levels, below)


@fused
def _squared_relu_backward_pass(
    first, end, parts, grad_spikes, x, grad_x, threshold, grad_threshold, of_spike, levels, below
):
    rows, per_threshold = x.shape[0], ONE / threshold
    current, grad = np.empty_like(x[0]), np.empty_like(x[0])
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            squared_relu_pass(0, current, x[row])
            learn(current, grad_spikes[row], per_threshold, grad, grad_threshold[part], of_spike, levels, below)
            squared_relu_backward_pass(0, grad_x[row], grad, x[row])


@exact
def _gate_forward_pass(first, end, parts, receptance, y, spikes, threshold, fired, levels, below):
    rows, current = y.shape[0], np.empty_like(y[0])
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            gate_pass(0, current, receptance[row], y[row])
            fired[part] += fire(current, threshold, spikes[row], levels, below)


@fused
def _gate_backward_pass(
    first, end, parts, grad_spikes, receptance, y, grad_receptance, grad_y, threshold, grad_threshold, of_spike,
    levels, below,
):  # fmt: skip
    rows, per_threshold = y.shape[0], ONE / threshold
    current, grad = np.empty_like(y[0]), np.empty_like(y[0])
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            gate_pass(0, current, receptance[row], y[row])
            learn(current, grad_spikes[row], per_threshold, grad, grad_threshold[part], of_spike, levels, below)
            gate_backward_pass(0, grad_receptance[row], grad, receptance[row], y[row], grad_y[row])


_FORWARD = {"squared_relu": _squared_relu_forward_pass, "gate": _gate_forward_pass}
_BACKWARD = {"squared_relu": _squared_relu_backward_pass, "gate": _gate_backward_pass}
