"""The numba kernel of the event-driven WKV against the reference, that against its parallel form and by hand."""

import math

import pytest
import torch
from kernel_cases import EVENT_WKV_RESULTS, SIZES, assert_all_close, cotangents_of, event_wkv_inputs
from tolerances import TOLERANCE, assert_close

from spikegpt.kernels import EventWKVState, event_wkv
from spikegpt.kernels.event_wkv import reference
from spikegpt.kernels.event_wkv.door import event_wkv_backward_operator, event_wkv_operator

D_KEY = EVENT_WKV_RESULTS.index("d_key")
both = pytest.mark.parametrize("backend", ["numba", "reference"])


def make_inputs(*size, **options):
    return [tensor.requires_grad_() for tensor in event_wkv_inputs(*size, **options)]


def everything(inputs, backend, carried=True):
    """Return what EVENT_WKV_RESULTS lists, under a fixed cotangent; without a carried state, no gradients of it."""
    inputs = inputs if carried else inputs[:4]
    state = EventWKVState(*inputs[4:]) if carried else None
    output, after = event_wkv(*inputs[:4], state, backend=backend)
    results = (output, *after)
    grads = torch.autograd.grad(results, inputs, cotangents_of(results))
    return [*(tensor.detach() for tensor in results), *grads]


def assert_matches_reference(inputs, carried=True, dtype=torch.float32):
    assert_all_close(everything(inputs, "numba", carried), everything(inputs, "reference", carried), dtype)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("size", SIZES)
def test_event_wkv_matches_reference_at_every_size_and_rate(size, rate):
    assert_matches_reference(make_inputs(*size, rate=rate))


@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("spikes", ["binary", "signed", "integer"])
def test_event_wkv_matches_reference_with_every_alphabet(spikes, carried):
    assert_matches_reference(make_inputs(2, 63, 33, spikes=spikes), carried)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_event_wkv_matches_reference_in_every_dtype(dtype):
    assert_matches_reference(make_inputs(2, 63, 33, dtype=dtype, spikes="integer"), dtype=dtype)


@pytest.mark.parametrize("time_decay", [-100.0, -20.0, 4.0, 60.0, 80.0, 100.0])
def test_event_wkv_matches_reference_at_extreme_decays(time_decay):
    inputs = make_inputs(2, 63, 33)
    inputs[0].data.fill_(time_decay)
    assert_matches_reference(inputs)


@pytest.mark.parametrize("place", [1, 2], ids=["time_first", "key"])
@pytest.mark.parametrize("size", [19.5, 20.0, 20.5, 1000.0])
def test_event_wkv_matches_reference_at_and_beyond_the_limits(size, place):
    inputs = make_inputs(2, 63, 33)
    inputs[place].data.copy_(size * inputs[place].detach().sign())
    found = everything(inputs, "numba")
    # in float64: autograd's gradient of time_first is a small difference of large numbers here,
    # in float32 nothing but noise
    exact = everything([tensor.detach().double().requires_grad_() for tensor in inputs], "reference")
    for ours, wanted in zip(found, exact, strict=True):
        assert_close(ours, wanted.float())
    assert all(tensor.isfinite().all() for tensor in found)
    assert (found[3 + place].abs().max() == 0) == (size > reference.EVENT_KEY_LIMIT)


@both
@pytest.mark.parametrize("key", [-20.0, -21.0, -math.inf])
def test_a_tiny_weight_is_not_lost_and_not_undercut(key, backend):
    # one event of weight exp(-20) = 2e-9 in an empty memory: beside the 1 of a silent token,
    # float32 could not tell it from 0
    value = torch.tensor([[[3.0]]])
    output, state = event_wkv(torch.zeros(1), torch.zeros(1), torch.full_like(value, key), value, backend=backend)
    assert output.item() == pytest.approx(3.0)
    assert state.denominator.item() == pytest.approx(math.exp(-20), rel=1e-5, abs=0)
    assert state.numerator.item() == pytest.approx(3 * math.exp(-20), rel=1e-5, abs=0)


@both
def test_event_wkv_by_hand(backend):
    # decay 1/2; first 2; values 0, 3, 0, -1 with exp(key) = 4 and 2, from an empty memory
    #   (0 + 0) / (0 + 2) = 0            N = 0               D = 0 + 1 = 1
    #   (0 + 2*4*3) / (1 + 2*4) = 24/9   N = 0 + 12 = 12     D = 1/2 + 4 = 9/2
    #   12 / (9/2 + 2) = 24/13           N = 6               D = 9/4 + 1 = 13/4
    #   (6 - 2*2) / (13/4 + 2*2) = 8/29  N = 3 - 2 = 1       D = 13/8 + 2 = 29/8
    time_decay = torch.tensor([math.log(math.log(2))])
    time_first = torch.tensor([math.log(2)])
    key = torch.tensor([7.0, math.log(4), -5.0, math.log(2)]).view(1, 4, 1)
    value = torch.tensor([0.0, 3.0, 0.0, -1.0]).view(1, 4, 1)
    output, state = event_wkv(time_decay, time_first, key, value, backend=backend)
    assert output.flatten().tolist() == pytest.approx([0, 24 / 9, 24 / 13, 8 / 29], rel=1e-5)
    assert state.numerator.item() == pytest.approx(1, rel=1e-5)
    assert state.denominator.item() == pytest.approx(29 / 8, rel=1e-5)


def test_a_silent_run_leaves_a_geometric_sum():
    # decay 1/2, five silent tokens on (8, 4): 8 / 32 and 4 / 32 + (1 + 1/2 + 1/4 + 1/8 + 1/16)
    time_decay, silence = torch.tensor([math.log(math.log(2))]), torch.zeros(1, 5, 1)
    state = EventWKVState(torch.tensor([[8.0]]), torch.tensor([[4.0]]))
    _, after = event_wkv(time_decay, torch.zeros(1), silence, silence, state, backend="numba")
    assert after.numerator.item() == pytest.approx(0.25, rel=1e-5)
    assert after.denominator.item() == pytest.approx(4 / 32 + 31 / 16, rel=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_recurrent_reference_is_the_parallel_one(rate):
    inputs = [tensor.detach().double() for tensor in make_inputs(2, 37, 5, rate=rate, spikes="integer")]
    torch.testing.assert_close(
        reference.event_wkv(*inputs)[0], reference.event_wkv_parallel(*inputs), rtol=1e-12, atol=1e-12
    )


def test_gradient_of_the_reference_is_right():
    # the events stay what they are: a value that gradcheck moves is an event and remains one
    inputs = [tensor.detach().double() for tensor in make_inputs(2, 5, 3, rate=0.5)]
    events = inputs[3] != 0
    time_decay, time_first, key, value, numerator, denominator = inputs

    def function(time_decay, time_first, key, heights, numerator, denominator):
        spikes = torch.zeros_like(value).masked_scatter(events, heights)
        return reference.event_wkv(time_decay, time_first, key, spikes, numerator, denominator)

    moved = [
        tensor.clone().requires_grad_()
        for tensor in (time_decay, time_first, key, value[events], numerator, denominator)
    ]
    assert events.any() and not events.all()
    assert torch.autograd.gradcheck(function, moved)


def test_a_silent_value_hears_what_a_spike_of_weight_1_would_have_done():
    # one silent token in an empty memory: output = first v / first, numerator = v: gradients 1 and 1
    value = torch.zeros(1, 1, 1, requires_grad=True)
    output, state = event_wkv(torch.zeros(1), torch.ones(1), torch.full((1, 1, 1), 5.0), value, backend="numba")
    gradients = [
        torch.autograd.grad(result, value, retain_graph=True)[0].item() for result in (output, state.numerator)
    ]
    assert gradients == pytest.approx([1.0, 1.0])


@both
def test_keys_of_silent_tokens_are_never_read(backend):
    inputs = make_inputs(3, 63, 130, rate=0.3)
    silent = inputs[3] == 0
    wanted = everything(inputs, backend)
    for nonsense in (math.nan, math.inf, -1e30):
        inputs[2].data[silent] = nonsense
        found = everything(inputs, backend)
        assert all(
            tensor.isfinite().all() and torch.equal(tensor, want) for tensor, want in zip(found, wanted, strict=True)
        )
    assert (found[D_KEY][silent] == 0).all()


@both
def test_two_chunks_are_the_whole(backend):
    inputs = make_inputs(2, 90, 33)
    time_decay, time_first, key, value, *sums = inputs
    whole, last = event_wkv(time_decay, time_first, key, value, EventWKVState(*sums), backend)
    first, middle = event_wkv(time_decay, time_first, key[:, :41], value[:, :41], EventWKVState(*sums), backend)
    second, end = event_wkv(time_decay, time_first, key[:, 41:], value[:, 41:], middle, backend)
    results, wanted = (torch.cat([first, second], dim=1), *end), (whole, *last)
    cotangents = [torch.randn_like(tensor) for tensor in wanted]
    grads = [torch.autograd.grad(tensors, inputs, cotangents) for tensors in (results, wanted)]
    for ours, theirs in zip((*results, *grads[0]), (*wanted, *grads[1]), strict=True):
        assert_close(ours, theirs)


@both
def test_token_by_token_is_the_whole(backend):
    time_decay, time_first, key, value, *_ = (tensor.detach() for tensor in make_inputs(2, 40, 33))
    whole, last = event_wkv(time_decay, time_first, key, value, backend=backend)
    outputs, state = [], None
    for t in range(40):
        output, state = event_wkv(time_decay, time_first, key[:, t : t + 1], value[:, t : t + 1], state, backend)
        outputs.append(output)
    assert_close(torch.cat(outputs, dim=1), whole)
    assert_close(state.numerator, last.numerator)
    assert_close(state.denominator, last.denominator)


def test_the_empty_state_answers_the_first_spike_with_itself_and_silence_with_0():
    value = torch.tensor([[[2.0, 0.0, -1.0]]])
    output, _ = event_wkv(torch.zeros(3), torch.zeros(3), torch.randn(1, 1, 3), value, backend="numba")
    assert_close(output, value)


@pytest.mark.parametrize("size", [(3, 257, 130), (1, 100, 600)])
def test_event_wkv_is_bit_identical_on_one_and_two_threads(size):
    torch.set_num_threads(1)
    one = everything(make_inputs(*size), "numba")
    torch.set_num_threads(2)
    assert all(map(torch.equal, one, everything(make_inputs(*size), "numba")))


def test_event_wkv_reads_non_contiguous_inputs_and_expanded_gradients():
    sides = torch.randn(63, 2, 66).requires_grad_()
    key, value = sides.transpose(0, 1).chunk(2, dim=-1)
    grads = [
        torch.autograd.grad(event_wkv(torch.zeros(33), torch.ones(33), key, value, backend=backend)[0].sum(), sides)[0]
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
def test_nan_is_never_hidden_where_it_counts(place, first_sick):
    inputs = make_inputs(1, 9, 17, rate=1.0)
    inputs[place].data[..., 3] = math.nan
    if place in (2, 3):
        inputs[place].data[:, :4, 3] = 0.0
    wanted = torch.zeros(1, 9, 17, dtype=torch.bool)
    wanted[:, first_sick:, 3] = True
    assert torch.equal(everything(inputs, "numba")[0].isnan(), wanted)


def test_what_decays_away_ends_at_0():
    # 0.9^2000 is 1e-92: not a subnormal float32, on which many processors are slow
    silence = torch.zeros(1, 2000, 1)
    time_decay, state = torch.tensor([math.log(-math.log(0.9))]), EventWKVState(torch.ones(1, 1), torch.ones(1, 1))
    output, after = event_wkv(time_decay, torch.zeros(1), silence, silence, state, backend="numba")
    assert after.numerator.item() == 0.0
    assert output[output != 0].min() > torch.finfo(torch.float32).tiny / 20


def test_operator_passes_opcheck():
    torch.library.opcheck(event_wkv_operator.definition, tuple(make_inputs(2, 5, 3)))


def test_door_compiles_without_a_graph_break():
    def network(x):
        return event_wkv(torch.zeros(3), torch.zeros(3), x, x)[0].sum()

    x, y = torch.randn(2, 2, 5, 3).unbind()
    x, y = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.compile(network, fullgraph=True, backend="aot_eager")(x).backward()
    network(y).backward()
    assert_close(x.grad, y.grad)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_fakes_describe_the_real_results(dtype):
    inputs = [tensor.detach() for tensor in make_inputs(2, 5, 3, dtype)]
    # not contiguous, the results are
    inputs[2], inputs[4] = inputs[2].transpose(0, 1).contiguous().transpose(0, 1), inputs[4].T.contiguous().T
    backward = (inputs[2], inputs[4], inputs[5], *inputs)
    for operator, real in ((event_wkv_operator, inputs), (event_wkv_backward_operator, backward)):
        for described, computed in zip(operator(*(tensor.to("meta") for tensor in real)), operator(*real), strict=True):
            assert (described.shape, described.dtype, described.stride()) == (
                computed.shape,
                computed.dtype,
                computed.stride(),
            )


def test_event_wkv_keeps_its_inputs_and_nothing_else():
    inputs, kept = make_inputs(2, 100, 64), set()

    def pack(tensor):
        kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        results = event_wkv(*inputs[:4], EventWKVState(*inputs[4:]), backend="numba")
    del results
    assert kept == {tensor.untyped_storage().data_ptr() for tensor in inputs}


X = torch.zeros(2, 4, 3)
ZEROS = torch.zeros(3)


@pytest.mark.parametrize(
    ("call", "found", "wanted"),
    [
        (lambda: event_wkv(ZEROS, ZEROS, X[0], X[0]), "(4, 3)", "(B, T, C)"),
        (lambda: event_wkv(ZEROS, ZEROS, X[:, :0], X[:, :0]), "(2, 0, 3)", "no empty side"),
        (lambda: event_wkv(ZEROS, ZEROS, X, X[:1]), "(1, 4, 3)", "(2, 4, 3)"),
        (lambda: event_wkv(ZEROS, ZEROS, X, X.half()), "float16", "float32"),
        (lambda: event_wkv(ZEROS, ZEROS, X.long(), X.long()), "int64", "floating-point"),
        (lambda: event_wkv(torch.zeros(4), ZEROS, X, X), "(4,)", "(3,)"),
        (lambda: event_wkv(ZEROS, torch.zeros(4), X, X), "(4,)", "(3,)"),
        (lambda: event_wkv(ZEROS, ZEROS, X, X, EventWKVState.empty(1, 3)), "(1, 3)", "(2, 3)"),
        (lambda: event_wkv(ZEROS, ZEROS, X, X, EventWKVState.empty(2, 3, dtype=torch.float64)), "float64", "float32"),
        (lambda: event_wkv(ZEROS, torch.zeros(3, device="meta"), X, X), "meta", "one device"),
        (lambda: event_wkv(ZEROS, ZEROS, X, X, backend="cuda"), "'cuda'", "reference"),
        (lambda: event_wkv(ZEROS, ZEROS, X.double(), X.double(), backend="numba"), "float64", "float32"),
    ],
)
def test_errors_say_what_was_found_and_what_is_wanted(call, found, wanted):
    with pytest.raises(ValueError) as caught:
        call()
    assert found in str(caught.value) and wanted in str(caught.value)
