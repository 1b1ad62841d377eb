"""A mixer made by the recipe of docs/extending.md goes through everything that the product does.

It is taken from the page word for word, and no file of the product is changed.
"""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from runs import TRAIN, break_off, weights_of

from neuromorphic import OpCounter
from spikegpt import SpikeGPT, load_model
from spikegpt.cli.verbs import VERBS
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.interop.weights import export_weights
from spikegpt.model.mixers import MIXERS
from spikegpt.model.mixers.rwkv4 import ChannelMix
from spikegpt.train import resume, train
from spikegpt.train.convert import start_from
from spikegpt.train.optimizer import make_optimizer

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"
BLOCKS = ["none", "output", "input"]


@pytest.fixture(scope="session")
def decaying_mean():
    """The class that the page writes."""
    program = {"__name__": "decaying_mean"}
    code = re.search(r"^## A mixer\n.*?^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]
    exec(compile(code, PAGE.name, "exec"), program)
    return program["DecayingMean"]


@pytest.fixture(autouse=True)
def registered(decaying_mean, monkeypatch):
    monkeypatch.setitem(MIXERS, "decaying_mean", (decaying_mean, ChannelMix))


def sized(spiking: str) -> ModelConfig:
    return ModelConfig(mixer="decaying_mean", n_layer=2, n_embd=16, ctx_len=16, vocab_size=64, spiking=spiking)


def made(spiking: str) -> SpikeGPT:
    torch.manual_seed(0)
    return SpikeGPT(sized(spiking)).eval()


@pytest.fixture(scope="session")
def runs(decaying_mean, tmp_path_factory):
    """Trained runs by their block, for tests that only read them."""
    base = tmp_path_factory.mktemp("extending")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MIXERS, "decaying_mean", (decaying_mean, ChannelMix))
        for spiking in BLOCKS:
            config = dataclasses.replace(TRAIN, steps=4, sample_every=0)
            train(sized(spiking), config, base / spiking, cache=base / "cache", quiet=True)
    return base


@pytest.mark.parametrize("spiking", BLOCKS)
def test_in_parallel_and_token_by_token_it_reads_the_same(spiking):
    model, ids = made(spiking), torch.randint(64, (2, 9))
    whole, state, logits = model(ids), None, []
    for token in ids.unbind(dim=1):
        found = model(token.unsqueeze(1), state)
        state, logits = found.state, [*logits, found.logits]
    torch.testing.assert_close(torch.cat(logits, dim=1), whole.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, whole.state, rtol=1e-4, atol=1e-4)


def test_its_sites_are_the_models():
    model = made("input")
    mine = {name: placed for name, placed in model.sites().items() if name.startswith("blocks.1.att.")}
    assert list(mine) == [f"blocks.1.att.{name}_spikes" for name in ("value", "receptance", "output")]
    assert mine["blocks.1.att.output_spikes"].products == (model.blocks[1].att.output,)
    assert model.synapses().keys() == model.sites().keys()
    assert model.synapses()["blocks.1.att.output_spikes"] == 16 * 16


def test_its_rates_reach_the_optimizer():
    model = made("input")
    groups = make_optimizer(model, TRAIN).param_groups
    fast = [parameter for group in groups if group["lr_scale"] == 2.0 for parameter in group["params"]]
    assert {id(parameter) for parameter in fast} == {id(block.att.decay_logit) for block in model.blocks}


@pytest.mark.parametrize("spiking", BLOCKS)
def test_it_is_trained_and_found_again(spiking, runs):
    model, _ = load_model(runs / spiking)
    assert type(model.blocks[0].att).__name__ == "DecayingMean"
    lines = [json.loads(line) for line in (runs / spiking / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss"] > 0 for line in lines if line["kind"] == "train")


def test_a_run_that_was_broken_off_ends_as_the_unbroken_one(monkeypatch, tmp_path, cache):
    changes = {"steps": 6, "save_every": 2, "sample_every": 0, "carry_state": True}
    train(sized("input"), dataclasses.replace(TRAIN, **changes), tmp_path / "whole", cache=cache, quiet=True)
    break_off(monkeypatch, tmp_path / "broken", cache, 3, model=sized("input"), **changes)
    resume(tmp_path / "broken", cache=cache, quiet=True)
    assert weights_of(tmp_path / "broken") == weights_of(tmp_path / "whole")


def test_dense_weights_become_spiking_ones(runs, tmp_path):
    options = dataclasses.replace(TRAIN, steps=4, sample_every=0, anneal=0.5)
    done = train(
        sized("input"), options, tmp_path / "run", start=runs / "none", cache=tmp_path.parent / "cache", quiet=True
    )
    assert done.step == 4 and done.valid.firing_rate > 0


@pytest.mark.parametrize("spiking", ["output", "input"])
def test_with_its_neurons_left_out_a_converted_model_is_the_dense_one(spiking, runs):
    """What a spike stands for is in the weights behind it, wherever the generation puts it."""
    dense, _ = load_model(runs / "none")
    model = SpikeGPT(dataclasses.replace(dense.config, spiking=spiking, neuron=None, binary_embedding=False)).eval()
    ids = torch.randint(64, (2, 12))
    start_from(model, runs / "none", ids)
    for placed in model.sites().values():
        placed.neuron.forward = lambda current, state=None, neuron=placed.neuron: (current / neuron.spike_worth, None)
    torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-3, atol=1e-4)


def test_it_is_counted():
    model = made("input")
    with torch.no_grad(), OpCounter(model, strict=True) as counter:
        model(torch.randint(64, (1, 8)))
    tally = counter.tally()
    products = tally.total(module="blocks.0.att.value")
    assert products.effective_acs > 0 and products.effective_macs == products.integer_macs
    # a mean per channel in each block, and the token before in RWKV-4's channel mix; memoryless neurons carry nothing
    assert tally.footprint.state == 2 * (16 + 16)


def test_it_is_measured(runs, capsys):
    arguments = ["--tokens", "40", "--threads", "1", "--cache", str(runs / "cache"), "--prices", "seneca22", "--json"]
    assert VERBS["compare"]([str(runs / "input"), str(runs / "none"), *arguments]) == 0
    (spiking, dense), report = json.loads(capsys.readouterr().out), runs / "input" / "report"
    assert (report / "report.html").is_file() and dense["firing_rate"] is None
    shown = {raster["layer"] for raster in spiking["rasters"]}
    assert shown == {f"blocks.{layer}.{last}" for layer in (0, 1) for last in ("att.output_spikes", "ffn.value_neuron")}


def test_it_is_evaluated(runs, capsys):
    arguments = ["--tokens", "200", "--threads", "1", "--cache", str(runs / "cache"), "--json"]
    assert VERBS["evaluate"]([str(runs / "input"), *arguments]) == 0
    assert '"bits_per_byte"' in capsys.readouterr().out


@pytest.mark.parametrize("spiking", BLOCKS)
def test_it_writes(spiking, runs, capsys):
    """Without a compiled token step the engine decodes by the model's own forward pass."""
    assert VERBS["generate"]([str(runs / spiking), "def ", "--max-tokens", "8", "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("layout", ["pth", "huggingface"])
def test_it_is_not_written_under_the_names_of_others(layout, runs, tmp_path):
    with pytest.raises(SpikegptError, match="of mixer 'decaying_mean'; export it with --layout auto"):
        export_weights(runs / "none", tmp_path / "exported", layout)
    assert not (tmp_path / "exported").exists()
