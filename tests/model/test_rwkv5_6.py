"""RWKV-5 and -6 against the author's code (tests/golden): logits, gradients; what they begin with, how they are read.

The weights of the first are drawn, none is 0.
"""

import math

import numpy as np
import pytest
import torch
from counting import count
from golden import GOLDEN, load, relative_error, slopes, stored_config
from torch.nn import functional as F

from spikegpt.checkpoint.weights import load_model
from spikegpt.config import ModelConfig, SamplingConfig, TrainConfig
from spikegpt.generate import generate
from spikegpt.kernels import wkv6
from spikegpt.model.mixers import rwkv5
from spikegpt.model.network import SpikeGPT
from spikegpt.train.optimizer import make_optimizer

STORED = {mixer: np.load(GOLDEN / f"{mixer}_a.npz") for mixer in ("rwkv5", "rwkv6")}
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-9}
MIXERS = pytest.mark.parametrize("mixer", list(STORED))
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCES))


def config(mixer: str, **changes) -> ModelConfig:
    return stored_config(f"{mixer}_a", **{"vocab_size": 67, "n_embd": 64, **changes})


def authors(mixer: str, dtype) -> SpikeGPT:
    return load(f"{mixer}_a", dtype)[0]


def text_of(mixer: str) -> tuple[torch.Tensor, torch.Tensor]:
    return load(f"{mixer}_a", torch.float32)[2:]


@MIXERS
@DTYPES
def test_logits_are_the_authors(mixer, dtype):
    logits, _, spikes = authors(mixer, dtype)(text_of(mixer)[0])
    assert relative_error(logits, STORED[mixer]["logits64"]) < TOLERANCES[dtype]
    assert spikes == {}


@MIXERS
@DTYPES
def test_gradients_are_the_authors(mixer, dtype):
    model, (ids, targets) = authors(mixer, dtype), text_of(mixer)
    loss = F.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten())
    loss.backward()
    stored = STORED[mixer]
    assert loss.item() == pytest.approx(stored["loss64"].item(), rel=1e-12 if dtype == torch.float64 else 1e-6)
    # the stored ones are float32: in float64 they can agree only as far as that goes
    grads = {f"grad.{name}": p.grad for name, p in model.named_parameters() if f"grad.{name}" in stored.files}
    assert max(relative_error(grad, stored[name]) for name, grad in grads.items()) < 3e-5
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@MIXERS
def test_float64_gradient_is_that_of_finite_differences(mixer):
    model, (ids, targets) = authors(mixer, torch.float64), text_of(mixer)
    chosen = [p for name, p in model.named_parameters() if name.startswith("blocks.1.att.time_")]
    generator = torch.Generator().manual_seed(0)
    directions = [0.1 * torch.randn(p.shape, generator=generator).double() for p in chosen]

    slope, difference = slopes(model, ids, targets, chosen, directions, step=1e-5)
    assert difference == pytest.approx(slope, abs=1e-9)


@MIXERS
@pytest.mark.parametrize("pieces", [[23, 17], [1] * 40])
def test_a_text_in_pieces_is_the_text(mixer, pieces):
    (ids, _), state, logits = text_of(mixer), None, []
    model = authors(mixer, torch.float64)
    with torch.no_grad():
        whole = model(ids)
        for piece in ids.split(pieces, dim=1):
            found, state, _ = model(piece, state)
            logits.append(found)
    torch.testing.assert_close(torch.cat(logits, dim=1), whole.logits, atol=1e-10, rtol=0)
    torch.testing.assert_close(state[1].time_mix.wkv, whole.state[1].time_mix.wkv, atol=1e-10, rtol=0)


@MIXERS
def test_matrices_begin_as_the_authors(mixer):
    torch.manual_seed(0)
    model = SpikeGPT(config(mixer, lora_ranks=()))
    att, ffn = model.blocks[1].att, model.blocks[1].ffn
    assert ffn.key.weight.shape == (224, 64)
    gains = {att.receptance: 1.0, att.value: 1.0, att.key: 0.1, att.gate: 0.1, ffn.key: 1.0}
    for matrix, gain in gains.items():
        values = torch.linalg.svdvals(matrix.weight.double())
        torch.testing.assert_close(values, torch.full_like(values, gain), atol=1e-5, rtol=0)
    assert not any(matrix.weight.any() for matrix in (att.output, ffn.value, ffn.receptance))
    assert 0.9e-4 < model.emb.weight.abs().max() <= 1e-4
    if mixer == "rwkv6":
        assert not att.time_maa_w1.any() and not att.time_decay_w1.any()
        assert 0.009 < att.time_maa_w2.abs().max() <= 0.01 and 0.009 < att.time_decay_w2.abs().max() <= 0.01
        assert att.time_maa_w2.shape == (5, 32, 64) and att.time_decay_w2.shape == (64, 64)


@MIXERS
def test_channels_begin_as_the_authors(mixer):
    """By hand for channel 5 of 64 in the second of three layers: depth 1/2, 2/3 of the layers left."""
    att, ffn = (getattr(SpikeGPT(config(mixer, n_layer=3)).blocks[1], half) for half in ("att", "ffn"))
    mix, along = (5 / 64) ** (2 / 3), 5 / 63
    wanted = {"k": mix, "v": mix + 0.15, "r": mix**0.5, "g": mix**0.5}
    if mixer == "rwkv5":
        found = {name: getattr(att, f"time_mix_{name}")[0, 0, 5].item() for name in wanted}
        for_ffn, ffn_mix = ffn.time_mix_k, mix
    else:
        wanted |= {"x": mix, "w": mix}
        found = {name: 1 - getattr(att, f"time_maa_{name}")[0, 0, 5].item() for name in wanted}
        for_ffn, ffn_mix = 1 - ffn.time_maa_r, (5 / 64) ** ((2 / 3) ** 3)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert for_ffn[0, 0, 5].item() == pytest.approx(ffn_mix, rel=1e-5)
    assert att.time_decay.flatten()[5].item() == pytest.approx(-6 + 5 * along**1.35, rel=1e-5)
    # (5 + 1) mod 3 is 0
    assert att.time_faaaa.flatten()[5].item() == pytest.approx(0.5 * (1 - along) - 0.1, rel=1e-5)
    assert att.ln_x.weight.unique().item() == pytest.approx(math.exp(0.7 * math.log(2 / 3)), rel=1e-5)


@MIXERS
def test_parameters_learn_in_the_authors_groups(mixer):
    model = SpikeGPT(config(mixer))
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.1, optimizer="adamw"))
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    groups = {
        (group["weight_decay"], group["lr_scale"]): {name_of[p] for p in group["params"]}
        for group in optimizer.param_groups
    }
    names = set(name_of.values())
    fast = {name for name in names if name.endswith("att.time_decay")}
    decayed = {name for name in names if name.endswith(".weight") and "ln" not in name}
    assert groups == {(0.0, 2.0): fast, (0.1, 1.0): decayed, (0.0, 1.0): names - fast - decayed}


@pytest.mark.parametrize(
    ("mixer", "changes", "words"),
    [
        ("rwkv5", {"head_size": 10}, "n_embd is 64, no multiple of head_size 10"),
        ("rwkv6", {"lora_ranks": (7, 5, 3)}, "lora_ranks are 2, of the pairs token mixes and decay, or none; got 3"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(mixer, changes, words):
    with pytest.raises(ValueError, match=words):
        config(mixer, **changes)


@MIXERS
def test_autocast_keeps_the_state_in_float32(mixer, monkeypatch):
    model, dtypes, (ids, targets) = authors(mixer, torch.float32), set(), text_of(mixer)

    def noting(*inputs):
        dtypes.add(tuple(part.dtype for part in inputs[:5]))
        return wkv6(*inputs)

    monkeypatch.setattr(rwkv5, "wkv6", noting)
    with torch.autocast("cpu", torch.bfloat16):
        logits, state, _ = model(ids)
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    short = torch.bfloat16
    assert dtypes == {(short, torch.float32, short, short, torch.float32)}
    assert state[1].time_mix.wkv.dtype == torch.float32
    assert relative_error(logits, STORED[mixer]["logits64"]) < 0.1
    assert all(p.grad.isfinite().all() for p in model.parameters())


@MIXERS
def test_a_run_trains_is_loaded_counted_and_continues_a_text(mixer, make_run):
    run = make_run(model=config(mixer, n_embd=16, head_size=8, lora_ranks=(), vocab_size=256, ctx_len=16))
    model, tokenizer = load_model(run)
    assert (model.config.mixer, model.config.head_size) == (mixer, 8)
    assert len(generate(model, tokenizer, ["It was"], SamplingConfig(max_tokens=5))) == 1
    tally = count(model, torch.randint(256, (1, 9)))
    # of each layer the tokens before of both halves, and two matrices
    assert tally.footprint.state == 2 * (2 * 16 + 2 * 8 * 8)
    assert not tally.uncounted
