"""What must not matter to firing statistics: chunks, batches, dtypes, layout, padding."""

import numpy as np
import pytest
import torch
from firing import NAN, B, Loops, T, V, everything, measured, random_ids, random_spikes, state, train
from torch import tensor

from neuromorphic.firing.statistics import FiringStatistics


def whole():
    return measured((random_spikes(), {"ids": random_ids()}), vocab_size=V, n_positions=20)


@pytest.mark.parametrize("size", [1, 2, 7, 36])
def test_chunks_change_nothing(size):
    pieces = zip(random_spikes().split(size, 1), random_ids().split(size, 1), strict=True)
    chunks = [(spikes, {"ids": ids, "continued": True}) for spikes, ids in pieces]
    assert everything(measured(*chunks, vocab_size=V, n_positions=20)) == everything(whole())


def test_batch_splits_change_nothing():
    pieces = zip(random_spikes().split(2), random_ids().split(2), strict=True)
    batches = [(spikes, {"ids": ids}) for spikes, ids in pieces]
    assert everything(measured(*batches, vocab_size=V, n_positions=20)) == everything(whole())


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.uint8, torch.int64], ids=str
)
def test_dtype_changes_nothing(dtype):
    layer = measured((random_spikes().to(dtype), {"ids": random_ids()}), vocab_size=V, n_positions=20)
    assert everything(layer) == everything(whole())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8], ids=str)
def test_dtype_of_integer_spikes_changes_nothing(dtype):
    spikes = random_spikes(levels=(-3.0, 1.0, 4.0))
    assert everything(measured((spikes.to(dtype), {}))) == everything(measured((spikes, {})))


@pytest.mark.parametrize("dims", [(0, 1), (0, 2), (1, 2)], ids=["time first", "channels first", "time last"])
def test_memory_layout_changes_nothing(dims):
    spikes = random_spikes().transpose(*dims).contiguous().transpose(*dims)
    assert everything(measured((spikes, {"ids": random_ids()}), vocab_size=V, n_positions=20)) == everything(whole())


def test_autocast_changes_nothing():
    # 601 tokens do not fit into the eight bits of bfloat16
    spikes = torch.ones(1, 601, 3)
    with torch.autocast("cpu", torch.bfloat16):
        layer = measured((spikes, {}))
    assert layer.coactivations.tolist() == [[601] * 3] * 3


def test_inference_mode_may_end_between_chunks():
    statistics = FiringStatistics()
    with torch.inference_mode():
        statistics.update({"a": train("x.")})
    statistics.update({"a": train(".x").requires_grad_()}, continued=True)
    assert statistics.layers["a"].mean_interval == 3.0


def test_spikes_stay_as_they_were():
    spikes, mask = random_spikes(), torch.arange(T) < tensor([[T], [4], [0]])
    measured((spikes, {"mask": mask}))
    assert torch.equal(spikes, random_spikes())


def test_memory_does_not_grow_with_tokens():
    statistics = FiringStatistics(vocab_size=V, n_positions=20)
    sizes = []
    for length in (3, 500, 500):
        statistics.update({"a": random_spikes(t=length)}, ids=torch.zeros(B, length, dtype=torch.int64), continued=True)
        layer = statistics.layers["a"]
        arrays = [*state(layer).values(), *vars(layer).values(), *vars(statistics).values()]
        sizes.append(sum(value.nbytes for value in arrays if isinstance(value, np.ndarray)))
    assert sizes[0] == sizes[1] == sizes[2] > 0


# padding --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_counts_nowhere(side):
    lengths = [T, 9, 0]
    spikes, ids = random_spikes(levels=(1.0, -2.0)), random_ids()
    column = torch.arange(T)
    mask = torch.stack([column < n if side == "right" else column >= T - n for n in lengths])
    alone = [(s[m], i[m], 0) for s, i, m in zip(spikes, ids, mask, strict=True)]
    spikes[~mask], ids[~mask] = NAN, -100
    layer = measured((spikes, {"ids": ids, "mask": mask}), vocab_size=V, n_positions=20)
    Loops(alone, 20).assert_equal(layer)
    assert layer.saturated_neurons.tolist() == [1]


def test_padding_is_left_out_of_synchrony():
    spikes, mask = random_spikes(), torch.arange(T) < tensor([[T], [9], [0]])
    alone = [(row[None, :n], {}) for row, n in zip(spikes, [T, 9], strict=False)]
    assert measured((spikes, {"mask": mask})).synchrony.mean == measured(*alone).synchrony.mean


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_rows_go_on_each_at_its_own_place(side):
    lengths, (spikes, ids), column = tensor([[20], [6], [1]]), (random_spikes(), random_ids()), torch.arange(20)
    mask = column < lengths if side == "right" else column >= 20 - lengths
    rest = (spikes[:, 20:], {"ids": ids[:, 20:], "continued": True})
    layer = measured((spikes[:, :20], {"ids": ids[:, :20], "mask": mask}), rest, vocab_size=V, n_positions=64)
    kept = torch.cat([mask, torch.ones(B, T - 20, dtype=torch.bool)], 1)
    Loops([(s[k], i[k], 0) for s, i, k in zip(spikes, ids, kept, strict=True)], 64).assert_equal(layer)


@pytest.mark.parametrize("marks", ["x.??", "??x.", "?x.?"])
def test_padded_chunk_goes_on_where_its_tokens_ended(marks):
    mask = tensor([[mark != "?" for mark in marks]])
    layer = measured((train(marks), {"mask": mask}), (train("..x"), {"continued": True}))
    assert layer.mean_interval == 4.0
    assert layer.by_position.tokens[:6].tolist() == [1, 1, 1, 1, 1, 0]
