"""Quantised models are counted or listed, and never broken: formats that torch only stores, torch's own, torchao's."""

import pytest
import torch
from counting import Computes, brute_force, count, operations, reals
from torch import nn
from torch.nn import functional as F

STORED = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "uint16", "uint32", "uint64", "int8")


@pytest.mark.parametrize("name", STORED)
def test_a_weight_is_counted_in_a_format_that_torch_only_stores(name):
    weight = nn.Parameter(torch.tensor([[1.0, 0.0, 2.0], [-0.0, 1.0, 3.0]]).to(getattr(torch, name)), False)
    tally = count(Computes(lambda x, w: F.linear(x, w.float()), weight), reals(4, 3), strict=True)
    assert operations(tally.total()) == (4 * 4, 0, 4 * 6)
    assert (tally.footprint.parameters, tally.footprint.zero_parameters) == (6, 2)


@pytest.mark.parametrize("name", ["float4_e2m1fn_x2", "uint4", "int4", "bits8"])
def test_numbers_that_are_packed_into_bytes_are_counted_as_bytes(name):
    packed = nn.Parameter(torch.tensor([0, 17, 0], dtype=torch.uint8).view(getattr(torch, name)), False)
    footprint = count(Computes(lambda x, w: x * 2, packed), reals(4, 3)).footprint
    assert (footprint.parameters, footprint.zero_parameters) == (3, 2)


def test_a_product_that_only_torch_can_look_into_is_listed():
    weight = nn.Parameter(reals(32, 16).to(torch.float8_e4m3fn), False)
    one = torch.ones(())
    model = Computes(lambda x, w: torch._scaled_mm(x.to(w.dtype), w.t(), one, one, out_dtype=torch.float32), weight)
    assert [item.operator for item in count(model, reals(16, 16)).uncounted] == ["aten._scaled_mm.default"]


@pytest.mark.filterwarnings("ignore")
def test_torchs_own_dynamic_quantisation_is_listed():
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 4)), {nn.Linear})
    assert [item.operator for item in count(model, reals(3, 8)).uncounted] == ["quantized.linear_dynamic.default"]


@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "IntxWeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_a_layer_of_torchao_costs_what_its_weight_says(name):
    quantization = pytest.importorskip("torchao.quantization")
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 16, bias=False)), reals(4, 32)
    quantization.quantize_(model, getattr(quantization, name)())
    total = count(model, x, strict=True).total()
    assert operations(total) == (*brute_force(x, model[0].weight.dequantize())[:2], 4 * 32 * 16)
