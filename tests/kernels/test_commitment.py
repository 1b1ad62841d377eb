"""commitment_error against a sum worked by hand, and its fast version against the reference: values and gradients."""

import math

import pytest
import torch

from spikegpt.kernels import commitment_error
from spikegpt.kernels.integer_lif.options import IntegerLIFOptions

TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


def kind(levels=2, signed=True) -> IntegerLIFOptions:
    return IntegerLIFOptions(levels=levels, signed=signed)


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_the_share_worked_by_hand(backend):
    # in thresholds 0.5, -1.25, 1.5, 4 and the middles 0, -1.5, 1.5, 2.5
    current = torch.tensor([[[1.0, -5.0], [3.0, 16.0]]], requires_grad=True)
    threshold = torch.tensor([2.0, 4.0], requires_grad=True)
    share = commitment_error(current, threshold, kind(), backend)
    error, energy = 0.25 + 0.0625 + 0 + 2.25, 0.25 + 1.5625 + 2.25 + 16
    assert share.item() == pytest.approx(error / energy)
    share.backward()
    # (error)' / energy - error (energy)' / energy^2, per threshold
    wanted = [
        (2 * 0.5 / energy - 2 * 0.5 * error / energy**2) / 2,
        (2 * 0.25 / energy - 2 * -1.25 * error / energy**2) / 4,
        (0 - 2 * 1.5 * error / energy**2) / 2,
        (2 * 1.5 / energy - 2 * 4 * error / energy**2) / 4,
    ]
    assert current.grad.flatten().tolist() == pytest.approx(wanted, rel=1e-5)
    assert threshold.grad is None or not threshold.grad.any()


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_what_never_fires_is_no_part_of_it(backend):
    current = torch.tensor([[[1.5, -7.0]]], requires_grad=True)
    share = commitment_error(current, 1.0, kind(signed=False), backend)
    share.backward()
    assert share.item() == 0 and current.grad[0, 0, 1] == 0
    silent = torch.zeros(1, 2, 2, requires_grad=True)
    share = commitment_error(silent, 1.0, kind(), backend)
    share.backward()
    assert share.item() == 0 and not silent.grad.any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 13), (2, 65, 192), (4, 300, 640)])
@pytest.mark.parametrize(("levels", "signed"), [(1, False), (4, True), (16, False)])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_fast_version_is_the_reference(shape, levels, signed, dtype):
    torch.manual_seed(math.prod(shape))
    drawn, threshold = torch.randn(shape).mul(2).to(dtype), 0.2 + torch.rand(shape[-1])
    found = []
    for backend in ("numba", "reference"):
        current = drawn.clone().requires_grad_()
        share = commitment_error(current, threshold, kind(levels, signed), backend)
        (3 * share).backward()
        found.append((share.detach(), current.grad.float()))
    (share, grad), (wanted, wanted_grad) = found
    assert share.dtype == torch.float32 and share.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-9)
    # at a threshold itself the two middles are equally far, and rounding chooses
    is_apart = (drawn.float() / threshold % 1 - 0.5).abs() < 0.4999
    assert (grad - wanted_grad)[is_apart].abs().max() <= TOLERANCES[dtype] * max(wanted_grad.abs().max(), 1e-9)


def test_auto_is_fast_only_where_a_gradient_is_asked_for():
    current = torch.randn(2, 5, 3)
    assert commitment_error(current, 0.7, kind()).grad_fn is None
    assert "commitment" in type(commitment_error(current.requires_grad_(), 0.7, kind()).grad_fn).__name__


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="commitment_error: threshold has shape"):
        commitment_error(torch.ones(2, 3, 4), torch.ones(3), kind())
