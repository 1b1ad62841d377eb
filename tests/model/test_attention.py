"""The dense baseline against attention written out by hand, its cache, and its way through the product."""

import dataclasses
import json
import math

import pytest
import torch
from counting import count
from runs import TRAIN, break_off, weights_of

from spikegpt import SpikeGPT, load_model
from spikegpt.cli.verbs import VERBS
from spikegpt.config import ModelConfig, SamplingConfig
from spikegpt.config.effects import idle_in_blocks
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.generate import generate
from spikegpt.generate.graphs import capture_of
from spikegpt.model.network import parameters_of
from spikegpt.train import resume, train

T = 23


def sized(**changes) -> ModelConfig:
    sizes = {"n_layer": 2, "n_embd": 24, "ctx_len": 64, "vocab_size": 61, "dropout": 0.0}
    return ModelConfig(**{"mixer": "attention", "spiking": "none", "n_head": 4, **sizes, **changes})


def made(**changes) -> SpikeGPT:
    """A model whose halves add something to the stream."""
    torch.manual_seed(0)
    model = SpikeGPT(sized(**changes)).eval()
    for matrix in (model.emb, *(half for block in model.blocks for half in (block.att.output, block.ffn.value))):
        torch.nn.init.normal_(matrix.weight, std=0.3)
    return model


def by_hand(attention, x: torch.Tensor, window: int) -> torch.Tensor:
    """What a half adds for one text x (T, C): pair j of a head is a complex number, and turns."""
    d = x.shape[1] // attention.n_head
    theta = torch.tensor([10_000 ** (-2 * j / d) for j in range(d // 2)], dtype=torch.float64)

    def head_of(projection, head):
        rows = projection(x)[:, head * d : (head + 1) * d]
        return torch.complex(rows[:, : d // 2], rows[:, d // 2 :]) if projection is not attention.value else rows

    heads = []
    for head in range(attention.n_head):
        shared = head * attention.n_kv_head // attention.n_head
        query, key, value = (
            head_of(attention.query, head),
            *(head_of(p, shared) for p in (attention.key, attention.value)),
        )
        means = []
        for t in range(len(x)):
            seen = range(max(t - window + 1, 0), t + 1)
            turned = torch.stack([query[t].conj() * key[s] * torch.exp(1j * theta * (s - t)) for s in seen])
            means.append((turned.real.sum(dim=1) / math.sqrt(d)).softmax(dim=0) @ value[seen.start : seen.stop])
        heads.append(torch.stack(means))
    return attention.output(torch.cat(heads, dim=1))


@pytest.mark.parametrize("n_kv_head", [0, 2, 1])
@pytest.mark.parametrize("ctx_len", [64, 5, 1])
def test_it_is_attention_written_out(n_kv_head, ctx_len):
    attention = made(n_kv_head=n_kv_head, ctx_len=ctx_len).double().blocks[1].att
    x = torch.randn(2, T, 24, dtype=torch.float64)
    y, state, spikes = attention(x, None)[:3]
    assert spikes == {} and state.keys.shape == (2, n_kv_head or 4, min(T, ctx_len - 1), 6)
    torch.testing.assert_close(y, torch.stack([by_hand(attention, text, ctx_len) for text in x]))


@pytest.mark.parametrize("n_kv_head", [0, 2])
@pytest.mark.parametrize("ctx_len", [64, 6])
def test_from_the_cache_it_reads_the_same(n_kv_head, ctx_len):
    model, ids = made(n_kv_head=n_kv_head, ctx_len=ctx_len), torch.randint(61, (2, T))
    whole, state, logits = model(ids), None, []
    for piece in ids.split([9, 1, 1, 7, 1, 4], dim=1):
        found = model(piece, state)
        state, logits = found.state, [*logits, found.logits]
    torch.testing.assert_close(torch.cat(logits, dim=1), whole.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(state, whole.state)


def test_far_into_a_text_distances_are_as_exact_as_at_its_beginning():
    attention = made().blocks[0].att
    x = torch.randn(1, 8, 24)
    far = attention(x, None).state._replace(keys=None, values=None, read=torch.tensor([[10**7]]))
    torch.testing.assert_close(attention(x, far).y, attention(x, None).y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ctx_len", [64, 6])
def test_texts_of_different_lengths_are_continued_as_each_alone(ctx_len):
    model, sampling = made(vocab_size=256, ctx_len=ctx_len), SamplingConfig(max_tokens=12, temperature=0)
    prompts = ["Once upon a time", "It", "was the best"]
    alone = [generate(model, ByteTokenizer(), [prompt], sampling)[0] for prompt in prompts]
    assert generate(model, ByteTokenizer(), prompts, sampling) == alone


def test_a_layer_has_as_many_weights_as_one_of_rwkv4():
    with torch.device("meta"):
        block = SpikeGPT(sized(n_layer=1), init=False).blocks[0]
    matrices = [p.numel() for name, p in block.named_parameters() if p.dim() == 2]
    assert sum(matrices) == 13 * 24**2
    twin = parameters_of(ModelConfig(spiking="none", n_layer=4, n_embd=192))
    assert abs(parameters_of(sized(n_layer=4, n_embd=192, vocab_size=256)) / twin - 1) < 0.003


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spiking": "input"}, "mixer attention is the dense baseline, got spiking 'input'.*give --spiking none"),
        ({"spiking": "output"}, "mixer attention is the dense baseline"),
        ({"n_head": 5}, "n_embd 24 is not cut by n_head 5"),
        ({"n_head": 8}, "n_embd 24 is not cut by n_head 8 into heads of an even number of channels"),
        ({"n_kv_head": 3}, "n_head is 4, no multiple of n_kv_head 3"),
        ({"n_head": 0}, "n_head must be a whole number from 1"),
        ({"rescale_every": 6}, "rescale_every is of the published inference"),
    ],
)
def test_what_it_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sized(**changes)


def test_heads_are_idle_elsewhere():
    assert {"n_head", "n_kv_head"} <= idle_in_blocks(ModelConfig()).keys()
    assert not {"n_head", "n_kv_head"} & idle_in_blocks(sized()).keys()


def test_the_counter_sees_what_a_token_reads():
    model, ids = made(n_kv_head=2), torch.randint(61, (1, T))
    with torch.no_grad():
        state = model(ids[:, :-1]).state
        tally = count(model, ids[:, -1:], state)
    token = tally.total(module="blocks.0.att", phase="decode")
    projections = sum(getattr(model.blocks[0].att, name).weight.numel() for name in ("query", "key", "value", "output"))
    # scores and mean values, of 24 channels each
    assert token.dense_ops - projections == 2 * T * 24
    assert tally.footprint.state == 2 * 2 * T * 12
    assert (token.state_reads, token.state_writes) == (2 * (T - 1) * 12, 2 * 12)


def test_a_growing_state_is_no_graph(monkeypatch):
    monkeypatch.setattr(SpikeGPT, "device", torch.device("cuda"))
    assert capture_of(made()) is None
    assert capture_of(SpikeGPT(ModelConfig(n_layer=1, n_embd=8, spiking="none"))) is not None


def test_a_run_is_trained_resumed_and_used(monkeypatch, tmp_path, cache, capsys):
    config = sized(n_embd=16, ctx_len=16, vocab_size=256)
    changes = {"steps": 6, "save_every": 2, "sample_every": 0, "eval_every": 0, "carry_state": True}
    train(config, dataclasses.replace(TRAIN, **changes), tmp_path / "whole", cache=cache, quiet=True)
    break_off(monkeypatch, tmp_path / "broken", cache, 3, model=config, **changes)
    resume(tmp_path / "broken", cache=cache, quiet=True)
    assert weights_of(tmp_path / "broken") == weights_of(tmp_path / "whole")
    assert type(load_model(tmp_path / "whole")[0].blocks[0].att).__name__ == "Attention"
    reading = ["--tokens", "200", "--threads", "1", "--cache", str(cache), "--json"]
    assert VERBS["evaluate"]([str(tmp_path / "whole"), *reading]) == 0
    assert VERBS["measure"]([str(tmp_path / "whole"), *reading, "--prices", "seneca22"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])[0]["state_elements"] == 2 * 2 * 16 * 15
    assert VERBS["generate"]([str(tmp_path / "whole"), "def ", "--max-tokens", "20", "--threads", "1"]) == 0
