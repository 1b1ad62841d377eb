"""The numba kernels against the reference, and that against finite differences: outputs, states, gradients, memory.

`test_golden.py` holds the comparison with other libraries.
"""

import math

import pytest
import torch
from kernel_cases import SIZES, assert_all_close, cotangents_of
from tolerances import TOLERANCE, assert_close

from spikegpt.kernels import WKVState, lif, wkv
from spikegpt.kernels.lif.door import lif_operator
from spikegpt.kernels.surrogates import SURROGATES, surrogate_derivative
from spikegpt.kernels.wkv import reference as wkv_reference
from spikegpt.kernels.wkv.door import wkv_operator

LIF_OPTIONS = [
    {"reset": reset, "reset_potential": reset_potential, "decay_input": decay_input, "detach_reset": detach_reset}
    for reset, reset_potential in (("zero", 0.0), ("zero", -0.25), ("subtract", 0.0), ("none", 0.0))
    for decay_input in (True, False)
    for detach_reset in (True, False)
]


def lif_inputs(B, T, C, dtype=torch.float32):
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + C)
    current = (torch.randn(B, T, C, generator=generator) * 1.5 + 0.5).to(dtype)
    potential, decay = torch.randn(B, C, generator=generator) * 0.5, torch.rand(C, generator=generator)
    return [tensor.requires_grad_() for tensor in (current, potential, decay)]


def lif_everything(inputs, backend, **options):
    """Return (spikes, final potential, gradients of current, potential and decay) under a fixed random cotangent."""
    current, potential, decay = inputs
    spikes, final = lif(current, potential, membrane_decay=decay, backend=backend, **options)
    grad_spikes = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(1)).to(spikes.dtype)
    grads = torch.autograd.grad((spikes, final), inputs, (grad_spikes, torch.ones_like(final)))
    return [spikes.detach(), final.detach(), *grads]


def wkv_inputs(B, T, C, dtype=torch.float32, spread=2.0):
    """Return [time_decay, time_first, key, value, numerator, denominator] and max_exponent."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + C)
    time_decay, time_first = torch.randn(C, generator=generator), torch.randn(C, generator=generator)
    key, value = torch.randn(B, T, C, generator=generator) * spread, torch.randn(B, T, C, generator=generator)
    numerator, denominator = torch.randn(B, C, generator=generator), torch.rand(B, C, generator=generator) + 0.5
    inputs = [time_decay, time_first, key.to(dtype), value.to(dtype), numerator, denominator]
    return [tensor.requires_grad_() for tensor in inputs], torch.randn(B, C, generator=generator)


def wkv_everything(inputs, max_exponent, backend):
    """Return (output, numerator, denominator, max_exponent, six gradients) under a fixed random cotangent."""
    time_decay, time_first, key, value, *sums = inputs
    output, state = wkv(time_decay, time_first, key, value, WKVState(*sums, max_exponent), backend=backend)
    results = (output, state.numerator, state.denominator)
    grads = torch.autograd.grad(results, inputs, cotangents_of(results))
    return [*(tensor.detach() for tensor in (output, *state)), *grads]


@pytest.mark.parametrize("size", SIZES)
def test_lif_matches_reference_at_every_size(size):
    inputs = lif_inputs(*size)
    assert_all_close(lif_everything(inputs, "numba"), lif_everything(inputs, "reference"))


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("options", LIF_OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_lif_matches_reference_with_every_option(options, surrogate):
    # 150 steps: two full segments and a part of one in the backward pass
    inputs = lif_inputs(2, 150, 70)
    options = {**options, "surrogate": surrogate, "slope": 3.0, "threshold": 0.8}
    assert_all_close(lif_everything(inputs, "numba", **options), lif_everything(inputs, "reference", **options))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_lif_matches_reference_in_every_dtype(dtype):
    inputs = lif_inputs(2, 63, 33, dtype)
    assert_all_close(lif_everything(inputs, "numba"), lif_everything(inputs, "reference"), dtype)


@pytest.mark.parametrize("options", LIF_OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_lif_is_bit_identical_to_the_reference(options):
    # the backward pass recomputes the potentials and must find the same spikes
    inputs = lif_inputs(4, 257, 130)
    spikes, final, *_ = lif_everything(inputs, "numba", **options)
    wanted_spikes, wanted_final, *_ = lif_everything(inputs, "reference", **options)
    assert torch.equal(spikes, wanted_spikes)
    assert torch.equal(final, wanted_final)


def test_lif_leaks_and_fires_at_the_threshold():
    # by hand, decay 0.5, input as it is: 0.5, 0.25+0.75=1 fires, 0+0.25
    spikes, final = lif(torch.tensor([[[0.5], [0.75], [0.25]]]), decay_input=False, backend="numba")
    assert spikes.flatten().tolist() == [0, 1, 0]
    assert final.item() == 0.25


@pytest.mark.parametrize("size", SIZES)
def test_wkv_matches_reference_at_every_size(size):
    inputs, max_exponent = wkv_inputs(*size)
    for found, wanted in zip(
        wkv_everything(inputs, max_exponent, "numba"), wkv_everything(inputs, max_exponent, "reference"), strict=True
    ):
        assert_close(found, wanted)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_wkv_matches_reference_in_every_dtype(dtype):
    inputs, max_exponent = wkv_inputs(2, 63, 33, dtype)
    for found, wanted in zip(
        wkv_everything(inputs, max_exponent, "numba"), wkv_everything(inputs, max_exponent, "reference"), strict=True
    ):
        assert_close(found, wanted, dtype)


def test_wkv_survives_keys_of_80_and_minus_80():
    inputs, max_exponent = wkv_inputs(2, 63, 33)
    inputs[2].data.copy_(80 * inputs[2].detach().sign())
    found = wkv_everything(inputs, max_exponent, "numba")
    assert all(tensor.isfinite().all() for tensor in found)
    for ours, wanted in zip(found, wkv_everything(inputs, max_exponent, "reference"), strict=True):
        assert_close(ours, wanted)


@pytest.mark.parametrize("time_decay", [-100.0, -20.0, 4.0, 80.0])
def test_wkv_matches_reference_at_extreme_decays(time_decay):
    inputs, max_exponent = wkv_inputs(2, 63, 33)
    inputs[0].data.fill_(time_decay)
    for found, wanted in zip(
        wkv_everything(inputs, max_exponent, "numba"), wkv_everything(inputs, max_exponent, "reference"), strict=True
    ):
        assert_close(found, wanted)


def test_wkv_with_an_infinite_decay_has_no_memory_and_finite_gradients():
    # exp(100) is infinite in float32: only the last token is left,
    # with weight 1 beside exp(time_first + key - last key)
    time_decay = torch.tensor([100.0], requires_grad=True)
    key, value = torch.zeros(1, 4, 1), torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    output, state = wkv(time_decay, torch.zeros(1), key, value, backend="numba")
    output.sum().backward()
    assert output.flatten().tolist() == [1.0, 1.5, 2.5, 3.5]
    assert (state.numerator.item(), state.denominator.item()) == (4.0, 1.0)
    assert time_decay.grad.item() == 0.0


def test_wkv_starts_from_the_empty_state_with_the_first_value():
    key, value = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    output, _ = wkv(torch.zeros(7), torch.zeros(7), key, value, backend="numba")
    assert torch.equal(output[:, 0], value[:, 0])


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_lif_split_in_two_is_the_whole(backend):
    current, potential, decay = lif_inputs(2, 90, 33)

    def halves(current, potential, decay):
        first, middle = lif(current[:, :41], potential, membrane_decay=decay, backend=backend)
        second, final = lif(current[:, 41:], middle, membrane_decay=decay, backend=backend)
        return torch.cat([first, second], dim=1), final

    whole = lif(current, potential, membrane_decay=decay, backend=backend)
    split = halves(current, potential, decay)
    assert torch.equal(split[0], whole[0]) and torch.equal(split[1], whole[1])
    cotangents = [torch.randn_like(tensor) for tensor in whole]
    grads = [torch.autograd.grad(results, (current, potential, decay), cotangents) for results in (split, whole)]
    for found, wanted in zip(*grads, strict=True):
        assert_close(found, wanted)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_wkv_split_in_two_is_the_whole(backend):
    inputs, max_exponent = wkv_inputs(2, 90, 33)
    time_decay, time_first, key, value, *sums = inputs
    state = WKVState(*sums, max_exponent)
    whole, last = wkv(time_decay, time_first, key, value, state, backend)
    first, middle = wkv(time_decay, time_first, key[:, :41], value[:, :41], state, backend)
    second, end = wkv(time_decay, time_first, key[:, 41:], value[:, 41:], middle, backend)
    results, wanted = (torch.cat([first, second], dim=1), *end[:2]), (whole, *last[:2])
    cotangents = [torch.randn_like(tensor) for tensor in wanted]
    grads = [torch.autograd.grad(tensors, inputs, cotangents) for tensors in (results, wanted)]
    for ours, theirs in zip((*results, *grads[0]), (*wanted, *grads[1]), strict=True):
        assert_close(ours, theirs)


@pytest.fixture
def thread_count():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", [(3, 257, 130), (1, 100, 600)])
def test_lif_is_bit_identical_on_one_and_two_threads(size, thread_count):
    thread_count(1)
    one = lif_everything(lif_inputs(*size), "numba")
    thread_count(2)
    assert all(map(torch.equal, one, lif_everything(lif_inputs(*size), "numba")))


@pytest.mark.parametrize("size", [(3, 257, 130), (1, 100, 600)])
def test_wkv_is_bit_identical_on_one_and_two_threads(size, thread_count):
    thread_count(1)
    one = wkv_everything(*wkv_inputs(*size), "numba")
    thread_count(2)
    assert all(map(torch.equal, one, wkv_everything(*wkv_inputs(*size), "numba")))


def test_lif_reads_non_contiguous_inputs_and_expanded_gradients():
    current = torch.randn(33, 63, 6).requires_grad_()
    turned = current.permute(2, 1, 0)[::2]
    grads = [
        torch.autograd.grad(lif(drive, backend=backend)[0].sum(), current)[0]
        for backend, drive in (("numba", turned), ("reference", turned.contiguous()))
    ]
    assert_close(*grads)


def test_wkv_reads_non_contiguous_inputs_and_expanded_gradients():
    both = torch.randn(63, 2, 66).requires_grad_()
    key, value = both.transpose(0, 1).chunk(2, dim=-1)
    grads = [
        torch.autograd.grad(wkv(torch.zeros(33), torch.ones(33), key, value, backend=backend)[0].sum(), both)[0]
        for backend in ("numba", "reference")
    ]
    assert_close(*grads)


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
def test_nan_is_never_hidden_by_wkv(place, first_sick):
    inputs, max_exponent = wkv_inputs(1, 9, 17)
    inputs[place].data[..., 3] = math.nan
    if place in (2, 3):
        inputs[place].data[:, :4, 3] = 0.0
    output = wkv_everything(inputs, max_exponent, "numba")[0]
    wanted = torch.zeros(1, 9, 17, dtype=torch.bool)
    wanted[:, first_sick:, 3] = True
    assert torch.equal(output.isnan(), wanted)


def test_nan_is_never_hidden_by_lif():
    current = torch.ones(1, 5, 3)
    current[0, 2, 1] = math.nan
    _, final = lif(current, backend="numba")
    assert final.isnan().tolist() == [[False, True, False]]


def test_operators_pass_opcheck():
    torch.library.opcheck(lif_operator.definition, (*lif_inputs(2, 5, 3), 1.0, "zero", 0.0, True, False, "atan", 2.0))
    inputs, max_exponent = wkv_inputs(2, 5, 3)
    torch.library.opcheck(wkv_operator.definition, (*inputs, max_exponent))


def test_doors_compile_without_a_graph_break():
    def network(x):
        mean, _ = wkv(torch.zeros(3), torch.zeros(3), x, x)
        return lif(mean * 3)[0].sum() + mean.sum()

    x, y = torch.randn(2, 2, 5, 3).unbind()
    x, y = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.compile(network, fullgraph=True, backend="aot_eager")(x).backward()
    network(y).backward()
    assert_close(x.grad, y.grad)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_fakes_describe_the_real_results(dtype):
    inputs, max_exponent = wkv_inputs(2, 5, 3, dtype)
    arguments = {lif_operator: (*lif_inputs(2, 5, 3, dtype), 1.0, "zero", 0.0, True, False, "atan", 2.0)}
    arguments[wkv_operator] = (*inputs, max_exponent)
    for operator, real in arguments.items():
        fake = [value.detach().to("meta") if isinstance(value, torch.Tensor) else value for value in real]
        for described, computed in zip(operator(*fake), operator(*real), strict=True):
            assert (described.shape, described.dtype, described.stride()) == (
                computed.shape,
                computed.dtype,
                computed.stride(),
            )


def test_gradient_of_the_wkv_reference_is_right():
    inputs, max_exponent = wkv_inputs(2, 4, 3)
    double = [tensor.detach().double().requires_grad_() for tensor in inputs]
    assert torch.autograd.gradcheck(lambda *given: wkv_reference.wkv(*given, max_exponent.double())[:1], double)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_surrogate_has_the_stated_area(surrogate):
    # under each but snnTorch's fast sigmoid (whose area is 2 / slope) the derivative integrates to 1, as a step's does
    distance = torch.linspace(-2000, 2000, 4_000_001, dtype=torch.float64)
    area = torch.trapezoid(surrogate_derivative(distance, surrogate, 4.0), distance).item()
    assert area == pytest.approx(0.5 if surrogate == "fast_sigmoid" else 1.0, abs=5e-3)


def saved_bytes(function) -> int:
    """Return the bytes that `function` keeps for the backward pass, each storage once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = function()
    del kept
    return sum(storages.values())


def test_lif_keeps_at_most_5_bytes_per_neuron_step():
    B, T, C = 2, 100, 64
    current = torch.randn(B, T, C).requires_grad_()
    assert saved_bytes(lambda: lif(current)) <= 5 * B * T * C


def test_wkv_keeps_at_most_its_inputs_and_one_tensor():
    B, T, C = 2, 100, 64
    inputs, max_exponent = wkv_inputs(B, T, C)
    time_decay, time_first, key, value, *sums = inputs
    limit = sum(4 * tensor.numel() for tensor in (*inputs, max_exponent)) + 4 * B * T * C
    assert saved_bytes(lambda: wkv(time_decay, time_first, key, value, WKVState(*sums, max_exponent))) <= limit


X = torch.zeros(2, 4, 3)


@pytest.mark.parametrize(
    ("call", "found", "wanted"),
    [
        (lambda: lif(torch.zeros(4, 3)), "(4, 3)", "(B, T, C)"),
        (lambda: lif(X.long()), "int64", "floating-point"),
        (lambda: lif(X, torch.zeros(2, 4)), "(2, 4)", "(2, 3)"),
        (lambda: lif(X, torch.zeros(2, 3, dtype=torch.float64)), "float64", "float32"),
        (lambda: lif(X, membrane_decay=1.5), "1.5", "at least 0"),
        (lambda: lif(X, membrane_decay=torch.zeros(4)), "(4,)", "(3,)"),
        (lambda: lif(X, reset="soft"), "'soft'", "subtract"),
        (lambda: lif(X, surrogate="relu"), "'relu'", "atan"),
        (lambda: lif(X, slope=0.0), "0.0", "positive"),
        (lambda: lif(X, threshold=-1.0), "-1.0", "above reset_potential"),
        (lambda: lif(X, reset="subtract", reset_potential=-1.0), "-1.0", "reset='zero'"),
        (lambda: lif(X, backend="cuda"), "'cuda'", "reference"),
        (lambda: lif(X.double(), backend="numba"), "float64", "float32"),
        (lambda: wkv(torch.zeros(3), torch.zeros(3), X[0], X[0]), "(4, 3)", "(B, T, C)"),
        (lambda: wkv(torch.zeros(3), torch.zeros(3), X, X[:1]), "(1, 4, 3)", "(2, 4, 3)"),
        (lambda: wkv(torch.zeros(4), torch.zeros(3), X, X), "(4,)", "(3,)"),
        (lambda: wkv(torch.zeros(3), torch.zeros(4), X, X), "(4,)", "(3,)"),
        (lambda: wkv(torch.zeros(3), torch.zeros(3), X.long(), X.long()), "int64", "floating-point"),
        (lambda: wkv(torch.zeros(3), torch.zeros(3), X, X, WKVState.empty(1, 3)), "(1, 3)", "(2, 3)"),
        (lambda: wkv(torch.zeros(3), torch.zeros(3, device="meta"), X, X), "meta", "one device"),
        (lambda: wkv(torch.zeros(3), torch.zeros(3), X, X, receptance=X[:1]), "(1, 4, 3)", "(2, 4, 3)"),
        (lambda: wkv(torch.zeros(3), torch.zeros(3), X, X, receptance=X.double()), "float64", "float32"),
    ],
)
def test_errors_say_what_was_found_and_what_is_wanted(call, found, wanted):
    with pytest.raises(ValueError) as caught:
        call()
    assert found in str(caught.value) and wanted in str(caught.value)
