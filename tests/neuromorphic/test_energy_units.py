"""How a spike of n is charged, worked by hand: as n unit spikes, or as one event that carries n."""

import json

import pytest
import torch
from counting import Computes, count, linear
from tallies import energies, make_tally, price
from torch import nn

from neuromorphic import Counts, PriceError, estimate, load_profile
from neuromorphic.energy.prices import bundled_profiles

# 2 and 3 in a vector of 4, read by 2 neurons: 4 products, 10 unit accumulations; 3 unit spikes beyond the first ones
INTEGER = Counts(
    calls=1,
    dense_ops=8,
    effective_macs=4,
    integer_macs=4,
    unit_acs=10,
    integer_elements=4,
    nonzeros=2,
    largest_level=3,
    weights_once=4,
    weights_per_event=4,
    weights_dense=8,
    repeated_weights=6,
    activation_reads=4,
)
EMITTED = Counts(calls=1, compare=4, neuron_updates=4, events_out=2, repeated_events=3)


def terms_of(tally, profile, sending, phase=None):
    found = estimate(tally, profile, phase, integer_spikes=sending)
    return found, {term.name: term for term in found.terms}


def test_a_graded_spike_fetches_once_and_is_added_n_times():
    # 10 additions at 0.9; 4 weights of 32 bits at 10 / 64 pJ, for one token
    _, terms = terms_of(make_tally(mm=INTEGER, tokens=1), "horowitz45-fp32", "graded")
    assert energies(terms["ac"]) == (9.0, 9.0, 9.0)
    assert energies(terms["weights"]) == (20.0, 20.0, 40.0)


def test_unit_spikes_each_fetch_and_are_added():
    # the same additions; 4 + 6 weights, which are more than the 8 of a dense product
    _, terms = terms_of(make_tally(mm=INTEGER, tokens=1), "horowitz45-fp32", "units")
    assert energies(terms["ac"]) == (9.0, 9.0, 9.0)
    assert energies(terms["weights"]) == (20.0, 50.0, 50.0)
    assert terms["weights"].count == 10


def test_in_decoding_nothing_is_fetched_once_for_all():
    tally = make_tally(mm=INTEGER, tokens=1, phase="decode")
    assert energies(terms_of(tally, "horowitz45-fp32", "units")[1]["weights"]) == (50.0, 50.0, 50.0)
    assert energies(terms_of(tally, "horowitz45-fp32", "graded")[1]["weights"]) == (20.0, 20.0, 40.0)


def test_unit_spikes_are_events():
    # 2 spikes at 1.7 are 5 unit spikes at 1.7
    assert price(make_tally(lif=EMITTED, tokens=1), "loihi1-presilicon")[1]["event"].central_pj == pytest.approx(8.5)
    graded = price(make_tally(lif=EMITTED, tokens=1), "seneca22")[1]["event"]
    assert (graded.count, graded.low_pj) == (2, pytest.approx(3.2))
    assert terms_of(make_tally(lif=EMITTED, tokens=1), "seneca22", "units")[1]["event"].low_pj == pytest.approx(8.0)


def test_unit_spikes_are_never_multiplied():
    # 60 additions at 0.9 are more than 4 MACs at 4.6, which a machine that sends units does not have
    large = INTEGER + Counts(unit_acs=50)
    graded = terms_of(make_tally(mm=large, tokens=1), "horowitz45-fp32", "graded")[1]
    units = terms_of(make_tally(mm=large, tokens=1), "horowitz45-fp32", "units")[1]
    assert graded["mac"].central_pj == pytest.approx(18.4) and "ac" not in graded
    assert units["ac"].central_pj == pytest.approx(54.0) and "mac" not in units


def test_units_that_meet_ternary_weights_are_added_each():
    # 4 products of 2s and 3s with -1 and 1: 4 additions of numbers, or 10 of units
    ternary = Counts(
        calls=1, dense_ops=8, effective_acs=4, weight_side_acs=4, repeated_acs=6, integer_elements=4, activation_reads=4
    )
    tally = make_tally(mm=ternary, tokens=1)
    assert terms_of(tally, "horowitz45-fp32", "graded")[1]["ac"].central_pj == pytest.approx(3.6)
    assert terms_of(tally, "horowitz45-fp32", "units")[1]["ac"].central_pj == pytest.approx(9.0)
    # they are spikes through synapses, and no multiplication is missing
    found, terms = terms_of(tally, "loihi1-presilicon", None)
    assert terms["ac"].central_pj == pytest.approx(236.0) and "mac" not in found.unpriced


def test_the_same_from_a_layer_and_its_neurons():
    # levels 2 and 3 of [2.5, 3.5, 0.2, -0.1], two readers of which one has no weight for the first
    model = nn.Sequential(Computes(torch.trunc), linear(torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 0.5, 0.5, 0.5]])))
    tally = count(model, torch.tensor([[2.5, 3.5, 0.2, -0.1]]))
    units, graded = (terms_of(tally, "horowitz45-fp32", sending)[1] for sending in ("units", "graded"))
    assert units["ac"].count == graded["ac"].count == 2 + 3 + 3
    assert (graded["weights"].count, units["weights"].count) == (4, (2 + 3) * 2)
    # SRAM of 8 KB: 5 pJ for each 32 bits
    assert units["weights"].central_pj - graded["weights"].central_pj == pytest.approx(6 * 5)
    events = {sending: terms_of(tally, "seneca22", sending)[1]["event"].count for sending in ("units", "graded")}
    assert events == {"units": 5, "graded": 2}


@pytest.mark.parametrize("profile", bundled_profiles())
def test_binary_spikes_and_numbers_cost_the_same_however_levels_travel(profile):
    binary = nn.Sequential(Computes(lambda v: (v >= 1).float()), nn.Linear(4, 2))
    tally = count(binary, torch.tensor([[2.5, 3.5, 0.2, -0.1]]))
    found = estimate(tally, profile)
    assert "integer spikes" not in found.assumptions
    assert found.terms == estimate(tally, profile, integer_spikes="units").terms


def test_the_assumption_is_on_the_estimate_and_in_print():
    tally = make_tally(mm=INTEGER, lif=EMITTED)
    found = estimate(tally, "horowitz45-fp32")
    assert found.integer_spikes == "graded" and "one fetch" in found.assumptions["integer spikes"]
    assert "integer spikes: graded, a spike of n is one event and one fetch" in str(found)
    other = estimate(tally, "horowitz45-fp32", integer_spikes="units")
    assert "integer spikes: units, a spike of n is n events, n fetches" in str(other)
    assert other.central_pj > found.central_pj
    values = json.loads(json.dumps(other.to_dict()))
    assert values["integer_spikes"] == "units" and "n events" in values["assumptions"]["integer spikes"]


def test_the_note_says_what_is_done():
    notes = {
        sending: terms_of(make_tally(mm=INTEGER), "horowitz45-fp32", sending)[1]["ac"].note
        for sending in ("graded", "units")
    }
    assert "fetched once and added as unit spikes at 1 of 1 sites, where that is cheaper" in notes["graded"]
    assert "sent as unit spikes at 1 of 1 sites" in notes["units"] and "cheaper" not in notes["units"]


@pytest.mark.parametrize("profile", ["loihi1-presilicon", "truenorth-all-in"])
def test_a_price_per_event_is_of_unit_spikes(profile):
    assert load_profile(profile).integer_spikes == "units"
    with pytest.raises(PriceError, match="one unit spike through one synapse, which carries no number"):
        estimate(make_tally(mm=INTEGER), profile, integer_spikes="graded")


@pytest.mark.parametrize("sending", ["unit", "", 3, True, ["units"]])
def test_another_way_to_send_is_refused(sending):
    with pytest.raises(PriceError, match=r"integer_spikes is .*; it must be one of units, graded"):
        estimate(make_tally(mm=INTEGER), "horowitz45-fp32", integer_spikes=sending)
