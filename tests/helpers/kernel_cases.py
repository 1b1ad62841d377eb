"""What the tests of a kernel share, on every backend: sizes, inputs that reach every branch, fixed cotangents."""

import torch
from tolerances import assert_close
from torch import Tensor

SIZES = [(1, 1, 1), (3, 2, 5), (1, 63, 33), (3, 257, 130), (3, 1, 130), (1, 257, 5), (1, 63, 600)]  # odd on purpose

EVENT_WKV_RESULTS = (
    "output",
    "numerator",
    "denominator",
    "d_time_decay",
    "d_time_first",
    "d_key",
    "d_value",
    "d_numerator",
    "d_denominator",
)
HEIGHTS = {"binary": 1, "signed": 1, "integer": 8, "most": 127}


def event_wkv_inputs(B, T, C, dtype=torch.float32, rate=0.3, spikes="signed") -> list[Tensor]:
    """Return [time_decay, time_first, key, value, numerator, denominator]; a share `rate` of the values is not 0."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + C)
    time_decay, time_first = torch.randn(C, generator=generator), torch.randn(C, generator=generator)
    key = torch.randn(B, T, C, generator=generator) * 2
    height = torch.randint(1, HEIGHTS[spikes] + 1, (B, T, C), generator=generator)
    sign = 1 if spikes == "binary" else 1 - 2 * torch.randint(0, 2, (B, T, C), generator=generator)
    value = height * sign * (torch.rand(B, T, C, generator=generator) < rate)
    numerator, denominator = torch.randn(B, C, generator=generator), torch.rand(B, C, generator=generator) + 0.5
    return [time_decay, time_first, key.to(dtype), value.to(dtype), numerator, denominator]


def integer_lif_inputs(B, T, C, dtype=torch.float32, memoryless=False) -> list[Tensor]:
    """Return [current, potential, membrane_decay, threshold], with gradients: counts from -8 to 8 and beyond occur."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + C)
    current = (torch.randn(B, T, C, generator=generator) * 4 + 0.5).to(dtype)
    potential, decay = torch.randn(B, C, generator=generator) * 0.5, torch.rand(C, generator=generator)
    threshold = torch.rand(C, generator=generator) + 0.5
    return [tensor.requires_grad_() for tensor in (current, potential, decay * (not memoryless), threshold)]


def cotangents_of(results) -> list[Tensor]:
    """Return a fixed random cotangent for each of `results`."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(result.shape, generator=generator).to(result.dtype) for result in results]


def assert_all_close(found, wanted, dtype: torch.dtype = torch.float32) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs, dtype)
