"""The CUDA kernels on a real GPU, through the doors: against the float64 reference, and inside what people train with.

Skipped where there is no GPU; there the same sources run on the CPU in test_cuda*.py.
"""

import pytest
import torch
from kernel_cases import event_wkv7_inputs, event_wkv7_state, wkv6_inputs, wkv7_inputs
from torch.nn import functional as F

from spikegpt.config import ModelConfig, model_preset
from spikegpt.generate.engine import Engine
from spikegpt.kernels import (
    EventWKV7State,
    EventWKVState,
    WKVState,
    event_wkv,
    event_wkv7,
    integer_lif,
    lif,
    wkv,
    wkv6,
    wkv7,
)
from spikegpt.model.network import SpikeGPT

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICE = "cuda"
# largest difference allowed, as a fraction of the largest entry
TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SIZES = [(1, 1, 1), (3, 2, 5), (2, 63, 33), (1, 1025, 130), (5, 257, 768)]
# (B, T, heads, channels of a head)
HEADS = [(1, 1, 1, 32), (3, 2, 5, 32), (2, 63, 3, 64), (1, 1025, 2, 64), (2, 257, 3, 128)]
MODELS = {
    "none": {"spiking": "none"},
    "output": {"spiking": "output"},
    "input": {"spiking": "input"},
    "rwkv7": {"mixer": "rwkv7", "spiking": "none", "head_size": 32},
    "rwkv7 by events": {"mixer": "rwkv7", "spiking": "input", "head_size": 32, "state_neurons": True},
}


def inputs_of(operation: str, B, T, C, dtype):
    """Return [parameters and sequences, ...state], on the CPU, in float32 but for the sequences."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + C)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    if operation == "lif":
        return [(2 * normal(B, T, C)).to(dtype), normal(B, C), torch.rand(C, generator=generator)]
    if operation == "integer_lif":
        return [
            (2 * normal(B, T, C)).to(dtype),
            normal(B, C),
            torch.rand(C, generator=generator),
            0.5 + torch.rand(C, generator=generator),
        ]
    value = normal(B, T, C)
    if operation == "event_wkv":
        value = (2 * value).round() * (value.abs() > 1)
        return [
            normal(C),
            normal(C),
            normal(B, T, C).to(dtype),
            value.to(dtype),
            normal(B, C),
            normal(B, C).abs() + 0.5,
        ]
    return [
        normal(C),
        normal(C),
        normal(B, T, C).to(dtype),
        value.to(dtype),
        normal(B, C),
        normal(B, C).abs() + 0.5,
        normal(B, C),
    ]


def run(operation: str, inputs, backend: str):
    """Return outputs and final states, then the gradient of every input but the exponent of the state."""
    if operation == "lif":
        outputs = lif(inputs[0], inputs[1], membrane_decay=inputs[2], backend=backend)
    elif operation == "integer_lif":
        options = {"levels": 4, "signed": True, "backend": backend}
        outputs = integer_lif(inputs[0], inputs[1], membrane_decay=inputs[2], threshold=inputs[3], **options)
    elif operation == "wkv":
        output, state = wkv(*inputs[:4], WKVState(*inputs[4:]), backend=backend)
        outputs, inputs = (output, *state[:2]), inputs[:6]
    else:
        output, state = event_wkv(*inputs[:4], EventWKVState(*inputs[4:]), backend=backend)
        outputs = output, *state
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(out.shape, generator=generator).to(out) for out in outputs]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(outputs, inputs, cotangents)]


def leaves(inputs, device, dtype=None):
    return [tensor.detach().to(device, dtype).requires_grad_() for tensor in inputs]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("operation", ["lif", "integer_lif", "wkv", "event_wkv"])
def test_kernels_match_the_float64_reference(operation, size, dtype):
    inputs = inputs_of(operation, *size, dtype)
    found = run(operation, leaves(inputs, DEVICE), "auto")
    wanted = run(operation, leaves(inputs, DEVICE, torch.float64), "reference")
    for ours, exact in zip(found, wanted, strict=True):
        wrong = (ours.double() - exact).abs() > TOLERANCE[dtype] * exact.abs().max().clamp(min=1e-6)
        # a potential within rounding of the threshold may fire in one precision and not in the other
        assert wrong.double().mean() <= (1e-3 if "lif" in operation else 0)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", HEADS, ids=str)
def test_wkv6_matches_the_float64_reference(size, dtype):
    inputs = wkv6_inputs(*size, dtype)
    found = outputs_and_gradients(wkv6, leaves(inputs, DEVICE), "cupy")
    wanted = outputs_and_gradients(wkv6, leaves(inputs, DEVICE, torch.float64), "reference")
    for ours, exact in zip(found, wanted, strict=True):
        assert (ours.double() - exact).abs().max() <= TOLERANCE[dtype] * exact.abs().max().clamp(min=1e-6)


def run_wkv7(inputs, backend: str):
    return outputs_and_gradients(wkv7, inputs, backend)


def outputs_and_gradients(operation, inputs, backend: str):
    outputs = operation(*inputs, backend=backend)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(out.shape, generator=generator).to(out) for out in outputs]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(outputs, inputs, cotangents)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", HEADS, ids=str)
def test_wkv7_matches_the_float64_reference(size, dtype):
    inputs = wkv7_inputs(*size, dtype)
    found = run_wkv7(leaves(inputs, DEVICE), "cupy")
    wanted = run_wkv7(leaves(inputs, DEVICE, torch.float64), "reference")
    for ours, exact in zip(found, wanted, strict=True):
        assert (ours.double() - exact).abs().max() <= TOLERANCE[dtype] * exact.abs().max().clamp(min=1e-6)


def test_wkv7_reads_tensors_as_they_mean_wherever_they_begin():
    inputs = [tensor.detach().to(DEVICE) for tensor in wkv7_inputs(2, 33, 2, 32, torch.bfloat16)]
    apart = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in inputs]
    late = [torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape) for tensor in inputs]
    wanted = run_wkv7(leaves(inputs, DEVICE), "cupy")
    for moved in (apart, late):
        assert all(map(torch.equal, run_wkv7(leaves(moved, DEVICE), "cupy"), wanted))


def test_wkv7_leaves_other_head_sizes_to_the_reference():
    inputs = leaves(wkv7_inputs(1, 5, 2, 48, torch.float32), DEVICE)
    with pytest.warns(RuntimeWarning, match="heads of 32, 64, 128 channels, got 48"):
        found = run_wkv7(inputs, "auto")
    assert all(map(torch.equal, found, run_wkv7(inputs, "reference")))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("firing", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("size", [*HEADS, (2, 63, 5, 48)], ids=str)
def test_event_wkv7_matches_the_float64_reference(size, firing, dtype):
    B, _, H, N = size
    inputs = [x.to(DEVICE) for x in (*event_wkv7_inputs(*size, firing, dtype), *event_wkv7_state(B, H, N))]
    output, state = event_wkv7(*inputs[:6], EventWKV7State(*inputs[6:]), backend="cupy")
    exact = [x.double() for x in inputs]
    wanted, last = event_wkv7(*exact[:6], EventWKV7State(*exact[6:]), backend="reference")
    for found, theirs in zip((output, *state), (wanted, *last), strict=True):
        assert (found.double() - theirs).abs().max() <= TOLERANCE[dtype] * theirs.abs().max().clamp(min=1e-6)


def test_event_wkv7_leaves_larger_heads_to_the_reference():
    inputs = [x.to(DEVICE) for x in event_wkv7_inputs(1, 5, 2, 129, 0.3)]
    with pytest.warns(RuntimeWarning, match="heads of up to 128 channels, got 129"):
        found = event_wkv7(*inputs)[0]
    assert torch.equal(found, event_wkv7(*inputs, backend="reference")[0])


@pytest.mark.parametrize("operation", ["lif", "integer_lif", "wkv", "event_wkv"])
def test_a_tensor_that_is_not_contiguous_is_read_as_it_means(operation):
    inputs = [tensor.to(DEVICE) for tensor in inputs_of(operation, 2, 33, 40, torch.float32)]
    spread = [torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)[..., 0] for tensor in inputs]
    assert not spread[0].is_contiguous()
    for ours, wanted in zip(
        run(operation, leaves(spread, DEVICE), "auto"), run(operation, leaves(inputs, DEVICE), "auto"), strict=True
    ):
        assert torch.equal(ours, wanted)


def test_kernels_run_on_the_stream_that_is_current():
    current = torch.randn(4, 512, 512, device=DEVICE)
    wanted = lif(current)[0]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        # long enough that a launch on another stream would read what is not written yet
        late = torch.zeros_like(current)
        torch.cuda._sleep(100_000_000)
        late.copy_(current)
        found = lif(late)[0]
    side.synchronize()
    assert torch.equal(found, wanted)


def small_model(name: str) -> SpikeGPT:
    torch.manual_seed(0)
    return SpikeGPT(ModelConfig(n_layer=2, n_embd=64, ctx_len=32, dropout=0.0, **MODELS[name])).to(DEVICE)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_moved_to_the_gpu_computes_what_it_did(name):
    model, ids = small_model(name), torch.randint(256, (2, 33), device=DEVICE)
    wanted = model.to("cpu")(ids.cpu()).logits
    found = model.to(DEVICE)(ids).logits.cpu()
    # tokens after a spike that rounding moved differ; nearly all must not
    assert ((found - wanted).abs().amax(-1) > 1e-3).float().mean() < 0.05


@pytest.mark.parametrize("name", MODELS)
def test_a_model_trains_under_autocast_and_torch_compile(name):
    model, ids = small_model(name), torch.randint(256, (2, 33), device=DEVICE)
    compiled = torch.compile(model)
    losses = []
    for step in (model, compiled):
        with torch.autocast(DEVICE, torch.bfloat16):
            logits = step(ids[:, :-1]).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_token_step_can_be_a_cuda_graph(name):
    model = small_model(name).eval()
    token = torch.zeros(1, 1, dtype=torch.long, device=DEVICE)
    with torch.inference_mode():
        state = model(token).state
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            model(token, state)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = model(token, state).logits
        token.fill_(7)
        graph.replay()
        torch.testing.assert_close(captured, model(token, state).logits)


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_engine_replays_tokens_as_the_model_reads_them(name, by_rows):
    model = small_model(name).eval()
    engine = Engine(model)
    if by_rows and engine.reason:
        pytest.skip(engine.reason)
    ids = torch.randint(256, (2, 12), device=DEVICE)
    with torch.inference_mode():
        engine.start(model(ids[:, :3]).state, by_rows=by_rows)
        logits = torch.stack([engine.step(ids[:, t]) for t in range(3, 12)], dim=1)
        wanted = model(ids).logits[:, 3:]
    # tokens after a spike that rounding moved differ; nearly all must not
    assert ((logits - wanted).abs().amax(-1) > 1e-3).float().mean() < 0.2


def test_tensors_on_two_devices_are_refused():
    with pytest.raises(ValueError, match="move them to one device"):
        lif(torch.zeros(1, 1, 1, device=DEVICE), torch.zeros(1, 1))


def test_the_46m_model_fits_and_runs():
    with torch.device(DEVICE):
        model = SpikeGPT(model_preset("spikegpt-46m"))
    with torch.autocast(DEVICE, torch.bfloat16):
        assert model(torch.zeros(2, 1024, dtype=torch.long, device=DEVICE)).logits.isfinite().all()
