"""EliteKV: chosen pairs and joint matrices against the works' own code, and what a converted model computes."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from counting import count
from runs import TRAIN

from spikegpt import SpikeGPT, load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.model.cache import CachedReader, parse_policy
from spikegpt.model.cache.contract import New
from spikegpt.model.cache.reader import ReaderState
from spikegpt.model.mixers.attention import Attention
from spikegpt.model.rope import frequencies
from spikegpt.train import train
from spikegpt.train.elite import channels_of, chosen_pairs, elite_weights, joint_factors

STORED = json.loads((Path(__file__).parents[1] / "golden" / "caches_a.json").read_text())
GIVEN, EXPECTED = (STORED["elitekv"][key] for key in ("input", "expected"))
H, D = GIVEN["n_head"], GIVEN["head_dim"]
X, QUERY, KEY, VALUE = (torch.tensor(GIVEN[name], dtype=torch.float64) for name in ("x", "w_query", "w_key", "w_value"))


def head_of(weight: torch.Tensor, head: int) -> torch.Tensor:
    return weight[:, head * D : (head + 1) * D]


@pytest.mark.parametrize("head", range(H))
def test_pairs_are_chosen_as_the_published_step_does(head):
    queries, keys = (X @ head_of(weight, head) for weight in (QUERY, KEY))
    pairs, rounds = chosen_pairs(queries[None], keys[None], GIVEN["pairs_kept"], GIVEN["rope_base"])
    assert pairs == EXPECTED["chosen"][head]
    for found, wanted in zip(rounds, EXPECTED["distances"][head], strict=True):
        assert found == pytest.approx({int(pair): distance for pair, distance in wanted.items()}, abs=1e-9)


def test_matrices_are_joined_and_cut_as_published():
    columns, joint = [], []
    for head, pairs in enumerate(EXPECTED["chosen"]):
        _, others = channels_of(pairs, D)
        columns.append([head * D + channel for channel in others])
        joint += [head_of(KEY, head)[:, others], head_of(VALUE, head)]
    assert columns == EXPECTED["unrotated_columns"]
    matrix = torch.cat(joint, dim=1)
    sizes = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(sizes, torch.tensor(EXPECTED["singular_values"], dtype=torch.float64))
    down, up = joint_factors(matrix, GIVEN["kv_dim"])
    torch.testing.assert_close(down @ up, torch.tensor(EXPECTED["reconstruction"], dtype=torch.float64))
    assert (matrix - down @ up).norm().item() == pytest.approx(EXPECTED["frobenius_error"])


def whole(n_embd: int = 32, **changes) -> SpikeGPT:
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 4, "ctx_len": 64, "vocab_size": 61, "dropout": 0.0, **changes}
    model = SpikeGPT(ModelConfig(mixer="attention", spiking="none", n_embd=n_embd, **sizes)).eval()
    for matrix in (model.emb, *(half for block in model.blocks for half in (block.att.output, block.ffn.value))):
        torch.nn.init.normal_(matrix.weight, std=0.3)
    return model


def converted(model: SpikeGPT, pairs: int, kv_dim: int) -> SpikeGPT:
    elite = SpikeGPT(dataclasses.replace(model.config, elite_pairs=pairs, kv_dim=kv_dim), init=False).eval()
    elite.load_state_dict(elite_weights(model, drawn(4, 50), pairs, kv_dim))
    return elite


def drawn(*shape: int) -> torch.Tensor:
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(2))


def test_all_pairs_and_full_rank_are_the_same_model():
    model, ids = whole(), drawn(2, 40)
    torch.testing.assert_close(converted(model, 4, 32)(ids).logits, model(ids).logits, rtol=0, atol=1e-5)


def test_what_a_model_is_reached_by_more_pairs_and_numbers():
    model, ids = whole(), drawn(2, 40)
    wanted = model(ids).logits
    errors = [(converted(model, *sizes)(ids).logits - wanted).norm() for sizes in ((1, 8), (3, 8), (3, 24))]
    assert errors[0] > errors[1] > errors[2]


def test_only_chosen_channels_turn_and_the_others_do_not():
    """At another place in the text a model of one pair a head computes what whole attention does with one frequency."""
    attention = converted(whole(), 1, 32).blocks[0].att
    cos, _ = attention.angles(torch.tensor([[3, 70]]), torch.float64)
    wanted = torch.cos(
        torch.tensor([3.0, 70.0], dtype=torch.float64)[:, None] * frequencies(8)[attention.pairs[2].long()]
    )
    torch.testing.assert_close(cos[0, 2], wanted)


def test_from_its_cache_it_reads_the_same():
    model, ids = converted(whole(), 2, 12), drawn(2, 23)
    wanted, state, logits = model(ids).logits, None, []
    for piece in ids.split([9, 1, 7, 1, 5], dim=1):
        found = model(piece, state)
        state, logits = found.state, [*logits, found.logits]
    torch.testing.assert_close(torch.cat(logits, dim=1), wanted, rtol=0, atol=1e-5)
    # turned keys of two pairs in four heads, and what all else is made of
    assert state[0].time_mix.keys[0, :, 0].numel() + state[0].time_mix.values[0, :, 0].numel() == 4 * 4 + 12


@pytest.mark.parametrize("spec", ["full", "roco:40", "rotate:8,outliers=999", "mikv:8,share=0.9", "dynamic:30"])
def test_through_a_policy_that_keeps_nearly_all_it_reads_as_by_itself(spec):
    model, ids = converted(whole(), 2, 12), drawn(1, 40)
    reader = CachedReader(model, parse_policy(spec, torch.float32), 40)
    prompt = 30 if reader.policy.reads_prompt else 39
    _, state = reader(ids[:, :prompt])
    for token in ids[:, prompt:].split(1, dim=1):
        logits, state = reader(token, state)
    exact = 1e-5 if spec in ("full", "roco:40", "dynamic:30") else 3e-2
    torch.testing.assert_close(logits, model(ids).logits[:, -1:], rtol=0, atol=exact)


def test_bytes_and_operations_are_the_formulas():
    sizes, wanted = STORED["operations_per_token"]["input"], STORED["operations_per_token"]["expected"]
    heads, d, n = sizes["n_head"], sizes["head_dim"], sizes["cached_tokens"]
    r, m = sizes["pairs_kept"], sizes["kv_dim"]
    config = ModelConfig(
        mixer="attention",
        spiking="none",
        n_layer=sizes["n_layer"],
        n_embd=heads * d,
        n_head=heads,
        elite_pairs=r,
        kv_dim=m,
    )
    model, policy = SpikeGPT(config).eval(), parse_policy("full")
    keys, values = torch.randn(1, 1, n - 1, 2 * r * heads), torch.randn(1, 1, n - 1, m)
    given = New(keys, values, keys, torch.arange(n - 1)[None], torch.randn(1, n - 1, 8))
    state = ReaderState(tuple(policy.append(None, given) for _ in model.blocks), n - 1)
    reader = CachedReader(model, policy, n)
    assert sum(reader.bits(state).values()) == config.n_layer * (n - 1) * (2 * r * heads + m) * 16
    counts = count(reader, torch.zeros(1, 1, dtype=torch.long), state).total(phase="decode")
    C = config.n_embd
    projections = (
        config.n_layer * (C * C + C * 2 * r * heads + C * m + C * C + 2 * C * config.n_ffn) + model.head.weight.numel()
    )
    assert counts.dense_ops - projections == wanted["attention_macs_elitekv_absorbed"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"elite_pairs": 2}, "elite_pairs 2 and kv_dim 0: one is nothing without the other"),
        ({"elite_pairs": 9, "kv_dim": 8}, "elite_pairs is 9, a head has 4 pairs"),
        ({"elite_pairs": 2, "kv_dim": 33}, "kv_dim is 33, more than the 32 numbers"),
        ({"elite_pairs": 2, "kv_dim": 8, "n_kv_head": 2}, "elite_pairs is of heads with keys of their own"),
    ],
)
def test_what_it_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(mixer="attention", spiking="none", n_embd=32, n_head=4, **changes)


def test_a_run_becomes_one_and_is_uptrained(tmp_path, cache):
    config = ModelConfig(mixer="attention", spiking="none", n_layer=1, n_embd=16, ctx_len=16)
    changes = dataclasses.replace(TRAIN, steps=3, sample_every=0, eval_every=0)
    train(config, changes, tmp_path / "whole", cache=cache, quiet=True)
    elite = dataclasses.replace(config, elite_pairs=1, kv_dim=6)
    train(elite, changes, tmp_path / "elite", start=tmp_path / "whole", cache=cache, quiet=True)
    model, _ = load_model(tmp_path / "elite")
    assert isinstance(model.blocks[0].att, Attention) and model.blocks[0].att.pairs.shape == (4, 1)
    with pytest.raises(SpikegptError, match="are of elite_pairs 1, which --elite-pairs cannot change to 2"):
        more = dataclasses.replace(elite, elite_pairs=2)
        train(more, changes, tmp_path / "more", start=tmp_path / "elite", cache=cache, quiet=True)
