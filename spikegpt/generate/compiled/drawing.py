"""The next token, drawn from logits in compiled code: what `generate/sample.py` defines, without a call of torch."""

from typing import NamedTuple

import numpy as np

from .clock import DRAWING, mark
from .heaps import clear, heapify, offer, pop
from .held import Held, held_value
from .parts import begin_token, exp, meet_again
from .team import fused

TEMPERATURE, TOP_K, TOP_P, PENALTY = range(4)
NOTHING, INFINITY = np.float32(-np.inf), np.float32(np.inf)
LOWEST = np.finfo(np.float32).min
# tokens that are written by one call, at most
MOST_TURNS = 64
# temperature, top_k, top_p, repetition penalty
Settings = tuple[float, float, float, float]


class Draw(NamedTuple):
    """What tokens are drawn with: settings (4,), see the places above; may_be (V,), which of them exist, bool.

    scores and weights (V,) float32 and order (V,) int32 are working memory.
    """

    settings: np.ndarray
    may_be: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    order: np.ndarray


class Writing(NamedTuple):
    """What a token step reads and writes: ids (texts,), the tokens, and logits (texts, V), those of the next.

    If tokens are drawn in compiled code: uniforms and drawn (texts, MOST_TURNS), the numbers in [0, 1) that decide, and
    the tokens; seen (texts, V) bool, which tokens a text has.
    """

    ids: np.ndarray
    logits: np.ndarray
    draw: Draw
    seen: np.ndarray
    uniforms: np.ndarray
    drawn: np.ndarray


def new_draw(settings: Settings | np.ndarray, may_be: np.ndarray) -> Draw:
    """Return what tokens are drawn with, with working memory of its own."""
    scores, weights = np.empty((2, len(may_be)), np.float32)
    return Draw(np.array(settings, np.float64), may_be, scores, weights, np.empty(len(may_be), np.int32))


def of_texts(writing: Writing, texts: slice) -> Writing:
    """Return the part of a thread that does these texts, or these columns of them, with working memory of its own."""
    draw = new_draw(writing.draw.settings, writing.draw.may_be)
    rows = (part[texts] for part in (writing.ids, writing.logits, writing.seen, writing.uniforms, writing.drawn))
    ids, logits, seen, uniforms, drawn = rows
    return Writing(ids, logits, draw, seen, uniforms, drawn)


def only_reading(ids: np.ndarray, logits: np.ndarray) -> Writing:
    """Return what a token step reads and writes where nothing is drawn."""
    nothing = np.zeros((1, 1))
    return Writing(ids, logits, new_draw((0, 0, 1, 1), nothing[0] > 0), nothing > 0, nothing, nothing.astype(np.int64))


@fused
def _kth_largest(scores, heap):
    """Return the largest of `scores` that as many reach as the heap has places; -inf if there are fewer."""
    clear(heap)
    for v in range(scores.size):
        offer(heap, scores[v])
    return heap[0]


@fused
def _likeliest(scores):
    best = 0
    for v in range(scores.size):
        if scores[v] > scores[best]:
            best = v
    return best


@fused
def _score(draw, seen, logits):
    """Fill scores with the logits that count, penalised; return the largest before that, NaN if one is NaN."""
    scores, penalty, top = draw.scores, np.float32(draw.settings[PENALTY]), NOTHING
    for v in range(logits.size):
        logit = np.float32(logits[v]) if draw.may_be[v] else NOTHING
        if logit > top or logit != logit:
            top = logit
        if penalty != 1 and seen[v]:
            logit = logit / penalty if logit > 0 else logit * penalty
        scores[v] = logit
        if top != top:
            return top
    return top


@fused
def _narrow(weights, order, top_p, total):
    """Set the weights to 0 of all but the likeliest that together have the share `top_p`; return their sum."""
    size = 0
    for v in range(weights.size):
        if weights[v] > 0:
            order[size] = v
            size += 1
    heapify(weights, order, size)
    kept = np.float64(0)
    while size and (kept == 0 or kept < top_p * total):
        kept += weights[pop(weights, order, size)]
        size -= 1
    for place in range(size):
        weights[order[place]] = 0
    return kept


@fused
def draw_token(draw, seen, logits, uniform):
    """Return the next token of a text by its logits (V,), those it has seen (V,) and a number in [0, 1).

    -1 if a logit is NaN or infinite.
    """
    scores, weights, settings = draw.scores, draw.weights, draw.settings
    top = _score(draw, seen, logits)
    if not NOTHING < top < INFINITY:
        return -1
    best = _likeliest(scores)
    if settings[TEMPERATURE] == 0:
        return best
    temperature = np.float32(settings[TEMPERATURE])
    scaled = scores[best] / temperature if temperature > 0 else INFINITY
    if not NOTHING < scaled < INFINITY:
        return best
    for v in range(scores.size):
        scores[v] /= temperature
    least, k = LOWEST, int(settings[TOP_K])
    if 0 < k < scores.size:
        least = max(least, _kth_largest(scores, weights[:k]))
    total = np.float64(0)
    for v in range(scores.size):
        weights[v] = exp(scores[v] - scaled) if scores[v] >= least else np.float32(0)
        total += weights[v]
    if settings[TOP_P] < 1:
        total = _narrow(weights, draw.order, settings[TOP_P], total)
    wanted, reached, token = uniform * total, np.float64(0), best
    for v in range(weights.size):
        if weights[v] > 0:
            token, reached = v, reached + weights[v]
            if reached > wanted:
                return token
    return token


@fused
def _draw_tokens(writing, turn, work, meetings):
    """Draw the next token of each text, for them to be read, once all threads have written their logits."""
    meetings = meet_again(work, meetings)
    if work.team.part == 0:
        for text in range(writing.ids.size):
            seen = writing.seen[text]
            token = draw_token(writing.draw, seen, writing.logits[text], writing.uniforms[text, turn])
            writing.drawn[text, turn] = token
            if token >= 0:
                writing.ids[text], seen[token] = token, True
        mark(work.clock, DRAWING)
    return meet_again(work, meetings)


@fused
def begin_turn(network, writing, turn, turns, work, meetings):
    """Put the token of each text, drawn from the logits before it if there are `turns`, into the streams, and meet."""
    if turns:
        meetings = _draw_tokens(writing, turn, work, meetings)
    begin_token(network, writing.ids, work)
    return meet_again(work, meetings)


class Drawer:
    """Draws the tokens of one text, one at a time.

    Args:
        settings: temperature, top_k, top_p, repetition penalty.
        may_be: (vocab_size,) bool, the tokens that exist.
        seen: (vocab_size,) bool, those that the text has, read at every draw.
    """

    def __init__(self, settings: Settings, may_be: np.ndarray, seen: np.ndarray):
        self._held = Held((new_draw(settings, may_be), seen))

    def draw(self, logits: np.ndarray, uniform: float) -> int:
        """Return the next token by logits (vocab_size,) float32 and a number in [0, 1); -1 if a logit is NaN or
        infinite."""
        return _draw_held(self._held, np.ascontiguousarray(logits), uniform)


@fused
def _draw_held(held, logits, uniform):
    draw, seen = held_value(held)
    return draw_token(draw, seen, logits, uniform)
