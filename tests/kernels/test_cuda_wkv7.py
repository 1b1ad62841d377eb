"""The CUDA kernels of RWKV-7's WKV, run on the CPU by `cuda_on_host`, against the reference, and behind the door."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_on_host import needs_compiler
from kernel_cases import assert_all_close, everything_by, everything_by_reference, wkv7_inputs
from tolerances import assert_close
from torch.nn import functional as F

from spikegpt.kernels.wkv7 import gpu as cuda_wkv7
from spikegpt.kernels.wkv7 import reference

pytestmark = needs_compiler
# odd on purpose, on either side of a chunk of 32 tokens, and with a block of threads that is not full
SIZES = [(1, 1, 1, 32), (3, 2, 1, 32), (1, 33, 3, 32), (2, 31, 2, 64), (1, 64, 1, 64), (2, 97, 1, 64), (1, 37, 2, 128)]
LOG_DECAY, D_LOG_DECAY = 1, 3
GOLDEN = Path(__file__).parents[1] / "golden"
STORED = np.load(GOLDEN / "wkv7_a.npz")
CASES = list(json.loads((GOLDEN / "wkv7_a.json").read_text())["cases"])
NAMES = "r", "log_w", "k", "v", "a", "b", "S0"


def make_inputs(*size, dtype=torch.float32):
    return [tensor.detach() for tensor in wkv7_inputs(*size, dtype)]


def everything(inputs):
    return everything_by(cuda_wkv7.wkv7_forward, cuda_wkv7.wkv7_backward, inputs)


def everything_of_reference(inputs):
    return everything_by_reference(reference.wkv7, inputs)


def assert_matches_reference(inputs):
    assert_all_close(everything(inputs), everything_of_reference(inputs), inputs[2].dtype)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_wkv7_matches_reference_at_every_size(host, size):
    assert_matches_reference(make_inputs(*size))
    backward = ["wkv7_forward", "wkv7_backward_rows", "wkv7_backward_state", "wkv7_backward_columns"]
    assert host.ran == ["wkv7_forward", *backward]


@pytest.mark.parametrize("case", CASES)
def test_wkv7_is_the_authors(host, case):
    stored = {name: torch.from_numpy(STORED[f"{case}.{name}"]).float() for name in (*NAMES, "gy", "gST")}
    N = stored["r"].shape[-1]
    # channels of zeros more, which no other hears of
    wide = {name: F.pad(x, (0, 32 - N, 0, 32 - N) if "S" in name else (0, 32 - N)) for name, x in stored.items()}
    inputs = [wide[name] for name in NAMES]
    results = cuda_wkv7.wkv7_forward(*inputs)
    grads = cuda_wkv7.wkv7_backward(wide["gy"], wide["gST"], *inputs)
    for name, found in zip(("y", "ST", *(f"g{name}" for name in NAMES)), (*results, *grads), strict=True):
        wanted = torch.from_numpy(STORED[f"{case}.{name}"])
        narrow = found[..., :N, :N] if "S" in name else found[..., :N]
        assert (narrow - wanted).abs().max() <= 1e-5 * max(wanted.abs().max().item(), 1e-2), name


@pytest.mark.parametrize("log_decay", [0.0, -1e-4, -3.0, -20.0, -100.0])
def test_wkv7_matches_reference_at_extreme_decays(host, log_decay):
    inputs = make_inputs(1, 70, 1, 32)
    inputs[LOG_DECAY].fill_(log_decay)
    found, wanted = everything(inputs), everything_of_reference(inputs)
    # the gradient of a log decay is a difference: as exact as what it is a difference of, whatever is left of it
    terms = [(inputs[i] * wanted[2 + i]).abs().max().item() for i in (0, 2, 4, 5)]
    assert (found[D_LOG_DECAY] - wanted[D_LOG_DECAY]).abs().max() <= 2e-6 * max(terms)
    for ours, exact in zip(found[:D_LOG_DECAY] + found[D_LOG_DECAY + 1 :], wanted[:3] + wanted[4:], strict=True):
        assert_close(ours, exact)


def test_rounding_does_not_add_up_over_a_long_text(host):
    inputs = make_inputs(1, 1500, 1, 32)
    # without a fresh start at every chunk it would be 8e-7 here, and more the longer the text
    assert_close(everything(inputs)[D_LOG_DECAY], everything_of_reference(inputs)[D_LOG_DECAY], tolerance=4e-7)
