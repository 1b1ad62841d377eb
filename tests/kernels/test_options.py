"""Options of a neuron: checked when made, one value through every backend, the same as keywords at the door."""

import dataclasses

import pytest
import torch

from spikegpt.kernels import integer_lif, lif
from spikegpt.kernels.integer_lif.options import IntegerLIFOptions
from spikegpt.kernels.lif.options import LIFOptions
from spikegpt.kernels.operators import flatten, rebuild

OTHER_LIF = LIFOptions(
    threshold=0.75, reset_potential=-0.5, decay_input=False, detach_reset=True, surrogate="sigmoid", slope=3.0
)
OTHER_INTEGER = IntegerLIFOptions(levels=3, signed=True, reset="zero", decay_input=False)
CASES = [
    pytest.param(lif, OTHER_LIF, id="lif"),
    pytest.param(integer_lif, OTHER_INTEGER, id="integer_lif"),
]
both_backends = pytest.mark.parametrize("backend", ["numba", "reference"])


@pytest.mark.parametrize(
    ("options", "found", "wanted"),
    [
        ({"reset": "soft"}, "reset is 'soft'", "zero, subtract"),
        ({"surrogate": "relu"}, "surrogate is 'relu'", "atan, sigmoid, fast_sigmoid, rectangular"),
        ({"slope": 0.0}, "slope must be positive", "got 0.0"),
        ({"slope": float("nan")}, "slope must be positive", "got nan"),
        ({"threshold": -1.0}, "threshold (-1.0)", "above reset_potential (0.0)"),
        ({"threshold": float("nan")}, "threshold (nan)", "above reset_potential"),
        ({"threshold": 0.5, "reset_potential": 0.5}, "threshold (0.5)", "above reset_potential (0.5)"),
        ({"reset": "subtract", "reset_potential": -1.0}, "reset_potential -1.0", "needs reset='zero'"),
    ],
)
def test_bad_options_of_a_lif_are_named(options, found, wanted):
    with pytest.raises(ValueError) as caught:
        LIFOptions(**options)
    assert str(caught.value).startswith("lif: ")
    assert found in str(caught.value) and wanted in str(caught.value)


@pytest.mark.parametrize(
    ("options", "found", "wanted"),
    [
        ({"reset": "soft"}, "reset is 'soft'", "zero, subtract"),
        ({"levels": 0}, "got 0", "1 to 127"),
        ({"levels": 128}, "got 128", "1 to 127"),
        ({"levels": 2.0}, "got 2.0", "whole number"),
    ],
)
def test_bad_options_of_an_integer_lif_are_named(options, found, wanted):
    with pytest.raises(ValueError) as caught:
        IntegerLIFOptions(**options)
    assert str(caught.value).startswith("integer_lif: ")
    assert found in str(caught.value) and wanted in str(caught.value)


@pytest.mark.parametrize("options", [LIFOptions(), IntegerLIFOptions()], ids=["lif", "integer_lif"])
def test_options_cannot_be_changed_after_their_check(options):
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.reset = "soft"


@both_backends
@pytest.mark.parametrize(("door", "options"), CASES)
def test_options_are_the_same_as_their_fields_by_keyword(door, options, backend):
    current = torch.randn(2, 70, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    results = [
        door(current, membrane_decay=0.5, backend=backend, **given) for given in ({"options": options}, vars(options))
    ]
    grads = [torch.autograd.grad(spikes.sum() + final.sum(), current)[0] for spikes, final in results]
    assert results[0][0].any()
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert torch.equal(*grads)


def test_keywords_change_options():
    # by hand: 0.5 reaches a threshold of 0.5, and of 0.25, and not of 1
    current, options = torch.full((1, 1, 1), 0.5), LIFOptions(decay_input=False)
    assert lif(current, options=options)[0].item() == 0
    assert lif(current, options=options, threshold=0.5)[0].item() == 1
    assert integer_lif(current, threshold=0.125, options=OTHER_INTEGER)[0].item() == 3
    assert integer_lif(current, threshold=0.125, options=OTHER_INTEGER, levels=8)[0].item() == 4


def test_changed_options_are_checked_again():
    with pytest.raises(ValueError, match="slope must be positive"):
        lif(torch.zeros(1, 1, 1), options=LIFOptions(), slope=-1.0)


@pytest.mark.parametrize("door", [lif, integer_lif])
def test_an_option_that_there_is_not_is_an_error(door):
    with pytest.raises(TypeError, match="'treshold'"):
        door(torch.zeros(1, 1, 1), treshold=1.0)


@pytest.mark.parametrize(
    "options", [LIFOptions(), OTHER_LIF, IntegerLIFOptions(), OTHER_INTEGER], ids=lambda o: type(o).__name__
)
def test_options_survive_being_flat(options):
    assert rebuild(type(options), flatten(options)) == options


@pytest.mark.parametrize(
    ("name", "kind"), [("lif", LIFOptions), ("integer_lif", IntegerLIFOptions)], ids=["lif", "integer_lif"]
)
def test_both_operators_list_the_fields_of_the_options_in_order(name, kind):
    fields = [field.name for field in dataclasses.fields(kind)]
    for operator in (name, f"{name}_backward"):
        arguments = [argument.name for argument in getattr(torch.ops.spikegpt, operator).default._schema.arguments]
        assert arguments[-len(fields) :] == fields


def test_a_door_given_options_compiles_without_a_graph_break():
    def network(x):
        spikes, _ = lif(x, options=OTHER_LIF)
        return spikes.sum() + integer_lif(x, options=OTHER_INTEGER)[0].square().sum()

    x, y = (torch.ones(2, 5, 3).requires_grad_() for _ in range(2))
    torch.compile(network, fullgraph=True, backend="aot_eager")(x).backward()
    network(y).backward()
    assert torch.equal(x.grad, y.grad)
