"""What the CUDA kernels of every WKV with a matrix per head have to do alike, run on the CPU by `cuda_on_host`."""

import importlib
import math
import re
from typing import NamedTuple

import pytest
import torch
from cuda_on_host import needs_compiler
from kernel_cases import assert_all_close, everything_by, everything_by_reference, wkv6_inputs, wkv7_inputs
from tolerances import TOLERANCE
from torch.nn import functional as F

from spikegpt.config import ModelConfig
from spikegpt.kernels import gpu, wkv6, wkv7
from spikegpt.kernels.wkv6 import gpu as cuda_wkv6
from spikegpt.kernels.wkv6 import reference as wkv6_reference
from spikegpt.kernels.wkv6.door import wkv6_operator
from spikegpt.kernels.wkv7 import gpu as cuda_wkv7
from spikegpt.kernels.wkv7 import reference as wkv7_reference
from spikegpt.kernels.wkv7.door import wkv7_operator
from spikegpt.model.network import SpikeGPT

pytestmark = needs_compiler


class Operation(NamedTuple):
    """Inputs are (receptance, log_decay, key, value, ..., state); `of_heads` of them are of no token."""

    name: str
    door: object
    operator: object
    reference: object
    cuda: object
    inputs: object
    of_heads: int

    def make(self, *size, dtype=torch.float32):
        return [tensor.detach() for tensor in self.inputs(*size, dtype)]

    def forward(self, *inputs):
        return getattr(self.cuda, f"{self.name}_forward")(*inputs)

    def everything(self, inputs):
        return everything_by(self.forward, getattr(self.cuda, f"{self.name}_backward"), inputs)


OPERATIONS = [
    Operation("wkv6", wkv6, wkv6_operator, wkv6_reference.wkv6, cuda_wkv6, wkv6_inputs, 1),
    Operation("wkv7", wkv7, wkv7_operator, wkv7_reference.wkv7, cuda_wkv7, wkv7_inputs, 0),
]
each = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("N", gpu.HEAD_SIZES)
@each
def test_it_matches_the_reference_in_every_dtype(host, operation, N, dtype):
    inputs = operation.make(2, 37, 1, N, dtype=dtype)
    assert_all_close(operation.everything(inputs), everything_by_reference(operation.reference, inputs), dtype)


@each
def test_two_pieces_are_the_whole(host, operation):
    *inputs, state = operation.make(2, 70, 2, 32)
    of_tokens = len(inputs) - operation.of_heads

    def piece(tokens):
        return [x[:, tokens] if place < of_tokens else x for place, x in enumerate(inputs)]

    whole, last = operation.forward(*inputs, state)
    first, carried = operation.forward(*piece(slice(0, 41)), state)
    second, end = operation.forward(*piece(slice(41, None)), carried)
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert torch.equal(end, last)


@each
def test_a_sick_head_leaves_the_others_well(host, operation):
    inputs = operation.make(2, 37, 2, 32)
    wanted = operation.everything(inputs)
    inputs[3][1, 5, 0, 7] = math.nan
    found = operation.everything(inputs)
    assert found[0][1, 5:, 0, 7].isnan().all() and found[0][1, :5].isfinite().all()
    for ours, well in zip(found, wanted, strict=True):
        if well.dim() == 2:
            # of all texts
            assert torch.equal(ours[1], well[1])
            continue
        if well.shape[1] != 2:
            ours, well = ours.transpose(1, 2), well.transpose(1, 2)
        assert torch.equal(ours[0], well[0]) and torch.equal(ours[1, 1], well[1, 1])


@each
def test_inputs_need_not_be_contiguous_nor_begin_at_whole_16_bytes(host, monkeypatch, operation):
    inputs = operation.make(2, 33, 2, 32, dtype=torch.bfloat16)
    wanted, launch = operation.everything(inputs), gpu.launch

    def launch_aligned(*arguments):
        assert all(x.data_ptr() % 16 == 0 for x in arguments if isinstance(x, torch.Tensor))
        launch(*arguments)

    monkeypatch.setattr(gpu, "launch", launch_aligned)
    apart = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in inputs]
    late = [torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape) for tensor in inputs]
    assert not apart[0].is_contiguous() and late[0].is_contiguous() and late[0].data_ptr() % 16
    for moved in (apart, late):
        assert all(map(torch.equal, operation.everything(moved), wanted))


@each
def test_the_source_and_python_agree(operation):
    text = gpu.read_source(operation.name)
    assert int(re.search(r"#define CHUNK (\d+)", text)[1]) == operation.cuda.CHUNK
    assert tuple(map(int, re.findall(r"walk\(Channel<(\d+)>", text))) == gpu.HEAD_SIZES


def take_the_way_of(backend, operation, monkeypatch):
    """From here on the door sends tensors on the CPU to `backend`."""
    door = importlib.import_module(f"spikegpt.kernels.{operation.name}.door")
    monkeypatch.setattr(door, "choose_backend", lambda asked, *_: backend if asked == "auto" else asked)
    monkeypatch.setattr(door, "fast_kernels", lambda *_: operation.cuda)


@each
def test_the_operator_declares_the_shapes_and_strides_it_returns(host, monkeypatch, operation):
    take_the_way_of("cupy", operation, monkeypatch)
    inputs = [tensor.requires_grad_() for tensor in operation.make(1, 5, 2, 32)]
    checks = "test_schema", "test_faketensor", "test_autograd_registration"
    torch.library.opcheck(operation.operator.definition, inputs, test_utils=checks)


@pytest.mark.parametrize("N", [1, 16, 33, 48, 256])
@each
def test_other_head_sizes_are_served_by_the_reference_and_said_so(host, monkeypatch, operation, N):
    take_the_way_of("cupy", operation, monkeypatch)
    inputs, sizes = operation.make(1, 3, 2, N), f"{operation.name}: .* heads of 32, 64, 128 channels, got {N}"
    with pytest.warns(RuntimeWarning, match=f"{sizes}; using the slow"):
        found = operation.door(*inputs)
    assert all(map(torch.equal, found, operation.door(*inputs, backend="reference")))
    assert host.ran == []
    with pytest.raises(ValueError, match=f"{sizes}; use backend='auto'"):
        operation.door(*inputs, backend="cupy")


def loss_and_gradients(model, ids):
    logits, state, _ = model(ids[:, :9])
    # the second half goes on from the carried state, and the gradient flows back through it
    logits = torch.cat([logits, model(ids[:, 9:-1], state).logits], dim=1)
    loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


@pytest.mark.parametrize(("mixer", "place"), [("rwkv5", 0), ("rwkv6", 0), ("rwkv7", 1)])
def test_a_model_learns_the_same_through_the_cuda_kernels(host, monkeypatch, mixer, place):
    operation = OPERATIONS[place]
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(mixer=mixer, spiking="none", n_layer=2, n_embd=64, head_size=32, vocab_size=17))
    with torch.no_grad():
        # as initialised its outputs are zero, and nothing would flow back
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.randint(17, (2, 20))
    take_the_way_of("reference", operation, monkeypatch)
    wanted = loss_and_gradients(model.eval(), ids)
    take_the_way_of("cupy", operation, monkeypatch)
    found = loss_and_gradients(model, ids)
    for ours, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-5 * max(exact.abs().max().item(), 1e-6))
    assert host.ran.count(f"{operation.name}_backward_columns") == 4
