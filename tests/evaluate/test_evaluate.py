"""Bits and firing rates against sums worked out independently."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.evaluate.perplexity import evaluate_stream, evaluate_windows, mean_firing_rate
from spikegpt.evaluate.runs import evaluate_run, table
from spikegpt.model.mixers.rwkv4 import ChannelMixState, TimeMixState
from spikegpt.model.network import SpikeGPT
from spikegpt.model.state import BlockState

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
    assert evaluate_stream(model, tokens, ByteTokenizer(), chunk).nats == pytest.approx(
        nats(model, tokens).sum().item(), rel=1e-5
    )


def test_bytes_and_characters_are_those_of_the_text_without_its_first(model, tokens):
    found = evaluate_stream(model, tokens, ByteTokenizer())
    assert (found.tokens, found.bytes, found.characters) == (
        len(TEXT.encode()) - 1,
        len(TEXT.encode()) - 1,
        len(TEXT) - 1,
    )
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
    assert found.firing_rates == pytest.approx(
        {name: (spike != 0).float().mean().item() for name, spike in spikes.items()}, abs=2e-3
    )
    assert found.unit_spikes == pytest.approx(
        {name: spike.abs().mean().item() for name, spike in spikes.items()}, abs=4e-3
    )


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


def test_words_are_between_white_space_and_line_ends_count_once(model):
    text = "Zug \tum\u00a0acht.\n\n = Ende = \n"
    found = evaluate_stream(model, ByteTokenizer().encode(text.encode()), ByteTokenizer())
    # by hand, without the first byte: ug | um | acht. | = | Ende | =, and a no-break space is white
    assert (found.words, found.line_ends) == (6, 3)
    assert found.word_perplexity == pytest.approx(math.exp(found.nats / 6))
    assert found.word_and_line_perplexity == pytest.approx(found.word_perplexity ** (6 / 9))


def test_every_unit_is_the_same_sum_of_nats(model, tokens):
    found = evaluate_stream(model, tokens, ByteTokenizer())
    per_word = found.bits_per_byte * found.bytes / found.words
    assert found.word_perplexity == pytest.approx(2**per_word)
    assert found.bits_per_character * found.characters == pytest.approx(found.bits_per_byte * found.bytes)


def test_one_window_over_the_whole_text_is_the_stream(model, tokens):
    whole = evaluate_windows(model, tokens, ByteTokenizer(), len(tokens) - 1, 1)
    assert whole.nats == pytest.approx(evaluate_stream(model, tokens, ByteTokenizer(), chunk=7).nats, rel=1e-5)


def forgetful(n_layer: int) -> SpikeGPT:
    """A dense model whose WKV keeps the token before and nothing older.

    A layer sees 3 tokens back: two token shifts and that.
    """
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=n_layer, n_embd=16, spiking="none", ctx_len=16)).eval()
    with torch.no_grad():
        for matrix in (parameter for parameter in model.parameters() if parameter.dim() == 2):
            matrix.normal_(std=0.5)
        for block in model.blocks:
            block.att.time_decay.fill_(10.0)
    return model


@pytest.mark.parametrize("n_layer", [1, 2])
def test_windows_are_the_stream_where_they_hold_all_that_the_model_remembers(tokens, n_layer):
    model, sees = forgetful(n_layer), 3 * n_layer + 1
    stream = evaluate_stream(model, tokens, ByteTokenizer()).nats
    assert evaluate_windows(model, tokens, ByteTokenizer(), sees, 1).nats == pytest.approx(stream, rel=1e-6)
    # the first of the last 5 has 4 tokens less behind it than the last
    assert evaluate_windows(model, tokens, ByteTokenizer(), sees + 4, 5).nats == pytest.approx(stream, rel=1e-6)
    assert abs(evaluate_windows(model, tokens, ByteTokenizer(), sees - 1, 1).nats / stream - 1) > 1e-5


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=16, spiking="output")).eval()
    with torch.no_grad():
        for matrix in (parameter for parameter in model.parameters() if parameter.dim() == 2):
            matrix.normal_(std=0.8)
    return model


def test_kept_membranes_start_each_window_and_nothing_else_does(published, tokens):
    wanted, state = 0.0, None
    for start in range(0, 3 * 8, 8):
        ids = torch.from_numpy(tokens[start : start + 9].astype(np.int64))[None]
        with torch.no_grad():
            logits, after, _ = published(ids[:, :-1], state)
        wanted += F.cross_entropy(logits[0], ids[0, 1:], reduction="sum").item()
        state = tuple(
            BlockState(
                TimeMixState(None, None, block.time_mix.neurons),
                block.time_mix_neuron,
                ChannelMixState(None, block.channel_mix.neurons),
                block.channel_mix_neuron,
            )
            for block in after
        )
    found = evaluate_windows(published, tokens[:25], ByteTokenizer(), 8, 8, keep_membrane=True)
    assert found.nats == pytest.approx(wanted, rel=1e-6)
    assert "membranes of the window before" in found.protocol
    assert found.nats != evaluate_windows(published, tokens[:25], ByteTokenizer(), 8, 8).nats


def test_one_window_has_no_membranes_to_inherit(published, tokens):
    kept, plain = (
        evaluate_windows(published, tokens[:9], ByteTokenizer(), 8, 8, keep_membrane=keep) for keep in (True, False)
    )
    assert kept.nats == plain.nats


@pytest.mark.parametrize("spiking", ["none", "input"])
def test_a_model_without_membranes_has_none_to_keep(tokens, spiking):
    # the neurons of the spike-driven block are memoryless
    model = SpikeGPT(ModelConfig(n_layer=1, n_embd=8, spiking=spiking))
    with pytest.raises(
        SpikegptError, match="this model has no membranes to keep: it is dense, or its neurons are memoryless"
    ):
        evaluate_windows(model, tokens, ByteTokenizer(), 8, 8, keep_membrane=True)


def test_the_table_states_both_protocols_and_every_unit(trained, cache):
    shown = table([evaluate_run(trained, cache=cache, limit=100, ctx_len=12, stride=3)])
    for part in (
        "stream, carried state",
        "windows of 12, stride 3, empty state",
        "bits/byte",
        "bits/character",
        "perplexity per word or line end",
    ):
        assert part in shown
