"""The CUDA kernels of RWKV-7's WKV, run on the CPU by `cuda_on_host`, against the reference, and behind the door."""

import importlib
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_on_host import needs_compiler
from kernel_cases import assert_all_close, everything_by, everything_by_reference, wkv7_inputs
from tolerances import TOLERANCE, assert_close
from torch.nn import functional as F

from spikegpt.config import ModelConfig
from spikegpt.kernels import gpu, wkv7
from spikegpt.kernels.wkv7 import gpu as cuda_wkv7
from spikegpt.kernels.wkv7 import reference
from spikegpt.kernels.wkv7.door import wkv7_operator
from spikegpt.model.network import SpikeGPT

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


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("N", gpu.HEAD_SIZES)
def test_wkv7_matches_reference_in_every_dtype(host, N, dtype):
    assert_matches_reference(make_inputs(2, 37, 1, N, dtype=dtype))


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


def test_two_pieces_are_the_whole(host):
    *inputs, state = make_inputs(2, 70, 2, 32)
    whole, last = cuda_wkv7.wkv7_forward(*inputs, state)
    first, carried = cuda_wkv7.wkv7_forward(*(x[:, :41] for x in inputs), state)
    second, end = cuda_wkv7.wkv7_forward(*(x[:, 41:] for x in inputs), carried)
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert torch.equal(end, last)


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


def test_a_sick_head_leaves_the_others_well(host):
    inputs = make_inputs(2, 37, 2, 32)
    wanted = everything(inputs)
    inputs[3][1, 5, 0, 7] = math.nan
    found = everything(inputs)
    assert found[0][1, 5:, 0, 7].isnan().all() and found[0][1, :5].isfinite().all()
    for ours, well in zip(found, wanted, strict=True):
        if well.shape[1] != 2:
            ours, well = ours.transpose(1, 2), well.transpose(1, 2)
        assert torch.equal(ours[0], well[0]) and torch.equal(ours[1, 1], well[1, 1])


def test_inputs_need_not_be_contiguous_nor_begin_at_whole_16_bytes(host, monkeypatch):
    inputs = make_inputs(2, 33, 2, 32, dtype=torch.bfloat16)
    wanted, launch = everything(inputs), gpu.launch

    def launch_aligned(*arguments):
        assert all(x.data_ptr() % 16 == 0 for x in arguments if isinstance(x, torch.Tensor))
        launch(*arguments)

    monkeypatch.setattr(gpu, "launch", launch_aligned)
    apart = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in inputs]
    late = [torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape) for tensor in inputs]
    assert not apart[0].is_contiguous() and late[0].is_contiguous() and late[0].data_ptr() % 16
    for moved in (apart, late):
        assert all(map(torch.equal, everything(moved), wanted))


def test_the_source_and_python_agree():
    text = gpu.read_source("wkv7")
    assert int(re.search(r"#define CHUNK (\d+)", text)[1]) == cuda_wkv7.CHUNK
    assert tuple(map(int, re.findall(r"walk\(Channel<(\d+)>", text))) == gpu.HEAD_SIZES


def take_the_way_of(backend, monkeypatch):
    """From here on the door sends tensors on the CPU to `backend`."""
    door = importlib.import_module("spikegpt.kernels.wkv7.door")
    monkeypatch.setattr(door, "choose_backend", lambda asked, *_: backend if asked == "auto" else asked)
    monkeypatch.setattr(door, "fast_kernels", lambda *_: cuda_wkv7)


def test_the_operator_declares_the_shapes_and_strides_it_returns(host, monkeypatch):
    take_the_way_of("cupy", monkeypatch)
    inputs = [tensor.requires_grad_() for tensor in make_inputs(1, 5, 2, 32)]
    checks = "test_schema", "test_faketensor", "test_autograd_registration"
    torch.library.opcheck(wkv7_operator.definition, inputs, test_utils=checks)


@pytest.mark.parametrize("N", [1, 16, 33, 48, 256])
def test_other_head_sizes_are_served_by_the_reference_and_said_so(host, monkeypatch, N):
    take_the_way_of("cupy", monkeypatch)
    inputs = make_inputs(1, 3, 2, N)
    with pytest.warns(RuntimeWarning, match=f"heads of 32, 64, 128 channels, got {N}; using the slow"):
        found = wkv7(*inputs)
    assert all(map(torch.equal, found, wkv7(*inputs, backend="reference")))
    assert host.ran == []
    with pytest.raises(ValueError, match=f"heads of 32, 64, 128 channels, got {N}; use backend='auto'"):
        wkv7(*inputs, backend="cupy")


def loss_and_gradients(model, ids):
    logits, state, _ = model(ids[:, :9])
    # the second half goes on from the carried state, and the gradient flows back through it
    logits = torch.cat([logits, model(ids[:, 9:-1], state).logits], dim=1)
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


def test_a_model_learns_the_same_through_the_cuda_kernels(host, monkeypatch):
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(mixer="rwkv7", spiking="none", n_layer=2, n_embd=64, head_size=32, vocab_size=17))
    with torch.no_grad():
        # as initialised its outputs are zero, and nothing would flow back
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.randint(17, (2, 20))
    take_the_way_of("reference", monkeypatch)
    wanted = loss_and_gradients(model.eval(), ids)
    take_the_way_of("cupy", monkeypatch)
    found = loss_and_gradients(model, ids)
    for ours, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5 * max(exact.abs().max().item(), 1e-6))
    assert host.ran.count("wkv7_backward_columns") == 4
