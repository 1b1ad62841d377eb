"""The parts of the compiled token step, each against a plain definition of it."""

import mmap

import numpy as np
import pytest
import torch
from torch import nn

from spikegpt.config import ModelConfig
from spikegpt.generate.compiled import token_step
from spikegpt.generate.compiled.lists import list_active
from spikegpt.generate.compiled.pages import HUGE_PAGE, in_huge_pages
from spikegpt.generate.compiled.parts import exp, layer_norm, sigmoid
from spikegpt.generate.compiled.rows import WEIGHTS, Packer
from spikegpt.generate.compiled.team import fused
from spikegpt.model.mixers import Rows
from spikegpt.model.network import SpikeGPT

pytestmark = pytest.mark.slow
DTYPES = [np.float32, np.float64]


@fused
def each(x, exponentials, sigmoids):
    for c in range(x.size):
        exponentials[c], sigmoids[c] = exp(x[c]), sigmoid(x[c])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 15, 16, 33, 200])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_the_list_holds_the_nonzeros_in_their_order(dtype, size, density):
    rng = np.random.default_rng(size)
    values = np.where(rng.random(size) < density, rng.integers(-4, 5, size), -0.0).astype(dtype)
    values[size // 2 : size // 2 + 2] = [np.nan, np.inf][: len(values[size // 2 : size // 2 + 2])]
    active, amount = np.full(size + 1, -1, np.int32), np.full(size + 1, 7, dtype)
    n = list_active(values, active, amount)
    np.testing.assert_array_equal(active[:n], np.flatnonzero(values))
    np.testing.assert_array_equal(amount[:n], values[np.flatnonzero(values)])
    # room for one more than there are inputs, and nothing behind it is written
    assert size == 0 or (active[-1], amount[-1]) in [(-1, 7), (size - 1, values[-1])]


@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 2.5e-7), (np.float64, 1e-15)])
def test_exponentials_and_sigmoids(dtype, error):
    x = np.concatenate([np.linspace(-87, 87, 999), [0.0, -0.0, -300.0]]).astype(dtype)
    found, gates = np.empty_like(x), np.empty_like(x)
    each(x, found, gates)
    exact = np.exp(x.astype(np.float64))
    np.testing.assert_allclose(found, exact, rtol=error, atol=1e-37)
    np.testing.assert_allclose(gates, 1 / (1 + 1 / np.maximum(exact, 1e-300)), rtol=2 * error, atol=1e-37)
    each(np.full(1, np.nan, dtype), found[:1], gates[:1])
    assert np.isnan(found[0]) and np.isnan(gates[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_is_that_of_the_definition(dtype):
    x, weight, bias = np.random.default_rng(0).normal(3, 2, (3, 77)).astype(dtype)
    found = np.empty_like(x)
    layer_norm(x, weight, bias, found)
    wanted = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * weight + bias
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16, np.int8])
def test_huge_pages_hold_a_copy(dtype):
    array = (np.arange(3 * HUGE_PAGE // 2) % 101).astype(dtype).reshape(3, -1)
    copy = in_huge_pages(array)
    np.testing.assert_array_equal(copy, array)
    assert copy.dtype == dtype and not np.shares_memory(copy, array)
    assert not hasattr(mmap, "MADV_HUGEPAGE") or copy.ctypes.data % HUGE_PAGE == 0


def test_a_small_array_stays_where_it_is():
    array = np.ones(100, np.float32)
    assert in_huge_pages(array) is array


@pytest.mark.parametrize("kind", WEIGHTS)
def test_parameters_in_the_place_of_layers_are_packed_as_those(kind):
    parameter = torch.nn.Parameter(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)))
    layer = torch.nn.Linear(7, 5, bias=False)
    layer.weight = torch.nn.Parameter(parameter.detach().t())
    packer = Packer(SpikeGPT(ModelConfig(n_layer=1, n_embd=8)), kind)
    ours, theirs = packer.product([Rows(parameter)]), packer.product([layer])
    assert ours.weights.shape == (1, 7, 5) and ours.weights.flags.c_contiguous
    np.testing.assert_array_equal(ours.weights, theirs.weights)
    np.testing.assert_array_equal(ours.scales, theirs.scales)


@pytest.mark.parametrize("mixer", ["rwkv4", "rwkv5", "rwkv6", "rwkv7"])
@pytest.mark.parametrize(
    "options", [{"spiking": "none"}, {"spiking": "output"}, {"spiking": "input"}, {"spiking_head": True}], ids=str
)
def test_products_that_are_said_to_read_spikes_read_whole_numbers(mixer, options, monkeypatch):
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=32, vocab_size=50, mixer=mixer, head_size=16, **options)).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    said, read = {}, {}
    pack = Packer.product

    def note(packer, *products):
        found = pack(packer, *products)
        said.update({id(matrix): found.reads_spikes for part in products for matrix in part})
        return found

    monkeypatch.setattr(Packer, "product", note)
    packer = Packer(model, "float32")
    packer.network()
    token_step(mixer).pack(packer)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda module, inputs: read.update({id(module): inputs[0]}))
    with torch.no_grad():
        model(torch.arange(40)[None])
    assert set(read) <= set(said)
    whole = {name for name, inputs in read.items() if torch.equal(inputs, inputs.round()) and inputs.abs().max() <= 127}
    assert {name for name in read if said[name]} == whole
    assert bool(whole) == (model.config.spiking == "input")
