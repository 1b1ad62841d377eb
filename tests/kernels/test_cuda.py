"""The CUDA kernels, run on the CPU by `cuda_on_host`, against the reference: outputs, last state, every gradient."""

import dataclasses
import importlib

import pytest
import torch
from cuda_on_host import needs_compiler
from kernel_cases import cotangents_of
from tolerances import TOLERANCE, assert_close
from torch.nn import functional as F

from neuromorphic import OpCounter
from spikegpt.config import SPIKING, ModelConfig
from spikegpt.kernels import wkv
from spikegpt.kernels.lif import gpu as cuda_lif
from spikegpt.kernels.lif import reference
from spikegpt.kernels.lif.options import LIFOptions
from spikegpt.kernels.surrogates import SURROGATES
from spikegpt.kernels.wkv.door import wkv_operator
from spikegpt.model.network import SpikeGPT

pytestmark = needs_compiler
SIZES = [(1, 1, 1), (3, 2, 5), (2, 63, 33), (1, 97, 130), (3, 32, 65)]  # odd on purpose, and the length of a word


def unpack(packed, T):
    """Return the spikes (B, T, C) of words (B, ceil(T / 32), C), by shifting."""
    bits = (packed.unsqueeze(2) >> torch.arange(32, dtype=torch.int32).view(1, 1, 32, 1)) & 1
    return bits.flatten(1, 2)[:, :T].float()


LIF_OPTIONS = [
    LIFOptions(),
    LIFOptions(reset="subtract"),
    LIFOptions(reset_potential=-0.5, threshold=0.7),
    LIFOptions(decay_input=False, reset="subtract"),
    LIFOptions(reset="none"),
]


def lif_inputs(B, T, C, dtype=torch.float32):
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + C)
    current = 2 * torch.randn(B, T, C, generator=generator) + 0.5
    return [
        tensor.requires_grad_()
        for tensor in (current.to(dtype), torch.randn(B, C, generator=generator), torch.rand(C, generator=generator))
    ]


def lif_reference(inputs, options):
    """Return (spikes, final), their cotangents, and the gradients of the inputs."""
    outputs = reference.lif(*inputs, options)
    cotangents = cotangents_of(outputs)
    return [out.detach() for out in outputs], cotangents, torch.autograd.grad(outputs, inputs, cotangents)


def assert_lif(inputs, options, store_membrane=False):
    dtype, (_, T, _) = inputs[0].dtype, inputs[0].shape
    (spikes, final), cotangents, grads = lif_reference(inputs, options)
    found_spikes, found_final = cuda_lif.lif_forward(*inputs, options)
    packed, membrane, packed_final = cuda_lif.lif_forward_packed(*inputs, options, store_membrane=store_membrane)
    assert torch.equal(found_spikes, spikes)
    assert torch.equal(unpack(packed, T), spikes.float())
    assert torch.equal(found_final, packed_final)
    assert_close(found_final, final)
    found = cuda_lif.lif_backward(*cotangents, *inputs, options, membrane)
    for ours, wanted in zip(found, grads, strict=True):
        assert_close(ours, wanted, dtype)


@pytest.mark.parametrize("size", SIZES)
def test_lif_matches_reference_at_every_size(host, size):
    assert_lif(lif_inputs(*size), LIFOptions())


@pytest.mark.parametrize("store_membrane", [False, True])
@pytest.mark.parametrize("options", LIF_OPTIONS, ids=str)
def test_lif_matches_reference_with_every_reset(host, options, store_membrane):
    assert_lif(lif_inputs(2, 63, 33), options, store_membrane=store_membrane)


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("surrogate", SURROGATES)
def test_lif_matches_reference_with_every_surrogate(host, surrogate, detach_reset):
    options = LIFOptions(detach_reset=detach_reset, surrogate=surrogate, slope=1.5)
    assert_lif(lif_inputs(2, 63, 33), options)


@pytest.mark.parametrize("store_membrane", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_lif_matches_reference_in_every_dtype(host, dtype, store_membrane):
    assert_lif(lif_inputs(2, 63, 33, dtype), LIFOptions(), store_membrane=store_membrane)


def through_cuda_doors(monkeypatch):
    """From here on CPU tensors go the way of CUDA tensors."""
    for name in ("lif", "integer_lif", "wkv", "event_wkv"):
        door = importlib.import_module(f"spikegpt.kernels.{name}.door")
        monkeypatch.setattr(door, "choose_backend", lambda backend, operation, tensor: "cupy")
        monkeypatch.setattr(
            door, "fast_kernels", lambda operation, tensor: importlib.import_module(f"spikegpt.kernels.{operation}.gpu")
        )


def loss_and_gradients(model, ids):
    logits, state, _ = model(ids[:, :9])
    # the second half goes on from the carried state, and the gradient flows back through it
    logits = torch.cat([logits, model(ids[:, 9:-1], state).logits], dim=1)
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


@pytest.mark.parametrize("spiking", SPIKING)
def test_a_model_learns_the_same_through_the_cuda_kernels(spiking, host, monkeypatch):
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=16, ctx_len=32, vocab_size=17, spiking=spiking))
    ids = torch.randint(17, (2, 20))
    wanted = loss_and_gradients(model.eval(), ids)
    through_cuda_doors(monkeypatch)
    found = loss_and_gradients(model, ids)
    for ours, numba in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, numba, rtol=1e-4, atol=1e-5 * max(numba.abs().max().item(), 1e-6))
    assert {"none": "wkv", "output": "lif", "input": "event_wkv"}[spiking] in " ".join(host.ran)


def test_the_gate_in_the_kernel_is_the_gate_outside(host, monkeypatch):
    through_cuda_doors(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(shape, generator=generator).requires_grad_()
        for shape in ((5,), (5,), (2, 33, 5), (2, 33, 5), (2, 33, 5))
    ]

    found = wkv(*inputs[:4], receptance=inputs[4])[0]
    wanted = torch.sigmoid(inputs[4]) * wkv(*inputs[:4])[0]
    assert_close(found.detach(), wanted.detach())
    cotangent = torch.randn(found.shape, generator=generator)
    for ours, apart in zip(
        *(torch.autograd.grad(output, inputs, cotangent) for output in (found, wanted)), strict=True
    ):
        assert_close(ours, apart)


@pytest.mark.parametrize("inputs", [7, 8], ids=["plain", "gated"])
def test_the_operator_declares_the_shapes_and_strides_it_returns(inputs, host, monkeypatch):
    through_cuda_doors(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    sizes = (5,), (5,), (2, 33, 5), (2, 33, 5), (2, 5), (2, 5), (2, 5), (2, 33, 5)
    tensors = [torch.rand(size, generator=generator).requires_grad_() for size in sizes[:inputs]]
    torch.library.opcheck(
        wkv_operator.definition, tensors, test_utils=("test_schema", "test_faketensor", "test_autograd_registration")
    )


class Gated(torch.nn.Module):
    def forward(self, *inputs):
        return wkv(*inputs, receptance=inputs[2])


def count(*inputs):
    model = Gated()
    with OpCounter(model) as counter:
        model(*inputs)
    return counter.tally().total()


def test_a_gate_in_the_kernel_costs_what_it_costs_outside(host, monkeypatch):
    inputs = [torch.ones(size) for size in ((5,), (5,), (2, 33, 5), (2, 33, 5))]
    outside = count(*inputs)
    through_cuda_doors(monkeypatch)
    inside = count(*inputs)
    assert inside.state_reads == 3 * 2 * 33 * 5
    # one kernel in the place of three, and no operation less
    assert (inside.calls, dataclasses.replace(inside, calls=outside.calls)) == (1, outside)
