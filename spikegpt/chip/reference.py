"""What a token computes in whole numbers, in Python's own integers, which have no longest: one token, layer by layer.

Written to be read. step.py does the same in 64 bits, and is tested against this file number by number. The equations
in real numbers: model/mixers/rwkv4.py, kernels/event_wkv/reference.py, kernels/integer_lif/reference.py.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

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
    Program,
    State,
)

Numbers = list[int]


def shifted(number: int, places: int, rounding: int) -> int:
    """Return number / 2^places as the target rounds."""
    if places <= 0:
        return number * 2**-places
    if rounding == NEAREST:
        return (2 * number + 2**places) // 2 ** (places + 1)
    return abs(number) // 2**places * (-1 if number < 0 else 1)


def between(table: Numbers, number: int, bits: int) -> int:
    """Return what a table of 2^n intervals has at number / 2^bits of its length, on a line between its entries."""
    intervals = len(table) - 1
    at, rest = divmod(number * intervals, 2**bits)
    if rest == 0:
        return table[at]
    return table[at] + (table[at + 1] - table[at]) * rest // 2**bits


def count_spikes(charged: int, threshold: int, levels: int, signed: bool) -> int:
    """Return the whole thresholds in a potential, at most `levels`, with its sign."""
    n = min(abs(charged) // threshold, levels)
    return n if charged >= 0 else -n if signed else 0


def read(program: Program, state: State, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, State]:
    """Return (logits (T, V), spikes (T, L, N), saturations (L + 1, quantities), state) of tokens (T,).

    All of Python's integers; the state that was given is not changed.
    """
    text = _Text(program, state)
    steps = [text.token(int(token)) for token in tokens]
    logits, spikes = zip(*steps, strict=True)
    after = State(*(np.array(part, dtype=object) for part in text.state))
    return np.array(logits, dtype=object), np.array(spikes, dtype=object), text.saturations, after


class _Text:
    """A text that is being read."""

    def __init__(self, program: Program, state: State):
        parts: list[Any] = [part.tolist() if isinstance(part, np.ndarray) else part for part in program]
        self.p: Any = Program(*parts)
        self.state: list[Any] = [part.tolist() for part in state]
        self.before, self.numerator, self.denominator, self.exponent, self.membrane = self.state
        L, self.C, self.F = program.hidden.shape
        self.saturations = np.zeros((L + 1, LOGITS + 1), np.int64)

    def shift(self, number: int, places: int) -> int:
        return shifted(number, places, self.p.rounding)

    def saturated(self, layer: int, quantity: int, number: int) -> int:
        """The number of state_bits bits that is nearest; another one is counted."""
        limit = 2 ** (self.p.state_bits - 1)
        kept = max(-limit, min(number, limit - 1))
        self.saturations[layer, quantity] += kept != number
        return kept

    def token(self, token: int) -> tuple[Numbers, list[Numbers]]:
        p, L = self.p, len(self.p.hidden)
        x = [
            self.saturated(L, STREAM, self.shift(mantissa, p.embedding_shift[token])) for mantissa in p.embedding[token]
        ]
        spikes = []
        for layer in range(L):
            fired, added = self.time_mix(layer, self.norm(2 * layer, layer, x))
            x = [self.saturated(layer, STREAM, a + b) for a, b in zip(x, added, strict=True)]
            fired_too, added = self.channel_mix(layer, self.norm(2 * layer + 1, layer, x))
            x = [self.saturated(layer, STREAM, a + b) for a, b in zip(x, added, strict=True)]
            spikes.append(fired + fired_too)
        read = self.norm(2 * L, L, x)
        if p.head_levels:
            read = [
                count_spikes(a, threshold, p.head_levels, p.signed)
                for a, threshold in zip(read, p.head_threshold, strict=True)
            ]
        return self.product(L, LOGITS, read, p.head, p.head_shift), spikes

    def norm(self, index: int, layer: int, x: Numbers) -> Numbers:
        """weight * (x - mean) / sqrt(sum of squares) + bias; the weight holds sqrt(C)."""
        p = self.p
        mean = self.shift(sum(x) * p.inverse_channels, MEAN_BITS)
        squares = p.epsilon + sum((a - mean) ** 2 for a in x)
        # squares = x * 4^q with x from 1 to 4, which has FRACTION_BITS - 1 places
        q = (squares.bit_length() - 1) // 2
        digits = self.shift(squares, 2 * q - (FRACTION_BITS - 1))
        root = between(p.root_table, digits, FRACTION_BITS + 1)
        out = []
        for a, weight, bias in zip(x, p.norm_weight[index], p.norm_bias[index], strict=True):
            share = self.shift((a - mean) * root, FRACTION_BITS + q - (p.state_bits - 2))
            out.append(self.saturated(layer, NORM, self.shift(share * weight, p.norm_shift[index]) + bias))
        return out

    def mixed(self, layer: int, which: int, now: Numbers, before: Numbers) -> Numbers:
        one, found = 2**self.p.factor_bits, []
        for share, a, b in zip(self.p.mix[layer][which], now, before, strict=True):
            number = self.shift(share * a + (one - share) * b, self.p.factor_bits)
            found.append(self.saturated(layer, MIX, number))
        return found

    def fire(self, layer: int, start: int, currents: Numbers, hidden: bool = False) -> Numbers:
        p, spikes = self.p, []
        levels, signed = (p.hidden_levels, False) if hidden else (p.levels, p.signed)
        for site, current in enumerate(currents, start):
            threshold, charged = p.threshold[layer][site], current
            if p.remembers:
                kept = self.shift(p.membrane_decay[layer][site] * self.membrane[layer][site], p.factor_bits)
                gained = self.shift(p.gain[layer][site] * current, p.factor_bits)
                charged = self.saturated(layer, MEMBRANE, kept + gained)
            n = count_spikes(charged, threshold, levels, signed)
            spikes.append(n)
            if p.remembers:
                left = {SUBTRACT: charged - n * threshold, ZERO: 0 if n else charged}
                self.membrane[layer][site] = left.get(p.reset, charged)
        return spikes

    def product(self, layer: int, quantity: int, inputs: Numbers, weights: list[Numbers], shift: Numbers) -> Numbers:
        """inputs (in,) @ weights (in, out), the point put where the outcome has it."""
        columns = zip(*weights, strict=True)
        sums = [sum(a * weight for a, weight in zip(inputs, column, strict=True)) for column in columns]
        moved = [self.shift(total, places) for total, places in zip(sums, shift, strict=True)]
        return [self.saturated(layer, quantity, number) for number in moved] if quantity >= 0 else moved

    def sigmoid(self, number: int, places: int) -> int:
        """With FRACTION_BITS places."""
        bits = FRACTION_BITS + SIGMOID_END_BITS
        size = min(self.shift(abs(number), places - FRACTION_BITS), 2**bits - 1)
        share = between(self.p.sigmoid_table, size, bits)
        return share if number >= 0 else 2**FRACTION_BITS - share

    def time_mix(self, layer: int, now: Numbers) -> tuple[Numbers, Numbers]:
        """(spikes, what is added to the stream)"""
        p, C, before = self.p, self.C, self.before[0][layer]
        spikes: Numbers = []
        currents = {}
        for which, quantity in enumerate((KEY, VALUE, RECEPTANCE)):
            fired = self.fire(layer, len(spikes), self.mixed(layer, which, now, before))
            spikes += fired
            weights, shift = p.square[layer][which], p.square_shift[layer][which]
            currents[quantity] = self.product(layer, quantity, fired, weights, shift)
        self.before[0][layer] = now
        values = self.fire(layer, 3 * C, currents[VALUE])
        means = [self.wkv(layer, c, currents[KEY][c], values[c]) for c in range(C)]
        opened = [self.sigmoid(number, p.receptance_places[layer][0]) for number in currents[RECEPTANCE]]
        gated = [self.shift(a * b, FRACTION_BITS) for a, b in zip(opened, means, strict=True)]
        fired = self.fire(layer, 4 * C, gated)
        return spikes + values + fired, self.product(layer, -1, fired, p.square[layer][3], p.square_shift[layer][3])

    def wkv(self, layer: int, c: int, key: int, spike: int) -> int:
        """The mean of value spikes of a channel, with state_bits - 2 - spike_bits places."""
        p, digits = self.p, self.p.state_bits - 2
        limit = 2 ** (p.state_bits - 1) - 1
        scale, decay = self.exponent[layer][c], p.decay[layer][c]
        above, below = self.numerator[layer][c], self.denominator[layer][c]
        # the weight of this token is weight * 2^exponent: e^key where there is an event, else 1
        weight, exponent = 2 ** (FRACTION_BITS - 1), -(FRACTION_BITS - 1)
        if spike != 0:
            most = p.key_limit[layer]
            whole, part = divmod(self.shift(max(-most, min(key, most)) * LOG2_E, p.key_places[layer]), 2**FRACTION_BITS)
            weight, exponent = between(p.exp_table, part, FRACTION_BITS), exponent + whole
        boosted = weight * p.first[layer][c] // 2 ** (FRACTION_BITS - 1)

        def summed(past: tuple[int, int], present: tuple[int, int]) -> tuple[int, int, int]:
            """(numerator, denominator, exponent) of the past, a factor and its places, and a weight and exponent."""
            (factor, places), (size, power) = past, present
            tops = [(size.bit_length() + power), (below * factor).bit_length() + scale - places]
            common = (max(tops) if below * factor > 0 else tops[0]) - digits
            return (
                self.shift(above * factor, common - scale + places)
                + self.shift(size * spike, common - power + p.spike_bits),
                min(self.shift(below * factor, common - scale + places) + self.shift(size, common - power), limit),
                common,
            )

        numerator, denominator, _ = summed((1, 0), (boosted, exponent + p.first_exponent[layer][c]))
        to_front = p.state_bits - 1 - denominator.bit_length()
        inverse = between(p.reciprocal_table, denominator * 2**to_front % 2**digits, digits)
        mean = self.shift(numerator * 2**to_front * inverse, FRACTION_BITS)

        numerator, denominator, common = summed((decay, p.factor_bits), (weight, exponent))
        self.numerator[layer][c] = max(-limit, min(numerator, limit))
        self.denominator[layer][c], self.exponent[layer][c] = denominator, common
        return mean

    def channel_mix(self, layer: int, now: Numbers) -> tuple[Numbers, Numbers]:
        """(spikes, what is added to the stream)"""
        p, C, before = self.p, self.C, self.before[1][layer]
        keys = self.fire(layer, 5 * C, self.mixed(layer, 3, now, before))
        hidden = self.product(layer, HIDDEN, keys, p.hidden[layer], p.hidden_shift[layer])
        gates = self.fire(layer, 6 * C, self.mixed(layer, 4, now, before))
        gate = self.product(layer, GATE, gates, p.square[layer][4], p.square_shift[layer][4])
        self.before[1][layer] = now
        squared = [self.shift(max(number, 0) ** 2, p.squared_shift[layer]) for number in hidden]
        fired = self.fire(layer, 7 * C, [self.saturated(layer, SQUARED, number) for number in squared], hidden=True)
        back = self.product(layer, BACK, fired, p.back[layer], p.back_shift[layer])
        places = FRACTION_BITS + p.back_places[layer] - p.stream_places
        opened = [self.sigmoid(number, p.receptance_places[layer][1]) for number in gate]
        return keys + gates + fired, [self.shift(a * b, places) for a, b in zip(opened, back, strict=True)]
