"""The CUDA kernels of the WKV of RWKV-5 and -6, run on the CPU by `cuda_on_host`, and behind the door."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_on_host import needs_compiler
from kernel_cases import assert_all_close, everything_by, everything_by_reference, wkv6_inputs
from torch.nn import functional as F

from spikegpt.kernels import wkv6
from spikegpt.kernels.wkv6 import gpu as cuda_wkv6
from spikegpt.kernels.wkv6 import reference

pytestmark = needs_compiler
# odd on purpose, on either side of a chunk of 16 tokens, and with a block of threads that is not full
SIZES = [(1, 1, 1, 32), (3, 2, 1, 32), (1, 17, 3, 32), (2, 15, 2, 64), (1, 32, 1, 64), (2, 50, 1, 64), (1, 37, 2, 128)]
LOG_DECAY = 1
GOLDEN = Path(__file__).parents[1] / "golden"
STORED = np.load(GOLDEN / "wkv6_a.npz")
CASES = list(json.loads((GOLDEN / "wkv6_a.json").read_text())["cases"])
NAMES = "r", "w_raw", "k", "v", "u", "S0"


def make_inputs(*size, dtype=torch.float32):
    return [tensor.detach() for tensor in wkv6_inputs(*size, dtype)]


def everything(inputs):
    return everything_by(cuda_wkv6.wkv6_forward, cuda_wkv6.wkv6_backward, inputs)


def everything_of_reference(inputs):
    return everything_by_reference(reference.wkv6, inputs)


def assert_matches_reference(inputs):
    assert_all_close(everything(inputs), everything_of_reference(inputs), inputs[2].dtype)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_wkv6_matches_reference_at_every_size(host, size):
    assert_matches_reference(make_inputs(*size))
    assert host.ran == ["wkv6_forward", "wkv6_backward_columns", "wkv6_backward_state", "wkv6_backward_rows"]


@pytest.mark.parametrize("log_decay", [0.0, -1e-4, -3.0, -100.0, -1e4])
def test_wkv6_matches_reference_at_extreme_decays(host, log_decay):
    inputs = make_inputs(1, 40, 1, 32)
    inputs[LOG_DECAY].fill_(log_decay)
    assert_matches_reference(inputs)


@pytest.mark.parametrize("case", CASES)
def test_wkv6_is_the_authors(host, case):
    stored = {name: torch.from_numpy(STORED[f"{case}.{name}"]).float() for name in (*NAMES, "gy", "gST")}
    N = stored["r"].shape[-1]
    # channels of zeros more, which no other hears of
    wide = {
        name: F.pad(x, (0, 32 - N, 0, 32 - N) if x.dim() == 4 and "S" in name else (0, 32 - N))
        for name, x in stored.items()
    }
    wide["w_raw"] = wide["w_raw"].expand_as(wide["r"])
    inputs = [wide["r"], -torch.exp(wide["w_raw"]), *(wide[name] for name in ("k", "v", "u", "S0"))]
    results = cuda_wkv6.wkv6_forward(*inputs)
    grads = cuda_wkv6.wkv6_backward(wide["gy"], wide["gST"], *inputs)
    names = ("y", "ST", "gr", "gk", "gv", "gu", "gS0")
    for name, found in zip(names, (*results, grads[0], *grads[2:]), strict=True):
        wanted = torch.from_numpy(STORED[f"{case}.{name}"])
        narrow = found[..., :N, :N] if "S" in name else found[..., :N]
        assert (narrow - wanted).abs().max() <= 1e-5 * max(wanted.abs().max().item(), 1e-2), name


@pytest.fixture
def on_gpu(monkeypatch):
    """From here on the door sends tensors on the CPU to the CUDA kernels."""
    door = importlib.import_module("spikegpt.kernels.wkv6.door")
    monkeypatch.setattr(door, "choose_backend", lambda asked, *_: "cupy" if asked == "auto" else asked)
    monkeypatch.setattr(door, "fast_kernels", lambda *_: cuda_wkv6)


def test_a_decay_of_all_tokens_is_read_as_one_of_each(host, on_gpu):
    """RWKV-5's: a view expanded over the tokens."""
    r, w, k, v, u, state = make_inputs(2, 9, 2, 32)
    fixed = w[:1, :1].expand_as(w)
    assert torch.equal(wkv6(r, fixed, k, v, u, state)[0], wkv6(r, fixed.contiguous(), k, v, u, state)[0])
