"""RWKV-4's token step on the CPU: every layer, every matrix product by rows, in one compiled call.

The equations are in `model/mixers/rwkv4.py`, `kernels/wkv/reference.py` and `kernels/event_wkv/reference.py`.
"""

import numpy as np

from ...kernels.event_wkv.reference import EVENT_KEY_LIMIT
from .held import held_value
from .parts import (
    begin_token,
    end_token,
    fire,
    layer_norm,
    lerp,
    list_inputs,
    look_at_spikes,
    multiply,
    multiply_listed,
    sigmoid,
)
from .rwkv4_rows import give, pack, products, share, take
from .team import columns, fused, meet

__all__ = ["decode", "give", "pack", "products", "share", "take"]

LOWEST_KEY, HIGHEST_KEY = np.float32(-EVENT_KEY_LIMIT), np.float32(EVENT_KEY_LIMIT)


@fused
def _wkv(rows, layer, text, key, value, first, last):
    """One token of the WKV; the weighted mean takes the place of the value."""
    numerator, denominator = rows.numerator[text, layer], rows.denominator[text, layer]
    max_exponent, log_decay, time_first = rows.max_exponent[text, layer], rows.decay[layer], rows.first[layer]
    for c in range(first, last):
        a, b, p = numerator[c], denominator[c], max_exponent[c]
        k, v = key[c], value[c]
        boosted = time_first[c] + k
        scale = max(p, boosted)
        past, present = np.exp(p - scale), np.exp(boosted - scale)
        value[c] = (past * a + present * v) / (past * b + present)
        decayed = p + log_decay[c]
        scale = max(decayed, k)
        past, present = np.exp(decayed - scale), np.exp(k - scale)
        numerator[c], denominator[c], max_exponent[c] = past * a + present * v, past * b + present, scale


@fused
def _event_wkv(rows, layer, text, key, value, first, last):
    """One token of the WKV of value spikes: the weighted mean replaces the value; only events look at their key."""
    numerator, denominator = rows.numerator[text, layer], rows.denominator[text, layer]
    decay, boost = rows.decay[layer], rows.first[layer]
    for c in range(first, last):
        v, a, b = value[c], numerator[c], denominator[c]
        weight = key.dtype.type(1)
        if v != 0:
            # written so that NaN passes
            k = LOWEST_KEY if key[c] < LOWEST_KEY else key[c]
            weight = key.dtype.type(np.exp(HIGHEST_KEY if k > HIGHEST_KEY else k))
        value[c] = (a + boost[c] * weight * v) / (b + boost[c] * weight)
        numerator[c], denominator[c] = decay[c] * a + weight * v, decay[c] * b + weight


@fused
def _project(product, neurons, mix, layer, text, previous, work, first, last, out):
    """out[first:last] = product of the spikes of a token-shift mix, or of the mix itself where there are no neurons.

    Every thread fires all neurons before a product itself; the potentials are stepped by their owner, in `_remember`.
    """
    n = _list_mix(product, neurons, mix, layer, text, previous, work)
    multiply_listed(product, layer, n, work, first, last, out)


@fused
def _list_mix(product, neurons, mix, layer, text, previous, work):
    """List what `_project` reads, and return how much that is."""
    lerp(previous, work.scratch.y, mix[layer], work.scratch.z)
    look_at_spikes(neurons, layer, text, work.scratch.z, 0, work.scratch.z.size)
    return list_inputs(product, layer, work.scratch.z, work)


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
    x, projected, mixed = shared.stream, shared.projected, shared.mixed
    k, v, r = projected[:C], projected[C : 2 * C], projected[2 * C : 3 * C]
    previous = rows.shift[text, layer]
    layer_norm(x[:C], rows.norm.weight[layer], rows.norm.bias[layer], work.scratch.y)
    if rows.shares_neurons:
        n = _list_mix(rows.key, rows.input_neuron, rows.mix_k, layer, text, previous, work)
        if work.team.parts == 1:
            multiply_listed(rows.key, layer, n, work, 0, 3 * C, projected)
        else:
            for start in range(0, 3 * C, C):
                multiply_listed(rows.key, layer, n, work, start + first, start + last, projected)
    else:
        _project(rows.key, rows.key_neuron, rows.mix_k, layer, text, previous, work, first, last, k)
        _project(rows.value, rows.value_neuron, rows.mix_v, layer, text, previous, work, first, last, v)
        _project(rows.receptance, rows.receptance_neuron, rows.mix_r, layer, text, previous, work, first, last, r)
    if rows.has_events:
        fire(rows.wkv_neuron, layer, text, v, first, last)
        _event_wkv(rows, layer, text, k, v, first, last)
    else:
        _wkv(rows, layer, text, k, v, first, last)
    for c in range(first, last):
        mixed[c] = sigmoid(r[c]) * v[c]
    fire(rows.output_neuron, layer, text, mixed, first, last)
    meetings = meet(work.team, meetings)

    _remember(rows.input_neuron, rows.mix_k, layer, text, previous, work, first, last)
    _remember(rows.key_neuron, rows.mix_k, layer, text, previous, work, first, last)
    _remember(rows.value_neuron, rows.mix_v, layer, text, previous, work, first, last)
    _remember(rows.receptance_neuron, rows.mix_r, layer, text, previous, work, first, last)
    for c in range(first, last):
        previous[c] = work.scratch.y[c]
    multiply(rows.output, layer, mixed[:C], work, first, last, k)
    fire(rows.neuron_behind, layer, text, k, first, last)
    for c in range(first, last):
        x[c] += k[c]
    return meet(work.team, meetings)


@fused
def _channel_mix(rows, layer, text, work, meetings):
    F, C = rows.value.weights.shape[1], rows.value.weights.shape[2]
    first, last = columns(C, work.team)
    first_hidden, last_hidden = columns(F, work.team)
    shared = work.shared
    x, projected, mixed = shared.stream, shared.projected, shared.mixed
    hidden, r = projected[:F], projected[F : F + C]
    previous = rows.shift[text, layer]
    layer_norm(x[:C], rows.norm.weight[layer], rows.norm.bias[layer], work.scratch.y)
    if rows.shares_neurons:
        n = _list_mix(rows.key, rows.input_neuron, rows.mix_k, layer, text, previous, work)
        if work.team.parts == 1:
            multiply_listed(rows.key, layer, n, work, 0, F + C, projected)
        else:
            multiply_listed(rows.key, layer, n, work, first_hidden, last_hidden, projected)
            multiply_listed(rows.key, layer, n, work, F + first, F + last, projected)
    else:
        _project(rows.key, rows.key_neuron, rows.mix_k, layer, text, previous, work, first_hidden, last_hidden, hidden)
        _project(rows.receptance, rows.receptance_neuron, rows.mix_r, layer, text, previous, work, first, last, r)
    for c in range(first_hidden, last_hidden):
        hidden[c] = max(hidden[c], hidden.dtype.type(0)) ** 2
    fire(rows.value_neuron, layer, text, hidden, first_hidden, last_hidden)
    meetings = meet(work.team, meetings)

    _remember(rows.input_neuron, rows.mix_k, layer, text, previous, work, first, last)
    _remember(rows.key_neuron, rows.mix_k, layer, text, previous, work, first, last)
    _remember(rows.receptance_neuron, rows.mix_r, layer, text, previous, work, first, last)
    for c in range(first, last):
        previous[c] = work.scratch.y[c]
    multiply(rows.value, layer, hidden, work, first, last, mixed)
    for c in range(first, last):
        mixed[c] = sigmoid(r[c]) * mixed[c]
    fire(rows.neuron_behind, layer, text, mixed, first, last)
    for c in range(first, last):
        x[c] += mixed[c]
    return meet(work.team, meetings)


@fused
def decode(held_part, tokens, logits):
    """Read a token of each text, tokens (texts,), write this thread's columns of logits (texts, vocab_size).

    `held_part` holds a thread's (Work, Network, Layers).
    """
    work, network, layers = held_value(held_part)
    meetings = 1
    for text in range(tokens.size):
        meetings = begin_token(network, tokens[text], work, meetings)
        for layer in range(layers.att.decay.shape[0]):
            meetings = _time_mix(layers.att, layer, text, work, meetings)
            meetings = _channel_mix(layers.ffn, layer, text, work, meetings)
        meetings = end_token(network, text, work, meetings, logits[text])
