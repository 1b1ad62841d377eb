"""How probable continuations of contexts are, exactly as one forward pass over context and continuation has it.

Many at once: requests with the same context share the state after it, and the contexts of a batch their common
beginning. A state that has read padding is never read on from.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..common.errors import SpikegptError
from ..model.network import SpikeGPT, evaluating
from ..model.state import State, join_states, select_texts
from .perplexity import NotFinite

BATCH = 16
# read at once at most: so many tokens of a text, and continuations with so many logits in all
CHUNK, LOGITS = 1024, 1 << 25


class Score(NamedTuple):
    """Of one continuation: its log probability in nats, and whether each of its tokens was the most likely one."""

    log_probability: float
    is_greedy: bool


@torch.inference_mode()
def score_continuations(
    model: SpikeGPT, requests: Sequence[tuple[Sequence[int], Sequence[int]]], batch: int = BATCH
) -> list[Score]:
    """Return the scores of continuations, in the order of `requests`.

    Args:
        requests: (ids of the context, at least one; ids of the continuation; one without any is certain).
        batch: contexts, and then continuations, that are read at once.

    Raises:
        SpikegptError: a context is empty.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for place, (context, _) in enumerate(requests):
        if not len(context):
            raise SpikegptError("a context is empty; the model needs at least one token before what it predicts")
        places.setdefault(tuple(context), []).append(place)
    scores = [Score(0.0, True)] * len(requests)
    # in this order, neighbours have their beginnings in common
    contexts = sorted(places)
    with evaluating(model):
        for start in range(0, len(contexts), batch):
            together = contexts[start : start + batch]
            logits, state = read_contexts(model, together)
            waiting = [
                (text, place)
                for text, context in enumerate(together)
                for place in places[context]
                if len(requests[place][1])
            ]
            for first in range(0, len(waiting), batch):
                texts, found = zip(*waiting[first : first + batch], strict=True)
                results = _read_continuations(
                    model, logits[list(texts)], select_texts(state, texts), [requests[place][1] for place in found]
                )
                for place, score in zip(found, results, strict=True):
                    scores[place] = score
    return scores


def read_contexts(model: SpikeGPT, contexts: Sequence[Sequence[int]]) -> tuple[Tensor, State]:
    """Return (logits (N, vocab_size) of what follows each of N contexts, the state after each of them, as one batch).

    What all have in common is read once. Then they are read together to the end of the shortest, which leaves the
    batch, and so on: there is no padding.
    """
    ordered = sorted(map(tuple, contexts))
    start = _common_length(ordered[0], ordered[-1])
    texts = list(range(len(contexts)))
    logits: Tensor | None = None
    state: State | None = None
    if start:
        logits, state = _read(model, [contexts[0][:start]], None)
        logits, state = logits.expand(len(texts), -1), select_texts(state, [0] * len(texts))
    ended: dict[int, tuple[Tensor, State]] = {}
    for end in sorted(set(map(len, contexts))):
        if end > start:
            logits, state = _read(model, [contexts[text][start:end] for text in texts], state)
        # no context is empty
        assert logits is not None and state is not None
        start, longer = end, []
        for row, text in enumerate(texts):
            if len(contexts[text]) == end:
                ended[text] = logits[[row]], select_texts(state, [row])
            else:
                longer.append(row)
        texts, state = [texts[row] for row in longer], select_texts(state, longer)
    all_logits, states = zip(*(ended[text] for text in range(len(contexts))), strict=True)
    return torch.cat(all_logits), join_states(states)


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts have in common; of the first and the last in order, all between them have as many."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _read(model: SpikeGPT, texts: list[Sequence[int]], state: State | None) -> tuple[Tensor, State]:
    """Logits (N, vocab_size) and state after N texts of the same length."""
    ids = torch.tensor(texts, device=model.device)
    for piece in ids.split(CHUNK, dim=1):
        output = model(piece, state, last_only=True)
        state = output.state
    return output.logits[:, -1], output.state


def _read_continuations(
    model: SpikeGPT, logits: Tensor, state: State, continuations: list[Sequence[int]]
) -> list[Score]:
    """The scores of N continuations of at least one token, from logits (N, vocab_size) and state before each."""
    device = logits.device
    totals = torch.zeros(len(continuations), dtype=torch.float64, device=device)
    is_greedy = torch.ones(len(continuations), dtype=torch.bool, device=device)
    chunk = min(max(LOGITS // logits.numel(), 1), CHUNK)
    texts = list(range(len(continuations)))
    for start in range(0, max(map(len, continuations)), chunk):
        rows = [row for row, text in enumerate(texts) if len(continuations[text]) > start]
        texts, logits, state = [texts[row] for row in rows], logits[rows], select_texts(state, rows)
        pieces = [torch.tensor(continuations[text][start : start + chunk], device=device) for text in texts]
        ids = pad_sequence(pieces, batch_first=True)
        is_token = pad_sequence([torch.ones_like(piece, dtype=torch.bool) for piece in pieces], batch_first=True)
        output = model(ids, state)
        predicted = torch.cat([logits.unsqueeze(1), output.logits[:, :-1]], dim=1).float()
        found = predicted.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        totals[texts] += found.double().masked_fill(~is_token, 0.0).sum(1)
        is_greedy[texts] &= ((predicted.argmax(-1) == ids) | ~is_token).all(1)
        # who goes on has filled its piece; who has read padding stays behind
        logits, state = output.logits[:, -1], output.state
    if not bool(totals.isfinite().all()):
        raise NotFinite("the model's predictions are not finite: its weights have diverged")
    return [Score(*score) for score in zip(totals.tolist(), is_greedy.tolist(), strict=True)]
