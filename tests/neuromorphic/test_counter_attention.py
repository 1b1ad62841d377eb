"""Fused attention counts what eager attention does: products with probabilities above 0, alphabets head by head."""

import itertools
import math

import pytest
import torch
from counting import Computes, count, reals, spikes
from torch.nn import functional as F

from neuromorphic import OpCounter
from neuromorphic.count.attention import BLOCK, attention


def fused(**options):
    return Computes(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options))


def eager(mask=None, scale=None):
    """The same as operators: pairs of a text and a head are one matrix of a batch."""

    def attend(q, k, v):
        scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        return (scores if mask is None else scores + mask).softmax(-1) @ v

    return Computes(attend)


def products(model, *inputs):
    total = count(model, *inputs).total(kind="matmul")
    return total.effective_macs, total.effective_acs, total.dense_ops


def operands(*shape, seed=0):
    return [reals(*shape, density=0.8, seed=seed + number) for number in range(3)]


TRIANGLE = torch.full((5, 5), -math.inf).triu(1)
MASKS = {
    "lower triangle": TRIANGLE,
    "one for each head": torch.stack([TRIANGLE, torch.zeros(5, 5)]),
    "one for each text": torch.stack([TRIANGLE, TRIANGLE.T])[:, None],
    "smallest number": TRIANGLE.nan_to_num(neginf=torch.finfo(torch.float32).min),
    "slopes": torch.arange(5.0) * 30 - torch.arange(5.0)[:, None] * 30,
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_hides_products_as_in_eager_attention(name):
    inputs = operands(2, 2, 5, 4)
    assert products(fused(attn_mask=MASKS[name]), *inputs) == products(eager(MASKS[name]), *inputs)
    assert products(fused(attn_mask=MASKS[name]), *inputs)[0] < products(fused(), *inputs)[0]


LEVELS = (4 * reals(2, 2, 5, 4)).floor()


def graded(total):
    return total.effective_macs, total.integer_macs, total.unit_acs, total.largest_level


@pytest.mark.parametrize("place", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_integer_spikes_of_an_operand_are_units_as_in_eager_attention(place):
    inputs = [LEVELS if number in place else part for number, part in enumerate(operands(2, 2, 5, 4))]
    found = graded(count(fused(), *inputs).total())
    assert found == graded(count(eager(), *inputs).total())
    assert found[3] == 4 and (found[2] > found[1] > 0) == (0 in place)


@pytest.mark.parametrize("keys", [5, 3])
def test_integer_queries_meet_the_keys_that_they_see(keys):
    q, k = LEVELS.clone(), reals(2, 2, keys, 4, density=0.6)
    # one head of spikes, which are accumulated
    q[1, 1].clamp_(max=1)
    total = count(fused(is_causal=True), q, k, k).total()
    macs = units = 0
    for head, t, s, d in itertools.product(range(3), range(5), range(keys), range(4)):
        level, number = q.flatten(0, 1)[head, t, d], k.flatten(0, 1)[head, s, d]
        if s <= t and number:
            macs, units = macs + int(level != 0), units + int(level)
    assert (total.integer_macs, total.unit_acs) == (macs, units)


def test_a_triangle_of_one_text_by_hand():
    inputs = [reals(1, 2, 5, 4, seed=seed) for seed in range(3)]
    total = count(fused(attn_mask=TRIANGLE), *inputs).total()
    # scores of 2 x 25 pairs by 4, values of 2 x 15 pairs by 4; subtract, sum and the mask for each pair
    assert (total.effective_macs, total.dense_ops, total.add) == (200 + 120, 400, 3 * 50)


def test_scores_far_apart_leave_probabilities_of_zero_without_a_mask():
    q, k, v = (50 * part for part in operands(1, 2, 5, 4))
    assert products(fused(), q, k, v) == products(eager(), q, k, v)
    assert products(fused(), q, k, v)[0] < products(fused(), q / 50, k / 50, v)[0]


def test_a_bool_mask_that_hides_a_whole_row():
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    total = count(fused(attn_mask=mask), *(reals(1, 1, 5, 4, seed=seed) for seed in range(3))).total(kind="matmul")
    assert total.effective_macs == 100 + 80


def test_each_head_has_its_own_alphabet():
    q, k, v = operands(2, 2, 5, 4)
    q[:, 0] = spikes(2, 5, 4)
    assert products(fused(), q, k, v) == products(eager(), q, k, v)
    assert products(fused(), q, k, v)[1] > 0


@pytest.mark.parametrize("part", range(3))
def test_each_operand_may_be_of_spikes(part):
    inputs = operands(2, 2, 5, 4)
    inputs[part] = spikes(2, 2, 5, 4)
    assert products(fused(), *inputs) == products(eager(), *inputs)


def test_one_key_has_a_probability_of_one():
    q, _, _ = operands(1, 2, 3, 4)
    k, v = operands(1, 2, 1, 4)[:2]
    assert products(fused(), q, k, v) == products(eager(), q, k, v)


def test_grouped_queries_read_the_keys_of_their_group():
    q, (k, v) = operands(1, 4, 5, 4)[0], operands(1, 2, 5, 4)[:2]
    k[:, 0] = spikes(1, 5, 4)
    wide = (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
    assert products(fused(enable_gqa=True), q, k, v) == products(eager(), *wide)


def test_a_causal_pass_equals_a_count_of_pairs():
    q, k, v = operands(2, 2, 6, 3)
    pairs = [(b, h, t, s) for b in range(2) for h in range(2) for t in range(6) for s in range(t + 1)]
    scores = sum(int(((q[b, h, t] != 0) & (k[b, h, s] != 0)).sum()) for b, h, t, s in pairs)
    weighted = sum(int((v[b, h, s] != 0).sum()) for b, h, t, s in pairs)
    assert products(fused(is_causal=True), q, k, v) == (scores + weighted, 0, len(pairs) * 6)


@pytest.mark.parametrize("T", [4, 5])
def test_heads_are_not_mistaken_for_a_padded_text(T):
    # with 4 heads and 4 tokens, scores (2, 4, 4, 4) begin like the mask (2, 4)
    mask = torch.ones(2, T, dtype=torch.bool)
    mask[0, 3:] = False
    scores = Computes(
        lambda x, w: ((x @ w).unflatten(2, (4, 3)).transpose(1, 2) @ x[:, None, :, :3].mT).softmax(-1), reals(12, 12)
    )
    with torch.no_grad(), OpCounter(scores, mask=mask) as counter:
        scores(reals(2, T, 12))
    assert counter.tally().total().exp == 2 * 4 * T * T
    assert counter.padding_included == {"matmul": 1, "_softmax": 1}


def test_attention_is_counted_head_by_head():
    """No step takes more memory than the whole numbers of one head, or a block of probabilities."""
    operands = torch.randn(3, 1, 8, 512, 64)
    with torch.profiler.profile(profile_memory=True) as profile:
        attention(*operands, is_causal=True)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= 4 * BLOCK
