"""One token of a whole network on the CPU, in numba: every layer, every matrix product by rows, no Python in between.

A matrix product is a list of the inputs that are not zero and, for each, one contiguous row of the weights (stored
input first) that is multiplied by it and added. With spikes the list is short, with real numbers it is long: the
spike-driven block, the published one and the dense twin run through the same code, and a zero is skipped for all of
them.

The work of a token is shared among `parts` threads that call `decode` at once, each for its own columns; they meet at a
gate. Every column is computed by one thread in one order, so results do not depend on the number of threads.
`engine.Engine` packs the arrays. The equations are in `reference` and `model`.
"""

import numba
import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic, overload

from ...kernels.event_wkv.reference import EVENT_KEY_LIMIT

fused = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})

NONE, OUTPUT, INPUT = range(3)

# rows of `per_channel` (layers, rows, C)
LN1_WEIGHT, LN1_BIAS, LN2_WEIGHT, LN2_BIAS, MIX_K, MIX_V, MIX_R, FFN_MIX_K, FFN_MIX_R, WKV_DECAY, WKV_FIRST = range(11)
CHANNEL_ROWS = 11
# rows of `state` (texts, layers, rows, C)
TIME_SHIFT, CHANNEL_SHIFT, NUMERATOR, DENOMINATOR, MAX_EXPONENT = range(5)
STATE_ROWS = 5
# layers of neurons with C members, in `neurons` (layers, site, rows, C) and `potential` (texts, layers, site, C)
KEY, VALUE, RECEPTANCE, WKV, OUT, FFN_KEY, FFN_RECEPTANCE = range(7)
INPUT_SITES = 7
TIME_MIX, CHANNEL_MIX = range(2)
OUTPUT_SITES = 2
# rows of one layer of neurons
DECAY, GAIN, PULL, THRESHOLD = range(4)
NEURON_ROWS = 4

# columns are shared out in runs of this many, so that two threads never write to one cache line
GRAIN = 16
SPINS = 4000
LOWEST_KEY, HIGHEST_KEY = np.float32(-EVENT_KEY_LIMIT), np.float32(EVENT_KEY_LIMIT)


@intrinsic
def _arrive(typing_context, gate):
    """Add one to gate[0] and return its new value, seen by all threads."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        one = context.get_constant(types.int64, 1)
        return builder.add(builder.atomic_rmw("add", array.data, one, "seq_cst"), one)

    return types.int64(gate), generate


@intrinsic
def _look(typing_context, gate):
    """Return gate[0] as the other threads left it."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.load_atomic(array.data, "seq_cst", 8)

    return types.int64(gate), generate


@intrinsic
def _give_way(typing_context):
    """Let another thread have this core: the one that is awaited may need it."""

    def generate(context, builder, signature, arguments):
        from llvmlite import ir

        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.IntType(32), []), "sched_yield")
        return builder.call(function, [])

    return types.int32(), generate


@fused
def _meet(gate, parts, meetings):
    """Wait until all parts have come to their `meetings`-th meeting; gate[0] counts the arrivals since the token
    began."""
    if parts == 1:
        return meetings
    _arrive(gate)
    spins = 0
    while _look(gate) < meetings * parts:
        spins += 1
        if spins > SPINS:
            _give_way()
    return meetings + 1


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
def _columns(width, part, parts):
    """Return the first and the last-but-one column of `part`."""
    runs = (width + GRAIN - 1) // GRAIN
    return min(runs * part // parts * GRAIN, width), min(runs * (part + 1) // parts * GRAIN, width)


@fused
def _product(weights, scale, active, amount, n, first, last, out):
    """out[first:last] = (amount @ weights[active])[first:last] * scale, eight rows at a time."""
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
    if scale.size:
        for c in range(width):
            y[c] *= scale[first + c]


@fused
def _list_active(values, active, amount):
    """Write the indices and the values of the nonzeros of `values` and return how many there are."""
    n = 0
    for c in range(values.size):
        active[n], amount[n] = c, values[c]
        n += values[c] != 0
    return n


@fused
def _layer_norm(x, weight, bias, out):
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
def _mix(previous, x, mix, out):
    """torch.lerp, which steps from the nearer end."""
    for c in range(x.size):
        step = x[c] - previous[c]
        out[c] = previous[c] + mix[c] * step if mix[c] < 0.5 else x[c] - step * (1 - mix[c])


@fused
def _fire(current, neuron, potential, levels, signed, to_zero, rest, first, last):
    """Replace current[first:last] by spikes, and step the potential there: `reference.integer_lif_step`, and with one
    level `lif_step`."""
    zero = current.dtype.type(0)
    for c in range(first, last):
        charged = neuron[DECAY, c] * potential[c] + neuron[GAIN, c] * current[c] + neuron[PULL, c]
        quanta = charged / neuron[THRESHOLD, c]
        count = min(np.floor(abs(quanta)), current.dtype.type(levels))
        spikes = (-count if signed else zero) if quanta < 0 else count
        if to_zero:
            potential[c] = rest if spikes != 0 else charged
        else:
            potential[c] = charged - neuron[THRESHOLD, c] * spikes
        current[c] = spikes


@fused
def _wkv(key, value, state, per_channel, first, last):
    """`reference.wkv`, one token; the weighted mean takes the place of the value."""
    for c in range(first, last):
        a, b, p = state[NUMERATOR, c], state[DENOMINATOR, c], state[MAX_EXPONENT, c]
        k, v = key[c], value[c]
        boosted = per_channel[WKV_FIRST, c] + k
        scale = max(p, boosted)
        past, present = np.exp(p - scale), np.exp(boosted - scale)
        value[c] = (past * a + present * v) / (past * b + present)
        decayed = p + per_channel[WKV_DECAY, c]
        scale = max(decayed, k)
        past, present = np.exp(decayed - scale), np.exp(k - scale)
        state[NUMERATOR, c], state[DENOMINATOR, c], state[MAX_EXPONENT, c] = (
            past * a + present * v,
            past * b + present,
            scale,
        )


@fused
def _event_wkv(key, value, state, per_channel, first, last):
    """`reference.event_wkv`, one token; the weighted mean takes the place of the value. Only events look at their
    key."""
    for c in range(first, last):
        v, a, b = value[c], state[NUMERATOR, c], state[DENOMINATOR, c]
        decay, boost = per_channel[WKV_DECAY, c], per_channel[WKV_FIRST, c]
        weight = key.dtype.type(1)
        if v != 0:
            # written so that NaN passes
            k = LOWEST_KEY if key[c] < LOWEST_KEY else key[c]
            weight = key.dtype.type(np.exp(HIGHEST_KEY if k > HIGHEST_KEY else k))
        value[c] = (a + boost * weight * v) / (b + boost * weight)
        state[NUMERATOR, c], state[DENOMINATOR, c] = decay * a + weight * v, decay * b + weight


@fused
def _sigmoid(x):
    small = np.exp(-abs(x))
    return (1 if x >= 0 else small) / (1 + small)


@fused
def decode(
    part, parts, gate, tokens, kind, embedding, ln0, ln_out, weights, scales, per_channel,
    neurons, hidden_neurons, head_neuron, options, rest, state, potential, hidden_potential, shared, events, logits,
):  # fmt: skip
    """Read one token of each text and write the logits of the next: this thread's columns of everything.

    Args:
        part, parts, gate: which thread of how many; gate (1,) int64, 0 before the call, is where they meet.
        tokens: (texts,) int64.
        kind: NONE, OUTPUT or INPUT.
        weights: key, value, receptance, output, the channel mix's key, receptance and value, each (layers, in, out),
            and the head (in, out), in float32 or float64, or uint16 with the bits of bfloat16, or int8.
        scales: what int8 weights are multiplied by, (layers, out) and the head's (out,); empty for the other kinds.
        options: levels, signed, reset to zero, levels of hidden neurons, spiking head, memoryless neurons. rest:
            resting potential.
        shared: (6, max(C, F)), where the threads see each other's columns. events: (layers, 9) int64, added up.
    """
    key, value, receptance, output, ffn_key, ffn_receptance, ffn_value, head = weights
    (
        key_scale,
        value_scale,
        receptance_scale,
        output_scale,
        ffn_key_scale,
        ffn_receptance_scale,
        ffn_value_scale,
        head_scale,
    ) = scales
    L, C, F, V = per_channel.shape[0], embedding.shape[1], ffn_key.shape[2], head.shape[1]
    levels, signed, to_zero, hidden_levels = options[0], options[1] != 0, options[2] != 0, options[3]
    spiking_head, memoryless = options[4] != 0, options[5] != 0
    first, last = _columns(C, part, parts)
    first_hidden, last_hidden = _columns(F, part, parts)
    first_logit, last_logit = _columns(V, part, parts)
    x, k, v, r, hidden, mixed = shared[0], shared[1], shared[2], shared[3], shared[4], shared[5]
    y, z = np.empty(C, shared.dtype), np.empty(C, shared.dtype)
    nothing = np.zeros(C, shared.dtype)
    active, amount = np.empty(F + 1, np.int64), np.empty(F + 1, shared.dtype)
    meetings = 1
    for text in range(tokens.size):
        _layer_norm(embedding[tokens[text]], ln0[0], ln0[1], y)
        x[first:last] = y[first:last]
        meetings = _meet(gate, parts, meetings)
        for layer in range(L):
            own, memory, volts = per_channel[layer], state[text, layer], potential[text, layer]
            _layer_norm(x[:C], own[LN1_WEIGHT], own[LN1_BIAS], y)
            # every thread fires all neurons before a product itself; the potentials are written by their owner below
            for site in range(3):
                _mix(memory[TIME_SHIFT], y, own[MIX_K + site], z)
                if kind == INPUT:
                    _fire_shared(z, neurons[layer, site], volts[site], levels, signed, to_zero, rest)
                n = _list_active(z, active, amount)
                if part == 0:
                    events[layer, site] += n
                if site == KEY:
                    _product(key[layer], key_scale[layer], active, amount, n, first, last, k)
                elif site == VALUE:
                    _product(value[layer], value_scale[layer], active, amount, n, first, last, v)
                else:
                    _product(receptance[layer], receptance_scale[layer], active, amount, n, first, last, r)
            if kind == INPUT:
                _fire(v, neurons[layer, WKV], volts[WKV], levels, signed, to_zero, rest, first, last)
                _event_wkv(k, v, memory, own, first, last)
            else:
                _wkv(k, v, memory, own, first, last)
            for c in range(first, last):
                mixed[c] = _sigmoid(r[c]) * v[c]
            if kind == INPUT:
                _fire(mixed, neurons[layer, OUT], volts[OUT], levels, signed, to_zero, rest, first, last)
            meetings = _meet(gate, parts, meetings)

            if kind == INPUT and not memoryless:
                for site in range(3):
                    _mix(memory[TIME_SHIFT], y, own[MIX_K + site], z)
                    _fire(z, neurons[layer, site], volts[site], levels, signed, to_zero, rest, first, last)
            memory[TIME_SHIFT, first:last] = y[first:last]
            n = _list_active(mixed[:C], active, amount)
            if part == 0:
                events[layer, OUT] += n
            _product(output[layer], output_scale[layer], active, amount, n, first, last, k)
            if kind == OUTPUT:
                _fire(k, neurons[layer, TIME_MIX], volts[TIME_MIX], levels, signed, to_zero, rest, first, last)
            for c in range(first, last):
                x[c] += k[c]
            meetings = _meet(gate, parts, meetings)

            _layer_norm(x[:C], own[LN2_WEIGHT], own[LN2_BIAS], y)
            for site in range(2):
                _mix(memory[CHANNEL_SHIFT], y, own[FFN_MIX_K + site], z)
                if kind == INPUT:
                    _fire_shared(
                        z, neurons[layer, FFN_KEY + site], volts[FFN_KEY + site], levels, signed, to_zero, rest
                    )
                n = _list_active(z, active, amount)
                if part == 0:
                    events[layer, FFN_KEY + site] += n
                if site == 0:
                    _product(ffn_key[layer], ffn_key_scale[layer], active, amount, n, first_hidden, last_hidden, hidden)
                else:
                    _product(ffn_receptance[layer], ffn_receptance_scale[layer], active, amount, n, first, last, r)
            for c in range(first_hidden, last_hidden):
                hidden[c] = max(hidden[c], shared.dtype.type(0)) ** 2
            if kind == INPUT:
                own_hidden = hidden_potential[text, layer]
                _fire(
                    hidden,
                    hidden_neurons[layer],
                    own_hidden,
                    hidden_levels,
                    False,
                    to_zero,
                    rest,
                    first_hidden,
                    last_hidden,
                )
            meetings = _meet(gate, parts, meetings)

            if kind == INPUT and not memoryless:
                for site in range(2):
                    _mix(memory[CHANNEL_SHIFT], y, own[FFN_MIX_K + site], z)
                    _fire(
                        z,
                        neurons[layer, FFN_KEY + site],
                        volts[FFN_KEY + site],
                        levels,
                        signed,
                        to_zero,
                        rest,
                        first,
                        last,
                    )
            memory[CHANNEL_SHIFT, first:last] = y[first:last]
            n = _list_active(hidden[:F], active, amount)
            if part == 0:
                events[layer, INPUT_SITES] += n
            _product(ffn_value[layer], ffn_value_scale[layer], active, amount, n, first, last, v)
            for c in range(first, last):
                v[c] = _sigmoid(r[c]) * v[c]
            if kind == OUTPUT:
                _fire(v, neurons[layer, CHANNEL_MIX], volts[CHANNEL_MIX], levels, signed, to_zero, rest, first, last)
            for c in range(first, last):
                x[c] += v[c]
            meetings = _meet(gate, parts, meetings)

        _layer_norm(x[:C], ln_out[0], ln_out[1], y)
        if spiking_head:
            nothing[:] = 0
            _fire(y, head_neuron, nothing, levels, signed, to_zero, rest, 0, C)
        n = _list_active(y, active, amount)
        if part == 0:
            events[0, INPUT_SITES + 1] += n
        _product(head, head_scale, active, amount, n, first_logit, last_logit, logits[text])
        # the next text overwrites x
        meetings = _meet(gate, parts, meetings)


@fused
def _fire_shared(current, neuron, potential, levels, signed, to_zero, rest):
    """The spikes of `_fire` of all channels, without the step of the potential."""
    zero = current.dtype.type(0)
    for c in range(current.size):
        charged = neuron[DECAY, c] * potential[c] + neuron[GAIN, c] * current[c] + neuron[PULL, c]
        quanta = charged / neuron[THRESHOLD, c]
        count = min(np.floor(abs(quanta)), current.dtype.type(levels))
        current[c] = (-count if signed else zero) if quanta < 0 else count
