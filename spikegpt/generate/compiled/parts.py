"""What the token steps of all generations are built from: norms, products by rows, neurons, in numba.

A matrix product is a list of the inputs that are not zero and, for each, one contiguous row of the weights (stored
input first) that is multiplied by it and added. With spikes the list is short, with real numbers it is long: every
block and its dense twin run through the same code, and a zero is skipped for all of them.
"""

import numpy as np
from numba.core import types
from numba.extending import overload

from ...kernels.cpu import HALF, ONE, TWO, exp_nonpositive
from .clock import HIDDEN, LISTS, MEETINGS, NEURONS, NORM, PRODUCTS, SUMS, mark, start
from .lists import list_active
from .rows import DECAY, GAIN, PULL, TAKEN, THRESHOLD
from .sums import sum_rows
from .team import columns, fused, inlined, meet, summing


@fused
def list_inputs(product, layer, text, values, work, place):
    """List the inputs of a product in `text` that are not zero, in `place` of its lists."""
    n = list_active(values, work.scratch.active[text, place], work.scratch.amount[text, place])
    work.scratch.listed[text, place] = n
    count_inputs(product, layer, text, work, place)
    mark(work.clock, LISTS)


@fused
def count_inputs(product, layer, text, work, place):
    """Count the inputs listed in `place` as read by `product`."""
    if work.team.part == 0:
        work.inputs_read[product.place, layer] += work.scratch.listed[text, place]


@fused
def _scale(scales, layer, first, last, out):
    # numba leaves out what is never reached only where an argument is None
    if scales is not None:
        for c in range(first, last):
            out[c] *= scales[layer, c]


@fused
def multiply_listed(product, layer, place, work, first, last, out, start):
    """out[:, start:][:, first:last] = (inputs @ weights)[:, first:last] in `layer`, of the inputs listed in `place`."""
    lists, weights = work.scratch, product.weights[layer]
    sum_rows(weights, product.reads_spikes, lists.active, lists.amount, lists.listed, place, first, last, out, start)
    for text in range(out.shape[0]):
        _scale(product.scales, layer, first, last, out[text, start:])
    mark(work.clock, PRODUCTS + product.place)


@fused
def multiply(product, layer, values, work, first, last, out):
    """out[:, first:last] = (values @ weights)[:, first:last] in `layer`, of the inputs that are not zero.

    values (texts, at least as many as the product's inputs), out (texts, at least as many as its outputs).
    """
    for text in range(out.shape[0]):
        list_inputs(product, layer, text, values[text, : product.weights.shape[1]], work, 0)
    multiply_listed(product, layer, 0, work, first, last, out, 0)


@fused
def multiply_inner(product, layer, place, work, start):
    """Write own inner channels of a pair into `projected`, from column `start` on."""
    first, last = columns(product.weights.shape[2], work.team)
    multiply_listed(product, layer, place, work, first, last, work.shared.projected, start)


@inlined
def sum_columns(matrix, factors, text, lists, first, out):
    """Write the columns of a head's matrix, each times its factor, added up where that is not 0, into out[first:]."""
    lists.listed[text, 0] = list_active(factors, lists.active[text, 0], lists.amount[text, 0])
    one = slice(text, text + 1)
    sum_rows(
        matrix, False, lists.active[one], lists.amount[one], lists.listed[one], 0, 0, factors.size, out[one], first
    )


@summing
def layer_norm(x, weight, bias, out, eps=1e-5):
    # a whole number beside a float32 makes a float64, of which half as many are calculated at once
    size, total = x.dtype.type(x.size), x.dtype.type(0)
    for c in range(x.size):
        total += x[c]
    mean = total / size
    total = x.dtype.type(0)
    for c in range(x.size):
        total += (x[c] - mean) * (x[c] - mean)
    scale = ONE / np.sqrt(total / size + x.dtype.type(eps))
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
def tanh(values, first, last):
    values = values[first:last]
    for c in range(values.size):
        values[c] = TWO * sigmoid(TWO * values[c]) - ONE


@summing
def sum_of_products(x, y, z):
    total = x.dtype.type(0)
    for c in range(x.size):
        total += x[c] * y[c] * z[c]
    return total


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
    taken, most = neurons.rows[layer][TAKEN, first:last], current.dtype.type(neurons.levels)
    for c in range(current.size):
        charged = decay[c] * potential[c] + gain[c] * current[c] + pull[c]
        spikes = _count_spikes(charged / threshold[c], most, neurons.signed)
        if neurons.resets_to_rest:
            potential[c] = neurons.rest if spikes != 0 else charged
        else:
            potential[c] = charged - taken[c] * spikes
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
def square_relu(hidden, first, last):
    """Replace hidden[first:last] by its squared ReLU."""
    hidden = hidden[first:last]
    for c in range(hidden.size):
        above = max(hidden[c], hidden.dtype.type(0))
        hidden[c] = above * above


@fused
def add(values, first, last, out):
    """Add the values of these columns to those of `out`."""
    values, out = values[first:last], out[first:last]
    for c in range(out.size):
        out[c] += values[c]


@fused
def copy(values, first, last, out):
    """Write the values of these columns into `out`."""
    values, out = values[first:last], out[first:last]
    for c in range(out.size):
        out[c] = values[c]


@fused
def list_mix(product, neurons, mix, layer, text, previous, work, place):
    """List in `place` the spikes of a token-shift mix, or the mix itself where there are no neurons.

    Every thread fires all neurons before a product itself; the potentials are stepped by their owner, in `remember`.
    """
    lerp(previous, work.scratch.y[text], mix[layer], work.scratch.z)
    look_at_spikes(neurons, layer, text, work.scratch.z, 0, work.scratch.z.size)
    mark(work.clock, NEURONS)
    list_inputs(product, layer, text, work.scratch.z, work, place)


@fused
def remember(neurons, mix, layer, text, previous, work, first, last):
    """Step the potentials of own neurons in front of a product."""
    if neurons.remembers:
        lerp(previous, work.scratch.y[text], mix[layer], work.scratch.z)
        fire(neurons, layer, text, work.scratch.z, first, last)


@fused
def normalise(norm, layer, text, work):
    """Fill the text's row of scratch with its normalised stream."""
    layer_norm(work.shared.stream[text], norm.weight[layer], norm.bias[layer], work.scratch.y[text])
    mark(work.clock, NORM)


@fused
def keep_token(text, previous, work, first, last):
    """Let own columns of the normalised stream be those of the token before."""
    copy(work.scratch.y[text], first, last, previous)
    mark(work.clock, NEURONS)


@fused
def fire_hidden(neurons, layer, work, size, first, last):
    """Replace own columns of the first `size` projected numbers of each text by the spikes of their squared ReLU."""
    for text in range(work.shared.stream.shape[0]):
        hidden = work.shared.projected[text, :size]
        square_relu(hidden, first, last)
        fire(neurons, layer, text, hidden, first, last)
    mark(work.clock, HIDDEN)


@fused
def add_to_stream(neurons, layer, outcomes, work, first, last):
    """Add own columns of the outcomes (texts, ...), or of the spikes of the neurons behind them, to the streams."""
    for text in range(work.shared.stream.shape[0]):
        fire(neurons, layer, text, outcomes[text], first, last)
        add(outcomes[text], first, last, work.shared.stream[text])
    mark(work.clock, SUMS)


@fused
def end_half(product, neurons, layer, values, work, first, last, out, meetings):
    """Multiply, as `multiply`, add the outcomes to the streams, as `add_to_stream`, and meet."""
    multiply(product, layer, values, work, first, last, out)
    add_to_stream(neurons, layer, out, work, first, last)
    return meet_again(work, meetings)


@fused
def meet_again(work, meetings):
    """Wait for the other threads, and return the number of the next meeting."""
    meetings = meet(work.team, meetings)
    mark(work.clock, MEETINGS)
    return meetings


@fused
def begin_token(network, tokens, work):
    """Put the normalised embedding of each text's token into its residual stream."""
    start(work.clock)
    first, last = columns(network.embedding.shape[1], work.team)
    for text in range(tokens.size):
        y, stream = work.scratch.y[text], work.shared.stream[text]
        layer_norm(network.embedding[tokens[text]], network.ln0.weight[0], network.ln0.bias[0], y)
        for c in range(first, last):
            stream[c] = y[c]
    mark(work.clock, NORM)
