"""The CUDA kernels of RWKV-7's WKV by events, run on the CPU by `cuda_on_host`, against the reference and the door."""

import importlib
import math
import re

import pytest
import torch
from cuda_on_host import needs_compiler
from kernel_cases import assert_all_close, event_wkv7_inputs, event_wkv7_state
from tolerances import TOLERANCE

from spikegpt.config import ModelConfig
from spikegpt.kernels import event_wkv7, gpu
from spikegpt.kernels.event_wkv7 import gpu as cuda_event_wkv7
from spikegpt.kernels.event_wkv7 import reference
from spikegpt.kernels.event_wkv7.door import event_wkv7_operator
from spikegpt.model.network import SpikeGPT

pytestmark = needs_compiler
# odd on purpose, on either side of a word of 32 channels, and with a block of threads that is not full
SIZES = [(1, 1, 1, 1), (3, 2, 1, 5), (2, 37, 3, 33), (1, 33, 2, 32), (2, 31, 2, 64), (1, 19, 3, 100), (2, 9, 2, 128)]
KERNELS = ["event_wkv7_find", "event_wkv7_wait", "event_wkv7_rows"]
RECEPTANCE, LOG_DECAY, KEY, VALUE, A, B = range(6)


def inputs_of(*size_and_firing, dtype=torch.float32):
    """Return [receptance, log_decay, key, value, a, b, matrix, waiting]."""
    batch, _, heads, N, _ = size_and_firing
    return [*event_wkv7_inputs(*size_and_firing, dtype), *event_wkv7_state(batch, heads, N)]


def assert_matches_reference(inputs):
    """In float64, then rounded."""
    exact = reference.event_wkv7(*(tensor.double() for tensor in inputs))
    kinds = inputs[KEY], *inputs[-2:]
    wanted = [x.to(kind.dtype) for x, kind in zip(exact, kinds, strict=True)]
    assert_all_close(cuda_event_wkv7.event_wkv7_forward(*inputs), wanted, inputs[KEY].dtype)


@pytest.mark.parametrize("firing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_event_wkv7_matches_reference_at_every_size(host, size, firing):
    assert_matches_reference(inputs_of(*size, firing))
    assert host.ran == KERNELS


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("N", [48, 128])
def test_event_wkv7_matches_reference_in_every_dtype(host, N, dtype):
    assert_matches_reference(inputs_of(2, 37, 2, N, 0.3, dtype=dtype))


@pytest.mark.parametrize("silent", [(KEY,), (A,), (B,), (KEY, A), (KEY, B), (A, B)])
def test_key_a_and_b_may_be_silent_each_without_the_others(host, silent):
    inputs = inputs_of(2, 9, 2, 5, 0.5)
    for place in silent:
        inputs[place].zero_()
    assert_matches_reference(inputs)


def test_a_column_without_events_is_not_touched_nor_seen(host):
    inputs = inputs_of(2, 9, 2, 40, 0.5)
    for place in (RECEPTANCE, KEY, A, B):
        inputs[place][..., 32] = 0
    wanted = cuda_event_wkv7.event_wkv7_forward(*inputs)
    # whoever read it, were it times 0, would hear of it
    inputs[6][..., 32] = math.nan
    output, matrix, waiting = cuda_event_wkv7.event_wkv7_forward(*inputs)
    assert torch.equal(output, wanted[0])
    assert matrix[..., 32].isnan().all() and matrix[..., :32].isfinite().all()
    expected = inputs[7][..., 32] + inputs[LOG_DECAY][..., 32].sum(dim=1)
    torch.testing.assert_close(waiting[..., 32], expected)


def test_two_pieces_are_the_whole(host):
    *inputs, matrix, waiting = inputs_of(2, 37, 2, 40, 0.3)
    whole, *last = cuda_event_wkv7.event_wkv7_forward(*inputs, matrix, waiting)
    first, *carried = cuda_event_wkv7.event_wkv7_forward(*(x[:, :20] for x in inputs), matrix, waiting)
    second, *end = cuda_event_wkv7.event_wkv7_forward(*(x[:, 20:] for x in inputs), *carried)
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert all(map(torch.equal, end, last))


def test_it_may_wait_for_longer_than_a_number_is_large(host):
    inputs = inputs_of(1, 400, 1, 4, 0.0)
    inputs[LOG_DECAY].fill_(-0.6)
    for place in (KEY, A, B, RECEPTANCE):
        inputs[place][:, -1] = 1.0
    assert_matches_reference(inputs)


def test_a_sick_head_leaves_the_others_well(host):
    inputs = inputs_of(2, 12, 2, 40, 1.0)
    wanted = cuda_event_wkv7.event_wkv7_forward(*inputs)
    inputs[VALUE][1, 5, 0, 7] = math.nan
    output, matrix, waiting = cuda_event_wkv7.event_wkv7_forward(*inputs)
    assert output[1, 5:, 0, 7].isnan().all() and output[1, :5].isfinite().all()
    assert torch.equal(output[0], wanted[0][0]) and torch.equal(output[1, :, 1], wanted[0][1, :, 1])
    assert torch.equal(matrix[1, 1], wanted[1][1, 1]) and torch.equal(waiting, wanted[2])


def test_what_is_not_a_number_is_an_event(host):
    inputs = inputs_of(1, 3, 1, 5, 0.0)
    inputs[RECEPTANCE][0, 1, 0, 2] = inputs[KEY][0, 2, 0, 3] = math.nan
    output, matrix, _ = cuda_event_wkv7.event_wkv7_forward(*inputs)
    assert output[0, 1].isnan().all() and output[0, 2].isfinite().all()
    assert matrix[..., 3].isnan().all() and matrix[..., :3].isfinite().all()


def test_inputs_need_not_be_contiguous_and_are_not_written_into(host):
    inputs = inputs_of(2, 33, 2, 40, 0.3, dtype=torch.bfloat16)
    kept = [tensor.clone() for tensor in inputs]
    wanted = cuda_event_wkv7.event_wkv7_forward(*inputs)
    assert all(map(torch.equal, inputs, kept))
    apart = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in inputs]
    assert not apart[0].is_contiguous()
    assert all(map(torch.equal, cuda_event_wkv7.event_wkv7_forward(*apart), wanted))


def test_the_source_and_python_agree():
    text = gpu.read_source("event_wkv7")
    defined = {name: int(number) for name, number in re.findall(r"#define (\w+) (\d+)\n", text)}
    ours = defined["CHANNELS"], defined["MOST_CHANNELS"], defined["THREADS"]
    assert ours == (cuda_event_wkv7.CHANNELS, cuda_event_wkv7.MOST_CHANNELS, gpu.THREADS)


@pytest.fixture
def through_cuda(host, monkeypatch):
    """The door sends tensors on the CPU the way of those on a GPU."""
    door = importlib.import_module("spikegpt.kernels.event_wkv7.door")
    monkeypatch.setattr(door, "choose_backend", lambda asked, *_: "cupy" if asked == "auto" else asked)
    monkeypatch.setattr(door, "fast_kernels", lambda *_: cuda_event_wkv7)
    return host


def test_the_operator_declares_the_shapes_and_strides_it_returns(through_cuda):
    checks = "test_schema", "test_faketensor"
    torch.library.opcheck(event_wkv7_operator.definition, inputs_of(1, 5, 2, 33, 0.3), test_utils=checks)


def test_larger_heads_are_served_by_the_reference_and_said_so(through_cuda):
    *inputs, matrix, waiting = inputs_of(1, 3, 2, 129, 0.3)
    with pytest.warns(RuntimeWarning, match="heads of up to 128 channels, got 129; using the slow"):
        output, state = event_wkv7(*inputs, (matrix, waiting))
    wanted, last = event_wkv7(*inputs, (matrix, waiting), backend="reference")
    assert all(map(torch.equal, (output, *state), (wanted, *last)))
    assert through_cuda.ran == []
    with pytest.raises(ValueError, match="heads of up to 128 channels, got 129; use backend='auto'"):
        event_wkv7(*inputs, (matrix, waiting), backend="cupy")


def test_a_model_reads_the_same_through_the_cuda_kernels(host, request):
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_embd": 48, "head_size": 24, "vocab_size": 17}
    model = SpikeGPT(ModelConfig(mixer="rwkv7", spiking="input", state_neurons=True, **sizes)).eval()
    ids = torch.randint(17, (2, 20))

    def read():
        with torch.inference_mode():
            logits, state, _ = model(ids[:, :9])
            return torch.cat([logits, model(ids[:, 9:], state).logits], dim=1)

    wanted = read()
    request.getfixturevalue("through_cuda")
    torch.testing.assert_close(read(), wanted, rtol=1e-4, atol=1e-4)
    assert host.ran == 4 * KERNELS
