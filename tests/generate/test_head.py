"""The head of a large vocabulary: tokens that are left out are surely not among the likeliest, the others are exact."""

import numpy as np
import pytest
import torch

from spikegpt.config import ModelConfig, SamplingConfig
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.generate.compiled import head
from spikegpt.generate.engine import Engine
from spikegpt.generate.sample import Chooser
from spikegpt.generate.stream import has_token, logits_wanted
from spikegpt.model.network import SpikeGPT

pytestmark = pytest.mark.slow
# no multiple of the columns that lie together
VOCAB = 3001


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch):
    monkeypatch.setattr(head, "LARGE_VOCABULARY", VOCAB)


def model_of(spiking_head: bool) -> SpikeGPT:
    torch.manual_seed(1)
    config = ModelConfig(n_layer=1, n_embd=72, vocab_size=VOCAB, spiking="input", spiking_head=spiking_head)
    model = SpikeGPT(config).eval()
    torch.nn.init.normal_(model.head.weight, std=0.05)
    return model


def logits_of(model: SpikeGPT, top_k: int | None, threads: int = 1) -> torch.Tensor:
    """(tokens, texts, vocab_size) of three texts."""
    ids = torch.randint(VOCAB, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        state = model(ids[:, :2]).state
    engine = Engine(model, threads=threads, top_k=top_k)
    engine.start(state, by_rows=True)
    return torch.stack([engine.step(token) for token in ids[:, 2:].T])


@pytest.mark.parametrize("top_k", [1, 5, 72])
@pytest.mark.parametrize(("spiking_head", "threads"), [(False, 1), (False, 2), (True, 2)])
def test_the_largest_logits_are_there_and_exact(top_k, spiking_head, threads):
    model = model_of(spiking_head)
    whole, found = logits_of(model, None, threads), logits_of(model, top_k, threads)
    is_there = found > -torch.inf
    assert torch.equal(found[is_there], whole[is_there])
    assert is_there[whole >= whole.topk(top_k).values[..., -1:]].all()
    if top_k < 72:
        assert 0 < is_there.float().mean() < 0.05


@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("reads_spikes", [True, False])
def test_what_a_logit_may_differ_is_the_length_of_what_the_codes_leave_out(kind, reads_spikes):
    numbers = torch.randn(9, VOCAB, generator=torch.Generator().manual_seed(0), dtype=getattr(torch, kind))
    stored = numbers.view(torch.int16).numpy().view(np.uint16) if kind == "bfloat16" else numbers.numpy()
    screen = head.screen_of(head.Product(stored[None], None, 0, reads_spikes), 1, 1)
    codes = screen.codes.weights.transpose(1, 0, 2).reshape(9, -1)
    differs = numbers.double().numpy() - codes[:, :VOCAB] * screen.codes.scales[0].astype(np.float64)
    length = np.sqrt((differs**2).sum(axis=0))
    assert (codes[:, VOCAB:] == 0).all()
    assert (length <= screen.doubt).all()
    assert (screen.doubt < 1.002 * length + 1e-4).all()


def test_tokens_that_are_alike_are_all_there():
    model = model_of(False)
    with torch.no_grad():
        # the whole vocabulary says the same, so that nothing can be left out
        model.head.weight[:] = model.head.weight[:1]
    assert torch.equal(logits_of(model, 1), logits_of(model, None))


def test_weights_that_are_not_finite_are_not_left_out():
    model = model_of(False)
    with torch.no_grad():
        model.head.weight[VOCAB // 2, 3] = torch.nan
    assert logits_of(model, 1)[..., VOCAB // 2].isnan().all()


@pytest.mark.parametrize("sampling", [SamplingConfig(temperature=0.0), SamplingConfig(top_k=5, temperature=2.0)])
def test_the_same_tokens_are_drawn(sampling):
    model, ids = model_of(False), torch.tensor([[1, 2]])
    with torch.inference_mode():
        output = model(ids)
    may_be, texts = torch.arange(VOCAB) % 500 != 0, []
    for top_k in (None, logits_wanted(sampling, may_be)):
        engine, choosers = Engine(model, threads=1, top_k=top_k), [Chooser(sampling, 0, may_be, ids[0])]
        engine.start(output.state, by_rows=True)
        logits, found = output.logits[:, -1], []
        for _ in range(30):
            tokens, logits = engine.write(logits, choosers, 1)
            found.append(int(tokens[0, 0]))
        assert (logits.isinf().any()) == (top_k is not None)
        texts.append(found)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"temperature": 0.0}, 1 + 3),
        ({"top_k": 40}, 40 + 3),
        ({"top_k": 0}, None),
        ({"top_k": 40, "repetition_penalty": 1.1}, None),
    ],
)
def test_how_many_logits_a_draw_depends_on(changes, wanted):
    may_be = has_token(ByteTokenizer(), 259)
    assert logits_wanted(SamplingConfig(**changes), may_be) == wanted


@pytest.mark.parametrize("top_k", [0, -1, 2.5])
def test_a_number_that_is_none_is_refused(top_k):
    with pytest.raises(ValueError, match="top_k must be a whole number of at least 1"):
        Engine(model_of(False), top_k=top_k)
