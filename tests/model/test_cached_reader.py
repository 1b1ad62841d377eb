"""An attention model that reads through a policy: against masks over a full cache, and what it computes."""

import json
from pathlib import Path

import pytest
import torch
from counting import count

from spikegpt import SpikeGPT
from spikegpt.config import ModelConfig
from spikegpt.model.cache import CachedReader, parse_policy
from spikegpt.model.cache.contract import New
from spikegpt.model.cache.reader import ReaderState, orders_of
from spikegpt.model.cache.reference import read_by_mask
from spikegpt.model.cache.storage import Rotate
from spikegpt.model.rope import rotate

T, PROMPT = 40, 30
STORED = json.loads((Path(__file__).parents[1] / "golden" / "caches_a.json").read_text())
SIZES, OPERATIONS = (STORED["operations_per_token"][key] for key in ("input", "expected"))


@pytest.fixture(scope="module")
def model() -> SpikeGPT:
    return made(n_layer=4, n_embd=32, n_head=4, n_kv_head=2)


def made(**sizes) -> SpikeGPT:
    torch.manual_seed(0)
    config = ModelConfig(mixer="attention", spiking="none", ctx_len=64, vocab_size=61, **sizes)
    model = SpikeGPT(config).eval()
    for matrix in (model.emb, *(half for block in model.blocks for half in (block.att.output, block.ffn.value))):
        torch.nn.init.normal_(matrix.weight, std=0.2)
    return model


def drawn(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(1))


def read(reader: CachedReader, ids: torch.Tensor, prompt: int = 0) -> tuple[torch.Tensor, object]:
    """(logits of each token behind the prompt and of its last, state) of ids (B, T), read token by token."""
    state, logits = None, []
    for piece in ids.split([*([prompt] if prompt else ()), *[1] * (ids.shape[1] - prompt)], dim=1):
        found, state = reader(piece, state)
        logits.append(found)
    return torch.cat(logits, dim=1), state


@pytest.mark.parametrize(
    "spec",
    [
        "recency:9,sinks=3",
        "h2o:16",
        "tova:7",
        "roco:16",
        "roco:2",
        "rotate:2",
        "mikv:2,share=0.25",
        "fastkv:0.4,tsp=0.7",
        "fastkv:0.5,pooling=max,kernel=1",
        "dynamic:10,r_max=2,every=3",
        "dynamic:12+roco:8",
        "recency:16+rotate:4,outliers=0",
    ],
)
def test_gathered_rows_are_the_mask(spec, model):
    ids, policy = drawn((1, T)), parse_policy(spec, torch.float32)
    prompt = PROMPT if policy.reads_prompt else 0
    found, _ = read(CachedReader(model, policy, T), ids, prompt)
    with torch.no_grad():
        wanted = read_by_mask(model, ids[0], policy, prompt)[T - found.shape[1] :]
    torch.testing.assert_close(found[0], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", ["full", "rotate:8,outliers=999", "mikv:8,share=0.99"])
def test_what_keeps_all_reads_as_the_model(spec, model):
    ids = drawn((1, T))
    found, _ = read(CachedReader(model, parse_policy(spec, torch.float32), T), ids, PROMPT if spec != "full" else 0)
    # 8 bits are nearly exact
    tolerance = 1e-5 if spec == "full" else 2e-2
    torch.testing.assert_close(found, model(ids).logits[:, T - found.shape[1] :], rtol=0, atol=tolerance)


@pytest.mark.parametrize("spec", ["recency:40", "h2o:40", "tova:40", "roco:40", "roco:99,sinks=4"])
def test_a_budget_of_the_whole_text_is_the_full_cache_bit_for_bit(spec, model):
    ids = drawn((2, T))
    full, _ = read(CachedReader(model, parse_policy("full"), T), ids)
    found, _ = read(CachedReader(model, parse_policy(spec), T), ids)
    assert torch.equal(found, full)


@pytest.mark.parametrize("spec", ["fastkv:0.99,window=2", "dynamic:30"])
def test_a_prompt_that_fits_is_kept_whole(spec, model):
    ids = drawn((1, 25))
    found, state = read(CachedReader(model, parse_policy(spec, torch.float32), T), ids, 24)
    kept = 23 if spec.startswith("fastkv") else 24
    assert [cache.rows for cache in state.caches] == [kept + 1] * 4
    if kept == 24:
        torch.testing.assert_close(found, model(ids).logits[:, 23:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", ["recency:9", "h2o:9", "tova:9", "roco:9", "mikv:3", "fastkv:0.5"])
def test_texts_of_a_batch_are_read_as_each_alone(spec, model):
    ids, policy = drawn((3, T)), parse_policy(spec, torch.float32)
    reader, prompt = CachedReader(model, policy, T), PROMPT if policy.reads_prompt else 0
    together, state = read(reader, ids, prompt)
    alone = [read(reader, ids[text : text + 1], prompt)[0] for text in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
    assert reader.bits(state) == reader.bits(read(reader, ids[:1], prompt)[1])


@pytest.mark.parametrize("prompt", [T, 23, 5])
def test_in_strides_a_prompt_is_read_to_its_end(prompt, model):
    """What is held beyond the budget is less than a stride, and a budget of all is the full cache."""
    ids, strided = drawn((1, T)), CachedReader(model, parse_policy("roco:12,stride=4,sinks=2"), T)
    _, state = strided(ids[:, :prompt])
    assert state.read == prompt and all(cache.rows <= min(prompt, 16) for cache in state.caches)
    whole = CachedReader(model, parse_policy("roco:40,stride=7", torch.float32), T)(ids)[0]
    torch.testing.assert_close(whole, model(ids).logits[:, -1:], rtol=0, atol=1e-5)


def test_calibrated_order_changes_codes_and_not_what_they_stand_for(model):
    ids = drawn((1, T))
    policy = parse_policy("rotate:8,outliers=0", torch.float32)
    orders = orders_of(model, policy.storage, drawn((2, T)))
    assert [sorted(order) for order in orders] == [list(range(16))] * 4 and orders[0] != orders[1]
    plain, ordered = (read(CachedReader(model, policy, T, found), ids, PROMPT)[0] for found in (None, orders))
    assert not torch.equal(plain, ordered)
    torch.testing.assert_close(plain, ordered, rtol=0, atol=5e-3)


def a_token_behind(rows: int, model: SpikeGPT, spec: str):
    """Count one token that reads `rows` cached ones and itself."""
    d = model.config.n_embd // model.config.n_head
    keys, policy = torch.randn(1, model.config.n_head, rows, d), parse_policy(spec)
    given = New(keys, keys, keys, torch.arange(rows)[None], torch.randn(1, rows, 8))
    caches = tuple(policy.append(None, given) for _ in model.blocks)
    reader = CachedReader(model, policy, rows + 1)
    return count(reader, drawn((1, 1)), ReaderState(caches, rows)).total(phase="decode")


def test_operations_of_a_token_are_the_formulas():
    sizes, wanted = SIZES, OPERATIONS
    names = "n_layer", "n_head", "head_dim", "n_ffn", "cached_tokens", "budget"
    L, H, d, n_ffn, n, budget = (sizes[name] for name in names)
    model = made(n_layer=L, n_embd=H * d, n_head=H)
    assert model.config.n_ffn == n_ffn
    projections = wanted["projection_macs"] + model.head.weight.numel()
    full = a_token_behind(n - 1, model, "full")
    assert full.dense_ops - projections == wanted["attention_macs_full"]
    assert a_token_behind(budget - 1, model, "tova:999").dense_ops - projections == wanted["attention_macs_evicting"]
    rotated = a_token_behind(n - 1, model, "rotate:2")
    assert rotated.dense_ops == full.dense_ops


class Turning(torch.nn.Module):
    """What RotateKV does to the cached keys of a layer, for every token."""

    def forward(self, keys, cos, sin):
        return rotate(Rotate().turned_back(keys), cos, sin)


def test_turning_cached_keys_back_costs_what_the_formulas_say():
    sizes, wanted = SIZES, OPERATIONS
    G, d, n, L = (sizes[name] for name in ("n_kv_head", "head_dim", "cached_tokens", "n_layer"))
    counts = count(Turning(), torch.randn(1, G, n, d), torch.randn(n, d // 2), torch.randn(n, d // 2)).total()
    # RoPE adds one number to each as well, and the rotation is scaled once
    assert L * (counts.add - n * G * d) == wanted["rotatekv_hadamard_additions"]
    assert L * (counts.mul - n * G * d) == wanted["rotatekv_rope_products"]


def test_what_has_no_cache_is_refused():
    with pytest.raises(ValueError, match="mixer 'rwkv4' has none: what it carries does not grow"):
        CachedReader(SpikeGPT(ModelConfig(n_layer=1, n_embd=8)), parse_policy("roco:8"), 16)


@pytest.mark.parametrize(
    ("spec", "tokens", "message"),
    [
        ("full", 41, "the text has 41 tokens, room is for 40"),
        ("fastkv:0.2", 30, "fastkv keeps 6 of 30 tokens by its rate, no more than its window of 8"),
        ("fastkv:0.3,tsp=0.3,window=9", 30, "by its tsp|by its rate"),
    ],
)
def test_a_text_that_does_not_fit_is_refused(spec, tokens, message, model):
    with pytest.raises(ValueError, match=message):
        CachedReader(model, parse_policy(spec), T)(drawn((1, tokens)))


def test_several_texts_of_different_caches_are_refused(model):
    with pytest.raises(ValueError, match="read one text at a time"):
        CachedReader(model, parse_policy("dynamic:10"), T)(drawn((2, T)))
