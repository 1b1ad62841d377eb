"""Spikes are counted in one pass as torch counts them, whatever their format and place in memory."""

import pytest
import torch

from spikegpt.kernels.operators import FEW, count_events

# one row, odd ones, several parts, one channel
SHAPES = [(1, 1, 5), (3, 5, 7), (2, FEW // 50, 33), (1, 700, 513), (FEW + 1, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_events_and_units_are_those_of_torch(shape, dtype):
    draw = torch.Generator().manual_seed(len(shape))
    spikes = torch.randint(-8, 9, shape, generator=draw) * (torch.rand(shape, generator=draw) < 0.4)
    wanted = int(spikes.count_nonzero()), int(spikes.abs().sum())
    # -0.0 is no spike
    assert count_events(-spikes.to(dtype)) == wanted
    assert count_events(spikes.to(dtype).mT.requires_grad_()) == wanted


def test_a_row_by_hand():
    assert count_events(torch.tensor([[0.0, -3, 1]]).expand(FEW, 3)) == (2 * FEW, 4 * FEW)
