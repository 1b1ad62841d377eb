"""The token shift's numba kernel against the reference, and numbers worked by hand."""

import pytest
import torch
from kernel_cases import SIZES, assert_all_close, cotangents_of
from tolerances import TOLERANCE

from spikegpt.kernels import token_shift

BACKENDS = ["numba", "reference"]


def inputs(B, T, C, number=3, dtype=torch.float32):
    """[x, previous, shares ...], with gradients; shares at and beyond both ends occur."""
    generator = torch.Generator().manual_seed(B * 10000 + T * 100 + C)
    x, previous = torch.randn(B, T, C, generator=generator), torch.randn(B, C, generator=generator)
    shares = [torch.rand(1, 1, C, generator=generator) * 1.2 - 0.1 for _ in range(number)]
    return [tensor.requires_grad_() for tensor in (x.to(dtype), previous.to(dtype), *shares)]


def everything(tensors, backend, dtype=None):
    x, previous, *shares = tensors
    mixes = token_shift(x, previous, shares, backend, dtype=dtype)
    return [mix.detach() for mix in mixes], list(torch.autograd.grad(mixes, tensors, cotangents_of(mixes)))


@pytest.mark.parametrize("number", [1, 2, 3, 6])
@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_the_references(size, number):
    tensors = inputs(*size, number)
    (mixes, grads), (wanted_mixes, wanted_grads) = (everything(tensors, backend) for backend in BACKENDS)
    assert all(map(torch.equal, mixes, wanted_mixes))
    assert_all_close(grads, wanted_grads)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_precision_is_the_references(dtype):
    tensors = inputs(2, 63, 33, dtype=dtype)
    (mixes, grads), (wanted_mixes, wanted_grads) = (everything(tensors, backend) for backend in BACKENDS)
    assert_all_close(mixes + grads, wanted_mixes + wanted_grads, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_products_may_want_less_precision_than_the_stream(backend):
    tensors = inputs(2, 63, 33)
    halves, grads = everything(tensors, backend, torch.bfloat16)
    singles, _ = everything(tensors, backend)
    assert all(torch.equal(half, single.bfloat16()) for half, single in zip(halves, singles, strict=True))
    assert [grad.dtype for grad in grads] == [torch.float32] * 5


# by hand: tokens 2, 4, 10 after a token 1, a share of 0.25: 0.25 * 2 + 0.75 * 1 = 1.25; 1 + 1.5 = 2.5; 2.5 + 3 = 5.5.
# Cotangents 1, 2, 4: d token = 0.25 of its own and 0.75 of the next one's, 0.25 + 1.5, 0.5 + 3, 1; d before it 0.75;
# d share = sum of cotangent * (token - the one before) = 1 * 1 + 2 * 2 + 4 * 6 = 29
@pytest.mark.parametrize("backend", BACKENDS)
def test_three_tokens_are_the_hand_worked_ones(backend):
    x = torch.tensor([[[2.0], [4.0], [10.0]]], requires_grad=True)
    previous, share = torch.tensor([[1.0]], requires_grad=True), torch.tensor([0.25], requires_grad=True)
    (mix,) = token_shift(x, previous, [share], backend)
    assert mix.flatten().tolist() == [1.25, 2.5, 5.5]
    grads = torch.autograd.grad(mix, (x, previous, share), torch.tensor([[[1.0], [2.0], [4.0]]]))
    assert [grad.flatten().tolist() for grad in grads] == [[1.75, 3.5, 1.0], [0.75], [29.0]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_token_of_a_text_sees_zeros(backend):
    x, share = torch.ones(2, 2, 3, requires_grad=True), torch.full((3,), 0.5)
    (mix,) = token_shift(x, None, [share], backend)
    assert mix.tolist() == [[[0.5] * 3, [1.0] * 3]] * 2
    mix.sum().backward()
    assert x.grad.tolist() == [[[1.0] * 3, [0.5] * 3]] * 2


def test_gaps_in_memory_and_unused_mixes_change_nothing():
    x, previous, *shares = inputs(2, 9, 12)
    gaps = torch.stack([x.detach(), x.detach()], dim=-1)[..., 0].requires_grad_()
    results = []
    for tensor in (x, gaps):
        mixes = token_shift(tensor, previous, shares, "numba")
        results.append([*mixes, *torch.autograd.grad(mixes[1], (tensor, previous, shares[1]), torch.ones_like(x))])
    assert all(map(torch.equal, *results))


def test_whole_texts_and_two_parts_are_one():
    x, previous, *shares = inputs(2, 300, 130)
    whole = token_shift(x, previous, shares, "numba")
    first = token_shift(x[:, :77], previous, shares, "numba")
    second = token_shift(x[:, 77:], x[:, 76], shares, "numba")
    for one, *parts in zip(whole, first, second, strict=True):
        assert torch.equal(one, torch.cat(parts, dim=1))


@pytest.mark.parametrize(
    ("x", "previous", "share", "found"),
    [
        ((2, 3), None, (3,), r"x must be \(B, T, C\) with no empty side, got \(2, 3\)"),
        ((2, 0, 3), None, (3,), r"got \(2, 0, 3\)"),
        ((2, 4, 3), (3, 3), (3,), r"previous has shape \(3, 3\), want \(2, 3\)"),
        ((2, 4, 3), None, (4,), r"a share has shape \(4,\), want \(3,\) or \(1, 1, 3\)"),
    ],
)
def test_what_does_not_fit_is_named(x, previous, share, found):
    before = None if previous is None else torch.zeros(previous)
    with pytest.raises(ValueError, match=f"token_shift: .*{found}"):
        token_shift(torch.zeros(x), before, [torch.zeros(share)])


def test_there_is_no_kernel_for_a_gpu():
    with pytest.raises(ValueError, match="token_shift: there is no kernel for a GPU"):
        token_shift(torch.zeros(1, 1, 1), None, [torch.zeros(1)], "cupy")
