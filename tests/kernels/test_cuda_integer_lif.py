"""The CUDA kernels of the integer LIF neuron, run on the CPU by `cuda_on_host`, against the reference."""

import dataclasses
import itertools

import pytest
import torch
from cuda_on_host import needs_compiler
from kernel_cases import cotangents_of, integer_lif_inputs
from tolerances import TOLERANCE, assert_close

from spikegpt.kernels.checks import RESETS
from spikegpt.kernels.integer_lif import gpu as cuda_integer_lif
from spikegpt.kernels.integer_lif import reference
from spikegpt.kernels.integer_lif.options import IntegerLIFOptions

pytestmark = needs_compiler
SIZES = [(1, 1, 1), (3, 2, 5), (2, 63, 33), (1, 97, 130), (3, 32, 65)]  # odd on purpose, and the length of a word
OPTIONS = [
    IntegerLIFOptions(levels=levels, signed=signed, reset=reset, decay_input=decay_input)
    for levels, signed, reset, decay_input in itertools.product(
        (1, 4, 127), (False, True), ("subtract", "zero", "none"), (False, True)
    )
]
FOUR = IntegerLIFOptions(levels=4, signed=True)
stored_or_not = pytest.mark.parametrize("store_membrane", [False, True], ids=["recomputed", "stored"])


def unpack(planes, T, signed):
    """Return the spikes (B, T, C) of planes (P, B, ceil(T / 32), C), by shifting."""
    bits = (planes.unsqueeze(3) >> torch.arange(32, dtype=torch.int32).view(1, 1, 1, 32, 1)) & 1
    bits = bits.flatten(2, 3)[:, :, :T].float()
    magnitudes, sign = (bits[:-1], 1 - 2 * bits[-1]) if signed else (bits, 1.0)
    return sum(plane * 2**j for j, plane in enumerate(magnitudes)) * sign


def assert_matches(inputs, options, store_membrane=False):
    dtype, (_, T, _) = inputs[0].dtype, inputs[0].shape
    outputs = reference.integer_lif(*inputs, options)
    cotangents = cotangents_of(outputs)
    wanted = torch.autograd.grad(outputs, inputs, cotangents)
    spikes, final = cuda_integer_lif.integer_lif_forward(*inputs, options)
    planes, membrane, packed_final = cuda_integer_lif.integer_lif_forward_packed(
        *inputs, options, store_membrane=store_membrane
    )
    assert torch.equal(spikes, outputs[0])
    assert torch.equal(final, outputs[1]) and torch.equal(packed_final, outputs[1])
    assert planes.shape[0] == options.levels.bit_length() + options.signed
    assert torch.equal(unpack(planes, T, options.signed), spikes.float())
    found = cuda_integer_lif.integer_lif_backward(*cotangents, *inputs, options, membrane=membrane)
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(ours, theirs, dtype)


@pytest.mark.parametrize("size", SIZES)
def test_integer_lif_matches_reference_at_every_size(host, size):
    assert_matches(integer_lif_inputs(*size), FOUR)


@stored_or_not
@pytest.mark.parametrize("memoryless", [False, True], ids=["leaky", "memoryless"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, vars(o).values())))
def test_integer_lif_matches_reference_with_every_option(host, options, memoryless, store_membrane):
    assert_matches(integer_lif_inputs(2, 39, 33, memoryless=memoryless), options, store_membrane)


@stored_or_not
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_integer_lif_matches_reference_in_every_dtype(host, dtype, store_membrane):
    assert_matches(integer_lif_inputs(2, 63, 33, dtype), FOUR, store_membrane)


@pytest.mark.parametrize("levels", [1, 4, 127])
@pytest.mark.parametrize("signed", [False, True])
def test_whole_and_half_thresholds_are_decided_as_the_reference_does(host, levels, signed):
    # every count and every plane, both edges of the window of the gradient, and 2 thresholds beyond
    _, potential, decay, threshold = integer_lif_inputs(1, 1, 33, memoryless=True)
    halves = torch.arange(-2 * levels - 4, 2 * levels + 5) / 2
    current = (halves.view(1, -1, 1) * threshold.detach()).requires_grad_()
    assert_matches([current, potential, decay, threshold], dataclasses.replace(FOUR, levels=levels, signed=signed))


def test_the_window_of_the_gradient_includes_its_edges(host):
    # by hand: 4 levels, so that half a threshold beyond the last spike is 4.5
    beyond = torch.tensor(4.5).nextafter(torch.tensor(5.0)).item()
    current = torch.tensor([-beyond, -4.5, 0.0, 4.5, beyond]).view(1, -1, 1)
    inputs = current, torch.zeros(1, 1), torch.zeros(1), torch.ones(1)
    grad_current, *_ = cuda_integer_lif.integer_lif_backward(torch.ones_like(current), torch.zeros(1, 1), *inputs, FOUR)
    assert grad_current.flatten().tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("scale", [1e-40, 1e30])
def test_integer_lif_matches_reference_at_extreme_values(host, scale, reset):
    current, *others = integer_lif_inputs(2, 39, 33)
    # thresholds stay as they are: nothing reaches them, or everything is far beyond
    assert_matches([(current.detach() * scale).requires_grad_(), *others], dataclasses.replace(FOUR, reset=reset))


def test_infinity_fires_as_often_as_it_may(host):
    inputs = integer_lif_inputs(1, 9, 3)
    inputs[0].data[0, 4, 1] = -float("inf")
    found, wanted = cuda_integer_lif.integer_lif_forward(*inputs, FOUR), reference.integer_lif(*inputs, FOUR)
    assert found[0][0, 4, 1] == -4
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


def test_nan_stays_where_it_is(host):
    inputs = integer_lif_inputs(1, 9, 3)
    inputs[0].data[0, 4, 1] = float("nan")
    spikes, final = cuda_integer_lif.integer_lif_forward(*inputs, FOUR)
    assert spikes.isnan()[0, 4:, 1].all() and not spikes.isnan()[..., [0, 2]].any() and not spikes.isnan()[:, :4].any()
    assert final.isnan().tolist() == [[False, True, False]]


def test_what_lies_beyond_the_text_does_not_fire(host):
    inputs = integer_lif_inputs(2, 33, 5)
    planes, _, _ = cuda_integer_lif.integer_lif_forward_packed(*inputs, FOUR)
    assert (planes[:, :, 1] & ~1).count_nonzero() == 0
