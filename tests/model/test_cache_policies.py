"""Policies of a cache against what the works' own code kept and stored (tests/golden/caches_a.json)."""

import json
import math
from pathlib import Path

import pytest
import torch

from spikegpt.model.cache import parse_policy
from spikegpt.model.cache.contract import Cache, New, by_kv_head
from spikegpt.model.cache.eviction import H2O, Recency, Roco, Tova
from spikegpt.model.cache.policy import CachePolicy
from spikegpt.model.cache.prompts import DynamicKV, FastKV
from spikegpt.model.cache.quantise import by_minimum, by_zero, hadamard
from spikegpt.model.cache.storage import Exact, MiKV, Rotate, balancer, outlier_tokens

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "caches_a.json").read_text())
DOUBLE = {"dtype": torch.float64}


def said(name: str) -> tuple[dict, dict]:
    return GOLDEN[name]["input"], GOLDEN[name]["expected"]


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def new(positions, heads, channels=1) -> New:
    keys = torch.zeros(1, heads, len(positions), channels, dtype=torch.float64)
    return New(keys, keys, keys, torch.tensor([positions]), keys[:, 0])


def decode(rule, logits, heads: int, prompt: int) -> tuple[list, list]:
    """Read tokens one by one, each attending by logits[t][head][position]; return (evicted of each, kept)."""
    policy, cache, evicted = CachePolicy(eviction=rule, storage=Exact(**DOUBLE)), None, []
    for t, rows in enumerate(logits):
        cache = policy.append(cache, new([t], heads))._replace(prompt=min(prompt, t + 1))
        before = cache.positions[0].tolist()
        scores = tensor([[row[p] for p in before[h * heads // len(rows)]] for h, row in enumerate(rows)])
        cache = policy.observe(cache, scores.softmax(dim=1)[None, :, None])
        gone = [set(held) - set(after) for held, after in zip(before, cache.positions[0].tolist(), strict=True)]
        evicted.append([next(iter(tokens), None) for tokens in gone])
    return evicted, cache.positions[0].tolist()


@pytest.mark.parametrize(
    ("rule", "kept"),
    [(Roco, "kept"), (H2O, "h2o_kept"), (Tova, "tova_kept"), (Recency, "recency_kept")],
    ids=["roco", "h2o", "tova", "recency"],
)
def test_decoding_keeps_what_easykv_keeps(rule, kept, monkeypatch):
    given, expected = said("roco_decode")
    monkeypatch.setattr("spikegpt.model.cache.eviction.SPARED", given["robust_ratio"])
    options = {"spared": given["robust_ratio"], "protected": given["protect_recent"]} if rule is Roco else {}
    found = decode(rule(budget=given["budget"], **options), given["logits"], given["n_kv_head"], given["prompt_len"])
    assert found[1] == expected[kept]
    if rule is Roco:
        assert found[0][1:] == expected["evicted"]


def test_decoding_by_easykvs_own_constants():
    given, expected = said("roco_decode_defaults")
    a, b, c, d = given["formula"].values()
    logits = [
        [
            [((a * t * t + b * p * p + c * t * p + d * h * (p + 1) + 3 * p) % 101) / 20 for p in range(t + 1)]
            for h in range(given["n_head"])
        ]
        for t in range(given["prompt_len"] + given["tokens"])
    ]
    evicted, kept = decode(Roco(budget=given["budget"]), logits, given["n_kv_head"], given["prompt_len"])
    assert kept == expected["kept"]
    assert [pair for pair in evicted if None not in pair] == expected["evicted"]


def test_a_prompt_in_strides_keeps_what_easykv_keeps():
    given, expected = said("roco_prefill")
    logits, heads = given["logits"], given["n_kv_head"]
    names = {"sinks": given["sinks"], "recent": given["recent_ratio"], "protected": given["protect_recent"]}
    rule = Roco(budget=given["budget"], stride=given["stride"], **names).of_prompt(len(logits))
    assert (rule.limit, rule.limit - rule.stride) == (expected["kept_size"], expected["plain_prefix"])
    policy, cache, at, evicted = CachePolicy(eviction=rule, storage=Exact(**DOUBLE)), None, 0, []
    for size in [rule.limit - rule.stride, *[rule.stride] * 3]:
        piece = range(at, at + size)
        cache = policy.append(cache, new(list(piece), heads))
        held, rep = cache.positions[0].tolist(), len(logits[0]) // heads
        scores = tensor(
            [[[logits[t][h][p] if p <= t else -math.inf for p in held[h // rep]] for t in piece] for h in range(4)]
        )
        cache = policy.observe(cache, scores.softmax(dim=-1)[None])
        after = cache.positions[0].tolist()
        evicted.append([sorted(set(b) - set(a)) for b, a in zip(held, after, strict=True)])
        at += size
    assert evicted[1:] == expected["evicted"] and after == expected["kept"]


def attention_of(window_logits) -> torch.Tensor:
    """(1, H, W, T), causal inside the window."""
    logits = tensor(window_logits)
    W, T = logits.shape[1:]
    return logits.masked_fill(torch.ones(W, T, dtype=torch.bool).triu(T - W + 1), -math.inf).softmax(dim=-1)[None]


def test_fastkv_keeps_and_propagates_what_its_code_does():
    given, expected = said("fastkv")
    names = {name: given[name] for name in ("window", "kernel", "pooling")}
    rule = FastKV(rate=given["retain_rate"], tsp=given["tsp_rate"], **names)
    pooled = rule.pooled(attention_of(given["window_logits"]))
    torch.testing.assert_close(pooled[0], tensor(expected["pooled"]))
    torch.testing.assert_close(by_kv_head(pooled.unsqueeze(2), 2).sum(dim=2)[0, :, 0], tensor(expected["group"]))
    assert (rule.capacity(12, is_behind=False), rule.propagated(12)) == (expected["capacity"], expected["tsp_length"])
    assert rule.rows(pooled, given["n_kv_head"], 6)[0].tolist() == expected["kept"]
    assert rule.tokens(pooled, 8)[0].tolist() == expected["propagated"]


def test_dynamickv_shares_and_keeps_what_its_code_does():
    given, expected = said("dynamickv")
    names = {name: given[name] for name in ("window", "kernel", "pooling", "capacity", "r_max")}
    rule = DynamicKV(every=given["update_every"], **names)
    assert rule.base == expected["base"]
    pooled = [rule.pooled(attention_of(layer)) for layer in given["window_logits"]]
    ranked = [rule.ranked(layer, 2)[1][0] for layer in pooled]
    assert {layer.shape[1] for layer in ranked} == {expected["layer_max"]}
    shares = rule.shares([layer[0] for layer in pooled], given["n_layer"])
    assert shares == expected["budgets"]
    kept = [
        [[*sorted(head[:share].tolist()), 10, 11] for head in layer]
        for layer, share in zip(ranked, shares, strict=True)
    ]
    assert kept == expected["kept"]


def test_rotatekv_rotates_codes_and_reads_what_its_code_does():
    given, expected = said("rotatekv")
    keys = tensor(given["keys"]).unflatten(1, (4, 4)).transpose(0, 1)[None]
    storage = Rotate(code_bits=given["bits"], heads=given["heads_per_rotation"], **DOUBLE)
    rotated = storage.turned(keys)[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(rotated, tensor(expected["rotated"]))
    order = rotated.sum(dim=0).argsort().tolist()
    assert order == expected["reorder"] and storage.clipped == given["clip"]
    storage = Rotate(code_bits=given["bits"], heads=given["heads_per_rotation"], order=tuple(order), **DOUBLE)
    codes, zero = by_zero(storage.turned(keys), given["bits"], given["group"], given["clip"])
    assert codes.codes[0].transpose(0, 1).tolist() == expected["codes"]
    torch.testing.assert_close(codes.scale[0, ..., 0].T, tensor(expected["scale"]))
    assert zero[0, ..., 0].T.int().tolist() == expected["zero"]
    values = tensor(given["values"]).unflatten(1, (4, 4)).transpose(0, 1)[None]
    stored = New(storage.turned(keys), storage.turned_values(values), keys, torch.arange(3)[None], keys[:, 0])
    cache = CachePolicy(storage=storage).append(None, stored._replace(stream=torch.zeros(1, 3, 1)))
    # a text's prompt spares outliers; here no token is one
    cache = storage._with_codes(cache, torch.ones_like(cache.low.is_low), *_all_codes(storage, stored))
    found_keys, found_values = storage.read(cache)
    flat = found_keys[0].transpose(0, 1).flatten(1), storage.turned_values(found_values)[0].transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat[0], tensor(expected["keys_hat"]))
    torch.testing.assert_close(flat[1], tensor(expected["values_hat"]))
    assert cache.low.value_codes[0].transpose(0, 1).tolist() == expected["value_codes"]
    outliers = outlier_tokens(tensor(given["hidden"])[None], given["n_outliers"])
    assert outliers[0].nonzero().flatten().tolist() == expected["sink_tokens"]


def _all_codes(storage: Rotate, stored: New):
    rows = torch.arange(3).expand(1, 4, 3)
    return rows, *(by_zero(part, storage.code_bits, 4, storage.clipped)[0] for part in (stored.keys, stored.values))


def test_mikv_stores_and_reads_as_worked_out():
    given, expected = said("mikv")
    queries, keys, values = (tensor(given[name])[None, None] for name in ("queries", "keys", "values"))
    storage = MiKV(code_bits=given["bits"], share=given["n_important"] / 8, newest=0.0, **DOUBLE)
    policy = CachePolicy(storage=storage)
    cache = policy.append(None, New(keys, values, queries, torch.arange(8)[None], keys[:, 0]))
    scores = (queries @ keys.mT / 2).masked_fill(torch.ones(8, 8, dtype=torch.bool).triu(1), -math.inf)
    cache = policy.observe(cache, scores.softmax(dim=-1))
    torch.testing.assert_close(cache.statistics[0, 0, :, 0], tensor(expected["importance"]))
    torch.testing.assert_close(cache.balancer[0, 0], tensor(expected["balancer"]))
    low = expected["low"]
    assert cache.low.is_low[0, 0].nonzero().flatten().tolist() == low
    assert cache.low.key_codes[0, 0, low].tolist() == expected["key_codes"]
    assert cache.low.value_codes[0, 0, low].tolist() == expected["value_codes"]
    torch.testing.assert_close(cache.low.key_scale[0, 0, low, 0], tensor(expected["key_step"]))
    torch.testing.assert_close(cache.low.key_offset[0, 0, low, 0], tensor(expected["key_min"]))
    found = policy.read(cache)
    torch.testing.assert_close(found[0][0, 0], tensor(expected["keys_hat"]))
    torch.testing.assert_close(found[1][0, 0], tensor(expected["values_hat"]))
    paid = (tensor(given["new_query"]) @ found[0][0, 0].T / 2).softmax(dim=0)
    torch.testing.assert_close(paid @ found[1][0, 0], tensor(expected["output"]))
    assert not cache.keys[0, 0, low].any()


def cached(spec: str, tokens: int, sizes: dict) -> tuple[CachePolicy, Cache]:
    """What a policy holds after `tokens` of one layer, half precision."""
    policy, cache = parse_policy(spec), None
    G, d = sizes["n_kv_head"], sizes["head_dim"]
    prompt = tokens if policy.reads_prompt else 1
    generator = torch.Generator().manual_seed(0)
    for start in (0, *range(prompt, tokens)):
        T = prompt if start == 0 else 1
        keys = torch.randn(1, G, T, d, generator=generator)
        positions = torch.arange(start, start + T)[None]
        cache = policy.append(cache, New(keys, keys, keys, positions, torch.randn(1, T, 8, generator=generator)))
        if policy.observes:
            cache = policy.observe(cache, torch.rand(1, G, T, cache.rows, generator=generator))
    return policy, cache


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("full", "full"),
        ("recency:256", "evicting"),
        ("tova:256", "evicting"),
        ("roco:256", "roco_with_statistics"),
        ("mikv:2,share=0.25", "mikv"),
    ],
)
def test_bits_of_a_text_are_the_formulas(spec, expected):
    sizes, wanted = said("memory_bits")
    policy, cache = cached(spec, sizes["context"], sizes)
    parts = policy.bits(cache)
    if expected == "mikv":
        assert parts.pop("statistics") == 256 * 4 * 32
    assert sizes["n_layer"] * sum(parts.values()) == wanted[expected]


def test_bits_of_rotated_codes_are_the_formulas():
    sizes, wanted = said("memory_bits")
    policy = parse_policy("rotate:2")
    stream = torch.zeros(1, 1024, 8)
    # four tokens hold the twenty largest numbers
    stream[0, [3, 50, 700, 1000]] = torch.arange(1.0, 9.0)
    keys = torch.randn(1, 4, 1024, 48)
    cache = policy.append(None, New(keys, keys, keys, torch.arange(1024)[None], stream))
    assert sizes["n_layer"] * sum(policy.bits(cache).values()) == wanted["rotatekv"]


def test_equal_numbers_have_codes_of_their_own():
    x = torch.tensor([[0.3, 0.3, 0.3, 0.3], [0.0, 0.0, 0.0, 0.0], [-2.0, -2.0, -2.0, -2.0]])
    for bits in (2, 3):
        torch.testing.assert_close(by_zero(x, bits, 4, 0.8)[0].numbers(), x)
        torch.testing.assert_close(by_minimum(x, bits, 4).numbers(), x)


def test_three_bits_have_eight_codes():
    x = torch.linspace(0, 1, 64)[None]
    codes, _ = by_zero(x, 3, 64)
    assert set(codes.codes.flatten().tolist()) == set(range(8))
    assert (codes.numbers() - x).abs().max() <= codes.scale.item() / 2 + 1e-6


def test_groups_that_do_not_divide_the_channels_have_their_own_scale():
    x = torch.randn(5, 7)
    whole = by_minimum(x, 3, 4)
    assert whole.scale.shape == (5, 2)
    torch.testing.assert_close(whole.numbers()[:, 4:], by_minimum(x[:, 4:], 3, 3).numbers())


def test_the_rotation_is_its_own_inverse():
    x = torch.randn(3, 8, dtype=torch.float64)
    matrix = hadamard(torch.eye(8, dtype=torch.float64))
    assert matrix[1].sign().tolist() == [1, -1, 1, -1, 1, -1, 1, -1]
    torch.testing.assert_close(hadamard(hadamard(x)), x)


def test_a_silent_channel_is_balanced_by_1():
    queries, keys = torch.ones(1, 2, 3, 2), torch.ones(1, 1, 3, 2)
    queries[..., 0] = 0
    assert balancer(queries, 4 * keys).tolist() == [[[1.0, 0.5]]]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("roco:0", "'roco:0': a budget of 0 tokens holds nothing"),
        ("roco", "roco wants a number, tokens that are held"),
        ("roco:many", "budget must be a whole number, got 'many'"),
        ("recency:4,sinks=4", "4 sinks leave no room in a budget of 4"),
        ("rocko:64", "did you mean 'roco'"),
        ("lru:64", "known: full, recency"),
        ("full:3", "full takes no number"),
        ("tova:64,share=1", "tova has no option 'share=1'; it takes sinks"),
        ("roco:64,protected=64", "64 protected rows leave nothing to evict"),
        ("rotate:1", "codes of 1 bits are not known"),
        ("mikv:2,share=1", "share is 1"),
        ("fastkv:1.5", "rate is 1.5"),
        ("fastkv:0.5,tsp=0.2", "tsp 0.2 is below rate 0.5"),
        ("fastkv:0.5,kernel=4", "kernel is 4; give an odd number"),
        ("dynamic:8", "a capacity of 8 tokens is not above the window of 8"),
        ("h2o:4+roco:4", "h2o and roco both evict"),
        ("rotate:2+mikv:2", "rotate and mikv both say how rows are stored"),
        ("fastkv:0.5+dynamic:64", "both choose what is kept of a prompt"),
        ("full+rotate:2", "full keeps everything as it is"),
        ("mikv:2+h2o:64", "mikv keeps all tokens"),
        ("rotate:2+h2o:64", "all heads have to keep the same tokens"),
        ("fastkv:0.5+recency:64,sinks=2", "the first rows are those of the prompt"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_with_the_reason(spec, message):
    with pytest.raises(ValueError, match=message):
        parse_policy(spec)
