"""Tokens and phases: each token is numbered once, however the model is called."""

import pytest
import torch
from counting import count, reals
from torch import nn

from neuromorphic import OpCounter


class Model(nn.Module):
    """Ids, a body, a head; its arguments stand in an order that invites mistakes."""

    def __init__(self):
        super().__init__()
        self.model, self.positions, self.lm_head = nn.Embedding(11, 8), nn.Embedding(16, 8), nn.Linear(8, 11)

    def forward(self, attention_mask=None, input_ids=None, position_ids=None, inputs_embeds=None):
        h = self.model(input_ids) if inputs_embeds is None else inputs_embeds
        return self.lm_head(h + self.positions(torch.arange(h.shape[1])))


IDS = torch.arange(14).reshape(2, 7) % 11
MASK = torch.ones(2, 9, dtype=torch.int64)


def tokens(run, model=None):
    model = model or Model()
    with torch.no_grad(), OpCounter(model) as counter:
        run(model)
    return counter.tally().tokens


WHOLE = {
    "a call": lambda m: m(input_ids=IDS),
    "body and head": lambda m: m.lm_head(m.model(IDS)),
    "forward": lambda m: m.forward(input_ids=IDS),
    "body, work outside, head": lambda m: m.lm_head(m.model(IDS).relu() * 2),
    "a head for the last token": lambda m: m.lm_head(m.model(IDS)[:, -1]),
    "mask first": lambda m: m(MASK, IDS),
    "mask first, by names": lambda m: m(attention_mask=MASK, input_ids=IDS),
    "positions beside": lambda m: m(position_ids=torch.arange(9)[None], input_ids=IDS),
    "vectors": lambda m: m(inputs_embeds=reals(2, 7, 8), position_ids=torch.arange(9)[None]),
    "a dictionary": lambda m: m(**{"attention_mask": MASK, "input_ids": IDS}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_token_is_numbered_once(name):
    assert tokens(WHOLE[name]) == {"prefill": 14}


DECODING = {
    "mask first": lambda m: m(attention_mask=MASK, input_ids=IDS[:, :1]),
    "body and head": lambda m: m.lm_head(m.model(IDS[:, :1])),
    "forward": lambda m: m.forward(None, IDS[:, :1]),
}


@pytest.mark.parametrize("name", DECODING)
def test_one_token_per_text_is_decoding(name):
    assert tokens(DECODING[name]) == {"decode": 2}


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, attention_mask=None, hidden_states=None, state=None):
        return self.linear(hidden_states)


def test_hidden_states_are_a_text_and_a_state_is_none():
    run = {"attention_mask": MASK, "state": reals(3, 9, 8), "hidden_states": reals(2, 7, 8)}
    assert tokens(lambda layer: layer(**run), Layer()) == {"prefill": 14}


def test_each_text_that_is_read_in_parts_is_numbered():
    def run(model):
        for _ in range(3):
            model.lm_head(model.model(IDS))

    assert tokens(run) == {"prefill": 3 * 14}


def test_tokens_that_the_model_has_chosen_are_new_ones():
    def run(model):
        ids = model(input_ids=IDS).argmax(-1)[:, -1:]
        for _ in range(3):
            ids = model.lm_head(model.model(ids)).argmax(-1)

    assert tokens(run) == {"prefill": 14, "decode": 6}


def test_a_parametrized_weight_that_is_looked_at_is_no_token():
    model = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
    with torch.no_grad(), OpCounter(model) as counter:
        model.weight.sum()
        model(reals(3, 8))
    assert counter.tally().tokens == {"prefill": 3}


# layer, shape of its input, tokens
SHAPES = {
    "one vector": (nn.Linear(8, 4), (8,), {"prefill": 1}),
    "vectors": (nn.Linear(8, 4), (3, 8), {"prefill": 3}),
    "texts of vectors": (nn.Linear(8, 4), (2, 3, 8), {"prefill": 6}),
    "images": (nn.Conv2d(3, 4, 3), (2, 3, 5, 5), {"prefill": 2}),
    "time first": (nn.LSTM(8, 4), (5, 1, 8), {"prefill": 5}),
    "a step, time first": (nn.GRU(8, 4), (1, 3, 8), {"decode": 3}),
    "batch first": (nn.LSTM(8, 4, batch_first=True), (3, 5, 8), {"prefill": 15}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_tokens_of_an_input_by_its_shape(name):
    layer, shape, want = SHAPES[name]
    assert count(layer, reals(*shape)).tokens == want
