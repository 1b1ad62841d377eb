"""The event-driven matrix-vector product: CUDA kernels, on the CPU by `cuda_on_host`, against the reference."""

import pytest
import torch
from cuda_on_host import HostLauncher, needs_compiler
from tolerances import TOLERANCE as TOLERANCES
from tolerances import assert_close
from torch._subclasses.fake_tensor import FakeTensorMode

from neuromorphic.count.counter import OpCounter
from neuromorphic.count.counts import KINDS, QUANTITIES
from spikegpt.kernels import backends, gpu
from spikegpt.kernels.event_matvec import door as event_matvec_door
from spikegpt.kernels.event_matvec import gpu as cuda_event_matvec
from spikegpt.kernels.event_matvec import reference
from spikegpt.kernels.event_matvec.door import event_matvec, event_matvec_operator

# one sum, rounded once
TOLERANCE = TOLERANCES | {torch.bfloat16: 1e-2}
# (N, in, out): odd on purpose, the sizes of a segment and of the outputs that a warp serves, and one beyond
SIZES = [(1, 1, 1), (2, 5, 3), (1, 32, 256), (3, 33, 257), (5, 63, 31), (2, 130, 600)]


def make_inputs(N, inputs, outputs, dtype=torch.float32, weight_dtype=torch.float32, rate=0.3, largest=4):
    """Return (spikes -largest..largest, weight, scale or None)."""
    generator = torch.Generator().manual_seed(N * 10000 + inputs * 100 + outputs)
    values = torch.randint(1, largest + 1, (N, inputs), generator=generator) * (
        2 * torch.randint(0, 2, (N, inputs), generator=generator) - 1
    )
    spikes = (values * (torch.rand(N, inputs, generator=generator) < rate)).to(dtype)
    if weight_dtype == torch.int8:
        weight = torch.randint(-128, 128, (inputs, outputs), generator=generator, dtype=torch.int8)
        return spikes, weight, torch.rand(outputs, generator=generator) / 100
    return spikes, torch.randn(inputs, outputs, generator=generator).to(weight_dtype), None


def assert_matches_reference(spikes, weight, scale):
    found = cuda_event_matvec.event_matvec_forward(spikes, weight, scale)
    wanted = reference.event_matvec(spikes.double(), weight, scale)
    assert found.dtype == spikes.dtype
    assert_close(found.double(), wanted, tolerance=TOLERANCE[spikes.dtype])


@needs_compiler
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("weight_dtype", event_matvec_door.WEIGHT_DTYPES, ids=str)
def test_matches_reference_at_every_size(host, weight_dtype, size):
    assert_matches_reference(*make_inputs(*size, weight_dtype=weight_dtype))
    assert host.ran == [f"gather_rows_{str(weight_dtype).removeprefix('torch.')}", "sum_slices"]


@needs_compiler
@pytest.mark.parametrize("rate", [0.0, 0.02, 0.5, 1.0])
def test_matches_reference_at_every_rate(host, rate):
    assert_matches_reference(*make_inputs(3, 97, 45, rate=rate))


@needs_compiler
@pytest.mark.parametrize("weight_dtype", event_matvec_door.WEIGHT_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_matches_reference_in_every_dtype(host, dtype, weight_dtype):
    assert_matches_reference(*make_inputs(2, 63, 33, dtype, weight_dtype))


# 130 inputs are five segments: one each, three and two, all together
@needs_compiler
@pytest.mark.parametrize(("enough", "slices"), [(160, 5), (64, 2), (32, 1), (1, 1)])
def test_matches_reference_however_the_inputs_are_cut(host, monkeypatch, enough, slices):
    monkeypatch.setattr(cuda_event_matvec, "ENOUGH_THREADS", enough)
    assert cuda_event_matvec.cut_inputs(130, 32)[0] == slices
    assert_matches_reference(*make_inputs(3, 130, 70, rate=0.6))


@needs_compiler
def test_matches_reference_with_more_slices_than_are_read_together(host):
    assert cuda_event_matvec.cut_inputs(600, 32)[0] == 19
    assert_matches_reference(*make_inputs(2, 600, 3))


@needs_compiler
def test_sums_to_known_values(host):
    # by hand: 1 * (1, 2) - 2 * (5, 6) = (-9, -10), times the scale
    spikes, weight = torch.tensor([[1.0, 0.0, -2.0]]), torch.tensor([[1, 2], [3, 4], [5, 6]], dtype=torch.int8)
    assert cuda_event_matvec.event_matvec_forward(spikes, weight, torch.tensor([1.0, 0.5])).tolist() == [[-9.0, -5.0]]


@needs_compiler
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_silent_inputs_are_not_read(host, weight_dtype):
    spikes, weight, _ = make_inputs(3, 97, 45, weight_dtype=weight_dtype, rate=0.2)
    silent = (spikes == 0).all(0)
    wanted = cuda_event_matvec.event_matvec_forward(spikes, weight, None)
    weight[silent] = torch.nan
    assert silent.any() and torch.equal(cuda_event_matvec.event_matvec_forward(spikes, weight, None), wanted)


@needs_compiler
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_broken_weight_shows_where_it_is_read(host, number):
    spikes, weight, _ = make_inputs(2, 40, 9)
    spikes[0, 37], spikes[1, 37], weight[37, 4] = 1, 0, number
    found = cuda_event_matvec.event_matvec_forward(spikes, weight, None).isfinite()
    assert found.logical_not().nonzero().tolist() == [[0, 4]]


@needs_compiler
def test_a_broken_spike_breaks_its_own_text_only(host):
    spikes, weight, _ = make_inputs(3, 40, 9)
    spikes[1, 37] = torch.nan
    assert cuda_event_matvec.event_matvec_forward(spikes, weight, None).isnan().all(1).tolist() == [False, True, False]


@needs_compiler
@pytest.mark.parametrize("weight_dtype", event_matvec_door.WEIGHT_DTYPES, ids=str)
def test_is_bit_identical_in_both_orders_of_the_threads_and_again(monkeypatch, weight_dtype):
    inputs, found = make_inputs(3, 130, 300, weight_dtype=weight_dtype), []
    for backwards in (False, True, False):
        monkeypatch.setattr(gpu, "launch", HostLauncher(backwards))
        found.append(cuda_event_matvec.event_matvec_forward(*inputs))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@needs_compiler
def test_a_text_does_not_depend_on_its_batch(host):
    spikes, weight, _ = make_inputs(5, 130, 70)
    together = cuda_event_matvec.event_matvec_forward(spikes, weight, None)
    alone = [cuda_event_matvec.event_matvec_forward(text.unsqueeze(0), weight, None) for text in spikes]
    assert torch.equal(together, torch.cat(alone))


@needs_compiler
def test_takes_spikes_that_are_not_contiguous(host):
    spikes, weight, _ = make_inputs(3, 64, 40)
    assert_matches_reference(spikes.t().contiguous().t()[:, ::2], weight[::2].contiguous(), None)


@needs_compiler
@pytest.mark.parametrize("weight_dtype", event_matvec_door.WEIGHT_DTYPES, ids=str)
def test_the_operator_passes_opcheck(host, weight_dtype):
    torch.library.opcheck(event_matvec_operator.definition, make_inputs(2, 33, 5, weight_dtype=weight_dtype))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("weight_dtype", event_matvec_door.WEIGHT_DTYPES, ids=str)
def test_the_door_gives_the_reference_on_the_cpu_without_a_warning(weight_dtype):
    inputs = make_inputs(2, 33, 5, torch.bfloat16, weight_dtype)
    found = event_matvec(*inputs)
    assert found.dtype == torch.bfloat16 and torch.equal(found, reference.event_matvec(*inputs))


@pytest.mark.parametrize(
    ("backend", "chosen"), [("auto", "operator"), ("cupy", "operator"), ("reference", "reference")]
)
def test_the_door_chooses_for_cuda_tensors(monkeypatch, backend, chosen):
    monkeypatch.setitem(backends._installed, "cupy", True)
    monkeypatch.setattr(event_matvec_door, "event_matvec_operator", lambda *inputs: "operator")
    monkeypatch.setattr(reference, "event_matvec", lambda *inputs: "reference")
    with FakeTensorMode():
        assert (
            event_matvec(torch.empty(2, 3, device="cuda"), torch.empty(3, 4, device="cuda"), backend=backend) == chosen
        )


def test_the_door_takes_a_parameter_where_no_gradient_is_wanted():
    weight = torch.nn.Parameter(torch.ones(3, 2))
    with torch.no_grad():
        assert event_matvec(torch.ones(1, 3), weight).tolist() == [[3.0, 3.0]]


class Product(torch.nn.Module):
    def __init__(self, weight, multiply):
        super().__init__()
        self.weight, self.multiply = torch.nn.Parameter(weight), multiply

    def forward(self, spikes):
        return self.multiply(spikes, self.weight)


# binary, ON/OFF and integer spikes, real numbers and silence, each in its own text
TEXTS = torch.tensor(
    [[1.0, 0, 1, 0], [1, -1, 0, 0], [0, 3, -2, 0], [0.5, 0, 0, 1], [0, 0, 0, 0], [0, 5, 0, 0], [200, 0, 0, 1]]
)


@needs_compiler
@pytest.mark.parametrize("text", [*range(7), slice(None)])
def test_declared_cost_is_what_the_counter_finds_in_the_plain_product(host, text):
    spikes = TEXTS[text].reshape(-1, 4)
    weight = torch.tensor([[0.5, 0, 1], [2, 3, 4], [0, 0, 0], [0, 1, 7]])
    totals = []
    for multiply in (torch.mm, lambda spikes, weight: event_matvec_operator(spikes, weight, None)):
        model = Product(weight, multiply)
        with torch.no_grad(), OpCounter(model, strict=True) as counter:
            model(spikes)
        totals.append(counter.tally().total().to_dict())
    plain, declared = totals
    assert declared == plain


def test_declared_cost_has_known_quantities_and_counts_the_scale():
    args = (TEXTS, torch.ones(4, 3, dtype=torch.int8), torch.ones(3))
    declared = torch.ops.spikegpt.event_matvec.default.op_cost(args, {}, TEXTS)
    assert declared["mul"] == 21 and declared["kind"] in KINDS
    assert set(declared) - {"kind", "product"} <= set(QUANTITIES)


X, W, W8, SCALE = torch.zeros(2, 3), torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.int8), torch.ones(4)


@pytest.mark.parametrize(
    ("call", "found", "wanted"),
    [
        (lambda: event_matvec(torch.zeros(3), W), "(3,)", "(N, in)"),
        (lambda: event_matvec(X[:0], W), "(0, 3)", "no empty side"),
        (lambda: event_matvec(X.long(), W), "int64", "floating-point"),
        (lambda: event_matvec(X, torch.zeros(4, 3)), "(4, 3)", "(3, out)"),
        (lambda: event_matvec(X, W[:, :0]), "(3, 0)", "(3, out)"),
        (lambda: event_matvec(X, SCALE), "(4,)", "(3, out)"),
        (lambda: event_matvec(X, W.half()), "float16", "int8"),
        (lambda: event_matvec(X, torch.zeros(4, 3).t()), "(1, 3)", "contiguous"),
        (lambda: event_matvec(X, W8), "int8", "got none"),
        (lambda: event_matvec(X, W, SCALE), "float32", "got one"),
        (lambda: event_matvec(X, W8, torch.ones(3)), "(3,)", "(4,)"),
        (lambda: event_matvec(X, W8, SCALE.double()), "float64", "float32"),
        (lambda: event_matvec(X, W.to("meta")), "weight on meta", "one device"),
        (lambda: event_matvec(X, W8, SCALE.to("meta")), "scale on meta", "one device"),
        (lambda: event_matvec(X, W.clone().requires_grad_()), "weight", "no_grad"),
        (lambda: event_matvec(X.clone().requires_grad_(), W), "spikes", "no_grad"),
        (lambda: event_matvec(X, W, backend="numba"), "'numba'", "auto"),
        (lambda: event_matvec(X, W, backend="cupy"), "'cupy'", "auto"),
        (lambda: event_matvec(X, W, backend="fast"), "'fast'", "reference"),
    ],
)
def test_errors_say_what_was_found_and_what_is_wanted(call, found, wanted):
    with pytest.raises(ValueError) as caught:
        call()
    assert found in str(caught.value) and wanted in str(caught.value)
