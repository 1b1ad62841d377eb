"""RWKV-4's token step on the CPU: every layer, every matrix product by rows, in one compiled call.

The equations are in `model/mixers/rwkv4.py`, `kernels/wkv/reference.py` and `kernels/event_wkv/reference.py`.
"""

import numpy as np

from ...kernels.event_wkv.reference import EVENT_KEY_LIMIT
from .clock import GATE, WKV, mark
from .drawing import begin_turn
from .head import end_token
from .held import held_value
from .parts import (
    add_to_stream,
    end_half,
    exp,
    fire,
    fire_hidden,
    keep_token,
    list_mix,
    meet_again,
    multiply,
    multiply_listed,
    normalise,
    remember,
    sigmoid,
)
from .rwkv4_rows import give, of_texts, pack, products, share, take
from .team import columns, fused

__all__ = ["decode", "give", "of_texts", "pack", "products", "share", "take"]

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


# a step of a half is done for all texts before the next: what several of them read of a product is then in the cache


@fused
def _time_mix(rows, layer, work, meetings):
    C = rows.decay.shape[1]
    first, last = columns(C, work.team)
    shared = work.shared
    texts = range(shared.stream.shape[0])
    for text in texts:
        previous = rows.shift[text, layer]
        normalise(rows.norm, layer, text, work)
        if rows.shares_neurons:
            list_mix(rows.key, rows.input_neuron, rows.mix_k, layer, text, previous, work, 0)
        else:
            list_mix(rows.key, rows.key_neuron, rows.mix_k, layer, text, previous, work, 0)
            list_mix(rows.value, rows.value_neuron, rows.mix_v, layer, text, previous, work, 1)
            list_mix(rows.receptance, rows.receptance_neuron, rows.mix_r, layer, text, previous, work, 2)
    if not rows.shares_neurons:
        # the first rows of a product are then fetched while the one before still calculates
        multiply_listed(rows.key, layer, 0, work, first, last, shared.projected, 0)
        multiply_listed(rows.value, layer, 1, work, first, last, shared.projected, C)
        multiply_listed(rows.receptance, layer, 2, work, first, last, shared.projected, 2 * C)
    elif work.team.parts == 1:
        multiply_listed(rows.key, layer, 0, work, 0, 3 * C, shared.projected, 0)
    else:
        for start in range(0, 3 * C, C):
            multiply_listed(rows.key, layer, 0, work, start + first, start + last, shared.projected, 0)
    for text in texts:
        projected, mixed = shared.projected[text], shared.mixed[text]
        k, v, r = projected[:C], projected[C : 2 * C], projected[2 * C : 3 * C]
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

    for text in texts:
        previous = rows.shift[text, layer]
        remember(rows.input_neuron, rows.mix_k, layer, text, previous, work, first, last)
        remember(rows.key_neuron, rows.mix_k, layer, text, previous, work, first, last)
        remember(rows.value_neuron, rows.mix_v, layer, text, previous, work, first, last)
        remember(rows.receptance_neuron, rows.mix_r, layer, text, previous, work, first, last)
        keep_token(text, previous, work, first, last)
    return end_half(rows.output, rows.neuron_behind, layer, shared.mixed, work, first, last, shared.projected, meetings)


@fused
def channel_mix(rows, layer, work, meetings):
    F, C = rows.value.weights.shape[1], rows.value.weights.shape[2]
    first, last = columns(C, work.team)
    first_hidden, last_hidden = columns(F, work.team)
    shared = work.shared
    texts = range(shared.stream.shape[0])
    for text in texts:
        previous = rows.shift[text, layer]
        normalise(rows.norm, layer, text, work)
        if rows.shares_neurons:
            list_mix(rows.key, rows.input_neuron, rows.mix_k, layer, text, previous, work, 0)
        else:
            list_mix(rows.key, rows.key_neuron, rows.mix_k, layer, text, previous, work, 0)
            list_mix(rows.receptance, rows.receptance_neuron, rows.mix_r, layer, text, previous, work, 1)
    if not rows.shares_neurons:
        multiply_listed(rows.key, layer, 0, work, first_hidden, last_hidden, shared.projected, 0)
        multiply_listed(rows.receptance, layer, 1, work, first, last, shared.projected, F)
    elif work.team.parts == 1:
        multiply_listed(rows.key, layer, 0, work, 0, F + C, shared.projected, 0)
    else:
        multiply_listed(rows.key, layer, 0, work, first_hidden, last_hidden, shared.projected, 0)
        multiply_listed(rows.key, layer, 0, work, F + first, F + last, shared.projected, 0)
    fire_hidden(rows.value_neuron, layer, work, F, first_hidden, last_hidden)
    meetings = meet_again(work, meetings)

    for text in texts:
        previous = rows.shift[text, layer]
        remember(rows.input_neuron, rows.mix_k, layer, text, previous, work, first, last)
        remember(rows.key_neuron, rows.mix_k, layer, text, previous, work, first, last)
        remember(rows.receptance_neuron, rows.mix_r, layer, text, previous, work, first, last)
        keep_token(text, previous, work, first, last)
    multiply(rows.value, layer, shared.projected, work, first, last, shared.mixed)
    for text in texts:
        _gate(shared.projected[text, F : F + C], first, last, shared.mixed[text])
    add_to_stream(rows.neuron_behind, layer, shared.mixed, work, first, last)
    return meet_again(work, meetings)


@fused
def decode(held_part, turns):
    """Read a token of each text and write this thread's columns of the logits of the next; or do so `turns` times, and
    draw each token from the logits before it.

    `held_part` holds a thread's (Work, Network, Layers, Writing).
    """
    work, network, layers, writing = held_value(held_part)
    meetings = 1
    for turn in range(max(turns, 1)):
        meetings = begin_turn(network, writing, turn, turns, work, meetings)
        for layer in range(layers.att.decay.shape[0]):
            meetings = _time_mix(layers.att, layer, work, meetings)
            meetings = channel_mix(layers.ffn, layer, work, meetings)
        end_token(network, work, writing.logits)
