"""Energy estimates, worked by hand on small tallies."""

import json

import pytest
from tallies import KINDS, energies, make_tally, price

from neuromorphic.count.counts import Counts, Tally, Uncounted
from neuromorphic.energy.estimate import break_even_density
from neuromorphic.energy.prices import bundled_profiles, load_profile

WEIGHTS = {"weights_once": 4, "weights_per_event": 6, "weights_dense": 10}
REAL = Counts(
    calls=1, dense_ops=10, effective_macs=6, real_elements=10, activation_reads=10, activation_writes=2, **WEIGHTS
)
BINARY = Counts(calls=1, dense_ops=10, effective_acs=6, binary_elements=10, activation_reads=10, **WEIGHTS)
TERNARY_WEIGHTS = Counts(
    calls=1, dense_ops=10, effective_acs=6, weight_side_acs=6, real_elements=10, activation_reads=10
)
INTEGER = Counts(
    calls=1,
    dense_ops=10,
    effective_macs=6,
    integer_macs=6,
    unit_acs=18,
    integer_elements=10,
    largest_level=4,
    activation_reads=10,
)
NEURON = Counts(calls=1, mul=8, compare=4, state_reads=4, state_writes=4, neuron_updates=4, events_out=3)


def test_macs_with_zeros_are_free_only_on_hardware_that_skips_them():
    # 6 of 10 products at 4.6 pJ, for 2 tokens
    _, terms = price(make_tally(mm=REAL))
    assert energies(terms["mac"]) == (13.8, 13.8, 23.0)
    assert terms["mac"].count == 6


def test_spikes_cost_accumulations_and_no_zeros():
    # 6 at 0.9 pJ, for 2 tokens
    _, terms = price(make_tally(mm=BINARY))
    assert energies(terms["ac"]) == (2.7, 2.7, 2.7)
    assert "mac" not in terms


def test_half_the_events_cost_half():
    half = Counts(calls=1, dense_ops=10, effective_acs=3, binary_elements=10, events_out=5)
    full = Counts(calls=1, dense_ops=10, effective_acs=6, binary_elements=10, events_out=10)
    energy_pj = [price(make_tally(mm=counts), "loihi1-presilicon")[0].central_pj for counts in (half, full)]
    assert energy_pj[0] == pytest.approx(energy_pj[1] / 2)


def test_twice_the_tokens_halve_the_energy_of_one():
    once, twice = price(make_tally(mm=REAL, tokens=1))[0], price(make_tally(mm=REAL, tokens=2))[0]
    assert twice.central_pj == pytest.approx(once.central_pj / 2)


def test_ternary_weights_need_additions_on_hardware_that_does_not_skip_zeros_too():
    _, terms = price(make_tally(mm=TERNARY_WEIGHTS))
    assert energies(terms["ac"]) == (2.7, 2.7, 4.5)
    assert "mac" not in terms


def test_numbers_that_meet_ternary_weights_are_no_events():
    result, terms = price(make_tally(mm=TERNARY_WEIGHTS), "loihi1-presilicon")
    assert "mac" in result.unpriced and terms["mac"].count == 6
    assert "ac" not in terms


def test_integer_spikes_are_sent_as_units_where_that_is_cheaper():
    # 18 accumulations at 0.9 = 16.2 pJ are less than 6 MACs at 4.6 = 27.6 pJ
    _, terms = price(make_tally(mm=INTEGER, tokens=1))
    assert terms["ac"].central_pj == pytest.approx(16.2)
    assert "mac" not in terms
    assert "unit spikes at 1 of 1 sites" in terms["ac"].note


def test_integer_spikes_of_high_levels_stay_macs():
    # 60 accumulations at 0.9 = 54 pJ are more than 27.6 pJ
    large = Counts(
        calls=1, dense_ops=10, effective_macs=6, integer_macs=6, unit_acs=60, integer_elements=10, activation_reads=10
    )
    _, terms = price(make_tally(mm=large, tokens=1))
    assert terms["mac"].central_pj == pytest.approx(27.6)
    assert "unit spikes at 0 of 1 sites" in terms["mac"].note


def test_integer_spikes_are_units_where_a_mac_has_no_price():
    # 18 at 23.6 pJ
    result, terms = price(make_tally(mm=INTEGER, tokens=1), "loihi1-presilicon")
    assert terms["ac"].central_pj == pytest.approx(424.8)
    assert "mac" not in result.unpriced


def test_weights_are_fetched_once_per_event_or_always():
    # 4, 6 and 10 weights of 32 bits at 10 pJ per 64 bits, for 2 tokens
    result, terms = price(make_tally(mm=REAL))
    assert energies(terms["weights"]) == (10.0, 15.0, 25.0)
    assert result.memory_level == "SRAM 8 KB" and result.footprint_bytes == 40


def test_decoding_reuses_no_weights():
    _, terms = price(make_tally(mm=REAL, phase="decode"))
    assert energies(terms["weights"]) == (15.0, 15.0, 25.0)


def test_weights_that_are_needed_once_cost_no_more_than_what_is_fetched():
    kernel = Counts(calls=1, weights_once=9, weights_per_event=2, weights_dense=1)
    _, terms = price(make_tally(mm=kernel, tokens=1))
    assert energies(terms["weights"]) == (10.0, 10.0, 10.0)


def test_activations_of_elementwise_operations_may_be_fused():
    # matmul 12 elements, norm 4, of 32 bits at 10 / 64 pJ per bit, for 1 token
    norm = Counts(calls=1, activation_reads=2, activation_writes=2)
    _, terms = price(make_tally(mm=REAL, layer_norm=norm, tokens=1))
    assert energies(terms["activations"]) == (60.0, 80.0, 80.0)


def test_binary_inputs_are_read_as_one_bit_each():
    # 10 bits at 10 / 64 pJ
    spikes = Counts(calls=1, binary_elements=10, activation_reads=10)
    _, terms = price(make_tally(mm=spikes, tokens=1))
    assert terms["activations"].central_pj == pytest.approx(1.5625)


def test_writes_have_their_own_price():
    # 4 reads at 3.7 and 4 writes at 3.9 pJ per 16 bits
    _, terms = price(make_tally(lif=NEURON, tokens=1), "seneca22")
    assert terms["state"].central_pj == pytest.approx(30.4)


def test_results_are_written_at_the_price_of_a_write():
    # 10 elements read at 3.7, 2 written at 3.9
    _, terms = price(make_tally(mm=REAL, tokens=1), "seneca22")
    assert terms["activations"].central_pj == pytest.approx(44.8)


def test_a_model_that_does_not_fit_on_chip_lies_in_dram():
    # 6 weights of 32 bits at 1300 and 2600 pJ per 64 bits; 262,145 weights are 4 bytes more than 1 MB
    result, terms = price(make_tally(mm=REAL, parameters=262_145, phase="decode", tokens=1))
    assert result.memory_level == "DRAM"
    assert energies(terms["weights"]) == (3900.0, 5850.0, 13000.0)


def test_above_the_largest_memory_of_the_table_nothing_is_priced():
    result, terms = price(make_tally(mm=REAL, parameters=262_145), "lemaire2022")
    assert result.memory_level is None
    assert result.unpriced == ("weights", "activations")
    assert (
        terms["weights"].note
        == "the model needs 1048580 bytes, the largest memory with a price is SRAM 1 MB (1048576 bytes)"
    )


def test_an_operation_without_a_price_is_not_free():
    result, terms = price(make_tally(wkv=Counts(calls=1, add=10, exp=4), tokens=1))
    assert energies(terms["add"]) == (9.0, 9.0, 9.0)
    assert (terms["exp"].priced, terms["exp"].central_pj, terms["exp"].count) == (False, None, 4)
    assert result.unpriced == ("exp",) and not result.is_complete


def test_an_arithmetic_table_leaves_memory_and_events_unpriced():
    result, _ = price(make_tally(mm=REAL, lif=NEURON), "convention-4.6-0.9")
    assert result.unpriced == ("mul", "compare", "weights", "activations", "state", "event")
    assert result.central_pj == pytest.approx(13.8)


def test_a_neuron_update_replaces_the_operations_of_the_neuron():
    # 4 updates at 52 to 81 pJ, 3 spikes at 1.7, for 1 token
    _, terms = price(make_tally(lif=NEURON, tokens=1), "loihi1-presilicon")
    assert energies(terms["neuron_update"]) == (208.0, 266.0, 324.0)
    assert terms["event"].central_pj == pytest.approx(5.1)
    assert "compare" not in terms and "mul" not in terms


def test_a_neuron_that_declares_no_update_is_priced_by_class():
    silent = Counts(calls=1, mul=8, state_reads=4)
    result, _ = price(make_tally(lif=silent, tokens=1), "loihi1-presilicon")
    assert "mul" in result.unpriced


def test_other_elementwise_operations_stay_beside_neuron_updates():
    result, terms = price(make_tally(lif=NEURON, mul=Counts(calls=1, mul=5)), "loihi1-presilicon")
    assert terms["mul"].count == 5 and "mul" in result.unpriced


def test_macs_are_unpriced_on_loihi():
    result, terms = price(make_tally(mm=REAL), "loihi1-presilicon")
    assert not terms["mac"].priced
    assert result.mac_over_ac is None
    assert (result.low_pj, result.central_pj, result.high_pj) == (None, None, None)


def test_an_all_in_price_is_never_combined():
    # 6 synaptic events at 26 pJ, for 2 tokens
    result, terms = price(make_tally(mm=BINARY, lif=NEURON), "truenorth-all-in")
    assert list(terms) == ["ac"]
    assert (result.low_pj, result.central_pj, result.high_pj) == (78.0, 78.0, 78.0)
    assert result.included == ("neuron_update", "weights", "activations", "state", "event")


def test_an_all_in_price_does_not_contain_macs_or_norms():
    result, _ = price(make_tally(mm=REAL, layer_norm=Counts(calls=1, add=4)), "truenorth-all-in")
    assert result.unpriced == ("mac", "add")
    assert result.central_pj is None


def test_uncounted_operators_are_unpriced():
    result, terms = price(make_tally(mm=BINARY, uncounted=[Uncounted("mine.scan", 3, 7)]))
    assert "uncounted operators: mine.scan" in result.unpriced
    assert terms["uncounted operators: mine.scan"].count == 3


def test_a_phase_without_tokens_is_refused():
    with pytest.raises(ValueError, match=r"no token was read in phase 'decode'.*prefill \(2 tokens\)"):
        price(make_tally(mm=REAL), phase="decode")


def test_phases_are_priced_apart():
    prefill, decode = make_tally(mm=REAL), make_tally(mm=BINARY, phase="decode")
    both = Tally(
        sites=prefill.sites | decode.sites,
        kinds=KINDS,
        tokens=prefill.tokens | decode.tokens,
        uncounted=(),
        footprint=prefill.footprint,
    )
    assert price(both, phase="decode")[0].terms == price(decode)[0].terms


def test_the_total_is_the_sum_of_the_priced_terms():
    result, terms = price(make_tally(mm=REAL, lif=NEURON))
    assert result.central_pj == pytest.approx(sum(term.central_pj for term in terms.values() if term.priced))


@pytest.mark.parametrize("profile", bundled_profiles())
def test_intervals_are_ordered(profile):
    result, terms = price(make_tally(mm=REAL + BINARY + INTEGER, lif=NEURON, wkv=Counts(calls=1, add=3)), profile)
    for term in terms.values():
        assert not term.priced or 0 <= term.low_pj <= term.central_pj <= term.high_pj
    assert result.low_pj <= result.central_pj <= result.high_pj


def test_an_estimate_is_plain_values():
    values = price(make_tally(mm=REAL, lif=NEURON))[0].to_dict()
    assert json.loads(json.dumps(values))["profile"] == "horowitz45-fp32"
    assert values["mac_over_ac"] == pytest.approx(4.6 / 0.9)
    assert values["terms"][0]["name"] == "mac" and values["grade"] == "unstated"


def test_nothing_computed_costs_nothing():
    assert price(make_tally())[0].central_pj == 0


def test_break_even_of_arithmetic_alone_is_the_ratio_of_the_prices():
    assert break_even_density(load_profile("horowitz45-fp32")).without_memory == pytest.approx(4.6 / 0.9)


def test_break_even_with_memory():
    # 8 KB: fetch 32 * 10 / 64 = 5; (5 + 4.6) / (5 + 0.9 + 2 * 5)
    break_even = break_even_density(load_profile("horowitz45-fp32"), footprint_bytes=8192)
    assert break_even.with_memory == pytest.approx(9.6 / 15.9)


def test_reuse_of_dense_weights_lowers_the_break_even():
    # (5 / 10 + 4.6) / 15.9
    break_even = break_even_density(load_profile("horowitz45-fp32"), reuse=10, footprint_bytes=8192)
    assert break_even.with_memory == pytest.approx(5.1 / 15.9)
    assert break_even.without_memory == pytest.approx(4.6 / 0.9)


def test_break_even_needs_every_price():
    assert break_even_density(load_profile("loihi1-presilicon"), footprint_bytes=1).without_memory is None
    assert break_even_density(load_profile("lemaire2022"), footprint_bytes=2**20 + 1).with_memory is None
    assert break_even_density(load_profile("horowitz45-fp32")).with_memory is None


def test_reuse_below_one_is_refused():
    with pytest.raises(ValueError, match=r"reuse must be at least 1.*got 0\.5"):
        break_even_density(load_profile("horowitz45-fp32"), reuse=0.5)


def test_a_table_that_is_printed_says_what_the_sum_leaves_out():
    lines = str(price(make_tally(mm=REAL, wkv=Counts(calls=1, exp=4000), tokens=1))[0]).splitlines()
    assert lines[0].endswith("(Horowitz 2014); grade: unstated; an estimate, not a measurement")
    assert lines[1].startswith("memory: everything lies in SRAM 8 KB")
    assert lines[2].startswith("pJ per token, horowitz45-fp32") and lines[2].split()[-3:] == ["low", "central", "high"]
    cells = {line.split()[0]: line.split()[1:] for line in lines[3:-1]}
    assert cells["exp"] == ["4,000", "no", "price", "no", "price", "no", "price"]
    assert cells["mac"] == ["6", "27.6", "27.6", "46"]
    # 27.6 and 46 of MACs; 4, 6 and 10 weights, and 10 + 2 activations, at 5
    assert lines[-1].split("price")[1].split() == [">", "107.6", ">", "117.6", ">", "156"]
    assert ">" not in str(price(make_tally(mm=REAL))[0])


def test_terms_are_rows_for_a_data_frame_and_a_spreadsheet():
    found, _ = price(make_tally(mm=REAL, lif=NEURON), "seneca22")
    rows = found.rows()
    assert [row["name"] for row in rows] == [term.name for term in found.terms]
    assert sum(row["central_pj"] or 0 for row in rows) == pytest.approx(found.central_pj)
    compare = next(row for row in rows if row["name"] == "compare")
    # 4 comparisons at 1.1 to 1.2, for 2 tokens
    assert (compare["low_pj"], compare["high_pj"]) == (pytest.approx(2.2), pytest.approx(2.4))
    assert compare["source"].startswith("Table 8") and compare["profile"] == "seneca22" and compare["tokens"] == 2
    lines = found.to_csv().splitlines()
    assert lines[0].startswith("profile,tokens,name,count,low_pj") and len(lines) == 1 + len(rows)


def test_an_estimate_in_latex_has_its_sum_below_a_rule():
    lines = price(make_tally(lif=NEURON), "convention-4.6-0.9")[0].to_latex().splitlines()
    assert lines[0] == r"\begin{tabular}{lrrrr}" and lines[-4] == r"\midrule"
    assert lines[-3] == r"sum of what has a price &  & no price & no price & no price \\"
    assert any(line.startswith(r"mul & 4 & no price") for line in lines)


@pytest.mark.parametrize("profile", bundled_profiles())
def test_every_term_that_is_charged_says_where_its_price_is_from(profile):
    everything = make_tally(mm=REAL + BINARY, lif=NEURON, mul=Counts(calls=1, add=3, mul=2, compare=4))
    for term in price(everything, profile)[0].terms:
        assert bool(term.source) == term.priced, term


@pytest.mark.parametrize("phase", ["prefil", "Decode", 3])
def test_an_unknown_phase_is_named(phase):
    with pytest.raises(ValueError, match="there is no phase"):
        price(make_tally(mm=REAL), phase=phase)
