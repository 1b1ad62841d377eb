"""What the page is told of a text: the same text, its surprise, its spikes, and what they cost."""

import base64
import math
import shutil

import numpy as np
import pytest
import torch

from neuromorphic import OpCounter
from spikegpt.checkpoint.weights import load_model
from spikegpt.config import ModelConfig
from spikegpt.model import SpikeGPT
from spikegpt.serve.operations import dense_macs

ASKED = {"prompt": "It was é", "max_tokens": 9, "seed": 3}


@pytest.fixture
def told(served, pair):
    """(model, its facts, the tokens of the prompt and those behind it)."""
    begin, *events, end = served.events("/watch", {"model": pair[0].name, **ASKED})
    assert (begin, end) == ({"type": "begin", "seed": 3}, {"type": "end"})
    assert [event["is_prompt"] for event in events] == [True] + [False] * (len(events) - 1)
    facts = served.json("GET", "/runs")[1]["runs"][0]
    return load_model(pair[0])[0], facts, events[0]["tokens"], [one for event in events[1:] for one in event["tokens"]]


def forward(model, tokens):
    ids = torch.tensor([[one["id"] for one in tokens]])
    with torch.inference_mode():
        return ids, model(ids)


def test_the_text_is_the_one_that_completions_write(told, served, pair):
    _, _, prompt, drawn = told
    text = served.complete(model=pair[0].name, **ASKED, echo=True)["choices"][0]["text"]
    assert text.startswith("".join(one["text"] for one in [*prompt, *drawn])) and len(drawn) == 9
    assert [one["label"] for one in prompt[-2:]] == ["bytes:\\xc3", "bytes:\\xa9"]


def test_surprise_is_the_models_in_bits(told):
    model, _, prompt, drawn = told
    ids, output = forward(model, [*prompt, *drawn])
    wanted = output.logits[0, :-1].log_softmax(dim=-1).gather(1, ids[0, 1:, None])[:, 0] / -math.log(2)
    bits = [one["bits"] for one in [*prompt, *drawn]]
    assert bits[0] is None and np.allclose(bits[1:], wanted, atol=1e-4)


def test_spikes_are_those_of_a_forward_pass(told):
    model, facts, prompt, drawn = told
    _, output = forward(model, [*prompt, *drawn])
    names = [layer["name"] for layer in facts["layers"]]
    assert names == list(output.spikes)
    wanted = torch.cat([output.spikes[name][0] for name in names], dim=-1)
    for place, one in enumerate([*prompt, *drawn]):
        fired = np.unpackbits(np.frombuffer(base64.b64decode(one["fired"]), np.uint8))[: wanted.shape[-1]]
        # a current within rounding of a threshold may fall on either side
        assert np.sum(fired != (wanted[place] != 0).numpy()) <= 1
        assert abs(sum(one["units"]) - wanted[place].abs().sum().item()) <= 1


@pytest.mark.parametrize("which", [0, 1], ids=["spiking", "twin"])
def test_operations_are_those_that_the_counter_counts(served, pair, which):
    model, _ = load_model(pair[which])
    _, *events, _ = served.events("/watch", {"model": pair[which].name, **ASKED})
    tokens = [one for event in events for one in event["tokens"]]
    counter = OpCounter(model)
    with torch.inference_mode(), counter:
        model(torch.tensor([[one["id"] for one in tokens]]))
    products = counter.tally().by_kind()["matmul"]
    # the counter leaves out weights that are 0
    acs, macs = products.effective_acs + products.unit_acs, products.effective_macs - products.integer_macs
    assert sum(one["acs"] for one in tokens) == pytest.approx(acs, rel=1e-3)
    assert sum(one["macs"] for one in tokens) == pytest.approx(macs, rel=1e-3)
    assert (acs > 0) == (which == 0)


@pytest.mark.parametrize("mixer", ["rwkv4", "rwkv5", "rwkv6", "rwkv7"])
def test_a_token_of_the_dense_twin_costs_what_the_counter_says_zeros_included(mixer):
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=32, ctx_len=8, head_size=16, mixer=mixer, spiking="none"))
    counter = OpCounter(model.eval())
    with torch.inference_mode(), counter:
        model(torch.zeros(1, 3, dtype=torch.long))
    assert 3 * dense_macs(model) == counter.tally().by_kind()["matmul"].dense_ops


def test_a_dense_twin_fires_nothing(served, pair):
    assert served.json("GET", "/runs")[1]["runs"][1]["layers"] == []
    _, *events, _ = served.events("/watch", {"model": pair[1].name, **ASKED})
    assert {(one["acs"], one["fired"]) for event in events for one in event["tokens"]} == {(0, "")}


@pytest.mark.parametrize("fields", [{"prompt": ["a", "b"]}, {"prompt": "x" * 513}, {"n": 2}, {"max_tokens": 0}])
def test_what_the_page_never_asks_for_is_refused(served, pair, fields):
    assert served.json("POST", "/watch", {"model": pair[0].name, **ASKED, **fields})[0] == 400


def test_the_training_curve_comes_piece_by_piece(served, pair):
    lines = pair[0] / "metrics.jsonl"
    whole = lines.read_bytes()
    status, first = served.json("GET", f"/runs/{pair[0].name}/curve")
    assert status == 200 and first["steps"] == 12 and first["next"] == len(whole) and not first["is_anew"]
    assert [point["step"] for point in first["points"] if point["kind"] == "valid"] == [6, 12]
    try:
        # a training goes on: a whole line and the beginning of the next
        lines.write_bytes(whole + b'{"step": 13, "kind": "train", "bits_per_byte": 7.5}\n{"step": 14, "ki')
        more = served.json("GET", f"/runs/{pair[0].name}/curve?after={first['next']}")[1]
        assert [(point["step"], point["bits_per_byte"]) for point in more["points"]] == [(13, 7.5)]
        # it was resumed from an earlier checkpoint
        lines.write_bytes(whole[: len(whole) // 2])
        again = served.json("GET", f"/runs/{pair[0].name}/curve?after={more['next']}")[1]
        assert again["is_anew"] and again["points"][0]["step"] == first["points"][0]["step"]
    finally:
        lines.write_bytes(whole)


def test_a_report_is_shown_without_scripts(served, pair):
    folder = pair[0] / "report"
    folder.mkdir()
    (folder / "report.html").write_text("<h1>what it computes</h1>")
    status, headers, content = served.ask("GET", f"/runs/{pair[0].name}/report")
    assert status == 200 and content == b"<h1>what it computes</h1>"
    assert "script" not in headers["Content-Security-Policy"]
    assert served.json("GET", "/runs")[1]["runs"][0]["has_report"]
    shutil.rmtree(folder)
    assert served.json("GET", f"/runs/{pair[0].name}/report")[0] == 404
