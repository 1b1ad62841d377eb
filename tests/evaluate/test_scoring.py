"""Scores of continuations against one plain forward pass per request."""

import random

import pytest
import torch
from runs import BLOCKS
from torch.utils._pytree import tree_leaves

from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.evaluate import scoring
from spikegpt.evaluate.scoring import read_contexts, score_continuations
from spikegpt.model.network import SpikeGPT


@pytest.fixture(scope="module", params=BLOCKS)
def model(request):
    torch.manual_seed(1)
    # in float64: what RWKV-7 divides by the length of keys is sometimes small
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=16, **BLOCKS[request.param], vocab_size=32)).double().eval()
    with torch.no_grad():
        for matrix in (parameter for parameter in model.parameters() if parameter.dim() == 2):
            matrix.normal_(std=0.7)
    return model


def plain(model, context, continuation) -> tuple[float, bool]:
    """The definition: one forward pass over both."""
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *continuation]])).logits[0].double()
    found = logits[len(context) - 1 : -1]
    ids = torch.tensor(continuation)
    return found.log_softmax(-1).gather(1, ids[:, None]).sum().item(), bool((found.argmax(-1) == ids).all())


def requests_of(seed: int) -> list[tuple[list[int], list[int]]]:
    """Contexts that share a beginning, several continuations each, lengths from 1 to 9, and a stranger."""
    generator = random.Random(seed)

    def text(longest):
        return [generator.randrange(32) for _ in range(generator.randint(1, longest))]

    beginning = text(9)
    requests = [(beginning + text(9), text(9)) for _ in range(5)] + [(beginning, text(9)), (text(3), text(9))]
    requests += [(context, text(9)) for context, _ in requests]
    generator.shuffle(requests)
    return requests


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_scores_are_those_of_a_plain_forward_pass(model, batch):
    requests = requests_of(batch)
    found = score_continuations(model, requests, batch)
    for score, request in zip(found, requests, strict=True):
        assert score.log_probability == pytest.approx(plain(model, *request)[0], abs=1e-5)
        assert score.is_greedy == plain(model, *request)[1]


@pytest.mark.parametrize("pieces", [1, 4])
def test_long_texts_are_read_in_pieces_to_the_same_end(model, monkeypatch, pieces):
    monkeypatch.setattr(scoring, "CHUNK", pieces)
    requests = requests_of(7)
    found = [score.log_probability for score in score_continuations(model, requests, 5)]
    assert found == pytest.approx([plain(model, *request)[0] for request in requests], abs=1e-5)


def test_the_greedy_continuation_is_greedy_until_one_token_differs(model):
    context, continuation = [3, 1, 4], []
    for _ in range(6):
        with torch.no_grad():
            continuation.append(model(torch.tensor([context + continuation])).logits[0, -1].argmax().item())
    wrong = [*continuation[:-1], (continuation[-1] + 1) % 32]
    # the short one stands beside longer ones, and so is padded
    scores = score_continuations(model, [(context, continuation), (context, wrong), (context, continuation[:2])])
    assert [score.is_greedy for score in scores] == [True, False, True]


def test_a_shared_context_is_read_once(model):
    read = []
    hook = model.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel()))
    score_continuations(model, [(list(range(20)), [token]) for token in range(8)])
    hook.remove()
    # 20 tokens of context, then the 8 continuations of one token
    assert read == [20, 8]


def test_a_common_beginning_is_read_once(model):
    read = []
    hook = model.register_forward_pre_hook(lambda _, inputs: read.append(tuple(inputs[0].shape)))
    read_contexts(model, [[*range(20), 1], [*range(20), 2, 3], [*range(20), 4]])
    hook.remove()
    # the beginning of all three; one token more of each; the last token of the longest
    assert read == [(1, 20), (3, 1), (1, 1)]


def test_contexts_with_a_common_beginning_are_read_together_in_whatever_order_they_come(model):
    read = []
    hook = model.register_forward_pre_hook(lambda _, inputs: read.append(tuple(inputs[0].shape)))
    one, other = list(range(20)), list(range(10, 30))
    score_continuations(model, [([*text, token], []) for token in (1, 2) for text in (one, other)], batch=2)
    hook.remove()
    assert read == [(1, 20), (2, 1), (1, 20), (2, 1)]


def test_states_after_contexts_of_different_lengths_hold_no_padding(model):
    contexts = [[1, 2, 3, 4, 5], [1, 2], [1, 2, 9], [7]]
    logits, state = read_contexts(model, contexts)
    for row, context in enumerate(contexts):
        with torch.no_grad():
            alone = model(torch.tensor([context]))
        torch.testing.assert_close(logits[row], alone.logits[0, -1], atol=1e-5, rtol=1e-5)
        for mine, theirs in zip(tree_leaves(state), tree_leaves(alone.state), strict=True):
            if mine is not None:
                torch.testing.assert_close(mine[row], theirs[0], atol=1e-5, rtol=1e-5)


def test_nothing_to_say_is_certain(model):
    assert score_continuations(model, [([1], [])]) == [(0.0, True)]


def test_an_empty_context_is_refused(model):
    with pytest.raises(SpikegptError, match="at least one token"):
        score_continuations(model, [([], [1])])
