"""Every layer of torch.nn, and models in the shapes of other libraries, against torch's own counter and formulas."""

import pytest
import torch
from counting import count, operations, reals
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from neuromorphic import OpCounter

pytest.importorskip("expecttest", reason="torch's database of modules needs it: pip install expecttest")

from torch.testing._internal.common_modules import module_db

MODES = (torch.no_grad, torch.inference_mode, torch.enable_grad)
# losses that fuse what they compute, and the product of three
LISTED = {
    *("nn.Bilinear", "nn.SmoothL1Loss", "nn.KLDivLoss", "nn.MultiLabelMarginLoss", "nn.MultiMarginLoss"),
    *("nn.SoftMarginLoss", "nn.CrossEntropyLoss", "nn.LinearCrossEntropyLoss", "nn.NLLLoss", "nn.HuberLoss"),
    *("nn.BCELoss", "nn.BCEWithLogitsLoss", "nn.CTCLoss"),
}


def layers(info, training):
    """(make the layer, arguments) of torch's own samples, one in `make test`."""
    torch.manual_seed(0)
    inputs = info.module_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=training)
    for sample in inputs:
        new, given = sample.constructor_input, sample.forward_input
        yield lambda new=new: info.module_cls(*new.args, **new.kwargs).train(training), given


def runs(layer, given):
    """False for samples that torch itself refuses in this dtype."""
    try:
        layer(*given.args, **given.kwargs)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_every_layer_of_torch_is_counted_alike_in_every_mode(training, request):
    samples = None if request.config.getoption("--whole") else 2
    checked = 0
    for info in module_db:
        for make, given in list(layers(info, training))[:samples]:
            if not runs(make(), given):
                continue
            tallies = []
            for mode in MODES:
                torch.manual_seed(0)
                layer = make()
                with mode(), OpCounter(layer) as counter:
                    layer(*given.args, **given.kwargs)
                tallies.append(counter.tally())
            assert tallies[0].total() == tallies[1].total() == tallies[2].total(), info.name
            assert info.name in LISTED or tallies[0].uncounted == (), info.name
            checked += 1
    assert checked > 100


# models of transformers, random weights ------------------------------------------------------------------------------

SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 31}
GROUPED = {**SIZES, "num_key_value_heads": 1}
TEXT_MODELS = {
    "GPT2LMHeadModel": {"n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 31},
    "GPTNeoXForCausalLM": SIZES,
    "BloomForCausalLM": {"hidden_size": 8, "n_layer": 2, "n_head": 2, "vocab_size": 31},
    "LlamaForCausalLM": GROUPED,
    "Gemma2ForCausalLM": {**GROUPED, "head_dim": 4},
    "BertModel": SIZES,
    "XLNetModel": {"d_model": 8, "n_layer": 2, "n_head": 2, "d_inner": 16, "vocab_size": 31},
    "RwkvForCausalLM": {"hidden_size": 8, "attention_hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 31},
}


def make(name, sizes):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**sizes)).eval()
    if name != "RwkvForCausalLM":
        model.set_attn_implementation("eager")
    return model


IDS = torch.arange(12).reshape(2, 6) + 2


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT_MODELS)
def test_products_of_a_model_without_convolutions_are_those_of_torchs_counter(name):
    model = make(name, TEXT_MODELS[name])
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        model(IDS)
    tally = count(model, IDS, strict=True)
    # torch counts a multiply-accumulate as two
    assert 2 * tally.total().dense_ops == flops.get_total_flops() > 0
    assert tally.tokens == {"prefill": 12}


@pytest.mark.slow
def test_a_mixture_of_experts_costs_its_formula():
    model = make("MixtralForCausalLM", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2})
    total = count(model, IDS, strict=True).total()
    T, C, F, V = 6, 8, 16, 31
    # queries, outputs, keys and values of half the heads; the router; 2 of 4 experts with 3 matrices; scores and values
    layer = 12 * (2 * C * C + C * C + 4 * C + 2 * 3 * C * F) + 2 * 2 * T * T * C
    assert total.dense_ops == 2 * layer + 12 * C * V


# ways to run a model -------------------------------------------------------------------------------------------------


class LowRank(nn.Module):
    """A layer with an adapter of rank 2."""

    def __init__(self):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(8, 4), nn.Parameter(reals(8, 2)), nn.Parameter(reals(2, 4))

    def forward(self, x):
        return self.base(x) + x @ self.down @ self.up


def test_an_adapter_costs_its_two_products():
    assert count(LowRank(), reals(3, 8)).total().dense_ops == 3 * (32 + 16 + 8)


@pytest.mark.slow
@pytest.mark.parametrize("wrap", ["exported", "compiled", "compiled as one graph"])
def test_a_wrapped_model_costs_what_it_costs(wrap):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), reals(3, 8)
    wrapped = {
        "exported": lambda: torch.export.export(net, (x,)).module(),
        "compiled": lambda: torch.compile(net, backend="eager"),
        "compiled as one graph": lambda: torch.compile(net, backend="eager", fullgraph=True),
    }[wrap]()
    assert operations(count(wrapped, x).total()) == operations(count(net, x).total())


def test_integers_are_multiplied_as_they_are():
    class Quantised(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.ones(8, 16, dtype=torch.int8) * 3)

        def forward(self, x):
            return torch._int_mm((x * 10).to(torch.int8), self.weight)

    total = count(Quantised(), reals(32, 8), strict=True).total()
    assert (total.dense_ops, total.weights_once, total.alphabet) == (32 * 8 * 16, 128, "integer")
