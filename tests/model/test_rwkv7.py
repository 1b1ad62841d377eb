"""RWKV-7 against the author's code (tests/golden): logits, gradients, states, what it begins with; and how it is read.

The weights of the first are drawn, none is 0.
"""

import json

import numpy as np
import pytest
import torch
from counting import count
from golden import GOLDEN, load, relative_error, slopes, stored_config
from torch.nn import functional as F

from spikegpt.checkpoint.weights import load_model
from spikegpt.config import ModelConfig, SamplingConfig, TrainConfig
from spikegpt.generate import generate
from spikegpt.kernels import wkv7
from spikegpt.model.mixers import rwkv7
from spikegpt.model.network import SpikeGPT
from spikegpt.train.optimizer import make_optimizer

NAME, LOGITS = "rwkv7_a", {torch.float32: 1e-4, torch.float64: 1e-9}
STORED, BEGINNING = (np.load(GOLDEN / f"{name}.npz") for name in (NAME, "rwkv7_init_a"))
SAID = json.loads((GOLDEN / "rwkv7_init_a.json").read_text())
_, _, IDS, TARGETS = load(NAME, torch.float32)


def small(**changes) -> ModelConfig:
    return stored_config(NAME, **{"vocab_size": 61, "n_embd": 36, **changes})


def authors(dtype) -> SpikeGPT:
    return load(NAME, dtype)[0]


@pytest.mark.parametrize("dtype", LOGITS)
def test_logits_and_states_are_the_authors(dtype):
    logits, state, spikes = authors(dtype)(IDS)
    assert relative_error(logits, STORED["logits64"]) < LOGITS[dtype]
    for layer in range(3):
        assert relative_error(state[layer].time_mix.wkv, STORED[f"state.{layer}.wkv"]) < LOGITS[dtype]
        assert relative_error(state[layer].channel_mix.shift, STORED[f"state.{layer}.ffn_shift"]) < LOGITS[dtype]
    assert spikes == {}


@pytest.mark.parametrize("dtype", LOGITS)
def test_gradients_are_the_authors(dtype):
    model = authors(dtype)
    loss = F.cross_entropy(model(IDS).logits.flatten(0, 1), TARGETS.flatten())
    loss.backward()
    assert loss.item() == pytest.approx(STORED["loss64"].item(), rel=1e-12 if dtype == torch.float64 else 1e-6)
    stored = {name: p.grad for name, p in model.named_parameters() if f"grad.{name}" in STORED.files}
    # the stored ones are float32: in float64 they can agree only as far as that goes
    assert max(relative_error(grad, STORED[f"grad.{name}"]) for name, grad in stored.items()) < 1e-5
    # the first layer has no values before it
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {"blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"}


def test_float64_gradient_is_that_of_finite_differences():
    model = authors(torch.float64)
    chosen = [
        model.get_parameter(f"blocks.1.att.{name}") for name in ("w1", "a2", "v0", "g1", "k_k", "k_a", "r_k", "x_w")
    ]
    directions = [
        torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).double() for i, p in enumerate(chosen)
    ]

    slope, difference = slopes(model, IDS, TARGETS, chosen, directions, step=1e-5)
    assert difference == pytest.approx(slope, rel=1e-8)


@pytest.mark.parametrize("pieces", [[20, 17], [1] * 37])
def test_a_text_in_pieces_is_the_text(pieces):
    model, state, logits = authors(torch.float64), None, []
    with torch.no_grad():
        whole = model(IDS)
        for piece in IDS.split(pieces, dim=1):
            found, state, _ = model(piece, state)
            logits.append(found)
    torch.testing.assert_close(torch.cat(logits, dim=1), whole.logits, atol=1e-10, rtol=0)
    torch.testing.assert_close(state[2].time_mix.wkv, whole.state[2].time_mix.wkv, atol=1e-10, rtol=0)


def beginning() -> SpikeGPT:
    sizes = SAID["config"]
    names = "n_layer", "n_embd", "head_size", "vocab_size"
    torch.manual_seed(0)
    return SpikeGPT(small(lora_ranks=(), **{name: sizes[name] for name in names}))


def test_a_model_begins_as_the_authors():
    weights = beginning().state_dict()
    assert weights.keys() == SAID["tensors"].keys()
    for name, said in SAID["tensors"].items():
        found = weights[name]
        assert list(found.shape) == said["shape"]
        if said["kind"] == "orthogonal":
            values = torch.linalg.svdvals(found.double())
            assert torch.allclose(values, torch.full_like(values, said["gain"]), atol=1e-5), name
        elif said["kind"] == "uniform":
            assert 0.9e-4 < found.abs().max() <= 1e-4
        else:
            wanted = torch.from_numpy(BEGINNING[name]) if name in BEGINNING.files else torch.zeros_like(found)
            assert (said["kind"] == "zero") == (name not in BEGINNING.files)
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_parameters_learn_in_the_authors_groups():
    model = beginning()
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.1, optimizer="adamw"))
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        (group["weight_decay"], group["lr_scale"]): sorted(name_of[p] for p in group["params"])
        for group in optimizer.param_groups
    }
    assert found == {(g["weight_decay"], g["lr_scale"]): sorted(g["names"]) for g in SAID["optimizer"]["groups"]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_size": 10}, "n_embd is 36, no multiple of head_size 10"),
        ({"lora_ranks": (7, 5, 3)}, "lora_ranks are 4, of the pairs w, a, v and g, or none; got 3"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(changes, words):
    with pytest.raises(ValueError, match=words) as refused:
        small(**changes)
    assert "\n" not in str(refused.value)


def test_what_nothing_reads_does_not_learn():
    unread = {f"blocks.0.att.{name}" for name in ("v0", "v1", "v2")}
    assert {name for name, p in beginning().named_parameters() if not p.requires_grad} == unread


def test_autocast_keeps_the_state_in_float32(monkeypatch):
    model, dtypes = authors(torch.float32), set()

    def noting(*inputs):
        dtypes.add(tuple(part.dtype for part in inputs[:6]))
        return wkv7(*inputs)

    monkeypatch.setattr(rwkv7, "wkv7", noting)
    with torch.autocast("cpu", torch.bfloat16):
        logits, state, _ = model(IDS)
        F.cross_entropy(logits.flatten(0, 1), TARGETS.flatten()).backward()
    # of a token's numbers the decay alone is in the precision of the state
    short = torch.bfloat16
    assert dtypes == {(short, torch.float32, short, short, short, short)}
    assert state[1].time_mix.wkv.dtype == torch.float32
    assert relative_error(logits, STORED["logits64"]) < 0.1
    assert model.blocks[1].att.w1.grad.isfinite().all()


def test_a_run_trains_is_loaded_counted_and_continues_a_text(make_run):
    run = make_run(model=small(n_layer=2, n_embd=16, head_size=8, lora_ranks=(), vocab_size=256, ctx_len=16))
    model, tokenizer = load_model(run)
    assert (model.config.mixer, model.config.head_size) == ("rwkv7", 8)
    assert len(generate(model, tokenizer, ["It was"], SamplingConfig(max_tokens=5))) == 1
    tally = count(model, torch.randint(256, (1, 9)))
    # of each layer the tokens before of both halves, and two matrices
    assert tally.footprint.state == 2 * (2 * 16 + 2 * 8 * 8)
    assert not tally.uncounted
