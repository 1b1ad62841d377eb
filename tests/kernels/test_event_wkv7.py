"""RWKV-7's WKV by events: against the dense recurrence at every firing rate; numba against the reference."""

import pytest
import torch
from kernel_cases import assert_all_close, cotangents_of, event_wkv7_inputs, event_wkv7_state
from tolerances import TOLERANCE

from spikegpt.kernels import EventWKV7State, event_wkv7, wkv7
from spikegpt.kernels.event_wkv7.door import event_wkv7_operator

SIZES = [(1, 1, 1, 1), (2, 1, 3, 5), (3, 37, 2, 12), (2, 130, 3, 33), (1, 33, 2, 64)]  # odd on purpose


def dense(state: EventWKV7State) -> torch.Tensor:
    return state.matrix * torch.exp(state.waiting).unsqueeze(-2)


@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"), [("auto", torch.float64, 1e-12), ("numba", torch.float32, 1e-5)]
)
@pytest.mark.parametrize("firing", [0.0, 0.1, 0.45, 1.0])
@pytest.mark.parametrize("size", SIZES)
def test_events_are_the_dense_recurrence(size, firing, backend, dtype, tolerance):
    B, _, H, N = size
    inputs, state = event_wkv7_inputs(*size, firing, dtype), event_wkv7_state(B, H, N, dtype)
    found, after = event_wkv7(*inputs, state, backend=backend)
    wanted, last = wkv7(*inputs, dense(state), backend="reference")
    for ours, theirs in ((found, wanted), (dense(after), last)):
        assert (ours - theirs).abs().max() <= tolerance * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("silent", [(2,), (4,), (5,), (2, 4), (2, 5), (4, 5)])
def test_key_a_and_b_may_be_silent_each_without_the_others(silent, backend):
    inputs, state = event_wkv7_inputs(2, 9, 2, 5, 0.5), event_wkv7_state(2, 2, 5)
    for place in silent:
        inputs[place].zero_()
    found, after = event_wkv7(*inputs, state, backend=backend)
    wanted, last = wkv7(*inputs, dense(state), backend="reference")
    assert_all_close([found, dense(after)], [wanted, last])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("firing", [0.0, 0.2, 1.0])
def test_numba_matches_the_reference_in_every_dtype(firing, dtype):
    inputs, state = event_wkv7_inputs(2, 37, 3, 12, firing, dtype), event_wkv7_state(2, 3, 12)
    found, wanted = (event_wkv7(*inputs, state, backend=backend) for backend in ("numba", "reference"))
    assert_all_close([found[0], *found[1]], [wanted[0], *wanted[1]], dtype)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_without_key_spikes_the_matrix_keeps_its_last_bit_and_decay_waits(backend):
    inputs, state = event_wkv7_inputs(2, 9, 2, 5, 0.5), event_wkv7_state(2, 2, 5)
    for tensor in (inputs[2], inputs[4], inputs[5]):
        tensor[0, :, 1] = 0
    kept = [part.clone() for part in state]
    _, after = event_wkv7(*inputs, state, backend=backend)
    assert torch.equal(after.matrix[0, 1], state.matrix[0, 1])
    torch.testing.assert_close(after.waiting[0, 1], state.waiting[0, 1] + inputs[1][0, :, 1].sum(dim=0))
    assert not torch.equal(after.matrix[0, 0], state.matrix[0, 0])
    # what was given is not written into
    assert all(map(torch.equal, state, kept))


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_a_text_in_two_pieces_is_the_text(backend):
    inputs, state = event_wkv7_inputs(2, 37, 2, 12, 0.3), event_wkv7_state(2, 2, 12)
    whole, last = event_wkv7(*inputs, state, backend=backend)
    first, carried = event_wkv7(*(x[:, :20] for x in inputs), state, backend=backend)
    second, end = event_wkv7(*(x[:, 20:] for x in inputs), carried, backend=backend)
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert all(map(torch.equal, end, last))


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_gradients_are_those_of_the_dense_recurrence(backend):
    inputs = [x.requires_grad_() for x in event_wkv7_inputs(2, 17, 2, 6, 0.3)]
    state = EventWKV7State(*(x.requires_grad_() for x in event_wkv7_state(2, 2, 6)))
    found, after = event_wkv7(*inputs, state, backend=backend)
    wanted, last = wkv7(*inputs, dense(state), backend="reference")
    cotangents = cotangents_of((wanted, last))
    ours = torch.autograd.grad((found, dense(after)), [*inputs, *state], cotangents)
    theirs = torch.autograd.grad((wanted, last), [*inputs, *state], cotangents)
    assert_all_close(ours, theirs)
    # a silent key hears what a spike would have done
    assert ours[2][inputs[2] == 0].abs().min() > 0


def test_it_may_wait_for_longer_than_a_number_is_large():
    inputs, state = event_wkv7_inputs(1, 400, 1, 4, 0.0), event_wkv7_state(1, 1, 4)
    inputs[1].fill_(-0.6)
    output, after = event_wkv7(*inputs, state, backend="numba")
    assert after.waiting.max() < -200 and output.isfinite().all()


def test_operator_is_one_of_torch():
    inputs = [*event_wkv7_inputs(1, 5, 2, 4, 0.5), *event_wkv7_state(1, 2, 4)]
    torch.library.opcheck(event_wkv7_operator.definition, inputs)


def test_cost_is_that_of_events():
    # one head of 4, two tokens: the first reads channel 2 and edits channel 1 (a and b too), the second does nothing
    r, d, k, v, a, b = torch.zeros(6, 1, 2, 1, 4)
    r[0, 0, 0, 2] = k[0, 0, 0, 1] = a[0, 0, 0, 1] = b[0, 0, 0, 1] = 1.0
    inputs = [r, d, k, v, a, b, *event_wkv7_state(1, 1, 4)]
    cost = torch.ops.spikegpt.event_wkv7.default.op_cost(tuple(inputs), {}, event_wkv7_operator(*inputs))
    # read 4 + 1 mul, removed 4 + 1, edited 12; added 4, 4 and 8, and 8 decays to what waits
    assert (cost["mul"], cost["add"], cost["exp"], cost["compare"]) == (22, 24, 3, 32)
    assert (cost["state_elements"], cost["state_reads"], cost["state_writes"]) == (20, 4 + 4 + 8, 4 + 8)


@pytest.mark.parametrize(
    ("place", "change", "words"),
    [
        (0, lambda x: x[:, :, :1], "event_wkv7: receptance is torch.float32"),
        (2, lambda x: x[0], "event_wkv7: key must be floating point"),
        (6, lambda state: state._replace(matrix=state.matrix[:, :1]), "event_wkv7: state is torch.float32"),
        (6, lambda state: state._replace(waiting=state.waiting.double()), "event_wkv7: waiting is torch.float64"),
    ],
)
def test_what_does_not_fit_is_named(place, change, words):
    inputs = [*event_wkv7_inputs(2, 3, 2, 4, 0.5), event_wkv7_state(2, 2, 4)]
    inputs[place] = change(inputs[place])
    with pytest.raises(ValueError, match=words):
        event_wkv7(*inputs)
