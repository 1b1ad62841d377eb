"""A spiking product and its quantised rival, counted by hand."""

import torch
from torch import nn

from neuromorphic import OpCounter
from neuromorphic.count.every_product import every_product, level_bits

# one vector silent; spikes of 1, 2 and -3
SPIKES = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 2.0], [0.0, -3.0, 0.0]])


def counted(inputs):
    layer = nn.Linear(3, 5, bias=False)
    nn.init.constant_(layer.weight, 0.3)
    with OpCounter(layer) as counter, counter.phase("prefill"):
        layer(inputs[None])
    return counter.tally()


def test_every_product_of_spikes_is_done():
    tally = counted(SPIKES)
    every = every_product(tally)
    before, after = tally.total(), every.total()
    assert (before.effective_ops, before.events_in) == (15, 3)
    # three vectors, three inputs, five outputs
    assert (after.effective_macs, after.effective_acs, after.unit_acs, after.integer_macs) == (45, 0, 0, 0)
    assert (after.weights_once, after.weights_per_event, after.events_in) == (15, 45, 0)
    # -3 takes two bits and a sign, and inputs stay that narrow
    assert level_bits(tally) == level_bits(every) == 3
    assert after.activation_bits(32) == before.activation_bits(32)
    assert every.tokens == tally.tokens and every.footprint == tally.footprint


def test_products_of_real_numbers_stay_what_they_are():
    tally = counted(SPIKES + 0.5)
    assert every_product(tally).sites == tally.sites and level_bits(tally) == 0
