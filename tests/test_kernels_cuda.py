"""The CUDA kernels, run on the CPU by `cuda_on_host`, against the reference: outputs, final state and every gradient."""

import pytest
import torch
from cuda_on_host import needs_compiler

from spikegpt.kernels import cuda_lif, reference

pytestmark = needs_compiler
SIZES = [(1, 1, 1), (3, 2, 5), (2, 63, 33), (1, 97, 130), (3, 32, 65)]  # odd on purpose, and the length of a word
# largest difference allowed, as a fraction of the largest entry
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def assert_close(found, wanted, dtype=torch.float32):
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    found, wanted = found.double(), wanted.double()
    assert (found - wanted).abs().max() <= TOLERANCE[dtype] * max(wanted.abs().max().item(), 1e-6)


def unpack(packed, T):
    """Return the spikes (B, T, C) of words (B, ceil(T / 32), C), by shifting."""
    bits = (packed.unsqueeze(2) >> torch.arange(32, dtype=torch.int32).view(1, 1, 32, 1)) & 1
    return bits.flatten(1, 2)[:, :T].float()


LIF = {"threshold": 1.0, "reset": "zero", "reset_potential": 0.0, "decay_input": True}
LIF_OPTIONS = [{}, {"reset": "subtract"}, {"reset_potential": -0.5, "threshold": 0.7}, {"decay_input": False, "reset": "subtract"}]


def lif_inputs(B, T, C, dtype=torch.float32):
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + C)
    current = 2 * torch.randn(B, T, C, generator=generator) + 0.5
    return [tensor.requires_grad_() for tensor in (current.to(dtype), torch.randn(B, C, generator=generator), torch.rand(C, generator=generator))]


def lif_reference(inputs, options, detach_reset=False, surrogate="atan", slope=2.0):
    """Return (spikes, final), their cotangents, and the gradients of the inputs."""
    outputs = reference.lif(*inputs, **LIF | options, detach_reset=detach_reset, surrogate=surrogate, slope=slope)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(out.shape, generator=generator).to(out.dtype) for out in outputs]
    return [out.detach() for out in outputs], cotangents, torch.autograd.grad(outputs, inputs, cotangents)


def assert_lif(inputs, options, detach_reset=False, surrogate="atan", slope=2.0, store_membrane=False):
    dtype, (_, T, _) = inputs[0].dtype, inputs[0].shape
    (spikes, final), cotangents, grads = lif_reference(inputs, options, detach_reset, surrogate, slope)
    forward_options = (LIF | options).values()
    found_spikes, found_final = cuda_lif.lif_forward(*inputs, *forward_options)
    packed, membrane, packed_final = cuda_lif.lif_forward_packed(*inputs, *forward_options, store_membrane=store_membrane)
    assert torch.equal(found_spikes, spikes)
    assert torch.equal(unpack(packed, T), spikes.float())
    assert torch.equal(found_final, packed_final)
    assert_close(found_final, final)
    found = cuda_lif.lif_backward(*cotangents, *inputs, *forward_options, detach_reset, surrogate, slope, membrane)
    for ours, wanted in zip(found, grads, strict=True):
        assert_close(ours, wanted, dtype)


@pytest.mark.parametrize("size", SIZES)
def test_lif_matches_reference_at_every_size(host, size):
    assert_lif(lif_inputs(*size), {})


@pytest.mark.parametrize("store_membrane", [False, True])
@pytest.mark.parametrize("options", LIF_OPTIONS, ids=str)
def test_lif_matches_reference_with_every_reset(host, options, store_membrane):
    assert_lif(lif_inputs(2, 63, 33), options, store_membrane=store_membrane)


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("surrogate", reference.SURROGATES)
def test_lif_matches_reference_with_every_surrogate(host, surrogate, detach_reset):
    assert_lif(lif_inputs(2, 63, 33), {}, detach_reset, surrogate, slope=1.5)


@pytest.mark.parametrize("store_membrane", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_lif_matches_reference_in_every_dtype(host, dtype, store_membrane):
    assert_lif(lif_inputs(2, 63, 33, dtype), {}, store_membrane=store_membrane)
