"""What the token steps of all generations are built from: norms, products by rows, neurons, in numba.

A matrix product is a list of the inputs that are not zero and, for each, one contiguous row of the weights (stored
input first) that is multiplied by it and added. With spikes the list is short, with real numbers it is long: every
block and its dense twin run through the same code, and a zero is skipped for all of them.
"""

import numpy as np
from numba.core import types
from numba.extending import overload

from ...kernels.cpu import HALF, ONE, exp_nonpositive
from .clock import LISTS, MEETINGS, NEURONS, NORM, PRODUCTS, mark, start
from .lists import list_active
from .rows import DECAY, GAIN, PULL, THRESHOLD
from .team import columns, fused, meet, summing


def widen(weight):
    """Return a stored weight as a number to calculate with: bfloat16 is kept as its 16 bits, int8 without its scale."""
    raise NotImplementedError


@overload(widen)
def _widen(weight):
    if isinstance(weight, types.Float):
        return lambda weight: weight
    if weight == types.uint16:
        return lambda weight: np.uint32(np.uint32(weight) << np.uint32(16)).view(np.float32)
    return lambda weight: np.float32(weight)


@fused
def _add_rows(weights, scales, layer, active, amount, n, first, last, out):
    """out[first:last] = (amount @ weights[active])[first:last] * scales[layer], eight rows at a time."""
    y = out[first:last]
    width = last - first
    for c in range(width):
        y[c] = 0
    i = 0
    while i + 8 <= n:
        w0, w1, w2, w3 = (weights[active[i], first:last], weights[active[i + 1], first:last],
                          weights[active[i + 2], first:last], weights[active[i + 3], first:last])  # fmt: skip
        w4, w5, w6, w7 = (weights[active[i + 4], first:last], weights[active[i + 5], first:last],
                          weights[active[i + 6], first:last], weights[active[i + 7], first:last])  # fmt: skip
        a0, a1, a2, a3 = amount[i], amount[i + 1], amount[i + 2], amount[i + 3]
        a4, a5, a6, a7 = amount[i + 4], amount[i + 5], amount[i + 6], amount[i + 7]
        for c in range(width):
            low = a0 * widen(w0[c]) + a1 * widen(w1[c]) + a2 * widen(w2[c]) + a3 * widen(w3[c])
            high = a4 * widen(w4[c]) + a5 * widen(w5[c]) + a6 * widen(w6[c]) + a7 * widen(w7[c])
            y[c] += low + high
        i += 8
    if i + 4 <= n:
        w0, w1, w2, w3 = (weights[active[i], first:last], weights[active[i + 1], first:last],
                          weights[active[i + 2], first:last], weights[active[i + 3], first:last])  # fmt: skip
        a0, a1, a2, a3 = amount[i], amount[i + 1], amount[i + 2], amount[i + 3]
        for c in range(width):
            y[c] += a0 * widen(w0[c]) + a1 * widen(w1[c]) + a2 * widen(w2[c]) + a3 * widen(w3[c])
        i += 4
    while i < n:
        row, a = weights[active[i], first:last], amount[i]
        for c in range(width):
            y[c] += a * widen(row[c])
        i += 1
    if scales is not None:
        for c in range(width):
            y[c] *= scales[layer, first + c]


@fused
def list_inputs(product, layer, values, work, place):
    """List the inputs of a product that are not zero in `place` of the lists, and return how many there are."""
    n = list_active(values, work.scratch.active[place], work.scratch.amount[place])
    if work.team.part == 0:
        work.shared.inputs_read[product.place, layer] += n
    mark(work.clock, LISTS)
    return n


@fused
def multiply_listed(product, layer, place, n, work, first, last, out):
    """out[first:last] = (inputs @ weights)[first:last] in `layer`, of the `n` inputs that are listed in `place`."""
    active, amount = work.scratch.active[place], work.scratch.amount[place]
    _add_rows(product.weights[layer], product.scales, layer, active, amount, n, first, last, out)
    mark(work.clock, PRODUCTS + product.place)


@fused
def multiply(product, layer, values, work, first, last, out):
    """out[first:last] = (values @ weights)[first:last] in `layer`, of the inputs that are not zero."""
    multiply_listed(product, layer, 0, list_inputs(product, layer, values, work, 0), work, first, last, out)


@summing
def layer_norm(x, weight, bias, out):
    # a whole number beside a float32 makes a float64, of which half as many are calculated at once
    size, total = x.dtype.type(x.size), x.dtype.type(0)
    for c in range(x.size):
        total += x[c]
    mean = total / size
    total = x.dtype.type(0)
    for c in range(x.size):
        total += (x[c] - mean) * (x[c] - mean)
    scale = ONE / np.sqrt(total / size + x.dtype.type(1e-5))
    for c in range(x.size):
        out[c] = (x[c] - mean) * scale * weight[c] + bias[c]


@fused
def lerp(previous, x, mix, out):
    """Write lerp(previous, x, mix) into `out`, as torch does it: from the nearer end."""
    for c in range(x.size):
        step = x[c] - previous[c]
        out[c] = previous[c] + mix[c] * step if mix[c] < HALF else x[c] - step * (ONE - mix[c])


def exp(x):
    """Return exp(x) for x up to 88, in compiled code: of a float32 in vector instructions, of a float64 exactly."""
    raise NotImplementedError


@overload(exp)
def _exp(x):
    return (lambda x: exp_nonpositive(x)) if x == types.float32 else (lambda x: np.exp(x))


@fused
def sigmoid(x):
    small = exp(-abs(x))
    return (ONE if x >= 0 else small) / (ONE + small)


@fused
def _count_spikes(quanta, most, signed):
    """How many unit spikes so many thresholds' worth of potential are; NaN stays NaN."""
    count = min(np.floor(abs(quanta)), most)
    return (-count if signed else most * 0) if quanta < 0 else count


@fused
def _rows_of(neurons, layer, first, last):
    """The rows of some neurons of a layer, each by itself: of a slice of all, no loop becomes vector instructions."""
    rows = neurons.rows[layer]
    return rows[DECAY, first:last], rows[GAIN, first:last], rows[PULL, first:last], rows[THRESHOLD, first:last]


@fused
def fire(neurons, layer, text, current, first, last):
    """Replace current[first:last] by spikes, and step the potentials there; where there are no neurons, leave both.

    `kernels/integer_lif/reference.py`, and with one level `kernels/lif/reference.py`, one token.
    """
    if not neurons.remembers:
        look_at_spikes(neurons, layer, text, current, first, last)
        return
    potential, current = neurons.potential[text, layer, first:last], current[first:last]
    decay, gain, pull, threshold = _rows_of(neurons, layer, first, last)
    most = current.dtype.type(neurons.levels)
    for c in range(current.size):
        charged = decay[c] * potential[c] + gain[c] * current[c] + pull[c]
        spikes = _count_spikes(charged / threshold[c], most, neurons.signed)
        if neurons.resets_to_rest:
            potential[c] = neurons.rest if spikes != 0 else charged
        else:
            potential[c] = charged - threshold[c] * spikes
        current[c] = spikes


@fused
def look_at_spikes(neurons, layer, text, current, first, last):
    """Replace current[first:last] by spikes, without a step of the potentials: that is their owner's, later."""
    if not neurons.exist:
        return
    potential, current = neurons.potential[text, layer, first:last], current[first:last]
    decay, gain, pull, threshold = _rows_of(neurons, layer, first, last)
    most = current.dtype.type(neurons.levels)
    if neurons.plain:
        for c in range(current.size):
            current[c] = _count_spikes(current[c] / threshold[c], most, neurons.signed)
        return
    if not neurons.remembers:
        for c in range(current.size):
            current[c] = _count_spikes((gain[c] * current[c] + pull[c]) / threshold[c], most, neurons.signed)
        return
    for c in range(current.size):
        charged = decay[c] * potential[c] + gain[c] * current[c] + pull[c]
        current[c] = _count_spikes(charged / threshold[c], most, neurons.signed)


@fused
def meet_again(work, meetings):
    """Wait for the other threads, and return the number of the next meeting."""
    meetings = meet(work.team, meetings)
    mark(work.clock, MEETINGS)
    return meetings


@fused
def begin_token(network, text, token, work):
    """Put the normalised embedding of `token` into the residual stream of `text`."""
    start(work.clock)
    first, last = columns(network.embedding.shape[1], work.team)
    layer_norm(network.embedding[token], network.ln0.weight[0], network.ln0.bias[0], work.scratch.y)
    stream = work.shared.stream[text]
    for c in range(first, last):
        stream[c] = work.scratch.y[c]
    mark(work.clock, NORM)


@fused
def end_token(network, text, work, logits):
    """Write the logits of the next token."""
    first, last = columns(logits.size, work.team)
    layer_norm(work.shared.stream[text], network.ln_out.weight[0], network.ln_out.bias[0], work.scratch.y)
    mark(work.clock, NORM)
    fire(network.head_neuron, 0, text, work.scratch.y, 0, work.scratch.y.size)
    mark(work.clock, NEURONS)
    multiply(network.head, 0, work.scratch.y, work, first, last, logits)
