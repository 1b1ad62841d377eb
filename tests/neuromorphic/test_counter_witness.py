"""The counter beside products counted by hand, one level above the dispatcher, on the models of `counters.py`."""

import pytest
import torch

from benchmarks.by_hand import count_by_hand, count_spikes
from benchmarks.counter_models import CASES, make
from neuromorphic import OpCounter
from spikegpt.neuron import verified_spikes

PACKAGES = {"snnTorch": "snntorch", "SpikingJelly": "spikingjelly", "Spikformer": "spikingjelly"}
OF_TRANSFORMERS = ("GPT-2", "Llama", "Mixtral", "BERT with padding", "Mamba", "RWKV-4")


@pytest.fixture(autouse=True)
def unchecked_spikes():
    """The check of the spikes is work too, which is not to be counted."""
    with verified_spikes(False):
        yield


@pytest.mark.parametrize("name", CASES)
def test_the_counter_agrees_with_products_counted_by_hand(name):
    package = next((module for words, module in PACKAGES.items() if words in name), "torch")
    pytest.importorskip("transformers" if name in OF_TRANSFORMERS else package)
    products, emitted = count_by_hand(*make(name)), count_spikes(*make(name))
    model, x = make(name)
    with torch.no_grad(), OpCounter(model) as counter:
        model(x)
    total = counter.tally().total()
    assert products["full"] == CASES[name].full
    assert (total.dense_ops, total.effective_macs, total.effective_acs) == tuple(
        products[claim] for claim in ("real", "macs", "acs")
    )
    assert (total.events_out, total.neuron_updates) == (emitted["spikes"], emitted["neuron_updates"])
