"""Weights of a few bits: the published codes, packed and back, and the same numbers from a file and in the engine."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spikegpt.checkpoint.run import save_model
from spikegpt.checkpoint.weights import TensorFile, load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.generate.engine import Engine
from spikegpt.model.network import SpikeGPT
from spikegpt.model.quantised import (
    FORMATS,
    low_bit_matrices,
    near_another_code,
    pack,
    quantise,
    quantise_model,
    stored_bytes,
    unpack,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ofq_a.json").read_text())
WEIGHT = torch.tensor(GOLDEN["input"]["weight"], dtype=torch.float64)
BITS = sorted(FORMATS)


def make(bits, **changes):
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=24, ctx_len=16, weight_bits=bits, **changes))
    for matrix, _ in low_bit_matrices(model, bits).values():
        torch.nn.init.normal_(matrix, std=0.2)
    quantise_model(model, bits)
    return model.eval()


@pytest.mark.parametrize(("more", "name"), [(0, "quantised"), (1, "quantised_one_bit_more")])
def test_codes_are_the_published_ones(more, name):
    bits, wanted = GOLDEN["input"]["bits"] + more, GOLDEN["expected"]
    found = quantise(WEIGHT, bits)
    torch.testing.assert_close(found.numbers(), torch.tensor(wanted[name], dtype=torch.float64), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.step * 2**bits, torch.tensor(wanted["scale"], dtype=torch.float64))
    if not more:
        assert ((found.codes - 1) // 2).tolist() == wanted["codes"]


def test_those_that_may_still_change_are_the_published_ones():
    free = near_another_code(WEIGHT, GOLDEN["input"]["bits"], GOLDEN["input"]["boundary_range"])
    assert free.tolist() == GOLDEN["expected"]["free"]


def test_levels_by_hand():
    weight = torch.tensor([[0.5, -1.0, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]])
    eight, four, ternary = (quantise(weight, bits) for bits in (8, 4, 1.58))
    assert eight.codes[0].tolist() == [64, -127, 13, 0] and float(eight.step[0]) == pytest.approx(1 / 127)
    # the mean size is 0.4, so 16 levels lie within 0.8, a step is a 16th of that; half a level goes to the even one
    assert float(four.step[0]) == pytest.approx(0.05) and four.codes[0].tolist() == [9, -15, 1, 1]
    assert ternary.codes[0].tolist() == [1, -1, 0, 0] and float(ternary.step[0]) == pytest.approx(0.4)
    # an output without weights stays without
    assert all(float(found.numbers()[1].abs().max()) < 1e-37 for found in (eight, four, ternary))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (16, 15)])
def test_packed_codes_come_back(bits, shape):
    codes = quantise(torch.randn(shape, generator=torch.Generator().manual_seed(1)), bits).codes
    packed = pack(codes, bits)
    assert torch.equal(unpack(packed, shape, bits), codes)
    # five ternary codes are a byte
    assert abs(8 * len(packed) - (1.6 if bits == 1.58 else bits) * codes.numel()) < 24
    with pytest.raises(ValueError, match=f"bytes, got torch.uint8 .{len(packed) + 1}"):
        unpack(torch.cat([packed, packed[:1]]), shape, bits)


def test_bytes_that_are_no_codes_are_refused():
    with pytest.raises(ValueError, match=r"no codes of 1\.58 bits"):
        unpack(torch.tensor([243], dtype=torch.uint8), (1, 5), 1.58)
    # 255 is a level that 8 bits do not use
    with pytest.raises(ValueError, match="no codes of 8 bits"):
        unpack(torch.tensor([255], dtype=torch.uint8), (1, 1), 8)


@pytest.mark.parametrize("bits", BITS)
def test_a_file_holds_codes_and_gives_back_the_weights(bits, tmp_path):
    model = make(bits)
    save_model(tmp_path, model, ByteTokenizer())
    loaded, _ = load_model(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(step, loaded.weight_steps[name]) for name, step in model.weight_steps.items())
    size = (tmp_path / "model.safetensors").stat().st_size
    header = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little") + 8
    assert size - header == stored_bytes(model) == stored_bytes(loaded)
    stored = load_file(tmp_path / "model.safetensors")
    name, outside = "blocks.1.ffn.key.weight", min(bits, 8) if bits > 8 else 8
    assert len(stored[f"{name}.codes"]) == math.ceil(96 * 24 * (1.6 if bits == 1.58 else bits) / 8)
    assert len(stored["head.weight.codes"]) == 256 * 24 * outside // 8
    # whoever reads tensors sees weights
    assert torch.equal(TensorFile(tmp_path / "model.safetensors")[name], model.state_dict()[name])


def test_weights_that_are_no_codes_are_not_saved(tmp_path):
    model = make(2)
    with torch.no_grad():
        model.blocks[1].att.key.weight[3, 5] *= 1.1
    with pytest.raises(SpikegptError, match=r"blocks\.1\.att\.key\.weight holds weights that are no codes of 2 bits"):
        save_model(tmp_path, model, ByteTokenizer())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("short", r"'blocks\.0\.att\.key\.weight': 576 codes of 4 bits are 288 bytes, got torch.uint8 .287"),
        ("no step", r"tensor 'blocks\.0\.att\.key\.weight\.step' is missing"),
        ("nan", r"'blocks\.0\.att\.key\.weight' holds NaN or infinity"),
        ("half", "24 steps are float32"),
        ("list", "what it says of its codes cannot be read"),
        ("bits", r"no matrices of \[24, 24\] codes of 5 bits"),
        ("config", "config.json says weight_bits 4, the weights are no codes"),
    ],
)
def test_files_that_are_not_as_written_are_refused(fault, message, tmp_path):
    model = make(4)
    save_model(tmp_path, model, ByteTokenizer())
    path, name = tmp_path / "model.safetensors", "blocks.0.att.key.weight"
    tensors = load_file(path)
    listed = {key: [bits, *matrix.shape] for key, (matrix, bits) in low_bit_matrices(model, 4).items()}
    if fault == "short":
        tensors[f"{name}.codes"] = tensors[f"{name}.codes"][:-1].clone()
    elif fault == "no step":
        del tensors[f"{name}.step"]
    elif fault == "nan":
        tensors[f"{name}.step"][0] = math.nan
    elif fault == "half":
        tensors[f"{name}.step"] = tensors[f"{name}.step"].half()
    elif fault == "bits":
        listed[name][0] = 5
    text = "[" if fault == "list" else json.dumps(listed)
    if fault == "config":
        tensors, text = model.state_dict(), "{}"
    save_file(tensors, path, {"low_bit": text})
    with pytest.raises(SpikegptError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "changes", [{}, {"spiking": "none"}, {"shared_neurons": True}, {"mixer": "rwkv7", "head_size": 8}]
)
def test_the_engine_sums_the_codes(bits, changes):
    model = make(bits, **changes)
    ids = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(ids).logits
        engine = Engine(model, weights="int8")
        engine.start(model(ids[:, :1]).state, by_rows=True)
        for token in range(1, 12):
            torch.testing.assert_close(engine.step(ids[:, token]), whole[:, token], rtol=1e-5, atol=2e-5)


def test_unknown_bits_are_refused():
    with pytest.raises(ValueError, match=r"weight_bits must be one of 32, 8, 4, 3, 2, 1\.58, got 5"):
        ModelConfig(weight_bits=5)
    with pytest.raises(ValueError, match=r"weights have 8, 4, 3, 2, 1\.58 bits, got 6"):
        quantise(WEIGHT, 6)
