"""What neurons.py says of neurons: worked out by hand, and that each learns as the others do."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks import neurons, tax
from spikegpt.common.errors import SpikegptError
from spikegpt.config import INPUT_NEURON, ModelConfig
from spikegpt.model.network import SpikeGPT

MINE = """
from spikegpt import LIF
NEURONS = {"mine": lambda site: LIF(site.channels, site.neuron)}
"""


def test_taxes_are_of_means_over_seeds():
    def run(bits: float, **more) -> dict:
        return {"bits": bits, "firing": 0.2, "unit_spikes": 10.0, **more}

    name = neurons.BINARY
    found = {
        "twin-0": run(1.0),
        "twin-1": run(3.0),
        neurons.run_of(name, 0): run(2.0, bits_without_memory=4.0),
        neurons.run_of(name, 1): run(2.5, bits_without_memory=6.0),
        neurons.run_of(name, 0, tax.SMALL): run(2.5),
        neurons.run_of(name, 1, tax.SMALL): run(3.5),
        neurons.run_of("0, 1", 0): run(3.0, firing=None),
        neurons.run_of("0, 1", 1): run(3.0, firing=None),
    }
    summary = neurons.summarise(found, [name, "0, 1"], [0, 1])
    assert (summary["dense_bits"], summary["binary_tax"], summary["binary_tax_at_0.10"]) == (2.0, 0.125, 0.5)
    assert summary["neurons"][name]["bits_without_memory"] == 5.0
    assert summary["neurons"]["0, 1"]["tax"] == 0.5 and "firing" not in summary["neurons"]["0, 1"]


def test_all_learn_alike_but_for_what_their_neurons_are():
    options = Namespace(
        data=["novels"], steps=7, seeds=[3], sizes=tax.SIZES["2.0M"], neurons={"a": {}, neurons.BINARY: {"levels": 2}}
    )
    found = neurons.configurations(options, ["mine"])
    binary = neurons.run_of(neurons.BINARY, 3)
    assert list(found) == ["twin-3", "neuron-a-3", binary, f"{binary}-{tax.SMALL}", "neuron-mine-3"]
    assert found[binary] == {**found["neuron-a-3"], "levels": 2}
    assert found["neuron-mine-3"] == found["neuron-a-3"]
    assert found[f"{binary}-{tax.SMALL}"] == {**found[binary], "synop_budget": tax.SMALL}
    # the twins of tax.py, under the same name
    taxed = Namespace(data=["novels"], steps=7, seeds=[3], sizes=tax.SIZES["2.0M"], narrow=(), pair=True)
    assert found["twin-3"] == tax.configurations(taxed, Path("out"))[0]["twin-3"]


def test_a_spike_of_two_is_two_and_what_no_product_reads_is_none():
    model = SpikeGPT(ModelConfig(n_layer=1, n_embd=4, vocab_size=7))
    # 2 tokens of 4 channels, or of 16 hidden ones
    spikes = {name: torch.zeros(1, 2, 16 if name.endswith("value_neuron") else 4) for name in model.sites()}
    spikes["blocks.0.att.key_neuron"][0, 0, :2] = torch.tensor([2.0, -1.0])
    spikes["blocks.0.att.wkv_neuron"][:] = 5
    assert neurons.unit_spikes(model, spikes) == 1.5


@pytest.mark.parametrize("learnable_decay", [False, True])
def test_a_neuron_that_forgets_emits_what_one_without_memory_does(learnable_decay):
    torch.manual_seed(0)
    config = ModelConfig(n_layer=1, n_embd=8, vocab_size=7)
    leaky = {**INPUT_NEURON.to_dict(), "membrane_decay": 0.5, "learnable_decay": learnable_decay}
    model = SpikeGPT(ModelConfig.from_dict({**config.to_dict(), "neuron": leaky})).eval()
    memoryless = SpikeGPT(config).eval()
    memoryless.load_state_dict(model.state_dict(), strict=False)
    ids = torch.randint(7, (2, 9))
    with torch.inference_mode():
        wanted = memoryless(ids).logits
        assert not torch.allclose(model(ids).logits, wanted, atol=1e-3)
        assert neurons.forget(model) and not neurons.forget(memoryless)
        torch.testing.assert_close(model(ids).logits, wanted)


@pytest.mark.parametrize("text", ["", "NEURONS = {}", "NEURONS = {'mine': 3}"])
def test_a_file_without_neurons_is_refused(tmp_path, text):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(SpikegptError, match=r"mine\.py has no NEURONS"):
        neurons.factories_of(tmp_path / "mine.py")


def test_neurons_of_a_file_are_trained_go_on_and_are_examined(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file, text, run = tmp_path / "mine.py", tmp_path / "text.txt", tmp_path / "run"
    file.write_text(MINE)
    text.write_text("It was the best of times, it was the worst of times.\n" * 40)
    sizes = {"n_layer": 1, "n_embd": 16, "ctx_len": 16, "batch_size": 2}
    configuration = {**sizes, "data": [str(text)], "steps": 2, "spiking": "input", "synop_budget": 0.5, "levels": 3}
    assert neurons.train_own(file, "mine", run, configuration) > 0
    # it is done, so that going on with it changes nothing
    neurons.train_own(file, "mine", run, configuration)
    facts = neurons.examine(run, [str(text)], file, "mine")
    assert facts["bits"] > 0 and 0 < facts["firing"] < 1 and facts["unit_spikes"] > 0
    assert "bits_without_memory" not in facts
    assert json.loads((run / "config.json").read_text())["model"]["neuron"]["levels"] == 3
