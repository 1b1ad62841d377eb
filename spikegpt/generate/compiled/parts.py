"""What the token steps of all generations are built from: norms, products by rows, neurons, in numba.

A matrix product is a list of the inputs that are not zero and, for each, one contiguous row of the weights (stored
input first) that is multiplied by it and added. With spikes the list is short, with real numbers it is long: every
block and its dense twin run through the same code, and a zero is skipped for all of them.
"""

import numpy as np
from numba.core import types
from numba.extending import overload

from .team import columns, fused, meet


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
    y[:] = 0
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
    while i < n:
        row, a = weights[active[i], first:last], amount[i]
        for c in range(width):
            y[c] += a * widen(row[c])
        i += 1
    if scales is not None:
        for c in range(width):
            y[c] *= scales[layer, first + c]


@fused
def _list_active(values, active, amount):
    """Write the indices and the values of the nonzeros of `values` and return how many there are."""
    n = 0
    for c in range(values.size):
        active[n], amount[n] = c, values[c]
        n += values[c] != 0
    return n


@fused
def multiply(product, layer, values, scratch, team, first, last, out):
    """out[first:last] = (values @ weights)[first:last] in `layer`, of inputs not zero; notes how many there were."""
    n = _list_active(values, scratch.active, scratch.amount)
    if team.part == 0:
        product.inputs_read[layer] += n
    weights = product.weights[layer]
    _add_rows(weights, product.scales, layer, scratch.active, scratch.amount, n, first, last, out)


@fused
def layer_norm(x, weight, bias, out):
    total = x.dtype.type(0)
    for c in range(x.size):
        total += x[c]
    mean = total / x.size
    total = x.dtype.type(0)
    for c in range(x.size):
        total += (x[c] - mean) * (x[c] - mean)
    scale = 1 / np.sqrt(total / x.size + x.dtype.type(1e-5))
    for c in range(x.size):
        out[c] = (x[c] - mean) * scale * weight[c] + bias[c]


@fused
def lerp(previous, x, mix, out):
    """Write lerp(previous, x, mix) into `out`, as torch does it: from the nearer end."""
    for c in range(x.size):
        step = x[c] - previous[c]
        out[c] = previous[c] + mix[c] * step if mix[c] < 0.5 else x[c] - step * (1 - mix[c])


@fused
def sigmoid(x):
    small = np.exp(-abs(x))
    return (1 if x >= 0 else small) / (1 + small)


@fused
def _count_spikes(quanta, most, signed):
    """How many unit spikes so many thresholds' worth of potential are; NaN stays NaN."""
    count = min(np.floor(abs(quanta)), most)
    return (-count if signed else most * 0) if quanta < 0 else count


@fused
def _spikes_in_place(rows, layer, text, current, threshold, most, signed, first, last):
    """Replace current[first:last] by spikes; `rows` None: the neurons have no memory, and a current is a potential."""
    if rows is None:
        for c in range(first, last):
            current[c] = _count_spikes(current[c] / threshold[c], most, signed)
        return
    decay, gain, pull, potential = rows.decay[layer], rows.gain[layer], rows.pull[layer], rows.potential[text, layer]
    for c in range(first, last):
        charged = decay[c] * potential[c] + gain[c] * current[c] + pull[c]
        current[c] = _count_spikes(charged / threshold[c], most, signed)


@fused
def _step_potentials(rows, layer, text, current, threshold, most, signed, resets_to_rest, rest, first, last):
    """Replace current[first:last] by spikes, and step the potentials there."""
    if rows is None:
        _spikes_in_place(rows, layer, text, current, threshold, most, signed, first, last)
        return
    decay, gain, pull, potential = rows.decay[layer], rows.gain[layer], rows.pull[layer], rows.potential[text, layer]
    for c in range(first, last):
        charged = decay[c] * potential[c] + gain[c] * current[c] + pull[c]
        spikes = _count_spikes(charged / threshold[c], most, signed)
        if resets_to_rest:
            potential[c] = rest if spikes != 0 else charged
        else:
            potential[c] = charged - threshold[c] * spikes
        current[c] = spikes


@fused
def fire(neurons, layer, text, current, first, last):
    """Replace current[first:last] by spikes, and step the potentials there; where there are no neurons, leave both.

    `kernels/integer_lif/reference.py`, and with one level `kernels/lif/reference.py`, one token.
    """
    if neurons is None:
        return
    threshold, most = neurons.threshold[layer], current.dtype.type(neurons.levels)
    _step_potentials(
        neurons.memory, layer, text, current, threshold, most, neurons.signed, neurons.resets_to_rest, neurons.rest,
        first, last,
    )  # fmt: skip


@fused
def look_at_spikes(neurons, layer, text, current):
    """Replace `current` by the spikes of all neurons; their owner steps the potentials, later."""
    if neurons is None:
        return
    threshold, most = neurons.threshold[layer], current.dtype.type(neurons.levels)
    _spikes_in_place(neurons.memory, layer, text, current, threshold, most, neurons.signed, 0, current.size)


@fused
def begin_token(network, token, scratch, shared, team, meetings):
    """Put the normalised embedding of `token` into the residual stream."""
    first, last = columns(network.embedding.shape[1], team)
    layer_norm(network.embedding[token], network.ln0.weight[0], network.ln0.bias[0], scratch.y)
    shared.stream[first:last] = scratch.y[first:last]
    return meet(team, meetings)


@fused
def end_token(network, text, scratch, shared, team, meetings, logits):
    """Write the logits of the next token."""
    C = network.embedding.shape[1]
    first, last = columns(logits.size, team)
    layer_norm(shared.stream[:C], network.ln_out.weight[0], network.ln_out.bias[0], scratch.y)
    fire(network.head_neuron, 0, text, scratch.y, 0, C)
    multiply(network.head, 0, scratch.y, scratch, team, first, last, logits)
    # the next text overwrites the stream
    return meet(team, meetings)
