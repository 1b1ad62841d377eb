"""RWKV-7's token step on the CPU: every layer, every matrix product by rows, in one compiled call.

The equations are in `model/mixers/rwkv7.py` and `kernels/event_wkv7/reference.py`. With and without neurons in the
state its matrices are read and edited by events: a real key is one at every token. A head is one thread's.
"""

import math

import numpy as np

from ...kernels.cpu import ONE
from ...model.mixers.heads import NORM_EPS
from .clock import GATE, NEURONS, WKV, mark
from .drawing import begin_turn
from .head import end_token
from .held import held_value
from .lists import list_active
from .parts import (
    copy,
    count_inputs,
    end_half,
    exp,
    fire,
    fire_hidden,
    keep_token,
    layer_norm,
    list_inputs,
    list_mix,
    meet_again,
    multiply_inner,
    multiply_listed,
    normalise,
    remember,
    sigmoid,
    sum_columns,
    sum_of_products,
    tanh,
)
from .rwkv7_rows import (
    A0,
    K_A,
    K_K,
    K_WORTH,
    LN_BIAS,
    LN_WEIGHT,
    R_K,
    R_WORTH,
    V0,
    W0,
    X_A,
    X_G,
    X_K,
    X_R,
    X_V,
    X_W,
    give,
    of_texts,
    pack,
    products,
    share,
    take,
)
from .team import columns, fused, inlined, summing

__all__ = ["decode", "give", "of_texts", "pack", "products", "share", "take"]

LOG_DECAY_SCALE = -math.exp(-0.5)
# below it a direction is not normalised, as in torch
LEAST_NORM = 1e-12


# loops over few arrays: of more than a handful LLVM does not look whether they overlap, and calculates one by one


@fused
def _sigmoid(values, first, last):
    values = values[first:last]
    for c in range(values.size):
        values[c] = sigmoid(values[c])


@inlined
def _sigmoid_of_sum(base, values):
    for c in range(values.size):
        values[c] = sigmoid(base[c] + values[c])


@inlined
def _multiply_by(factors, values):
    for c in range(values.size):
        values[c] *= factors[c]


@summing
def _normalised_product(x, y, out):
    """Write the direction of x * y into `out`."""
    total = x.dtype.type(0)
    for c in range(x.size):
        out[c] = x[c] * y[c]
        total += out[c] * out[c]
    scale = ONE / max(np.sqrt(total), x.dtype.type(LEAST_NORM))
    for c in range(x.size):
        out[c] *= scale


@inlined
def _blend(first, share, values):
    """Replace `values` by their mixture with those of the first block."""
    for c in range(values.size):
        values[c] += (first[c] - values[c]) * share[c]


@inlined
def _learn_slower(rate, k_a, k):
    for c in range(k.size):
        k[c] *= ONE + (rate[c] - ONE) * k_a[c]


@inlined
def _note_events(k, direction, rate, events):
    """Make `events` not 0 where a column is edited, and `rate` what is written of what is removed there."""
    for c in range(k.size):
        events[c] = abs(k[c]) + abs(direction[c])
        rate[c] *= direction[c]


@inlined
def _let_decay(waiting, events, direction, decay, r):
    """Add a token's logarithm of decay, which `decay` holds a share of, to what waits; where there is an event, nothing
    waits after it.

    Afterwards `decay` is how much each column has decayed, and `direction` and `r` are what the columns as they are
    kept, before the event and after it, are to be multiplied by.
    """
    for c in range(waiting.size):
        direction[c] *= -exp(waiting[c])
    for c in range(waiting.size):
        waited = waiting[c] + decay.dtype.type(LOG_DECAY_SCALE) * decay[c]
        decay[c] = exp(waited)
        waiting[c] = 0 if events[c] != 0 else waited
    for c in range(waiting.size):
        r[c] *= ONE if events[c] != 0 else decay[c]


@inlined
def _gate(normed, bonus, v, gate, out):
    for c in range(out.size):
        out[c] = (normed[c] + bonus * v[c]) * gate[c]


@inlined
def _edit(column, decay, removed, b, v, k):
    for i in range(column.size):
        column[i] = column[i] * decay + removed[i] * b + v[i] * k


@fused
def _put_out(rows, layer, text, scratch, shared, first_head, last_head):
    """Write what these heads put out, normalised and gated, into their channels of `mixed`."""
    C, N = rows.channels.shape[2], rows.matrix.shape[3]
    projected, added, own = shared.projected[text], shared.added[text], rows.channels[layer]
    direction = scratch.z[:N]
    for head in range(first_head, last_head):
        first, last = head * N, head * N + N
        matrix, waiting = rows.matrix[text, layer, head], rows.waiting[text, layer, first:last]
        r, k, v = projected[:C][first:last], projected[C : 2 * C][first:last], projected[2 * C : 3 * C][first:last]
        decay, rate = added[:C][first:last], added[C : 2 * C][first:last]
        blended, gate = added[2 * C : 3 * C][first:last], added[3 * C :][first:last]
        out = shared.mixed[text, first:last]

        _multiply_by(own[R_WORTH, first:last], r)
        _multiply_by(own[K_WORTH, first:last], k)
        _sigmoid_of_sum(own[W0, first:last], decay)
        _sigmoid_of_sum(own[A0, first:last], rate)
        if layer == 0:
            copy(v, 0, N, shared.first[text, first:last])
        else:
            _sigmoid_of_sum(own[V0, first:last], blended)
            _blend(shared.first[text, first:last], blended, v)
        _normalised_product(k, own[K_K, first:last], direction)
        _learn_slower(rate, own[K_A, first:last], k)
        bonus = sum_of_products(r, k, own[R_K, first:last])

        # what the pairs have made is no longer needed where it is written over
        events = blended
        _note_events(k, direction, rate, events)
        _let_decay(waiting, events, direction, decay, r)
        sum_columns(matrix, direction, text, scratch, first, shared.mixed)
        active = scratch.active[text, 0]
        n = list_active(events, active, scratch.amount[text, 0])
        for i in range(n):
            j = active[i]
            _edit(matrix[j], decay[j], out, rate[j], v, k[j])
        sum_columns(matrix, r, text, scratch, first, shared.mixed)

        layer_norm(out, own[LN_WEIGHT, first:last], own[LN_BIAS, first:last], direction, NORM_EPS)
        _gate(direction, bonus, v, gate, out)


# a step of a half is done for all texts before the next: what several of them read of a product is then in the cache


@fused
def _time_mix(rows, layer, work, meetings):
    C, H, N = rows.norm.weight.shape[1], rows.wkv.matrix.shape[2], rows.wkv.matrix.shape[3]
    team, shared = work.team, work.shared
    first, last = columns(C, team)
    first_head, last_head = H * team.part // team.parts, H * (team.part + 1) // team.parts
    start, stop = first_head * N, last_head * N
    texts = range(shared.stream.shape[0])
    # where the inner channels of the pairs begin
    w = 3 * C
    a = w + rows.w1.weights.shape[2]
    v = a + rows.a1.weights.shape[2]
    g = v + rows.v1.weights.shape[2]
    end = g + rows.g1.weights.shape[2]
    for text in texts:
        previous = rows.shift[text, layer]
        normalise(rows.norm, layer, text, work)
        list_mix(rows.receptance, rows.receptance_neuron, rows.mixes[X_R], layer, text, previous, work, 0)
        list_mix(rows.key, rows.key_neuron, rows.mixes[X_K], layer, text, previous, work, 1)
        list_mix(rows.value, rows.value_neuron, rows.mixes[X_V], layer, text, previous, work, 2)
        list_mix(rows.w1, rows.w1_neuron, rows.mixes[X_W], layer, text, previous, work, 3)
        list_mix(rows.a1, rows.a1_neuron, rows.mixes[X_A], layer, text, previous, work, 4)
        list_mix(rows.g1, rows.g1_neuron, rows.mixes[X_G], layer, text, previous, work, 5)
        if layer > 0:
            count_inputs(rows.v1, layer, text, work, 2)
    multiply_listed(rows.receptance, layer, 0, work, start, stop, shared.projected, 0)
    multiply_listed(rows.key, layer, 1, work, start, stop, shared.projected, C)
    multiply_listed(rows.value, layer, 2, work, start, stop, shared.projected, 2 * C)
    multiply_inner(rows.w1, layer, 3, work, w)
    multiply_inner(rows.a1, layer, 4, work, a)
    multiply_inner(rows.g1, layer, 5, work, g)
    if layer > 0:
        multiply_inner(rows.v1, layer, 2, work, v)
    for text in texts:
        projected = shared.projected[text]
        fire(rows.wkv_receptance_neuron, layer, text, projected[:C], start, stop)
        fire(rows.wkv_key_neuron, layer, text, projected[C : 2 * C], start, stop)
        one, other = columns(a - w, team)
        tanh(projected[w:a], one, other)
        fire(rows.w2_neuron, layer, text, projected[w:a], one, other)
        one, other = columns(v - a, team)
        fire(rows.a2_neuron, layer, text, projected[a:v], one, other)
        if layer > 0:
            one, other = columns(g - v, team)
            fire(rows.v2_neuron, layer, text, projected[v:g], one, other)
        one, other = columns(end - g, team)
        _sigmoid(projected[g:end], one, other)
        fire(rows.g2_neuron, layer, text, projected[g:end], one, other)
        mark(work.clock, NEURONS)
    meetings = meet_again(work, meetings)

    for text in texts:
        projected, previous = shared.projected[text], rows.shift[text, layer]
        remember(rows.receptance_neuron, rows.mixes[X_R], layer, text, previous, work, first, last)
        remember(rows.key_neuron, rows.mixes[X_K], layer, text, previous, work, first, last)
        remember(rows.value_neuron, rows.mixes[X_V], layer, text, previous, work, first, last)
        remember(rows.w1_neuron, rows.mixes[X_W], layer, text, previous, work, first, last)
        remember(rows.a1_neuron, rows.mixes[X_A], layer, text, previous, work, first, last)
        remember(rows.g1_neuron, rows.mixes[X_G], layer, text, previous, work, first, last)
        keep_token(text, previous, work, first, last)
        list_inputs(rows.w2, layer, text, projected[w:a], work, 0)
        list_inputs(rows.a2, layer, text, projected[a:v], work, 1)
        if layer > 0:
            list_inputs(rows.v2, layer, text, projected[v:g], work, 2)
        list_inputs(rows.g2, layer, text, projected[g:end], work, 3)
    multiply_listed(rows.w2, layer, 0, work, start, stop, shared.added, 0)
    multiply_listed(rows.a2, layer, 1, work, start, stop, shared.added, C)
    if layer > 0:
        multiply_listed(rows.v2, layer, 2, work, start, stop, shared.added, 2 * C)
    multiply_listed(rows.g2, layer, 3, work, start, stop, shared.added, 3 * C)
    for text in texts:
        _put_out(rows.wkv, layer, text, work.scratch, shared, first_head, last_head)
        mark(work.clock, WKV)
        fire(rows.output_neuron, layer, text, shared.mixed[text], start, stop)
        mark(work.clock, GATE)
    meetings = meet_again(work, meetings)

    return end_half(rows.output, rows.neuron_behind, layer, shared.mixed, work, first, last, shared.projected, meetings)


@fused
def _channel_mix(rows, layer, work, meetings):
    F, C = rows.value.weights.shape[1], rows.value.weights.shape[2]
    first, last = columns(C, work.team)
    first_hidden, last_hidden = columns(F, work.team)
    shared = work.shared
    texts = range(shared.stream.shape[0])
    for text in texts:
        previous = rows.shift[text, layer]
        normalise(rows.norm, layer, text, work)
        list_mix(rows.key, rows.key_neuron, rows.x_k, layer, text, previous, work, 0)
    multiply_listed(rows.key, layer, 0, work, first_hidden, last_hidden, shared.projected, 0)
    fire_hidden(rows.value_neuron, layer, work, F, first_hidden, last_hidden)
    meetings = meet_again(work, meetings)

    for text in texts:
        previous = rows.shift[text, layer]
        remember(rows.key_neuron, rows.x_k, layer, text, previous, work, first, last)
        keep_token(text, previous, work, first, last)
    return end_half(rows.value, rows.neuron_behind, layer, shared.projected, work, first, last, shared.mixed, meetings)


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
        for layer in range(layers.att.norm.weight.shape[0]):
            meetings = _time_mix(layers.att, layer, work, meetings)
            meetings = _channel_mix(layers.ffn, layer, work, meetings)
        end_token(network, work, writing.logits)
