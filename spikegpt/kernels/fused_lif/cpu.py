"""Fast CPU versions of what `reference` defines, forward and backward, in numba; reached only through their door.

Currents are made, fired and forgotten within registers, by the functions of the kernels that make them alone and
rounded as those do: spikes are the same, bit for bit. So are gradients in float32, but for the order of sums over
tokens; those of bfloat16 currents are not rounded on their way.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..cpu import (
    ONE,
    ZERO,
    as_words,
    copy_row,
    exact,
    fused,
    new_words,
    parts_of_pass,
    read,
    rounded,
    run_passes,
    write,
    write_exact,
)
from ..integer_lif.cpu import NONE, count_of, one_more_if, scalars_of, side_by_side, through_spike
from ..integer_lif.options import IntegerLIFOptions
from ..pointwise.cpu import sigmoid, squared_relu_of, through_sigmoid, through_squared_relu
from ..token_shift.cpu import ShiftedRows, earlier_tokens, learn_mix, mixed, take_total


def shifted_forward(
    x: Tensor, previous: Tensor | None, shares: Sequence[Tensor], thresholds: Sequence[Tensor],
    options: IntegerLIFOptions, dtype: torch.dtype,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Return (spikes, each (B, T, C) in `dtype`; their firing rates)."""
    inputs = ShiftedRows(x, previous)
    spikes, fired = [new_words(x.shape, dtype) for _ in shares], np.zeros((inputs.parts, len(shares)), np.int64)
    arrays = *inputs.arrays, inputs.per_channel(shares), inputs.per_channel(thresholds), tuple(map(inputs.of, spikes))
    levels, below, *_ = scalars_of(options)
    run_passes(_shifted_forward_pass, *inputs.shape, *arrays, fired, levels, below)
    return spikes, [_rate(number, x) for number in fired.sum(axis=0)]


def shifted_backward(
    grad_spikes: Sequence[Tensor], grad_rates: Sequence[Tensor | None], x: Tensor, previous: Tensor | None,
    shares: Sequence[Tensor], thresholds: Sequence[Tensor], options: IntegerLIFOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of (x (B, T, C), previous (B, C), shares (shares, C), thresholds (shares, C))."""
    B, _, C = x.shape
    inputs = ShiftedRows(x, previous)
    grad_x, grad_previous = new_words(x.shape, x.dtype), torch.empty(B, C)
    # one row per part
    of_shares, of_thresholds = np.zeros((2, inputs.parts, len(shares), inputs.shape[1]), np.float32)
    grads, of_spikes = tuple(map(inputs.of, grad_spikes)), np.array([_of_spike(grad, x) for grad in grad_rates])
    arrays = *inputs.arrays, inputs.per_channel(shares), inputs.per_channel(thresholds)
    outputs = inputs.of(grad_x), grad_previous.numpy(), of_shares, of_thresholds
    levels, below, *_ = scalars_of(options)
    run_passes(_shifted_backward_pass, *inputs.shape, grads, of_spikes, *arrays, *outputs, levels, below)
    return grad_x, grad_previous.to(x.dtype), inputs.summed(of_shares), inputs.summed(of_thresholds)


def squared_relu_forward(
    x: Tensor, threshold: Tensor, options: IntegerLIFOptions, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return (spikes (B, T, C) in `dtype`, firing rate)."""
    return _fire(_squared_relu_forward_pass, [x], threshold, options, dtype)


def squared_relu_backward(
    grad_spikes: Tensor, grad_rate: Tensor | None, x: Tensor, threshold: Tensor, options: IntegerLIFOptions
) -> tuple[Tensor, ...]:
    """Return the gradients of (x (B, T, C), threshold (C,))."""
    return _learn(_squared_relu_backward_pass, grad_spikes, grad_rate, [x], threshold, options)


def gated_forward(
    receptance: Tensor, y: Tensor, threshold: Tensor, options: IntegerLIFOptions, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return (spikes (B, T, C) in `dtype`, firing rate)."""
    return _fire(_gated_forward_pass, [receptance, y], threshold, options, dtype)


def gated_backward(
    grad_spikes: Tensor, grad_rate: Tensor | None, receptance: Tensor, y: Tensor, threshold: Tensor,
    options: IntegerLIFOptions,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of (receptance (B, T, C), y (B, T, C), threshold (C,))."""
    return _learn(_gated_backward_pass, grad_spikes, grad_rate, [receptance, y], threshold, options)


def _fire(
    task: Callable, drivers: Sequence[Tensor], threshold: Tensor, options: IntegerLIFOptions, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return (spikes in `dtype`, firing rate) of neurons that `task` drives by tensors (B, T, C)."""
    B, T, C = drivers[0].shape
    rows, width = side_by_side(B * T, C)
    spikes, fired = new_words((B, T, C), dtype), np.zeros(parts_of_pass(rows, width), np.int64)
    inputs = [as_words(part).reshape(rows, width) for part in (*drivers, spikes)]
    levels, below, *_ = scalars_of(options)
    run_passes(task, rows, width, *inputs, np.tile(as_words(threshold), width // C), fired, levels, below)
    return spikes, _rate(fired.sum(), spikes)


def _learn(
    task: Callable, grad_spikes: Tensor, grad_rate: Tensor | None, drivers: Sequence[Tensor], threshold: Tensor,
    options: IntegerLIFOptions,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of (*drivers, threshold) that `task` makes."""
    B, T, C = grad_spikes.shape
    rows, width = side_by_side(B * T, C)
    grads = [new_words((B, T, C), part.dtype) for part in drivers]
    # one row per part
    grad_threshold = np.zeros((parts_of_pass(rows, width), width), np.float32)
    arrays = [as_words(part).reshape(rows, width) for part in (grad_spikes, *drivers, *grads)]
    others = np.tile(as_words(threshold), width // C), grad_threshold, _of_spike(grad_rate, grad_spikes)
    levels, below, *_ = scalars_of(options)
    run_passes(task, rows, width, *arrays, *others, levels, below)
    return *grads, torch.from_numpy(grad_threshold.sum(axis=0).reshape(-1, C).sum(axis=0))


def _rate(fired: np.int64, spikes: Tensor) -> Tensor:
    return torch.tensor(fired / spikes.numel(), dtype=torch.float32)


def _of_spike(grad_rate: Tensor | None, spikes: Tensor) -> np.float32:
    """What a spike gets of the gradient of the firing rate; None stands for zero."""
    return np.float32(0 if grad_rate is None else grad_rate.item() / spikes.numel())


@exact
def _shifted_forward_pass(first, end, parts, x, previous, of_text, shares, thresholds, spikes, fired, levels, below):
    rows, beginning = x.shape[0], np.empty_like(x[0])
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            earlier = earlier_tokens(x, previous, row, of_text, beginning)
            for which in range(len(spikes)):
                arrays = x[row], earlier, shares[which], thresholds[which], spikes[which][row]
                fired[part, which] += _fire_mixed(*arrays, levels, below)


@exact
def _fire_mixed(own, before, share, threshold, spikes, levels, below):
    """Fill a row of spikes and return how many neurons fired."""
    fired = NONE
    for c in range(spikes.size):
        current = rounded(spikes, mixed(read(own[c]), read(before[c]), share[c]))
        count = count_of(current / threshold[c], levels, below)
        write_exact(spikes, c, count)
        fired = one_more_if(count != ZERO, fired)
    return fired


# rows whose gradients are made before any of them is passed on: they stay in the second-level cache
ROWS = 16


@fused
def _shifted_backward_pass(
    first, end, parts, grad_spikes, of_spikes, x, previous, of_text, shares, thresholds, grad_x, grad_previous,
    grad_shares, grad_thresholds, levels, below,
):  # fmt: skip
    rows, width = x.shape
    C, per_threshold = previous.shape[1], ONE / thresholds
    beginning, last = np.empty_like(x[0]), np.zeros(width, np.float32)
    # of the currents
    grads = np.empty((len(grad_spikes), (ROWS + 1) * width), np.float32)
    total, of_others, quanta = np.zeros(width, np.float32), np.zeros(width, np.float32), np.empty(width, np.float32)
    for part in range(first, end):
        last_row = rows * (part + 1) // parts
        for start in range(rows * part // parts, last_row, ROWS):
            stop = min(start + ROWS, last_row)
            for which in range(len(grad_spikes)):
                # the row behind them too, for its first token: what its thresholds learn is not theirs
                for row in range(start, min(stop + 1, rows)):
                    earlier = earlier_tokens(x, previous, row, of_text, beginning)
                    own = grads[which, (row - start) * width : (row - start + 1) * width]
                    of_threshold = grad_thresholds[part, which] if row < stop else of_others
                    spikes = grad_spikes[which][row]
                    _measure(x[row], earlier, shares[which], per_threshold[which], spikes, quanta)
                    _learn_mixed(
                        quanta, spikes, per_threshold[which], own, of_threshold, of_spikes[which], levels, below
                    )
            for row in range(start, stop):
                earlier = earlier_tokens(x, previous, row, of_text, beginning)
                place = (row - start) * width
                for which in range(len(grad_spikes)):
                    own, later = grads[which, place : place + width], grads[which, place + C : place + C + width]
                    if (row + 1) % of_text == 0:
                        copy_row(own[C:], last[: width - C])
                        later = last
                    learn_mix(own, later, x[row], earlier, shares[which], total, grad_shares[part, which])
                take_total(total, grad_x[row])
                if row % of_text == 0:
                    for which in range(len(grad_spikes)):
                        for c in range(C):
                            total[c] += (ONE - shares[which, c]) * grads[which, place + c]
                    take_total(total[:C], grad_previous[row // of_text])


# loops over few arrays: of more than a handful LLVM does not look whether they overlap, and calculates one by one


@fused
def _measure(own, before, share, per_threshold, spikes, quanta):
    """Fill a row with currents in thresholds, rounded as their spikes are."""
    for c in range(quanta.size):
        quanta[c] = rounded(spikes, mixed(read(own[c]), read(before[c]), share[c])) * per_threshold[c]


@fused
def _learn_mixed(quanta, grad_spikes, per_threshold, grad, grad_threshold, of_spike, levels, below):
    """Fill a row of the gradient of currents and add to that of the thresholds."""
    for c in range(grad.size):
        through = through_spike(quanta[c], read(grad_spikes[c]), per_threshold[c], of_spike, levels, below)
        grad[c] = through
        grad_threshold[c] -= through * quanta[c]


@exact
def _squared_relu_forward_pass(first, end, parts, x, spikes, threshold, fired, levels, below):
    rows = x.shape[0]
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            fired[part] += _fire_squared_relu(x[row], threshold, spikes[row], levels, below)


@exact
def _fire_squared_relu(x, threshold, spikes, levels, below):
    fired = NONE
    for c in range(spikes.size):
        current = rounded(x, squared_relu_of(read(x[c])))
        count = count_of(current / threshold[c], levels, below)
        write_exact(spikes, c, count)
        fired = one_more_if(count != ZERO, fired)
    return fired


@fused
def _squared_relu_backward_pass(
    first, end, parts, grad_spikes, x, grad_x, threshold, grad_threshold, of_spike, levels, below
):
    rows, per_threshold = x.shape[0], ONE / threshold
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            arrays = x[row], grad_spikes[row], per_threshold, grad_x[row], grad_threshold[part]
            _learn_squared_relu(*arrays, of_spike, levels, below)


@fused
def _learn_squared_relu(x, grad_spikes, per_threshold, grad_x, grad_threshold, of_spike, levels, below):
    for c in range(grad_x.size):
        number = read(x[c])
        quanta = rounded(x, squared_relu_of(number)) * per_threshold[c]
        through = through_spike(quanta, read(grad_spikes[c]), per_threshold[c], of_spike, levels, below)
        write(grad_x, c, through_squared_relu(through, number))
        grad_threshold[c] -= through * quanta


@exact
def _gated_forward_pass(first, end, parts, receptance, y, spikes, threshold, fired, levels, below):
    rows = y.shape[0]
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            fired[part] += _fire_gated(receptance[row], y[row], threshold, spikes[row], levels, below)


@exact
def _fire_gated(receptance, y, threshold, spikes, levels, below):
    fired = NONE
    for c in range(spikes.size):
        current = rounded(y, sigmoid(read(receptance[c])) * read(y[c]))
        count = count_of(current / threshold[c], levels, below)
        write_exact(spikes, c, count)
        fired = one_more_if(count != ZERO, fired)
    return fired


@fused
def _gated_backward_pass(
    first, end, parts, grad_spikes, receptance, y, grad_receptance, grad_y, threshold, grad_threshold, of_spike,
    levels, below,
):  # fmt: skip
    rows, per_threshold = y.shape[0], ONE / threshold
    share, through = np.empty_like(threshold), np.empty_like(threshold)
    for part in range(first, end):
        for row in range(rows * part // parts, rows * (part + 1) // parts):
            _open(receptance[row], share)
            inputs = y[row], share, grad_spikes[row], per_threshold
            _learn_gated(*inputs, through, grad_threshold[part], of_spike, levels, below)
            _share_gradient(through, y[row], share, grad_receptance[row], grad_y[row])


@fused
def _open(receptance, share):
    for c in range(share.size):
        share[c] = sigmoid(read(receptance[c]))


@fused
def _learn_gated(y, share, grad_spikes, per_threshold, through, grad_threshold, of_spike, levels, below):
    """Fill a row of the gradient of currents and add to that of the thresholds."""
    for c in range(y.size):
        quanta = rounded(y, share[c] * read(y[c])) * per_threshold[c]
        through[c] = through_spike(quanta, read(grad_spikes[c]), per_threshold[c], of_spike, levels, below)
        grad_threshold[c] -= through[c] * quanta


@fused
def _share_gradient(through, y, share, grad_receptance, grad_y):
    for c in range(y.size):
        write(grad_y, c, share[c] * through[c])
        write(grad_receptance, c, through_sigmoid(through[c] * read(y[c]), share[c]))
