"""The facts that every honest counter must satisfy; products are in test_counter_products.py."""

import gc

import pytest
import torch
from counting import LEVELS, amounts, count, linear, random_case
from torch import nn
from torch.nn import functional as F

from neuromorphic import CountError, Counts, OpCounter, UncountedOperator, declare_cost


class Toy(nn.Module):
    """A Linear, a shared Linear, a raw parameter, a norm and gates."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.up, self.shared = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.also_shared = self.shared
        self.raw = nn.Parameter(torch.randn(8, 8))
        self.decay = nn.Parameter(torch.randn(8))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids):
        x = self.norm(self.emb(ids))
        x = torch.relu(self.up(x)).square()
        x = self.also_shared(torch.sigmoid(self.shared(x)) * x) @ self.raw
        return self.head(torch.exp(-torch.exp(self.decay)) * x)


IDS = torch.tensor([[1, 4, 2, 9, 0, 3, 7], [5, 5, 10, 1, 2, 8, 6]])


def test_sites_add_up_and_effective_never_exceeds_dense():
    tally = count(Toy(), IDS)
    for counts in tally.sites.values():
        assert counts.effective_macs + counts.effective_acs == counts.effective_ops <= counts.dense_ops
        assert counts.weights_once <= counts.weights_per_event <= counts.weights_dense
    assert tally.total().dense_ops == 14 * (4 * 64 + 88)
    assert sum(counts.dense_ops for counts in tally.by_kind().values()) == tally.total().dense_ops
    by_module = {
        name: sum(counts.add for site, counts in tally.sites.items() if site.module == name) for name in tally.modules()
    }
    assert sum(by_module.values()) == tally.total(module="").add == tally.total().add


def test_a_shared_weight_is_used_twice_and_kept_once():
    tally = count(Toy(), IDS)
    assert tally.total(module="shared").dense_ops == 2 * 14 * 64
    assert tally.total(module="shared").weights_once == 64 + 8
    # emb = head; up, shared with bias, raw, decay, norm
    assert tally.footprint.parameters == 88 + 64 + 72 + 64 + 8 + 16


def test_what_depends_on_parameters_alone_is_prepared_once():
    assert count(Toy(), IDS).total().exp == 0


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_mode_of_torch_gives_the_same_counts(context):
    model = Toy()
    with context(), OpCounter(model, strict=True) as counter:
        model(IDS)
    assert counter.tally().sites == count(model, IDS).sites


def test_a_backward_pass_is_not_counted():
    model = Toy()
    with OpCounter(model, strict=True) as counter:
        model(IDS).sum().backward()
    assert counter.tally().sites == count(model, IDS).sites
    assert counter.backward_operators > 0
    # the sum, and the ones that the backward pass begins with
    assert counter.outside_operators == 2


def test_another_model_than_the_counted_one_is_noticed():
    with torch.no_grad(), OpCounter(Toy()) as counter:
        Toy()(IDS)
    with pytest.raises(CountError, match="not in this Toy"):
        counter.tally()


def test_a_batch_costs_what_its_texts_cost():
    model = Toy()
    whole = count(model, IDS)
    with torch.no_grad(), OpCounter(model) as counter:
        for text in IDS:
            model(text.unsqueeze(0))
    assert amounts(counter.tally()) == amounts(whole)
    assert counter.tally().footprint == whole.footprint
    assert counter.tally().tokens == whole.tokens == {"prefill": 14}


@pytest.mark.parametrize("form", ["right", "left"])
def test_padding_is_not_counted(form):
    model = Toy()
    # 13 is no width of the model
    padded = F.pad(IDS, (0, 6) if form == "right" else (6, 0))
    mask = F.pad(torch.ones_like(IDS, dtype=torch.bool), (0, 6) if form == "right" else (6, 0))
    with torch.no_grad(), OpCounter(model, mask=mask) as counter:
        model(padded)
    assert amounts(counter.tally()) == amounts(count(model, IDS))
    assert counter.tally().tokens == {"prefill": 14}
    assert counter.padding_included == {}


def test_what_cannot_tell_padding_from_text_is_listed():
    class Pooled(Toy):
        def forward(self, ids):
            return super().forward(ids).sum(dim=1).exp()

    with torch.no_grad(), OpCounter(Pooled(), mask=torch.ones(2, 7, dtype=torch.bool)) as counter:
        counter.model(IDS)
    assert counter.padding_included == {"sum": 1, "exp": 1}


def test_a_padded_length_that_is_a_width_is_refused():
    with pytest.raises(CountError, match="8 is also a width"):
        OpCounter(Toy(), mask=torch.ones(2, 8, dtype=torch.bool))


def test_a_mask_of_another_shape_is_refused():
    with (
        pytest.raises(CountError, match=r"\(2, 6\).*\(2, 7\)"),
        OpCounter(Toy(), mask=torch.ones(2, 6, dtype=torch.bool)) as counter,
    ):
        counter.model(IDS)


def test_a_silent_input_costs_nothing_and_is_densely_full():
    layer = linear(random_case(0, None)[1])
    with torch.no_grad(), OpCounter(layer) as counter:
        layer(torch.zeros(3, 5))
    counts = counter.tally().total()
    assert (counts.effective_ops, counts.dense_ops, counts.weights_once, counts.weights_per_event) == (0, 45, 0, 0)
    assert counts.weights_dense == 45
    # no spike was seen, so nothing says that spikes are what this layer reads
    assert not counts.is_spike_driven


def test_weights_once_counts_the_rows_that_ever_had_an_event():
    x = torch.tensor([[1.0, 0, 0, 0, 0], [1.0, 0, 0, 1.0, 0]])
    counts = count(linear(torch.ones(3, 5) / 2), x).total()
    assert (counts.weights_once, counts.weights_per_event, counts.weights_dense) == (6, 9, 30)


class Strange(nn.Module):
    def forward(self, x):
        return torch.i0(x)


def test_an_operator_without_a_rule_is_listed():
    tally = count(Strange(), torch.ones(2, 3))
    assert tally.uncounted == (("aten.i0.default", 1, 6),)
    assert tally.sites == {}


def test_an_operator_without_a_rule_stops_a_strict_count():
    model = Strange()
    with pytest.raises(UncountedOperator, match=r"i0.*module ''"), OpCounter(model, strict=True):
        model(torch.ones(2, 3))
    # nothing is left behind
    assert not model._forward_hooks and not model._forward_pre_hooks


@torch.library.custom_op("tests::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def test_a_custom_operator_declares_its_cost():
    class Custom(nn.Module):
        def forward(self, x):
            return double(x)

    assert count(Custom(), torch.ones(2, 3)).uncounted[0].operator == "tests.double.default"
    declare_cost(torch.ops.tests.double.default, lambda args, kwargs, output: {"mul": args[0].numel(), "kind": "scan"})
    tally = count(Custom(), torch.ones(2, 3), strict=True)
    assert (tally.total(kind="scan").mul, tally.uncounted) == (6, ())
    declare_cost(torch.ops.tests.double.default, lambda args, kwargs, output: {"muls": 1})
    with pytest.raises(CountError, match="muls"):
        count(Custom(), torch.ones(2, 3))


@torch.library.custom_op("tests::scaled_product", mutates_args=())
def scaled_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return 2 * (x @ weight)


declare_cost(
    torch.ops.tests.scaled_product.default,
    lambda args, kwargs, output: {"kind": "matmul", "product": args, "mul": output.numel()},
)


class Multiplies(nn.Module):
    """One product by a weight, which is a parameter or was made before anything was counted."""

    def __init__(self, multiply, weight, is_parameter=True):
        super().__init__()
        self.multiply, self.weight = multiply, nn.Parameter(weight) if is_parameter else (weight,)

    def forward(self, x):
        return self.multiply(x, self.weight if isinstance(self.weight, nn.Parameter) else self.weight[0])


@pytest.mark.parametrize("is_parameter", [True, False])
@pytest.mark.parametrize("alphabet", LEVELS)
def test_an_operator_that_declares_a_product_is_counted_like_one(alphabet, is_parameter):
    x, weight = random_case(0, LEVELS[alphabet])
    plain = count(Multiplies(torch.mm, weight.t().contiguous()), x).total()
    declared = count(Multiplies(scaled_product, weight.t().contiguous(), is_parameter), x, strict=True).total()
    assert declared == plain + Counts(mul=7 * 3)


def test_a_declared_product_leaves_padding_out():
    x, weight = random_case(0, LEVELS["integer"])
    padded, mask = F.pad(x, (0, 0, 2, 4)).unsqueeze(0), F.pad(torch.ones(1, 7, dtype=torch.bool), (2, 4))
    model = Multiplies(scaled_product, weight.t().contiguous())
    with torch.no_grad(), OpCounter(model, mask=mask) as counter:
        model(padded)
    assert counter.tally().total() == count(model, x).total()
    assert counter.padding_included == {}


def test_a_declared_product_of_operands_that_do_not_fit_is_refused():
    declare_cost(torch.ops.tests.double.default, lambda args, kwargs, output: {"product": (args[0], args[0])})
    with pytest.raises(CountError, match=r"\(2, 3\) and \(2, 3\)"):
        count(Multiplies(lambda x, _: double(x), torch.ones(1)), torch.ones(2, 3))


def test_a_failing_forward_leaves_the_counter_usable():
    model = Toy()
    with torch.no_grad(), OpCounter(model) as counter:
        with pytest.raises(IndexError):
            model(torch.tensor([[99]]))
        model(IDS)
    sites = {site for site in counter.tally().sites if site.phase == "prefill"}
    assert sites == set(count(model, IDS).sites)


def test_counting_keeps_no_activation_alive():
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))

    def tensors():
        gc.collect()
        return sum(type(thing) is torch.Tensor and thing.numel() >= 999 * 16 for thing in gc.get_objects())

    before = tensors()
    with torch.no_grad(), OpCounter(model) as counter:
        for _ in range(3):
            model(torch.randn(999, 16))
            assert tensors() == before
    assert counter.tally().tokens == {"prefill": 2997}


def test_a_weight_that_changes_in_place_is_looked_at_anew():
    layer = linear(torch.full((3, 5), 0.5))
    with torch.no_grad(), OpCounter(layer) as counter:
        layer(torch.ones(1, 5))
        layer.weight[0] = 0
        layer(torch.ones(1, 5))
    assert counter.tally().total().effective_acs == 15 + 10


def test_phases_are_told_by_length_or_named():
    model = Toy()
    with torch.no_grad(), OpCounter(model) as counter:
        model(IDS)
        model(IDS[:, :1])
        with counter.phase("warm-up"):
            model(IDS)
    assert counter.tally().tokens == {"prefill": 14, "decode": 2, "warm-up": 14}
    assert counter.tally().total(phase="decode").dense_ops * 7 == counter.tally().total(phase="warm-up").dense_ops


def test_spikes_are_born_where_a_comparison_becomes_a_number():
    class Threshold(nn.Module):
        def forward(self, x):
            return (x >= 1).to(x.dtype)

    counts = count(Threshold(), torch.tensor([[0.5, 1.0, 2.0]])).total()
    assert (counts.events_out, counts.neuron_updates, counts.compare) == (2, 3, 3)


def test_activation_bits_follow_the_alphabet():
    x = torch.tensor([[1.0, 0, 0, 0, 1.0], [5.0, 0, -1.0, 0, 0], [-1.0, 1, 1, 1, 1], [0.5, 0.5, 0, 0, 0]])
    counts = count(linear(torch.full((3, 5), 0.5)), x).total()
    # 5 binary at 1 bit, 5 ternary at 2, 5 integers up to 5 at 3 and a sign, 5 reals and 4 x 3 results at 16
    assert counts.activation_bits(16) == 5 + 10 + 20 + 16 * (5 + 12)


def test_an_operator_is_named_by_the_module_that_called_it():
    modules = count(Toy(), IDS).modules()
    assert modules == ["emb", "norm", "up", "", "shared", "head"]


def test_entering_twice_is_refused():
    with OpCounter(Toy()) as counter, pytest.raises(CountError, match="already counting"):
        counter.__enter__()


@pytest.mark.parametrize(
    ("factors", "adds", "muls"),
    [({}, 21, 0), ({"beta": 0}, 0, 0), ({"beta": 2}, 21, 21), ({"beta": 2, "alpha": 3}, 21, 42)],
)
def test_the_factors_of_a_product_with_a_bias_are_counted(factors, adds, muls):
    class Scaled(nn.Module):
        def forward(self, bias, x, w):
            return torch.addmm(bias, x, w, **factors)

    counts = count(Scaled(), torch.ones(3), torch.full((7, 5), 0.5), torch.full((5, 3), 0.5)).total()
    assert (counts.add, counts.mul, counts.dense_ops) == (adds, muls, 7 * 5 * 3)


def test_a_scripted_module_is_refused_in_words():
    model = nn.Sequential(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)))
    with pytest.raises(CountError, match="TorchScript"), OpCounter(model):
        pass
