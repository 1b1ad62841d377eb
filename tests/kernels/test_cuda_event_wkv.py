"""The CUDA kernels of the event-driven WKV, run on the CPU by `cuda_on_host`, against the reference and by hand."""

import math
import re

import pytest
import torch
from cuda_on_host import needs_compiler
from kernel_cases import EVENT_WKV_RESULTS, HEIGHTS, cotangents_of, event_wkv_inputs
from tolerances import TOLERANCE, assert_close

from spikegpt.kernels import gpu
from spikegpt.kernels.event_wkv import gpu as cuda_event_wkv
from spikegpt.kernels.event_wkv import reference

pytestmark = needs_compiler
# odd on purpose; one stretch of the kernel is 32 steps
SIZES = [(1, 1, 1), (3, 2, 5), (1, 63, 33), (3, 97, 65), (3, 32, 65), (1, 257, 5), (2, 9, 130)]
D_KEY, D_VALUE = EVENT_WKV_RESULTS.index("d_key"), EVENT_WKV_RESULTS.index("d_value")


def pack(value):
    """Return (planes (planes, B, ceil(T / 32), C) int32, signed): the bits of |value|; the sign if any is negative."""
    B, T, C = value.shape
    whole, signed = value.int(), bool((value < 0).any())
    bits = [whole.abs() >> j & 1 for j in range(max(int(whole.abs().max()).bit_length(), 1))] + [
        (whole < 0).int()
    ] * signed
    padded = torch.zeros(len(bits), B, -(-T // 32) * 32, C, dtype=torch.int64)
    padded[:, :, :T] = torch.stack(bits)
    words = (padded.unflatten(2, (-1, 32)) << torch.arange(32).view(32, 1)).sum(3)
    return torch.where(words < 1 << 31, words, words - (1 << 32)).int(), signed


def forward(inputs, packed=False):
    time_decay, time_first, key, value, *sums = inputs
    if packed:
        return cuda_event_wkv.event_wkv_forward_packed(time_decay, time_first, key, *pack(value), *sums)
    return cuda_event_wkv.event_wkv_forward(time_decay, time_first, key, value, *sums)


def everything(inputs, packed=False):
    """Return what EVENT_WKV_RESULTS lists, under a fixed random cotangent."""
    results = forward(inputs, packed)
    time_decay, time_first, key, value, *sums = inputs
    if packed:
        grads = cuda_event_wkv.event_wkv_backward_packed(
            *cotangents_of(results), time_decay, time_first, key, *pack(value), *sums
        )
    else:
        grads = cuda_event_wkv.event_wkv_backward(*cotangents_of(results), *inputs)
    return [*results, *grads]


def everything_of_reference(inputs, dtype=None):
    inputs = [tensor.to(dtype or tensor.dtype).clone().requires_grad_() for tensor in inputs]
    results = reference.event_wkv(*inputs)
    grads = torch.autograd.grad(
        results, inputs, [c.to(r.dtype) for c, r in zip(cotangents_of(results), results, strict=True)]
    )
    return [*(result.detach() for result in results), *grads]


def assert_matches_reference(inputs):
    dtype = inputs[2].dtype
    found, packed, wanted = everything(inputs), everything(inputs, packed=True), everything_of_reference(inputs)
    for elements, planes, want in zip(found, packed, wanted, strict=True):
        assert torch.equal(elements, planes)
        assert_close(elements, want, dtype)


both = pytest.mark.parametrize("packed", [False, True], ids=["elements", "packed"])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("size", SIZES)
def test_event_wkv_matches_reference_at_every_size_and_rate(host, size, rate):
    assert_matches_reference(event_wkv_inputs(*size, rate=rate))
    assert host.ran == ["event_wkv_forward", "event_wkv_backward"] * 2


@pytest.mark.parametrize("spikes", HEIGHTS)
def test_event_wkv_matches_reference_with_every_alphabet(host, spikes):
    assert_matches_reference(event_wkv_inputs(2, 63, 33, spikes=spikes))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_event_wkv_matches_reference_in_every_dtype(host, dtype):
    assert_matches_reference(event_wkv_inputs(2, 63, 33, dtype, spikes="integer"))


@pytest.mark.parametrize("time_decay", [-100.0, -20.0, 4.0, 60.0, 80.0, 100.0])
def test_event_wkv_matches_reference_at_extreme_decays(host, time_decay):
    inputs = event_wkv_inputs(2, 63, 33)
    inputs[0].fill_(time_decay)
    assert_matches_reference(inputs)


@pytest.mark.parametrize("place", [1, 2], ids=["time_first", "key"])
@pytest.mark.parametrize("size", [19.5, 20.0, 20.5, 1000.0])
def test_event_wkv_matches_reference_at_and_beyond_the_limits(host, size, place):
    inputs = event_wkv_inputs(2, 63, 33)
    inputs[place].copy_(size * inputs[place].sign())
    found = everything(inputs)
    # in float64: autograd's gradient of time_first is a small difference of large numbers here,
    # in float32 nothing but noise
    for ours, wanted in zip(found, everything_of_reference(inputs, torch.float64), strict=True):
        assert_close(ours, wanted.float())
    assert all(tensor.isfinite().all() for tensor in found)
    assert (found[3 + place].abs().max() == 0) == (size > reference.EVENT_KEY_LIMIT)


@both
@pytest.mark.parametrize("key", [-20.0, -21.0, -math.inf])
def test_a_tiny_weight_is_not_lost_and_not_undercut(host, key, packed):
    # one event of weight exp(-20) = 2e-9 in an empty memory: beside the 1 of a silent token,
    # float32 could not tell it from 0
    value, zero = torch.tensor([[[3.0]]]), torch.zeros(1)
    output, numerator, denominator = forward(
        [zero, zero, torch.full_like(value, key), value, zero.view(1, 1), zero.view(1, 1)], packed
    )
    assert output.item() == pytest.approx(3.0)
    assert denominator.item() == pytest.approx(math.exp(-20), rel=1e-5, abs=0)
    assert numerator.item() == pytest.approx(3 * math.exp(-20), rel=1e-5, abs=0)


@both
def test_event_wkv_by_hand(host, packed):
    # the numbers are worked out in tests/kernels/test_event_wkv.py
    log_2, empty = math.log(2), torch.zeros(1, 1)
    key = torch.tensor([7.0, math.log(4), -5.0, log_2]).view(1, 4, 1)
    value = torch.tensor([0.0, 3.0, 0.0, -1.0]).view(1, 4, 1)
    output, numerator, denominator = forward(
        [torch.tensor([math.log(log_2)]), torch.tensor([log_2]), key, value, empty, empty], packed
    )
    assert output.flatten().tolist() == pytest.approx([0, 24 / 9, 24 / 13, 8 / 29], rel=1e-5)
    assert numerator.item() == pytest.approx(1, rel=1e-5)
    assert denominator.item() == pytest.approx(29 / 8, rel=1e-5)


@both
@pytest.mark.parametrize("through", ["output", "numerator"])
def test_a_silent_value_hears_what_a_spike_of_weight_1_would_have_done(host, through, packed):
    # one silent token in an empty memory: output = first v / first, numerator = v: gradients 1 and 1
    zero, value = torch.zeros(1, 1), torch.zeros(1, 1, 1)
    grads = torch.full((1, 1, 1), float(through == "output")), torch.full((1, 1), float(through == "numerator")), zero
    inputs = *grads, torch.zeros(1), torch.ones(1), torch.full((1, 1, 1), 5.0)
    if packed:
        gradients = cuda_event_wkv.event_wkv_backward_packed(*inputs, *pack(value), zero, zero)
    else:
        gradients = cuda_event_wkv.event_wkv_backward(*inputs, value, zero, zero)
    assert gradients[3].item() == pytest.approx(1.0)


@both
@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -1e30])
def test_keys_of_silent_tokens_are_never_read(host, nonsense, packed):
    inputs = event_wkv_inputs(3, 97, 65, rate=0.3)
    silent, wanted = inputs[3] == 0, everything(inputs, packed)
    inputs[2][silent] = nonsense
    found = everything(inputs, packed)
    assert all(
        tensor.isfinite().all() and torch.equal(tensor, want) for tensor, want in zip(found, wanted, strict=True)
    )
    assert (found[D_KEY][silent] == 0).all() and (found[D_VALUE][silent] != 0).all()


@both
def test_two_chunks_are_the_whole(host, packed):
    time_decay, time_first, key, value, *sums = event_wkv_inputs(2, 90, 33)
    whole, *last = forward([time_decay, time_first, key, value, *sums], packed)
    first, *middle = forward([time_decay, time_first, key[:, :41], value[:, :41], *sums], packed)
    second, *end = forward([time_decay, time_first, key[:, 41:], value[:, 41:], *middle], packed)
    for ours, wanted in zip((torch.cat([first, second], dim=1), *end), (whole, *last), strict=True):
        assert_close(ours, wanted)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_any_number_but_0_is_an_event(host, dtype):
    value = torch.tensor([0.3, -0.0, 0.0, torch.finfo(dtype).tiny / 4, -2.5, math.inf], dtype=dtype).view(1, 6, 1)
    inputs = [torch.zeros(1), torch.zeros(1), torch.full_like(value, 3.0), value, torch.zeros(1, 1), torch.ones(1, 1)]
    # only an event's key has a gradient
    for found in (everything(inputs), everything_of_reference(inputs)):
        assert (found[D_KEY].flatten() != 0).tolist() == [True, False, False, True, True, True]


@pytest.mark.parametrize(
    ("place", "first_sick"),
    [
        pytest.param(0, 1, id="time_decay"),  # first felt at the second token
        pytest.param(1, 0, id="time_first"),
        pytest.param(2, 4, id="key"),
        pytest.param(3, 4, id="value"),
        pytest.param(4, 0, id="numerator"),
        pytest.param(5, 0, id="denominator"),
    ],
)
def test_nan_is_never_hidden_where_it_counts(host, place, first_sick):
    inputs = event_wkv_inputs(1, 9, 17, rate=1.0)
    inputs[place][..., 3] = math.nan
    if place in (2, 3):
        inputs[place][:, :4, 3] = 0.0
    wanted = torch.zeros(1, 9, 17, dtype=torch.bool)
    wanted[:, first_sick:, 3] = True
    assert torch.equal(forward(inputs)[0].isnan(), wanted)


def test_inputs_need_not_be_contiguous(host):
    time_decay, time_first, key, value, *sums = event_wkv_inputs(2, 63, 33)
    wanted = everything([time_decay, time_first, key, value, *sums])
    turned = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (key, value, *sums)]
    assert all(map(torch.equal, everything([time_decay, time_first, *turned]), wanted))


def test_the_source_and_python_agree_on_the_launch():
    constants = dict(re.findall(r"#define (\w+) (\d+)$", gpu.read_source("event_wkv"), flags=re.MULTILINE))
    assert int(constants["THREADS"]) == gpu.THREADS
    assert int(constants["STEPS"]) == cuda_event_wkv.STEPS
