"""A text, token by token, in whole numbers: sums, products, shifts, comparisons and tables, compiled by numba.

The definition, in Python's own unlimited integers: reference.py. Nothing in this file is a float, and nothing divides:
a test holds it to that. Sums of at most 64 bits; whatever is kept or sent on is cut to `state_bits`, and counted if
that changes it.
"""

import numpy as np

from ..kernels.compiling import compiled
from .program import (
    BACK,
    FRACTION_BITS,
    GATE,
    HIDDEN,
    KEY,
    LOG2_E,
    LOGITS,
    MEAN_BITS,
    MEMBRANE,
    MIX,
    NEAREST,
    NORM,
    RECEPTANCE,
    SIGMOID_END_BITS,
    SQUARED,
    STREAM,
    SUBTRACT,
    VALUE,
    ZERO,
)

MOST_SHIFT = 62


@compiled(no_cpython_wrapper=True)
def shifted(number, places, rounding):
    """number / 2^places; of negative places, number * 2^-places."""
    if places <= 0:
        return number << -places
    places = min(places, MOST_SHIFT)
    if rounding == NEAREST:
        return (number + (1 << (places - 1))) >> places
    return -(-number >> places) if number < 0 else number >> places


@compiled(no_cpython_wrapper=True)
def saturated(number, state_bits, counts, quantity):
    """The number of `state_bits` bits that is nearest; counts[quantity] says how often that was another one."""
    limit = (1 << (state_bits - 1)) - 1
    if number > limit:
        counts[quantity] += 1
        return limit
    if number < -limit - 1:
        counts[quantity] += 1
        return -limit - 1
    return number


@compiled(no_cpython_wrapper=True)
def length_of(number):
    """Binary digits of a number of at least 0."""
    length = 0
    for step in (32, 16, 8, 4, 2, 1):
        if number >> step:
            number >>= step
            length += step
    return length + number


@compiled(no_cpython_wrapper=True)
def between(table, number, bits):
    """What a table has at number / 2^bits of its length, on a line between its entries."""
    interval_bits = bits - length_of(table.size - 2)
    at, rest = number >> interval_bits, number & ((1 << interval_bits) - 1)
    if rest == 0:
        # the last entry has none after it
        return table[at]
    return table[at] + ((table[at + 1] - table[at]) * rest >> interval_bits)


@compiled(no_cpython_wrapper=True)
def sigmoid(program, number, places):
    """With FRACTION_BITS places."""
    size = shifted(-number if number < 0 else number, places - FRACTION_BITS, program.rounding)
    bits = FRACTION_BITS + SIGMOID_END_BITS
    share = between(program.sigmoid_table, min(size, (1 << bits) - 1), bits)
    return (1 << FRACTION_BITS) - share if number < 0 else share


@compiled(no_cpython_wrapper=True)
def normalise(program, index, stream, counts, out):
    """A norm of the stream: the bias, and the weight times the difference from the mean over its root."""
    rounding, bits, C = program.rounding, program.state_bits, stream.size
    total = 0
    for c in range(C):
        total += stream[c]
    mean = shifted(total * program.inverse_channels, MEAN_BITS, rounding)
    squares = program.epsilon
    for c in range(C):
        difference = stream[c] - mean
        squares += difference * difference
    # squares = x * 4^q for x from 1 to 4, in FRACTION_BITS + 1 digits
    surplus = length_of(squares) - FRACTION_BITS - 1
    surplus += 1 - (surplus & 1)
    root = between(program.root_table, shifted(squares, surplus, rounding), FRACTION_BITS + 1)
    places = FRACTION_BITS + ((surplus + FRACTION_BITS - 1) >> 1) - (bits - 2)
    weight, bias, shift = program.norm_weight[index], program.norm_bias[index], program.norm_shift[index]
    for c in range(C):
        share = shifted((stream[c] - mean) * root, places, rounding)
        out[c] = saturated(shifted(share * weight[c], shift, rounding) + bias[c], bits, counts, NORM)


@compiled(no_cpython_wrapper=True)
def mix(program, layer, which, now, before, counts, out):
    """What a product's neurons receive: each channel's share of this token, and the rest of the one before."""
    one = 1 << program.factor_bits
    share = program.mix[layer, which]
    for c in range(out.size):
        both = share[c] * now[c] + (one - share[c]) * before[c]
        out[c] = saturated(shifted(both, program.factor_bits, program.rounding), program.state_bits, counts, MIX)


@compiled(no_cpython_wrapper=True)
def count_spikes(charged, threshold, levels, signed):
    """Whole thresholds in a potential, at most `levels`, with its sign."""
    if charged < 0 and not signed:
        return 0
    size, n, level = -charged if charged < 0 else charged, 0, threshold
    while n < levels and size >= level:
        n += 1
        level += threshold
    return -n if charged < 0 else n


@compiled(no_cpython_wrapper=True)
def fire(program, layer, start, currents, levels, signed, membranes, counts, spikes):
    """The spikes of the neurons from `start` on, one for each current; membranes and spikes (N,) of the layer."""
    rounding, places = program.rounding, program.factor_bits
    threshold = program.threshold[layer]
    for c in range(currents.size):
        site, charged = start + c, currents[c]
        if program.remembers:
            kept = shifted(program.membrane_decay[layer, site] * membranes[site], places, rounding)
            charged = kept + shifted(program.gain[layer, site] * charged, places, rounding)
            charged = saturated(charged, program.state_bits, counts, MEMBRANE)
        n = count_spikes(charged, threshold[site], levels, signed)
        spikes[site] = n
        if program.remembers:
            if program.reset == SUBTRACT:
                charged -= n * threshold[site]
            elif program.reset == ZERO and n != 0:
                charged = 0
            membranes[site] = charged


# loops, for numba compiles floats into what a slice would say of its shape


@compiled(no_cpython_wrapper=True)
def clear(numbers):
    for i in range(numbers.size):
        numbers[i] = 0


@compiled(no_cpython_wrapper=True)
def keep(numbers, place):
    for i in range(numbers.size):
        place[i] = numbers[i]


@compiled(no_cpython_wrapper=True)
def add_rows(weights, spikes, sums):
    """sums (out,) = spikes (in,) @ weights (in, out): the rows of those that fired."""
    clear(sums)
    for i in range(spikes.size):
        spike = np.int32(spikes[i])
        if spike != 0:
            row = weights[i]
            for j in range(sums.size):
                sums[j] += spike * np.int32(row[j])


@compiled(no_cpython_wrapper=True)
def multiply(program, weights, shift, spikes, sums, counts, quantity, out):
    """The currents that spikes make."""
    add_rows(weights, spikes, sums)
    for j in range(sums.size):
        # 64 bits before anything is shifted to the left
        current = shifted(np.int64(sums[j]), shift[j], program.rounding)
        out[j] = saturated(current, program.state_bits, counts, quantity)


@compiled(no_cpython_wrapper=True)
def wkv(program, state, layer, key, spikes, out):
    """The mean of value spikes (C,), with state_bits - 2 - spike_bits places."""
    rounding, bits, spike_bits = program.rounding, program.state_bits, program.spike_bits
    limit, places = (1 << (bits - 1)) - 1, program.factor_bits
    numerators, denominators, exponents = state.numerator[layer], state.denominator[layer], state.exponent[layer]
    for c in range(out.size):
        spike = np.int64(spikes[c])
        # the weight is mantissa * 2^exponent, e^key where there is an event, else 1
        mantissa, exponent = 1 << (FRACTION_BITS - 1), 1 - FRACTION_BITS
        if spike != 0:
            most = program.key_limit[layer]
            power = shifted(min(max(key[c], -most), most) * LOG2_E, program.key_places[layer], rounding)
            mantissa = between(program.exp_table, power & ((1 << FRACTION_BITS) - 1), FRACTION_BITS)
            exponent += power >> FRACTION_BITS
        numerator, denominator, scale = numerators[c], denominators[c], exponents[c]

        boosted = mantissa * program.first[layer, c] >> (FRACTION_BITS - 1)
        boosted_exponent = exponent + program.first_exponent[layer, c]
        top = length_of(boosted) + boosted_exponent
        if denominator > 0:
            top = max(top, length_of(denominator) + scale)
        common = top - (bits - 2)
        above = shifted(numerator, common - scale, rounding)
        above += shifted(boosted * spike, common - boosted_exponent + spike_bits, rounding)
        below = shifted(denominator, common - scale, rounding) + shifted(boosted, common - boosted_exponent, rounding)
        below = min(below, limit)
        to_front = bits - 1 - length_of(below)
        fraction = (below << to_front) & ((1 << (bits - 2)) - 1)
        inverse = between(program.reciprocal_table, fraction, bits - 2)
        out[c] = shifted((above << to_front) * inverse, FRACTION_BITS, rounding)

        decayed = denominator * program.decay[layer, c]
        top = length_of(mantissa) + exponent
        if decayed > 0:
            top = max(top, length_of(decayed) + scale - places)
        common = top - (bits - 2)
        kept = shifted(numerator * program.decay[layer, c], common - scale + places, rounding)
        added = shifted(mantissa * spike, common - exponent + spike_bits, rounding)
        numerators[c] = min(max(kept + added, -limit), limit)
        kept = shifted(decayed, common - scale + places, rounding)
        denominators[c] = min(kept + shifted(mantissa, common - exponent, rounding), limit)
        exponents[c] = common


@compiled(no_cpython_wrapper=True)
def time_mix(program, state, layer, normed, counts, spikes, sums, stream):
    """Add what the first half of a block makes of normed (C,) to the stream (C,)."""
    C = stream.size
    before, membranes = state.before[0, layer], state.membrane[layer]
    mixed, currents = np.empty(C, np.int64), np.empty((3, C), np.int64)
    for which in range(3):
        mix(program, layer, which, normed, before, counts, mixed)
        start = which * C
        fire(program, layer, start, mixed, program.levels, program.signed, membranes, counts, spikes)
        weights, shift = program.square[layer, which], program.square_shift[layer, which]
        inputs = spikes[start : start + C]
        multiply(program, weights, shift, inputs, sums[:C], counts, KEY + which, currents[which])
    keep(normed, before)
    fire(program, layer, 3 * C, currents[VALUE - KEY], program.levels, program.signed, membranes, counts, spikes)
    wkv(program, state, layer, currents[0], spikes[3 * C : 4 * C], mixed)
    places = program.receptance_places[layer, 0]
    for c in range(C):
        opened = sigmoid(program, currents[RECEPTANCE - KEY, c], places)
        mixed[c] = shifted(opened * mixed[c], FRACTION_BITS, program.rounding)
    fire(program, layer, 4 * C, mixed, program.levels, program.signed, membranes, counts, spikes)
    add_rows(program.square[layer, 3], spikes[4 * C : 5 * C], sums[:C])
    for c in range(C):
        current = shifted(np.int64(sums[c]), program.square_shift[layer, 3, c], program.rounding)
        stream[c] = saturated(stream[c] + current, program.state_bits, counts, STREAM)


@compiled(no_cpython_wrapper=True)
def channel_mix(program, state, layer, normed, counts, spikes, sums, stream):
    """Add what the second half of a block makes of normed (C,) to the stream (C,)."""
    C, F = stream.size, sums.size
    before, membranes = state.before[1, layer], state.membrane[layer]
    mixed, hidden, gate = np.empty(C, np.int64), np.empty(F, np.int64), np.empty(C, np.int64)
    mix(program, layer, 3, normed, before, counts, mixed)
    fire(program, layer, 5 * C, mixed, program.levels, program.signed, membranes, counts, spikes)
    weights, shift = program.hidden[layer], program.hidden_shift[layer]
    multiply(program, weights, shift, spikes[5 * C : 6 * C], sums, counts, HIDDEN, hidden)
    mix(program, layer, 4, normed, before, counts, mixed)
    fire(program, layer, 6 * C, mixed, program.levels, program.signed, membranes, counts, spikes)
    weights, shift = program.square[layer, 4], program.square_shift[layer, 4]
    multiply(program, weights, shift, spikes[6 * C : 7 * C], sums[:C], counts, GATE, gate)
    keep(normed, before)
    for j in range(F):
        positive = max(hidden[j], 0)
        squared = shifted(positive * positive, program.squared_shift[layer], program.rounding)
        hidden[j] = saturated(squared, program.state_bits, counts, SQUARED)
    fire(program, layer, 7 * C, hidden, program.hidden_levels, False, membranes, counts, spikes)
    weights, shift = program.back[layer], program.back_shift[layer]
    multiply(program, weights, shift, spikes[7 * C :], sums[:C], counts, BACK, mixed)
    places, open_places = program.back_places[layer], program.receptance_places[layer, 1]
    for c in range(C):
        opened = sigmoid(program, gate[c], open_places)
        added = shifted(opened * mixed[c], FRACTION_BITS + places - program.stream_places, program.rounding)
        stream[c] = saturated(stream[c] + added, program.state_bits, counts, STREAM)


@compiled(no_cpython_wrapper=True)
def read_out(program, normed, counts, spikes, sums, logits):
    """The logits (V,) of what the last norm gave (C,), by spikes if the head reads them."""
    if program.head_levels > 0:
        for c in range(normed.size):
            spikes[c] = count_spikes(normed[c], program.head_threshold[c], program.head_levels, program.signed)
    clear(sums)
    for c in range(normed.size):
        number = np.int64(spikes[c]) if program.head_levels > 0 else normed[c]
        if number != 0:
            row = program.head[c]
            for v in range(sums.size):
                sums[v] += number * np.int64(row[v])
    for v in range(sums.size):
        number = shifted(sums[v], program.head_shift[v], program.rounding)
        logits[v] = saturated(number, program.state_bits, counts, LOGITS)


@compiled()
def read(program, state, tokens, logits, spikes, head_spikes, saturations):
    """Read tokens (T,): write logits (T, V), spikes (T, L, N) and (T, C), and what is carried; count saturations.

    saturations (L + 1, quantities), the last row of what is in no block.
    """
    L, C, F = program.hidden.shape
    stream, normed = np.empty(C, np.int64), np.empty(C, np.int64)
    sums, out_sums = np.empty(F, np.int32), np.empty(program.head.shape[1], np.int64)
    for t in range(tokens.size):
        token = tokens[t]
        for c in range(C):
            number = shifted(np.int64(program.embedding[token, c]), program.embedding_shift[token], program.rounding)
            stream[c] = saturated(number, program.state_bits, saturations[L], STREAM)
        for layer in range(L):
            counts = saturations[layer]
            normalise(program, 2 * layer, stream, counts, normed)
            time_mix(program, state, layer, normed, counts, spikes[t, layer], sums, stream)
            normalise(program, 2 * layer + 1, stream, counts, normed)
            channel_mix(program, state, layer, normed, counts, spikes[t, layer], sums, stream)
        normalise(program, 2 * L, stream, saturations[L], normed)
        read_out(program, normed, saturations[L], head_spikes[t], out_sums, logits[t])
