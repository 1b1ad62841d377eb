"""What was counted once and comes again is replayed: the same counts, to the last digit, as by a close look."""

import copy
import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from counting import Computes, SnnTorchStack, SpikingJellyStack, spikes
from torch import nn

from neuromorphic import OpCounter, declare_cost
from neuromorphic.count.dispatch import OperatorMode
from neuromorphic.count.replay import Replays
from spikegpt.config.model import ModelConfig
from spikegpt.config.neuron import NeuronConfig
from spikegpt.model.initial import calibrate_thresholds
from spikegpt.model.network import SpikeGPT
from spikegpt.neuron import verified_spikes

MODES = [torch.no_grad, torch.inference_mode, torch.enable_grad]


@pytest.fixture(autouse=True)
def unchecked_spikes():
    """The check of the spikes is work too, which is not to be counted."""
    with verified_spikes(False):
        yield


def language_model(**options):
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=12, ctx_len=64, vocab_size=31, **options)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.5)
    if model.config.spiking == "input":
        calibrate_thresholds(model, 0.2)
    return model


def decode(model):
    """A prefill of 3 tokens and 6 tokens one by one."""
    ids = torch.randint(0, 31, (1, 9), generator=torch.Generator().manual_seed(1))
    state = model(ids[:, :3]).state
    for t in range(3, 9):
        state = model(ids[:, t : t + 1], state).state


class Caching(nn.Module):
    """Attention of one head over a cache that grows, rows of spikes, a residual, a weight made of weights."""

    def __init__(self, C=8):
        super().__init__()
        self.qkv, self.out, self.scale = nn.Linear(C, 3 * C), nn.Linear(C, C), nn.Parameter(torch.rand(C, 1))
        self.register_buffer("shift", torch.ones(C))

    def forward(self, x, cache=None):
        q, k, v = self.qkv(x).chunk(3, dim=2)
        k, v = (torch.cat([old, new], dim=1) for old, new in zip(cache, (k, v), strict=True)) if cache else (k, v)
        mixed = torch.softmax(q @ k.mT, dim=2) @ v
        fired = (mixed > 0).to(x.dtype)
        return x + self.out(fired) @ (self.out.weight * self.scale) + self.shift, (k, v)


def read_on(model):
    cache = None
    for row in torch.randn(5, 1, 1, 8, generator=torch.Generator().manual_seed(1)):
        _, cache = model(row, cache)


class Deep(nn.Module):
    """The same layers several times over, with data that changes its kind from call to call."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 8))
        self.conv = nn.Conv1d(8, 4, 3)

    def forward(self, x):
        for _ in range(3):
            x = self.layers(x)
        return self.conv(x.mT.expand(-1, -1, 5)) if x.dim() == 3 else x


def in_turns(model):
    draw = torch.Generator().manual_seed(1)
    for n in range(4):
        model(spikes(1, 1, 8, rate=0.3, seed=n) if n % 2 else torch.randn(1, 1, 8, generator=draw))
        model(torch.randint(-3, 4, (1, 8), generator=draw).float())
        model(torch.zeros(1, 8))
        model(torch.randn(2, 8, generator=draw))


def neurons_of(Stack):
    def run(model):
        for x in torch.randn(3, 5, 1, 8, generator=torch.Generator().manual_seed(2)):
            model(x)

    return Stack, run


class Twice(torch.Tensor):
    """A tensor of a class of its own."""


ROW = torch.tensor([[1.0, 0, 2, 0]])
# what looks alike from call to call: a function of (x, square weight (4, 4)), and the inputs of its calls
LOOK_ALIKES = {
    "casts": (lambda x, w: x.to(torch.int32).float() @ w, [ROW * 3, ROW * 1000, ROW]),
    "quotients": (lambda x, w: torch.div(x, 2, rounding_mode="floor") @ w, [ROW * 3, ROW * 1000, ROW]),
    "rows of a weight": (lambda x, w: w.index_select(0, x[0].long()), [ROW, ROW + 1, 0 * ROW]),
    "numbers of a weight": (lambda x, w: w.gather(0, x.long()), [ROW, ROW + 1, 0 * ROW]),
    "a derivative inside": (lambda x, w: derivative(x) @ w, [ROW, ROW + 1, ROW]),
    "a weight on the left": (lambda x, w: torch.mv(w, torch.round(x[0]) * w[0]), [ROW + 0.1, ROW * 2, ROW + 3]),
    "a square on the left": (lambda x, w: w @ x.mT.expand(2, 4, 4).mT, [ROW, ROW * 2, ROW + 0.5]),
    "two parts of one memory": (lambda x, w: torch.einsum("bi,ij,bj->b", x[:, :2], w[:2, 2:], x[:, 2:]), [ROW] * 3),
    "zeros of both signs": (lambda x, w: torch.where(x > 0, *ZEROS[int(x[0, 0])]) * w, [ROW, ROW * 2, ROW]),
    "a conjugate": (lambda x, w: (x + 0j).conj().resolve_conj() * (x + 0j).resolve_conj() * w, [ROW, ROW + 1]),
    "another class": (lambda x, w: x.as_subclass(Twice) @ w, [ROW, ROW + 0.5, ROW]),
    "several results": (lambda x, w: torch.gradient((x @ w).expand(2, 4))[0], [ROW, ROW + 1, ROW]),
}
ZEROS = [(0.0, 1.0), (0.0, 1.0), (-0.0, 1.0)]


def derivative(x):
    with torch.enable_grad():
        h = x.clone().detach().requires_grad_()
        return torch.autograd.grad((h * x * x).sum(), h)[0]


def look_alike(name):
    function, inputs = LOOK_ALIKES[name]

    def run(model):
        for x in inputs:
            model(x)

    return lambda: Computes(function, torch.randn(4, 4)), run


INTEGERS = NeuronConfig(levels=3, surrogate="rectangular", slope=1.0, detach_reset=True)
CASES = {
    "published": (lambda: language_model(spiking="output"), decode),
    "twin": (lambda: language_model(spiking="none"), decode),
    "spike-driven": (lambda: language_model(spiking="input"), decode),
    "integers": (lambda: language_model(spiking="input", neuron=INTEGERS), decode),
    "cache": (Caching, read_on),
    "in turns": (Deep, in_turns),
    "snnTorch": neurons_of(SnnTorchStack),
    "SpikingJelly": neurons_of(SpikingJellyStack),
}


def counted(make, run, mode, is_replayed):
    torch.manual_seed(3)
    model = make()
    with mode(), OpCounter(model) as counter:
        if not is_replayed:
            counter._replays.turn_to = lambda *_: None
        run(model)
    return counter.tally().to_dict()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LOOK_ALIKES)
def test_calls_that_only_look_alike_are_told_apart(name, mode):
    if name == "a derivative inside" and mode is torch.inference_mode:
        pytest.skip("torch has no derivatives there")
    assert counted(*look_alike(name), mode, True) == counted(*look_alike(name), mode, False)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_replayed_counts_are_those_of_a_close_look(case, mode):
    assert counted(*CASES[case], mode, True) == counted(*CASES[case], mode, False)


def test_what_repeats_is_replayed(monkeypatch):
    """Of the second token of a twin only the embedding is looked at again, and no layer is taken apart."""
    model, looks = language_model(spiking="none"), []
    look, run = OpCounter._look_closely, OperatorMode._run_in_sight

    def looked(self, func, *rest):
        looks.append(func)
        look(self, func, *rest)

    def taken_apart(self, func, *rest):
        looks.append(func)
        return run(self, func, *rest)

    monkeypatch.setattr(OpCounter, "_look_closely", looked)
    monkeypatch.setattr(OperatorMode, "_run_in_sight", taken_apart)
    with torch.inference_mode(), OpCounter(model):
        state = model(torch.tensor([[1]])).state
        for token in (2, 3):
            state = model(torch.tensor([[token]]), state).state
        ids = torch.tensor([[4]])
        del looks[:]
        model(ids, state)
    assert looks == [torch.ops.aten.embedding.default]


def rows(linear, n=2):
    for _ in range(n):
        linear(torch.ones(1, 4))


@pytest.mark.parametrize(
    "change",
    [
        lambda linear: linear.weight.mul_(torch.tensor([1.0, 0, 0, 0])),
        lambda linear: linear.load_state_dict({"weight": torch.tensor([[1.0, 0, 0, 0]] * 3)}),
        lambda linear: setattr(linear.weight, "data", torch.tensor([[1.0, 0, 0, 0]] * 3)),
        lambda linear: setattr(linear, "weight", nn.Parameter(torch.tensor([[1.0, 0, 0, 0]] * 3))),
    ],
    ids=["in place", "load_state_dict", "data", "another parameter"],
)
@pytest.mark.parametrize("mode", [torch.no_grad, nullcontext])
def test_a_weight_that_changes_between_two_tokens_is_counted_as_it_is(change, mode):
    """Rows of ones meet 12 weights, afterwards 3."""
    linear = nn.Linear(4, 3, bias=False)
    with mode(), OpCounter(linear) as counter:
        rows(linear)
        with torch.no_grad():
            change(linear)
        rows(linear)
    assert counter.tally().total().effective_acs == 2 * 12 + 2 * 3


def test_a_tally_between_two_tokens_changes_nothing():
    linear = nn.Linear(4, 3)
    with torch.no_grad(), OpCounter(linear) as counter:
        found = []
        for _ in range(4):
            rows(linear, 1)
            total = counter.tally().total()
            found.append((total.calls, total.effective_acs, total.add, total.weights_once))
    assert found == [(n, 12 * n, 3 * n, 12 + 3) for n in (1, 2, 3, 4)]


def test_structures_that_never_come_again_are_forgotten(monkeypatch):
    monkeypatch.setattr("neuromorphic.count.replay.MOST", 10)
    assert counted(*CASES["cache"], torch.no_grad, True) == counted(*CASES["cache"], torch.no_grad, False)


def test_a_call_that_fails_leaves_no_trace():
    """The second matrix product of wrong shape: what was counted before it stays, what comes after it is counted."""
    linear = nn.Linear(4, 3)
    with torch.inference_mode(), OpCounter(linear) as counter:
        for _ in range(3):
            rows(linear, 1)
            with pytest.raises(RuntimeError):
                linear(torch.ones(1, 5))
    assert counter.tally().total().effective_acs == 3 * 12


def test_numbers_that_were_looked_at_are_let_go():
    linear, held = nn.Linear(4, 3), []
    with torch.no_grad(), OpCounter(linear) as counter:
        for _ in range(3):
            x = torch.ones(1, 4)
            held.append(weakref.ref(x))
            linear(x)
            del x
        assert isinstance(counter._replays, Replays)
        assert [reference() for reference in held] == [None] * 3


def test_weights_of_a_call_are_let_go():
    linear, held = nn.Linear(4, 3, bias=False), []
    with torch.no_grad(), OpCounter(linear) as counter:
        for n in range(4):
            weights = {"weight": torch.full((3, 4), float(n > 0))}
            held.append(weakref.ref(weights["weight"]))
            torch.func.functional_call(linear, weights, (torch.ones(1, 4),))
            del weights
        assert [reference() for reference in held] == [None] * 4
    # a weight of zeros, then three of twelve ones
    assert counter.tally().total().effective_acs == 3 * 12


def test_a_cost_that_is_declared_anew_is_the_new_one():
    operator = torch.ops.aten.flip.default
    try:
        with torch.no_grad(), OpCounter(Computes(lambda x: x.flip(0))) as counter:
            for n in (1, 2, 3):
                declare_cost(operator, lambda args, kwargs, output, n=n: {"mul": 100 * n})
                counter.model(torch.ones(4))
        assert counter.tally().total().mul == 600
    finally:
        del operator.op_cost


@pytest.mark.parametrize("operation", ["einsum", "linear", "matmul"])
def test_what_autocast_casts_is_cast_under_the_counter_too(operation):
    function = {
        "einsum": lambda x, w: torch.einsum("bi,ij->bj", x, w),
        "linear": lambda x, w: nn.functional.linear(x, w),
        "matmul": lambda x, w: x @ w,
    }[operation]
    model, x = Computes(function, torch.randn(4, 4)), torch.randn(3, 4)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        plain = model(x)
        with OpCounter(model) as counter:
            found = [model(x) for _ in range(3)]
    assert plain.dtype == torch.bfloat16
    assert all(torch.equal(one, plain) and one.dtype == plain.dtype for one in found)
    assert counter.tally().total().dense_ops == 3 * 3 * 16


def test_a_copy_made_while_counting_is_another_model():
    linear = nn.Linear(4, 3)
    with torch.no_grad(), OpCounter(linear) as counter:
        rows(linear, 1)
        another = copy.deepcopy(linear)
        rows(another, 5)
        rows(linear, 1)
    assert counter.tally().total().effective_acs == 2 * 12
    rows(another, 1)
    del another
    gc.collect()
