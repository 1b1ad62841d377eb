"""Bits and firing rates against sums worked out independently."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spikegpt.checkpoint import load_model
from spikegpt.errors import SpikegptError
from spikegpt.evaluate import evaluate_run, evaluate_stream, evaluate_windows, mean_firing_rate, table
from spikegpt.tokenizer import ByteTokenizer

TEXT = "Der Zug fährt über die Brücke. " * 9


@pytest.fixture(scope="module")
def model(trained):
    return load_model(trained)[0]


@pytest.fixture(scope="module")
def tokens():
    return ByteTokenizer().encode(TEXT.encode())


def nats(model, tokens) -> torch.Tensor:
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    with torch.no_grad():
        return F.cross_entropy(model(ids[:, :-1]).logits[0], ids[0, 1:], reduction="none").double()


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_stream_is_the_whole_text_at_once(model, tokens, chunk):
    assert evaluate_stream(model, tokens, ByteTokenizer(), chunk).nats == pytest.approx(nats(model, tokens).sum().item(), rel=1e-5)


def test_bytes_and_characters_are_those_of_the_text_without_its_first(model, tokens):
    found = evaluate_stream(model, tokens, ByteTokenizer())
    assert (found.tokens, found.bytes, found.characters) == (len(TEXT.encode()) - 1, len(TEXT.encode()) - 1, len(TEXT) - 1)
    assert found.bits_per_character == pytest.approx(found.nats / math.log(2) / (len(TEXT) - 1))
    assert found.perplexity == pytest.approx(2**found.bits_per_token)


@pytest.mark.parametrize("stride", [1, 5, 16])
def test_windows_score_every_token_once_in_the_right_window(model, tokens, stride):
    ctx_len, wanted, scored = 16, 0.0, 0
    # the definition: the next window begins `stride` later, the last ends with the text
    starts = [*range(0, len(tokens) - 1 - ctx_len, stride), len(tokens) - 1 - ctx_len]
    for start in starts:
        window = nats(model, tokens[start : start + ctx_len + 1])
        wanted += window[scored - start :].sum().item()
        scored = start + ctx_len
    assert scored == len(tokens) - 1
    assert evaluate_windows(model, tokens, ByteTokenizer(), ctx_len, stride).nats == pytest.approx(wanted, rel=1e-5)


def test_firing_rates_and_unit_spikes_are_the_mean_spikes(model, tokens):
    spikes = model(torch.from_numpy(tokens.astype(np.int64))[None, :-1]).spikes
    found = evaluate_stream(model, tokens, ByteTokenizer(), chunk=13)
    assert found.firing_rates == pytest.approx({name: (spike != 0).float().mean().item() for name, spike in spikes.items()}, abs=2e-3)
    assert found.unit_spikes == pytest.approx({name: spike.abs().mean().item() for name, spike in spikes.items()}, abs=4e-3)


def test_the_mean_firing_rate_is_weighted_by_synapses():
    rates = {"emb": 0.9, "a": 0.5, "b": 0.1, "c": 0.3}
    assert mean_firing_rate(rates, {"a": 100, "b": 300}) == pytest.approx((0.5 * 100 + 0.1 * 300) / 400)
    assert mean_firing_rate(rates, {}) == pytest.approx(0.3)
    assert mean_firing_rate({"emb": 0.9}, {}) is None


def test_synaptic_operations_are_unit_spikes_times_their_synapses(model, tokens):
    found = evaluate_stream(model, tokens, ByteTokenizer())
    spikes = model(torch.from_numpy(tokens.astype(np.int64))[None, :-1]).spikes
    wanted = 0.0
    for name, product in model.named_modules():
        if isinstance(product, torch.nn.Linear) and name != "head":
            wanted += spikes[f"{name}_neuron"].abs().sum().item() * product.out_features / (len(tokens) - 1)
    assert found.synops_per_token == pytest.approx(wanted, rel=1e-2)


def test_evaluation_leaves_the_model_in_training(model, tokens):
    model.train()
    evaluate_stream(model, tokens[:9], ByteTokenizer())
    assert model.training
    model.eval()


@pytest.mark.parametrize("n", [0, 1])
def test_too_short_a_text_is_refused(model, tokens, n):
    with pytest.raises(SpikegptError, match=f"the text has {n} token"):
        evaluate_stream(model, tokens[:n], ByteTokenizer())


def test_window_longer_than_the_text_names_both(model, tokens):
    with pytest.raises(SpikegptError, match="ctx_len is 32, the text has 9 tokens; use at most 8"):
        evaluate_windows(model, tokens[:9], ByteTokenizer(), 32, 16)


def test_run_is_evaluated_on_its_own_test_split(trained, cache):
    result = evaluate_run(trained, cache=cache, limit=500)
    assert result["stream"]["tokens"] == 499
    assert "0.ffn.value_neuron" in table([result])


def test_missing_file_is_named(trained, tmp_path):
    with pytest.raises(SpikegptError, match=r"cannot read .*nothing\.txt: No such file"):
        evaluate_run(trained, file=tmp_path / "nothing.txt")
