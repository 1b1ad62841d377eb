"""A model in whole numbers, and what it carries from token to token. How it is made: making.py.

A number with `places` places stands for number / 2^places. What a token computes is defined in reference.py, and done
by step.py.
"""

from typing import NamedTuple

import numpy as np

# what a number loses when it is shifted to the right: it goes to the nearest, halves upward, or toward zero
NEAREST, TOWARD_ZERO = 0, 1
# what a spike leaves of a membrane
ZERO, SUBTRACT, NONE = 0, 1, 2
# of what tables hold, and of the point between two entries of exp
FRACTION_BITS = 16
# a sigmoid's table ends at 2^4: there 1 is the nearest of 16 places
SIGMOID_END_BITS = 4
# of a mean over the channels
MEAN_BITS = 24
# of log2(e)
LOG2_E = 94548
# the sites of a block, in the order of their spikes; all have n_embd channels but the last
SITES = (
    *(f"att.{name}_neuron" for name in ("key", "value", "receptance", "wkv", "output")),
    *(f"ffn.{name}_neuron" for name in ("key", "receptance", "value")),
)
# matrices of (n_embd, n_embd), in the order of Program.square
SQUARE = ("att.key", "att.value", "att.receptance", "att.output", "ffn.receptance")
# what may reach its limit, in the order of the counts of saturations; the mean of values cannot
QUANTITIES = (
    "stream",
    "norm",
    "mix",
    "key",
    "value",
    "receptance",
    "gate",
    "hidden",
    "squared",
    "back",
    "membrane",
    "logits",
)
STREAM, NORM, MIX, KEY, VALUE, RECEPTANCE, GATE, HIDDEN, SQUARED, BACK, MEMBRANE, LOGITS = range(12)


class Program(NamedTuple):
    """All that a token needs, in whole numbers; V tokens, L layers, C channels, F hidden ones, N neurons of a block."""

    rounding: int
    state_bits: int
    factor_bits: int
    levels: int
    hidden_levels: int
    head_levels: int
    """0 if the head reads numbers"""
    signed: bool
    reset: int
    remembers: bool
    stream_places: int
    epsilon: int
    """of the sum of squares of a norm"""
    inverse_channels: int
    """2^24 / C"""
    exp_table: np.ndarray
    """2^x for x from 0 to 1, as all tables with one entry more than intervals"""
    sigmoid_table: np.ndarray
    """for x from 0 to 2^SIGMOID_END_BITS"""
    reciprocal_table: np.ndarray
    """1 / x for x from 1 to 2"""
    root_table: np.ndarray
    """1 / sqrt(x) for x from 0 to 4; it is read from 1 on"""
    embedding: np.ndarray
    """(V, C) mantissas: rows of ln0(emb)"""
    embedding_shift: np.ndarray
    """(V,) places of a row that the stream has not; so all shifts are to the right, and may be negative"""
    norm_weight: np.ndarray
    """(2 L + 1, C) times sqrt(C)"""
    norm_bias: np.ndarray
    norm_shift: np.ndarray
    """(2 L + 1,)"""
    mix: np.ndarray
    """(L, 5, C) how much of its own token a channel keeps: key, value, receptance; key, receptance"""
    threshold: np.ndarray
    """(L, N) in the order of SITES"""
    membrane_decay: np.ndarray
    """(L, N)"""
    gain: np.ndarray
    """(L, N)"""
    square: np.ndarray
    """(L, 5, C, C) mantissas, inputs first, in the order of SQUARE"""
    square_shift: np.ndarray
    """(L, 5, C)"""
    hidden: np.ndarray
    """(L, C, F)"""
    hidden_shift: np.ndarray
    squared_shift: np.ndarray
    """(L,) of the square of a hidden current"""
    back: np.ndarray
    """(L, F, C)"""
    back_shift: np.ndarray
    back_places: np.ndarray
    """(L,)"""
    key_places: np.ndarray
    """(L,)"""
    key_limit: np.ndarray
    """(L,)"""
    receptance_places: np.ndarray
    """(L, 2) of the time mix, of the channel mix"""
    first: np.ndarray
    """(L, C) mantissas of exp(time_first), FRACTION_BITS - 1 places"""
    first_exponent: np.ndarray
    decay: np.ndarray
    """(L, C) exp(-exp(time_decay))"""
    spike_bits: int
    """log2 of `levels`, upward"""
    head_threshold: np.ndarray
    """(C,)"""
    head: np.ndarray
    """(C, V)"""
    head_shift: np.ndarray
    logit_places: int


class State(NamedTuple):
    """What is carried from token to token; all zeros at the beginning of a text."""

    before: np.ndarray
    """(2, L, C) what the norm of each half gave of the token before"""
    numerator: np.ndarray
    """(L, C) of the WKV's mean; it stands for numerator * 2^(exponent + spike_bits)"""
    denominator: np.ndarray
    """(L, C) stands for denominator * 2^exponent, with its first digit in one of the two highest places"""
    exponent: np.ndarray
    """(L, C)"""
    membrane: np.ndarray
    """(L, N)"""


def empty_state(program: Program) -> State:
    """Return the state at the beginning of a text."""
    L, N = program.threshold.shape
    C = program.mix.shape[2]
    return State(*(np.zeros(shape, np.int64) for shape in ((2, L, C), (L, C), (L, C), (L, C), (L, N))))
