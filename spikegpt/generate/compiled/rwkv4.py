"""RWKV-4's token step on the CPU: every layer, every matrix product by rows, in one compiled call.

The equations are in `model/mixers/rwkv4.py`, `kernels/wkv/reference.py` and `kernels/event_wkv/reference.py`.
"""

import numpy as np

from ...kernels.event_wkv.reference import EVENT_KEY_LIMIT
from .clock import GATE, HIDDEN, NEURONS, NORM, SUMS, WKV, mark
from .held import held_value
from .parts import (
    begin_token,
    end_token,
    exp,
    fire,
    layer_norm,
    lerp,
    list_inputs,
    look_at_spikes,
    meet_again,
    multiply,
    multiply_listed,
    sigmoid,
)
from .rwkv4_rows import give, pack, products, share, take
from .team import columns, fused

__all__ = ["decode", "give", "pack", "products", "share", "take"]

LOWEST_KEY, HIGHEST_KEY = np.float32(-EVENT_KEY_LIMIT), np.float32(EVENT_KEY_LIMIT)


# loops over few arrays: of more than a handful LLVM does not look whether they overlap, and calculates one by one


@fused
def _wkv(rows, layer, text, key, value, first, last, out):
    """Write one token of the WKV, the weighted mean of the values, into out[first:last]."""
    a, b = rows.numerator[text, layer, first:last], rows.denominator[text, layer, first:last]
    p, log_decay = rows.max_exponent[text, layer, first:last], rows.decay[layer, first:last]
    time_first, k, v, out = rows.first[layer, first:last], key[first:last], value[first:last], out[first:last]
    for c in range(out.size):
        boosted = time_first[c] + k[c]
        scale = max(p[c], boosted)
        past, present = exp(p[c] - scale), exp(boosted - scale)
        out[c] = (past * a[c] + present * v[c]) / (past * b[c] + present)
    for c in range(out.size):
        decayed = p[c] + log_decay[c]
        scale = max(decayed, k[c])
        a[c] = exp(decayed - scale) * a[c] + exp(k[c] - scale) * v[c]
    for c in range(out.size):
        decayed = p[c] + log_decay[c]
        scale = max(decayed, k[c])
        b[c] = exp(decayed - scale) * b[c] + exp(k[c] - scale)
        p[c] = scale


@fused
def _event_wkv(rows, layer, text, key, value, first, last, out):
    """Write one token of the WKV of value spikes into out[first:last]; the weights take the place of the keys."""
    a, b = rows.numerator[text, layer, first:last], rows.denominator[text, layer, first:last]
    decay, boost = rows.decay[layer, first:last], rows.first[layer, first:last]
    k, v, out = key[first:last], value[first:last], out[first:last]
    for c in range(out.size):
        # written so that NaN passes
        limited = LOWEST_KEY if k[c] < LOWEST_KEY else k[c]
        weight = exp(key.dtype.type(HIGHEST_KEY if limited > HIGHEST_KEY else limited))
        k[c] = weight if v[c] != 0 else key.dtype.type(1)
    for c in range(out.size):
        present = boost[c] * k[c]
        out[c] = (a[c] + present * v[c]) / (b[c] + present)
    for c in range(out.size):
        a[c] = decay[c] * a[c] + k[c] * v[c]
        b[c] = decay[c] * b[c] + k[c]


@fused
def _gate(receptance, first, last, out):
    """out[first:last] = sigmoid(receptance) * out, in these columns."""
    r, out = receptance[first:last], out[first:last]
    for c in range(out.size):
        out[c] *= sigmoid(r[c])


@fused
def _square_relu(hidden, first, last):
    """Replace hidden[first:last] by its squared ReLU."""
    hidden = hidden[first:last]
    for c in range(hidden.size):
        above = max(hidden[c], hidden.dtype.type(0))
        hidden[c] = above * above


@fused
def _add(values, first, last, out):
    """Add the values of these columns to those of `out`."""
    values, out = values[first:last], out[first:last]
    for c in range(out.size):
        out[c] += values[c]


@fused
def _copy(values, first, last, out):
    """Write the values of these columns into `out`."""
    values, out = values[first:last], out[first:last]
    for c in range(out.size):
        out[c] = values[c]


@fused
def _list_mix(product, neurons, mix, layer, text, previous, work, place):
    """List in `place` the spikes of a token-shift mix, or the mix itself where there are no neurons; return how many.

    Every thread fires all neurons before a product itself; the potentials are stepped by their owner, in `_remember`.
    """
    lerp(previous, work.scratch.y, mix[layer], work.scratch.z)
    look_at_spikes(neurons, layer, text, work.scratch.z, 0, work.scratch.z.size)
    mark(work.clock, NEURONS)
    return list_inputs(product, layer, work.scratch.z, work, place)


@fused
def _remember(neurons, mix, layer, text, previous, work, first, last):
    """Step the potentials of own neurons in front of a product."""
    if neurons.remembers:
        lerp(previous, work.scratch.y, mix[layer], work.scratch.z)
        fire(neurons, layer, text, work.scratch.z, first, last)


@fused
def _time_mix(rows, layer, text, work, meetings):
    C = rows.decay.shape[1]
    first, last = columns(C, work.team)
    shared = work.shared
    x, projected, mixed = shared.stream[text], shared.projected, shared.mixed
    k, v, r = projected[:C], projected[C : 2 * C], projected[2 * C : 3 * C]
    previous = rows.shift[text, layer]
    layer_norm(x, rows.norm.weight[layer], rows.norm.bias[layer], work.scratch.y)
    mark(work.clock, NORM)
    if rows.shares_neurons:
        n = _list_mix(rows.key, rows.input_neuron, rows.mix_k, layer, text, previous, work, 0)
        if work.team.parts == 1:
            multiply_listed(rows.key, layer, 0, n, work, 0, 3 * C, projected)
        else:
            for start in range(0, 3 * C, C):
                multiply_listed(rows.key, layer, 0, n, work, start + first, start + last, projected)
    else:
        # the first rows of a product are then fetched while the one before still calculates
        keys = _list_mix(rows.key, rows.key_neuron, rows.mix_k, layer, text, previous, work, 0)
        values = _list_mix(rows.value, rows.value_neuron, rows.mix_v, layer, text, previous, work, 1)
        receptances = _list_mix(rows.receptance, rows.receptance_neuron, rows.mix_r, layer, text, previous, work, 2)
        multiply_listed(rows.key, layer, 0, keys, work, first, last, k)
        multiply_listed(rows.value, layer, 1, values, work, first, last, v)
        multiply_listed(rows.receptance, layer, 2, receptances, work, first, last, r)
    if rows.has_events:
        fire(rows.wkv_neuron, layer, text, v, first, last)
        _event_wkv(rows, layer, text, k, v, first, last, mixed)
    else:
        _wkv(rows, layer, text, k, v, first, last, mixed)
    mark(work.clock, WKV)
    _gate(r, first, last, mixed)
    fire(rows.output_neuron, layer, text, mixed, first, last)
    mark(work.clock, GATE)
    meetings = meet_again(work, meetings)

    _remember(rows.input_neuron, rows.mix_k, layer, text, previous, work, first, last)
    _remember(rows.key_neuron, rows.mix_k, layer, text, previous, work, first, last)
    _remember(rows.value_neuron, rows.mix_v, layer, text, previous, work, first, last)
    _remember(rows.receptance_neuron, rows.mix_r, layer, text, previous, work, first, last)
    _copy(work.scratch.y, first, last, previous)
    mark(work.clock, NEURONS)
    multiply(rows.output, layer, mixed[:C], work, first, last, k)
    fire(rows.neuron_behind, layer, text, k, first, last)
    _add(k, first, last, x)
    mark(work.clock, SUMS)
    return meet_again(work, meetings)


@fused
def _channel_mix(rows, layer, text, work, meetings):
    F, C = rows.value.weights.shape[1], rows.value.weights.shape[2]
    first, last = columns(C, work.team)
    first_hidden, last_hidden = columns(F, work.team)
    shared = work.shared
    x, projected, mixed = shared.stream[text], shared.projected, shared.mixed
    hidden, r = projected[:F], projected[F : F + C]
    previous = rows.shift[text, layer]
    layer_norm(x, rows.norm.weight[layer], rows.norm.bias[layer], work.scratch.y)
    mark(work.clock, NORM)
    if rows.shares_neurons:
        n = _list_mix(rows.key, rows.input_neuron, rows.mix_k, layer, text, previous, work, 0)
        if work.team.parts == 1:
            multiply_listed(rows.key, layer, 0, n, work, 0, F + C, projected)
        else:
            multiply_listed(rows.key, layer, 0, n, work, first_hidden, last_hidden, projected)
            multiply_listed(rows.key, layer, 0, n, work, F + first, F + last, projected)
    else:
        keys = _list_mix(rows.key, rows.key_neuron, rows.mix_k, layer, text, previous, work, 0)
        receptances = _list_mix(rows.receptance, rows.receptance_neuron, rows.mix_r, layer, text, previous, work, 1)
        multiply_listed(rows.key, layer, 0, keys, work, first_hidden, last_hidden, hidden)
        multiply_listed(rows.receptance, layer, 1, receptances, work, first, last, r)
    _square_relu(hidden, first_hidden, last_hidden)
    fire(rows.value_neuron, layer, text, hidden, first_hidden, last_hidden)
    mark(work.clock, HIDDEN)
    meetings = meet_again(work, meetings)

    _remember(rows.input_neuron, rows.mix_k, layer, text, previous, work, first, last)
    _remember(rows.key_neuron, rows.mix_k, layer, text, previous, work, first, last)
    _remember(rows.receptance_neuron, rows.mix_r, layer, text, previous, work, first, last)
    _copy(work.scratch.y, first, last, previous)
    mark(work.clock, NEURONS)
    multiply(rows.value, layer, hidden, work, first, last, mixed)
    _gate(r, first, last, mixed)
    fire(rows.neuron_behind, layer, text, mixed, first, last)
    _add(mixed, first, last, x)
    mark(work.clock, SUMS)
    return meet_again(work, meetings)


@fused
def decode(held_part, tokens, logits):
    """Read a token of each text, tokens (texts,), write this thread's columns of logits (texts, vocab_size).

    `held_part` holds a thread's (Work, Network, Layers).
    """
    work, network, layers = held_value(held_part)
    texts = tokens.size
    for text in range(texts):
        begin_token(network, text, tokens[text], work)
    meetings = meet_again(work, 1)
    # all texts before the next half of a block, whose weights are then in the cache
    for layer in range(layers.att.decay.shape[0]):
        for text in range(texts):
            meetings = _time_mix(layers.att, layer, text, work, meetings)
        for text in range(texts):
            meetings = _channel_mix(layers.ffn, layer, text, work, meetings)
    for text in range(texts):
        end_token(network, text, work, logits[text])
