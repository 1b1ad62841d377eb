"""Tokens drawn in compiled code: what sample.py defines, and the engine that writes several of them in one call."""

import numpy as np
import pytest
import torch

from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig, SamplingConfig
from spikegpt.generate.compiled.drawing import MOST_TURNS, Drawer
from spikegpt.generate.engine import Engine
from spikegpt.generate.sample import Chooser, sample
from spikegpt.model.network import SpikeGPT

VOCAB = 41
NOTHING = torch.empty(0, dtype=torch.long)


def chooser_of(seed: int = 0, may_be: torch.Tensor | None = None, **changes) -> Chooser:
    may_be = torch.ones(VOCAB, dtype=torch.bool) if may_be is None else may_be
    return Chooser(SamplingConfig(**changes), seed, may_be, NOTHING)


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.499, 0), (0.501, 1), (0.799, 1), (0.801, 2), (1 - 1e-16, 2)]
)
def test_a_number_falls_on_the_token_that_lies_there(uniform, token):
    # 0.5, 0.3 and 0.2 beside each other; what cannot be takes no room
    logits = torch.tensor([0.5, 0.3, 0.2, 0.9]).log()
    logits[3] = -torch.inf
    sampling = SamplingConfig(temperature=1.0, top_p=1.0)
    assert sample(logits, sampling, torch.zeros(4, dtype=torch.bool), uniform) == token
    found = Drawer((1.0, 0, 1.0, 1.0), np.ones(4, np.bool_), np.zeros(4, np.bool_)).draw(logits.numpy(), uniform)
    assert found == token


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, VOCAB, 1000])
@pytest.mark.parametrize("top_p", [0.1, 0.9, 1.0])
@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.7])
def test_compiled_code_draws_what_the_definition_does(temperature, top_k, top_p, penalty):
    rng = np.random.default_rng(0)
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    for case in range(20):
        # some alike, so that the k-th largest is several
        logits = np.round(rng.normal(0, 3, VOCAB), case % 3).astype(np.float32)
        may_be, seen = rng.random(VOCAB) < 0.8, rng.random(VOCAB) < 0.3
        allowed, uniform = torch.from_numpy(np.where(may_be, logits, -np.inf).astype(np.float32)), rng.random()
        found = Drawer((temperature, top_k, top_p, penalty), may_be, seen).draw(logits, uniform)
        assert found == sample(allowed, sampling, torch.from_numpy(seen), uniform)


def model_of(mixer: str, dtype: torch.dtype) -> SpikeGPT:
    torch.manual_seed(3)
    config = ModelConfig(n_layer=2, n_embd=48, vocab_size=VOCAB, mixer=mixer, head_size=16, spiking="input")
    model = SpikeGPT(config).to(dtype).eval()
    for parameter in model.parameters():
        # one that does not say the same whatever it reads
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def begun(model: SpikeGPT, texts: int, by_rows: bool | None, threads: int) -> tuple[Engine, torch.Tensor]:
    ids = torch.arange(texts * 5).reshape(texts, 5) % VOCAB
    with torch.no_grad():
        output = model(ids)
    engine = Engine(model, threads=threads)
    engine.start(output.state, by_rows)
    return engine, output.logits[:, -1]


def written(engine: Engine, logits: torch.Tensor, choosers: list[Chooser], count: int, most: int) -> np.ndarray:
    found = []
    while sum(part.shape[1] for part in found) < count:
        tokens, logits = engine.write(logits, choosers, most)
        found.append(tokens)
    return np.concatenate(found, axis=1)[:, :count]


@pytest.mark.parametrize(
    ("mixer", "dtype", "texts", "threads"),
    [
        ("rwkv4", torch.float64, 1, 1),
        ("rwkv4", torch.float64, 3, 2),
        ("rwkv4", torch.float32, 2, 1),
        pytest.param("rwkv6", torch.float64, 3, 2, marks=pytest.mark.slow),
        pytest.param("rwkv7", torch.float64, 3, 2, marks=pytest.mark.slow),
    ],
)
def test_writing_is_drawing_and_reading_in_turn(mixer, dtype, texts, threads):
    model, count = model_of(mixer, dtype), 90
    options = {"temperature": 1.3, "top_k": 20, "repetition_penalty": 1.2}

    def choosers():
        return [chooser_of(seed, torch.arange(VOCAB) != 7, **options) for seed in range(texts)]

    engine, logits = begun(model, texts, True, threads)
    in_turn, drawn = choosers(), []
    for _ in range(count):
        tokens = [chooser.choose(one) for chooser, one in zip(in_turn, logits, strict=True)]
        logits = engine.step(torch.tensor(tokens))
        drawn.append(tokens)
    wanted = np.array(drawn).T
    assert len(np.unique(wanted)) > 10
    assert 7 not in wanted
    for most in (1, 7, MOST_TURNS):
        other, first = begun(model, texts, True, threads)
        # so that several tokens are written in one call as soon as the threads are chosen
        drawing = choosers()
        np.testing.assert_array_equal(written(other, first, drawing, count, most), wanted)
        for chooser, tokens in zip(drawing, wanted, strict=True):
            assert set(tokens) <= set(chooser.seen.nonzero().flatten().tolist())
    # by the model's own forward pass, a token at a time
    dense, first = begun(model, texts, False, threads)
    tokens, _ = dense.write(first, choosers(), MOST_TURNS)
    np.testing.assert_array_equal(tokens, wanted[:, :1])


def test_several_tokens_are_written_in_one_call():
    engine, logits = begun(model_of("rwkv4", torch.float32), 1, True, 1)
    choosers, found = [chooser_of()], []
    for _ in range(20):
        tokens, logits = engine.write(logits, choosers, 1000)
        found.append(tokens.shape[1])
    assert found[0] == 1
    assert 1 < max(found) <= MOST_TURNS
    assert engine.write(logits, choosers, 3)[0].shape == (1, 3)


def test_texts_that_draw_differently_are_written_too():
    model = model_of("rwkv4", torch.float32)
    engine, logits = begun(model, 2, True, 1)
    tokens, _ = engine.write(logits, [chooser_of(temperature=0.0), chooser_of(temperature=0.0, top_k=1)], 5)
    np.testing.assert_array_equal(tokens, logits.argmax(dim=1)[:, None].numpy())


def test_other_texts_draw_with_their_own_choosers():
    model = model_of("rwkv4", torch.float32)
    engine, logits = begun(model, 1, True, 1)
    some = [chooser_of(1, temperature=3.0)]
    before = written(engine, logits, some, 30, 10)
    again, logits = begun(model, 1, True, 1)
    engine.start(again.state(), True)
    np.testing.assert_array_equal(written(engine, logits, [chooser_of(1, temperature=3.0)], 30, 10), before)


def test_a_chooser_is_wanted_for_each_text():
    model = model_of("rwkv4", torch.float32)
    with pytest.raises(ValueError, match="got 1, and no text was started"):
        Engine(model).write(torch.zeros(1, VOCAB), [chooser_of()], 5)
    engine, logits = begun(model, 2, True, 1)
    with pytest.raises(ValueError, match="got 1, and 2 texts were started"):
        engine.write(logits, [chooser_of()], 5)


@pytest.mark.parametrize("by_rows", [True, False])
def test_broken_predictions_are_an_error(by_rows):
    model = model_of("rwkv4", torch.float32)
    model.head.weight.data[3] = torch.nan
    engine, logits = begun(model, 1, by_rows, 1)
    with pytest.raises(SpikegptError, match="NaN or infinity"):
        engine.write(logits, [chooser_of()], 5)
