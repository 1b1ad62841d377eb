"""Operators called past torch's dispatcher: the same numbers and gradients, and never where somebody looks."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from spikegpt.kernels.operators import Operator, custom_operator

calls: list[str] = []


@custom_operator(
    "spikegpt_test::scaled", mutates_args=(), schema="(Tensor x, Tensor[] scales, int power=1) -> Tensor[]"
)
def scaled(x, scales, power=1):
    """x * scale^power for each scale."""
    calls.append("body")
    return [x * scale**power for scale in scales]


@scaled.register_fake
def _(x, scales, power=1):
    return [torch.empty_like(x) for _ in scales]


@custom_operator("spikegpt_test::scaled_backward", mutates_args=())
def scaled_backward(grad: torch.Tensor, scale: torch.Tensor, power: int) -> torch.Tensor:
    return grad * scale**power


@scaled_backward.register_fake
def _(grad, scale, power):
    return torch.empty_like(grad)


def _save(ctx, inputs, output):
    x, scales, ctx.power = inputs
    ctx.save_for_backward(x, *scales)


def _backward(ctx, grads):
    x, *scales = ctx.saved_tensors
    power = ctx.power
    calls.append(f"gradients {[grad is not None for grad in grads]}")
    pairs = [(grad, scale) for grad, scale in zip(grads, scales, strict=True) if grad is not None]
    of_x = sum(scaled_backward(grad, scale, power) for grad, scale in pairs)
    of_scales = [
        None if grad is None else (grad * x).sum() * power * scale ** (power - 1)
        for grad, scale in zip(grads, scales, strict=True)
    ]
    return of_x, of_scales, None


scaled.register_autograd(_backward, setup_context=_save)


class Listener(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, kinds, arguments=(), options=None):
        self.seen.append(str(function))
        return function(*arguments, **(options or {}))


def inputs():
    torch.manual_seed(0)
    x = torch.randn(3, 4, requires_grad=True)
    return x, [torch.tensor(2.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)]


def results(call, *more):
    x, scales = inputs()
    first, second = call(x, scales, *more)
    (first.sum() + (second**2).sum()).backward()
    return [first, second, x.grad, *(scale.grad for scale in scales)]


@pytest.fixture
def through_dispatcher(monkeypatch):
    """The calls that went to torch's own operator."""
    seen = []

    def watch(operator: Operator):
        definition = operator.definition
        monkeypatch.setattr(operator, "definition", lambda *given: seen.append(1) or definition(*given))

    watch(scaled)
    return seen


@pytest.mark.parametrize("power", [2, 3])
def test_results_and_gradients_are_those_of_torchs_operator(power):
    for ours, theirs in zip(results(scaled, power), results(scaled.definition, power), strict=True):
        assert torch.equal(ours, theirs)


def test_defaults_are_filled_in():
    for ours, theirs in zip(results(scaled), results(scaled, 1), strict=True):
        assert torch.equal(ours, theirs)


def test_nobody_looks(through_dispatcher):
    results(scaled)
    x, scales = inputs()
    with torch.no_grad():
        scaled(x, scales)
    with torch.inference_mode():
        scaled(x, scales)
    assert not through_dispatcher


def test_a_gradient_that_nobody_asks_for_is_none():
    x, scales = inputs()
    calls.clear()
    scaled(x, scales)[0].sum().backward()
    assert calls == ["body", "gradients [True, False]"]
    assert scales[0].grad is not None and scales[1].grad is None


def test_counters_see_the_operator():
    x, scales = inputs()
    with Listener() as listener:
        scaled(x, scales)
    assert "spikegpt_test.scaled.default" in listener.seen


def test_a_profile_names_the_operator():
    x, scales = inputs()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        scaled(x, scales)
    assert "spikegpt_test::scaled" in {event.key for event in found.key_averages()}


def test_others_that_look_get_torchs_operator(through_dispatcher):
    x, scales = inputs()
    with torch.device("meta"):
        scaled(torch.ones(2), [torch.ones(())])
    assert scaled(x.detach().to("meta"), [torch.ones((), device="meta")])[0].is_meta
    with forward_ad.dual_level():
        scaled(x.detach(), [scale.detach() for scale in scales])
    with pytest.raises(RuntimeError):
        # there is no rule for it, and torch says so
        torch.vmap(lambda row: scaled(row, [torch.ones(())])[0])(x.detach())
    assert len(through_dispatcher) == 4


def test_a_subclass_of_tensors_is_not_gone_past(through_dispatcher):
    class Labelled(torch.Tensor):
        pass

    scaled(torch.ones(2).as_subclass(Labelled), [torch.ones(())])
    assert len(through_dispatcher) == 1


def test_compiled_code_holds_the_operator():
    x, scales = inputs()
    calls.clear()
    compiled = torch.compile(lambda x, scales: scaled(x, scales, 2), backend="aot_eager", fullgraph=True)
    for ours, plain in zip(compiled(x, scales), scaled(x, scales, 2), strict=True):
        assert torch.equal(ours, plain)


def test_a_second_derivative_is_refused_as_torch_does():
    x, scales = inputs()
    first, _ = scaled(x, scales)
    (grad,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_its_name_stands_in_the_graph():
    x, scales = inputs()
    assert type(scaled(x, scales)[0].grad_fn).__name__ == "spikegpt_test_scaledBackward"
