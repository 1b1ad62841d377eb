"""The token step of RWKV-5 and -6 on the CPU: every layer, every matrix product by rows, in one compiled call.

The equations are in `model/mixers/rwkv5.py` and `rwkv6.py`, and in `kernels/wkv6/reference.py`. The channel mix is
RWKV-4's. A head is one thread's.
"""

from ...model.mixers.heads import NORM_EPS
from .clock import GATE, LISTS, NEURONS, WKV, mark
from .drawing import begin_turn
from .head import end_token
from .held import held_value
from .lists import list_active
from .parts import (
    count_inputs,
    end_half,
    exp,
    fire,
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
from .rwkv4 import channel_mix
from .rwkv6_rows import (
    LN_BIAS,
    LN_WEIGHT,
    TIME_DECAY,
    TIME_FIRST,
    give,
    of_texts,
    pack,
    products,
    share,
    take,
)
from .team import columns, fused, inlined

__all__ = ["decode", "give", "of_texts", "pack", "products", "share", "take"]


# loops over few arrays: of more than a handful LLVM does not look whether they overlap, and calculates one by one


@fused
def _list_part(product, layer, text, values, part, parts, work):
    """List the inputs that are not zero among those of one of the matrices that are in one product, in place `part`."""
    active, size = work.scratch.active[text, part], values.size // parts
    first = part * size
    n = list_active(values[first : first + size], active, work.scratch.amount[text, part])
    for i in range(n):
        active[i] += first
    work.scratch.listed[text, part] = n
    count_inputs(product, layer, text, work, part)
    mark(work.clock, LISTS)


@fused
def _mix(y, previous, maa, first, last, added):
    """Replace what is added to the shares of the token before by the mixes of tokens, in these columns."""
    y, previous, maa, added = y[first:last], previous[first:last], maa[first:last], added[first:last]
    for c in range(added.size):
        added[c] = y[c] + (previous[c] - y[c]) * (maa[c] + added[c])


@inlined
def _decay_of(time_decay, added, limit, decay):
    for c in range(decay.size):
        decay[c] = exp(min(time_decay[c] + added[c], limit))
    for c in range(decay.size):
        decay[c] = exp(-decay[c])


@inlined
def _add_scaled(factor, values, out):
    for c in range(out.size):
        out[c] += factor * values[c]


@inlined
def _decay_and_write(row, decay, key, value):
    for c in range(row.size):
        row[c] = decay * row[c] + key * value[c]


@inlined
def _gate(normed, gate, out):
    for c in range(out.size):
        out[c] = normed[c] * gate[c] * sigmoid(gate[c])


@fused
def _put_out(rows, layer, text, scratch, shared, first_head, last_head):
    """Write what these heads put out, normalised and gated, into their channels of `mixed`."""
    C, N = rows.channels.shape[2], rows.matrix.shape[3]
    projected, added, own = shared.projected[text], shared.added[text], rows.channels[layer]
    decay = scratch.z[:N]
    for head in range(first_head, last_head):
        first, last = head * N, head * N + N
        matrix, out = rows.matrix[text, layer, head], shared.mixed[text, first:last]
        r, k, v = projected[:C][first:last], projected[C : 2 * C][first:last], projected[2 * C : 3 * C][first:last]
        gate = projected[3 * C : 4 * C][first:last]
        bonus = sum_of_products(r, k, own[TIME_FIRST, first:last])
        _decay_of(own[TIME_DECAY, first:last], added[first:last], rows.decay_limit, decay)
        sum_columns(matrix, r, text, scratch, first, shared.mixed)
        _add_scaled(bonus, v, out)
        for i in range(N):
            _decay_and_write(matrix[i], decay[i], k[i], v)
        layer_norm(out, own[LN_WEIGHT, first:last], own[LN_BIAS, first:last], decay, NORM_EPS)
        _gate(decay, gate, out)


# a step of a half is done for all texts before the next: what several of them read of a product is then in the cache


@fused
def _mix_tokens(rows, layer, work, meetings):
    """Write what the five products that read the stream read, mixes of tokens or their spikes, into `added`."""
    C, shared = rows.norm.weight.shape[1], work.shared
    first, last = columns(C, work.team)
    texts = range(shared.stream.shape[0])
    # where the inner channels of the pair begin, and end
    start = 4 * C
    stop = start + rows.time_maa_w1.weights.shape[2]
    for text in texts:
        normalise(rows.norm, layer, text, work)
        # in the columns of the mixes: so they are what is added to their shares
        for part in range(5):
            shared.added[text, part * C + first : part * C + last] = 0
    if rows.has_pairs:
        for text in texts:
            previous = rows.shift[text, layer]
            list_mix(rows.time_maa_w1, rows.time_maa_w1_neuron, rows.own_share, layer, text, previous, work, 0)
        multiply_inner(rows.time_maa_w1, layer, 0, work, start)
        one, other = columns(stop - start, work.team)
        for text in texts:
            inner = shared.projected[text, start:stop]
            tanh(inner, one, other)
            fire(rows.time_maa_w2_neuron, layer, text, inner, one, other)
            mark(work.clock, NEURONS)
        meetings = meet_again(work, meetings)
        for text in texts:
            previous = rows.shift[text, layer]
            remember(rows.time_maa_w1_neuron, rows.own_share, layer, text, previous, work, first, last)
            for part in range(5):
                _list_part(rows.time_maa_w2, layer, text, shared.projected[text, start:stop], part, 5, work)
        for part in range(5):
            multiply_listed(rows.time_maa_w2, layer, part, work, first, last, shared.added, part * C)
    for text in texts:
        y, previous, added = work.scratch.y[text], rows.shift[text, layer], shared.added[text]
        for part in range(5):
            _mix(y, previous, rows.maa[part, layer], first, last, added[part * C :])
        fire(rows.time_decay_w1_neuron, layer, text, added[:C], first, last)
        fire(rows.key_neuron, layer, text, added[C : 2 * C], first, last)
        fire(rows.value_neuron, layer, text, added[2 * C : 3 * C], first, last)
        fire(rows.receptance_neuron, layer, text, added[3 * C : 4 * C], first, last)
        fire(rows.gate_neuron, layer, text, added[4 * C :], first, last)
        keep_token(text, previous, work, first, last)
    return meet_again(work, meetings)


@fused
def _time_mix(rows, layer, work, meetings):
    C, H, N = rows.norm.weight.shape[1], rows.wkv.matrix.shape[2], rows.wkv.matrix.shape[3]
    team, shared = work.team, work.shared
    first, last = columns(C, team)
    first_head, last_head = H * team.part // team.parts, H * (team.part + 1) // team.parts
    start, stop = first_head * N, last_head * N
    texts = range(shared.stream.shape[0])
    meetings = _mix_tokens(rows, layer, work, meetings)

    # where the inner channels of the decay's pair begin, and end
    inner = 4 * C + rows.time_maa_w1.weights.shape[2]
    end = inner + rows.time_decay_w1.weights.shape[2]
    for text in texts:
        added = shared.added[text]
        if rows.has_pairs:
            list_inputs(rows.time_decay_w1, layer, text, added[:C], work, 0)
        list_inputs(rows.key, layer, text, added[C : 2 * C], work, 1)
        list_inputs(rows.value, layer, text, added[2 * C : 3 * C], work, 2)
        list_inputs(rows.receptance, layer, text, added[3 * C : 4 * C], work, 3)
        list_inputs(rows.gate, layer, text, added[4 * C :], work, 4)
    multiply_listed(rows.receptance, layer, 3, work, start, stop, shared.projected, 0)
    multiply_listed(rows.key, layer, 1, work, start, stop, shared.projected, C)
    multiply_listed(rows.value, layer, 2, work, start, stop, shared.projected, 2 * C)
    multiply_listed(rows.gate, layer, 4, work, start, stop, shared.projected, 3 * C)
    if rows.has_pairs:
        multiply_inner(rows.time_decay_w1, layer, 0, work, inner)
        one, other = columns(end - inner, team)
        for text in texts:
            channels = shared.projected[text, inner:end]
            tanh(channels, one, other)
            fire(rows.time_decay_w2_neuron, layer, text, channels, one, other)
            mark(work.clock, NEURONS)
    # nobody reads the mixes any more
    meetings = meet_again(work, meetings)

    for text in texts:
        if rows.has_pairs:
            list_inputs(rows.time_decay_w2, layer, text, shared.projected[text, inner:end], work, 0)
        else:
            shared.added[text, start:stop] = 0
    if rows.has_pairs:
        multiply_listed(rows.time_decay_w2, layer, 0, work, start, stop, shared.added, 0)
    for text in texts:
        _put_out(rows.wkv, layer, text, work.scratch, shared, first_head, last_head)
        mark(work.clock, WKV)
        fire(rows.output_neuron, layer, text, shared.mixed[text], start, stop)
        mark(work.clock, GATE)
    meetings = meet_again(work, meetings)

    return end_half(rows.output, rows.neuron_behind, layer, shared.mixed, work, first, last, shared.projected, meetings)


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
            meetings = channel_mix(layers.ffn, layer, work, meetings)
        end_token(network, work, writing.logits)
