"""What family.py compares: as many parameters and tokens on both sides; what its runs come to, worked out by hand."""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch

from benchmarks import family, tax
from spikegpt.config import ModelConfig
from spikegpt.model.mixers import MIXERS
from spikegpt.model.network import SpikeGPT, parameters_of

SIZES = tax.SIZES["2.0M"]


def test_every_mixer_that_is_compared_has_as_many_parameters():
    shapes, left_out = family.fitting_mixers(list(MIXERS), SIZES, family.ALLOWED)
    assert shapes.keys() | left_out.keys() == MIXERS.keys() and {"rwkv4", "rwkv7"} <= shapes.keys()
    wanted = parameters_of(ModelConfig(n_layer=4, n_embd=192, spiking="none"))
    assert shapes["rwkv4"]["n_embd"] == 192
    for shape in shapes.values():
        found = parameters_of(ModelConfig.from_dict({"n_layer": 4, "spiking": "none", **shape}))
        assert abs(found / wanted - 1) <= 0.02


def test_what_does_not_fit_or_reads_no_spikes_is_left_out_and_why(monkeypatch):
    class Silent(MIXERS["rwkv4"][0]):
        def place_neurons(self, sites, make_neuron):
            """None."""

    monkeypatch.setitem(MIXERS, "silent", (Silent, Silent))
    monkeypatch.setattr(family, "SHAPES", {})
    shapes, left_out = family.fitting_mixers(["silent", "rwkv7"], SIZES, family.ALLOWED)
    assert shapes == {} and "reads spikes" in left_out["silent"]
    # 192 has 5 % too many
    assert "nearest width, 192, has 2,128,896 parameters, 2,024,448 are wanted" in left_out["rwkv7"]


def test_both_sides_read_as_many_tokens_each_by_its_recipe(monkeypatch):
    monkeypatch.setattr(family, "RECIPES", {"b": {"dense": {"lr": 0.25}}})
    options = Namespace(data=["novels"], steps=7, seeds=[3, 5], sizes=SIZES)
    found = family.configurations(options, {"a": {"mixer": "a"}, "b": {"mixer": "b"}})
    assert list(found)[:4] == ["a-dense-3", "a-dense-5", "a-spiking-3", "a-spiking-5"]
    assert {run["steps"] * run["batch_size"] * run["ctx_len"] for run in found.values()} == {7 * 16 * 128}
    assert [run["lr"] for run in found.values()] == [4e-3] * 2 + [6e-3] * 2 + [0.25] * 2 + [6e-3] * 2
    assert found["a-spiking-3"]["synop_budget"] == 0.19 and "synop_budget" not in found["a-dense-3"]
    assert SIZES["batch_size"] * SIZES["ctx_len"] == family.LONG["batch_size"] * family.LONG["ctx_len"]


def run(bits: float, firing: float | None, **more) -> dict:
    facts = {"bits": bits, "firing": firing, "macs": 10.0, "acs": 6.0, "state": 3.0, "elementwise": 2.0, "width": 192}
    return {**facts, "parameters": 100, "state_bytes": 64, **more}


def test_bits_are_of_means_over_seeds():
    places = [{"bits_by_position": {"0-128": bits}} for bits in (2.0, 3.0)]
    found = {
        **{f"a-dense-{seed}": run(bits, None, **places[seed]) for seed, bits in enumerate((1.0, 2.0))},
        **{f"a-spiking-{seed}": run(bits, 0.2, macs=0.0, **places[seed]) for seed, bits in enumerate((1.5, 3.0))},
    }
    results = {name: {"tokens_per_s": 1000 + 100 * int(name[-1])} for name in found}
    (summary,) = family.summarise(found, results, {"a-dense-0": 50, "a-spiking-0": 80}, [0, 1]).values()
    assert (summary["dense_bits"], summary["spiking_bits"], summary["tax"]) == (1.5, 2.25, 0.5)
    assert summary["firing"] == 0.2
    assert summary["operations"]["dense"] == {"weights": 16.0, "state": 3.0, "elementwise": 2.0}
    assert summary["operations"]["spiking"]["weights"] == 6.0
    assert summary["tokens_per_s"]["spiking"] == {"decoding": 80, "training": 1050}
    assert summary["bits_by_position"]["dense"] == {"0-128": 2.5}


def test_bits_by_position_are_those_of_whole_texts(monkeypatch):
    monkeypatch.setattr(family, "LONG_TEXT", 12)
    monkeypatch.setattr(family, "POSITIONS", (0, 5, 12))
    monkeypatch.setattr(family, "CHUNK", 4)
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=1, n_embd=16, vocab_size=7, spiking="none")).eval()
    tokens = np.random.default_rng(0).integers(0, 7, 30)
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(
                model(ids[None, start : start + 12]).logits[0], ids[start + 1 : start + 13], reduction="none"
            )
            for start in (0, 12)
        ]
    bits = torch.stack(losses) / math.log(2)
    wanted = {"0-5": bits[:, :5].mean().item(), "5-12": bits[:, 5:].mean().item()}
    assert family.bits_by_position(model, tokens) == pytest.approx(wanted, rel=1e-5)


def test_a_text_too_short_for_positions_is_refused():
    model = SpikeGPT(ModelConfig(n_layer=1, n_embd=16))
    with pytest.raises(family.SpikegptError, match="has 20 tokens, --long needs 8,193"):
        family.bits_by_position(model, np.zeros(20, dtype=np.int64))
