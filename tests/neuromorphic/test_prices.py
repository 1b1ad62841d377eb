"""Price tables: what is bundled, what a table of one's own must say, and what is refused."""

from pathlib import Path

import pytest
from tallies import make_tally

import neuromorphic
from neuromorphic import estimate
from neuromorphic.count.counts import ELEMENTWISE, Counts
from neuromorphic.energy.prices import (
    GRADES,
    SCOPES,
    SENDING,
    TERM_UNITS,
    PriceError,
    bundled_profiles,
    load_profile,
)

TABLES = Path(neuromorphic.__file__).parent / "energy" / "price_tables"

OWN = """
name = "own"
title = "A machine"
citation = "Doe 2031, doi:10.1/2"
grade = "measured"
scope = "per_term"
includes = []
excludes = []
weight_bits = 8
activation_bits = 8
state_bits = 16

[prices.mac]
pj = [1, 3]
unit = "pJ/op"

[[memories]]
name = "small"
capacity_bytes = 100
pj = 6
write_pj = 10
unit = "pJ/16bit"

[[memories]]
name = "large"
pj = [8, 16]
unit = "pJ/byte"
"""


@pytest.fixture
def load_own(tmp_path):
    """Load OWN with one piece of it replaced."""

    def load(old: str = "", new: str = ""):
        assert old in OWN
        path = tmp_path / "own.toml"
        path.write_text(OWN.replace(old, new, 1))
        return load_profile(path)

    return load


@pytest.mark.parametrize("name", bundled_profiles())
def test_every_bundled_table_says_where_it_is_from(name):
    profile = load_profile(name)
    assert profile.name == name
    assert "doi:" in profile.citation or "https://" in profile.citation
    assert profile.grade in GRADES and profile.scope in SCOPES
    assert profile.includes and profile.excludes and profile.notes and profile.prices


def test_the_bundled_tables_are_these():
    expected = {"convention-4.6-0.9", "horowitz45-fp16", "horowitz45-fp32", "horowitz45-int8", "lemaire2022"}
    assert set(bundled_profiles()) == expected | {
        "loihi1-presilicon",
        "seneca22",
        "spikegpt-4.5-0.9",
        "truenorth-all-in",
    }


# pJ of each operation, and per access of each memory, as the sources of the tables print them; nothing else is priced
OF_HOROWITZ = ((10, 10), (20, 20), (100, 100), (1300, 2600))
SOURCES = {
    "horowitz45-fp32": ({"mac": 3.7 + 0.9, "ac": 0.9, "add": 0.9, "mul": 3.7}, 64, OF_HOROWITZ),
    "horowitz45-fp16": ({"mac": 1.1 + 0.4, "ac": 0.4, "add": 0.4, "mul": 1.1}, 64, OF_HOROWITZ),
    "horowitz45-int8": ({"mac": 0.2 + 0.03, "ac": 0.03, "add": 0.03, "mul": 0.2}, 64, OF_HOROWITZ),
    "convention-4.6-0.9": ({"mac": 4.6, "ac": 0.9}, 1, ()),
    "spikegpt-4.5-0.9": ({"mac": 4.5, "ac": 0.9}, 1, ()),
    "lemaire2022": ({"mac": 3.1 + 0.1, "ac": 0.1, "add": 0.1, "mul": 3.1}, 64, OF_HOROWITZ[:3]),
    "loihi1-presilicon": ({"ac": 23.6, "neuron_update": (52, 81), "event": 1.7}, 1, ()),
    "truenorth-all-in": ({"ac": 26}, 1, ()),
    "seneca22": (
        {"mac": 2.8, "ac": 1.4, "add": 1.4, "mul": 1.4, "compare": (1.1, 1.2), "event": (0.5 + 1.1, 0.5 + 1.1 + 2)},
        16,
        ((3.7, 3.7),),
    ),
}


@pytest.mark.parametrize("name", bundled_profiles())
def test_a_table_prices_what_its_source_prints_and_no_more(name):
    prices, bits, memories = SOURCES[name]
    profile = load_profile(name)
    found = {term: (price.low_pj, price.high_pj) for term, price in profile.prices.items()}
    assert found == {
        term: pytest.approx(price if isinstance(price, tuple) else (price, price)) for term, price in prices.items()
    }
    found = [(bits * memory.read.low_pj, bits * memory.read.high_pj) for memory in profile.memories]
    assert found == [pytest.approx(memory) for memory in memories]


@pytest.mark.parametrize("name", bundled_profiles())
def test_what_a_table_does_not_price_is_said_of_every_class_of_work(name):
    prices, _, memories = SOURCES[name]
    work = Counts(**dict.fromkeys(ELEMENTWISE, 1), effective_macs=1, effective_acs=1, activation_reads=1)
    work += Counts(weights_per_event=1, weights_dense=1, weights_once=1, events_in=1)
    neurons = Counts(neuron_updates=1, events_out=1, compare=1)
    moved = Counts(state_reads=1, state_writes=1)
    found = estimate(make_tally(layer_norm=work, lif=neurons, wkv=moved), name)
    # the convention's papers, and Horowitz's, leave them out; an all-in price contains all but MACs and norms
    every = {"mac", "ac", *ELEMENTWISE, *(() if memories else ("weights", "activations", "state")), "event"}
    every |= {"neuron_update"} & set(found.unpriced)
    if name == "truenorth-all-in":
        every -= set(found.included)
        assert set(found.included) == {"neuron_update", "weights", "activations", "state", "event"}
    assert set(found.unpriced) == every - set(prices)


@pytest.mark.parametrize(("name", "mac", "ac"), [("fp32", 4.6, 0.9), ("fp16", 1.5, 0.4), ("int8", 0.23, 0.03)])
def test_horowitz_mac_is_a_multiplication_and_an_addition(name, mac, ac):
    prices = load_profile(f"horowitz45-{name}").prices
    assert prices["mac"].central_pj == mac == pytest.approx(prices["mul"].central_pj + prices["add"].central_pj)
    assert prices["ac"].central_pj == ac == prices["add"].central_pj


def test_horowitz_memory_is_per_64_bit():
    # 10 / 64, 20 / 64, 100 / 64, and (1300 + 2600) / 2 / 64
    memories = load_profile("horowitz45-fp32").memories
    assert [memory.read.central_pj for memory in memories] == [0.15625, 0.3125, 1.5625, 30.46875]


def test_horowitz_has_no_comparison_and_no_exponential():
    assert set(load_profile("horowitz45-fp32").prices) == {"mac", "ac", "add", "mul"}


def test_loihi_is_simulated_and_prices_no_mac_and_no_memory():
    profile = load_profile("loihi1-presilicon")
    assert profile.grade == "simulated" and "mac" not in profile.prices and not profile.memories
    assert "minimum" in profile.prices["ac"].note


def test_lemaire_has_no_level_above_one_megabyte():
    profile = load_profile("lemaire2022")
    assert profile.memory_for(2**20).name == "SRAM 1 MB"
    assert profile.memory_for(2**20 + 1) is None


def test_the_smallest_level_that_holds_the_model_is_taken():
    profile = load_profile("horowitz45-fp32")
    assert [profile.memory_for(size).name for size in (0, 8192, 8193, 2**20, 10**12)] == [
        *("SRAM 8 KB", "SRAM 8 KB", "SRAM 32 KB", "SRAM 1 MB", "DRAM"),
    ]


def test_own_table_is_read(load_own):
    profile = load_own()
    assert (profile.prices["mac"].low_pj, profile.prices["mac"].central_pj, profile.prices["mac"].high_pj) == (1, 2, 3)
    assert (profile.memories[0].read.central_pj, profile.memories[0].write.central_pj) == (0.375, 0.625)
    assert (profile.memories[1].read.low_pj, profile.memories[1].write.high_pj) == (1, 2)
    assert profile.node_nm is None


def test_own_table_is_found_by_a_path_that_is_text(load_own, tmp_path):
    load_own()
    assert load_profile(str(tmp_path / "own.toml")).name == "own"


def test_a_zero_price_is_a_price(load_own):
    assert load_own("pj = [1, 3]", "pj = 0").prices["mac"].central_pj == 0


def test_unknown_profile_lists_the_known_ones():
    with pytest.raises(PriceError, match=r"'loihi2'.*horowitz45-fp32.*path of a file that ends in \.toml"):
        load_profile("loihi2")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(PriceError, match=r"none\.toml cannot be read \(No such file"):
        load_profile(tmp_path / "none.toml")


def test_folder_is_not_a_table(tmp_path):
    with pytest.raises(PriceError, match="Is a directory"):
        load_profile(tmp_path)


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe"])
def test_broken_toml_is_refused(tmp_path, content):
    path = tmp_path / "own.toml"
    path.write_bytes(content)
    with pytest.raises(PriceError, match="is not TOML"):
        load_profile(path)


REFUSED = [
    ('citation = "Doe 2031, doi:10.1/2"', "", "citation is missing; required: name, title, citation"),
    ('citation = "Doe 2031, doi:10.1/2"', 'citation = " "', "citation must be a text that is not empty"),
    ('grade = "measured"', 'grade = "certain"', "grade is 'certain'; it must be one of unstated, projected"),
    ('scope = "per_term"', 'scope = "some"', "scope is 'some'; it must be one of per_term, all_in"),
    ("includes = []", "includes = [1]", "includes must be a list of texts"),
    ("weight_bits = 8", "weight_bits = true", "weight_bits must be a whole number of bits from 1 to 1024, got True"),
    ("weight_bits = 8", "weight_bits = 0", "weight_bits must be a whole number"),
    ("weight_bits = 8", "weight_bits = 8\nvolts = -1", "volts must be a positive number"),
    ("weight_bits = 8", "weight_bits = 8\nwieght_bits = 8", "unknown field 'wieght_bits'; known: name"),
    ("[prices.mac]", "[prices.spike]", "prices.spike: unknown term; known: mac, ac, add"),
    ("pj = [1, 3]", "", "prices.mac: pj is missing"),
    ('unit = "pJ/op"', "", "prices.mac: unit is missing"),
    ('unit = "pJ/op"', 'unit = "nJ/op"', "prices.mac: unknown unit 'nJ/op'; it must be one of pJ/op"),
    ('unit = "pJ/op"', 'unit = "pJ/event"', "prices.mac: unknown unit 'pJ/event'"),
    ("pj = [1, 3]", "pj = -1", "pj is -1; a price cannot be negative"),
    ("pj = [1, 3]", "pj = [3, 1]", "the first number of an interval is the lower one"),
    ("pj = [1, 3]", "pj = [1, 2, 3]", "pj must be a number of picojoule or an interval"),
    ("pj = [1, 3]", "pj = nan", "pj must be a number of picojoule"),
    ("pj = [1, 3]", "pj = true", "pj must be a number of picojoule"),
    ('unit = "pJ/16bit"', 'unit = "pJ/word"', r"memories\[0\]: unknown unit 'pJ/word'; it must be one of pJ/bit"),
    ("write_pj = 10", "write_pj = -10", "write_pj is -10; a price cannot be negative"),
    ("capacity_bytes = 100", "", "ascending capacity, but 'large' .inf bytes. follows 'small' .inf bytes."),
    ('name = "large"', 'name = "large"\ncapacity_bytes = 99', "'large' .99 bytes. follows 'small' .100 bytes."),
    ('scope = "per_term"', 'scope = "all_in"', "prices ac and nothing else.*this one prices mac, small, large"),
]


@pytest.mark.parametrize(("old", "new", "message"), REFUSED)
def test_a_bad_table_is_refused(load_own, old, new, message):
    with pytest.raises(PriceError, match=message):
        load_own(old, new)


def refused(folder, lines, message):
    """A table with these lines after its head is refused so."""
    path = folder / "own.toml"
    path.write_text(OWN.split("[prices.mac]")[0] + lines)
    with pytest.raises(PriceError, match=message):
        load_profile(path)


MISSHAPEN = [
    ("prices = 3", r"prices must be written as tables \[prices\.TERM\]"),
    ("prices.mac = 4.6", r"prices\.mac: must be a table with pj, unit, got 4\.6"),
    ("memories = 3", r"memories must be written as tables \[\[memories\]\]"),
    ("memories = [3]", r"memories\[0\]: must be a table with name, pj, unit, got 3"),
]


@pytest.mark.parametrize(("line", "message"), MISSHAPEN)
def test_prices_and_memories_must_be_tables(tmp_path, line, message):
    refused(tmp_path, line, message)


def test_every_elementwise_class_may_have_a_price():
    assert {"exp", "select", "trigonometric", "neuron_update", "event"} < set(TERM_UNITS)


@pytest.mark.parametrize("name", bundled_profiles())
def test_every_price_of_every_table_says_where_it_is_from(name):
    profile = load_profile(name)
    prices = {**profile.prices, **{memory.name: memory.read for memory in profile.memories}}
    assert [term for term, price in prices.items() if not (price.source and price.note)] == []
    named = ("Figure 1.1.9", "Table ", "paper", "main text")
    assert [price.source for price in prices.values() if not any(words in price.source for words in named)] == []


@pytest.mark.parametrize("name", bundled_profiles())
def test_every_table_says_how_a_spike_of_n_travels(name):
    assert load_profile(name).integer_spikes in SENDING
    text = (TABLES / f"{name}.toml").read_text()
    assert f'integer_spikes = "{load_profile(name).integer_spikes}"' in text


def test_seneca_is_its_table_8():
    prices = load_profile("seneca22").prices
    found = {term: (price.low_pj, price.high_pj) for term, price in prices.items()}
    # ADD, SUB and MUL 1.4; GTH, MAX and MIN 1.2, EQL and ABS 1.1; EVC 0.5 + 1.1, NOC 2
    comparison, event = (1.1, 1.2), (pytest.approx(1.6), pytest.approx(3.6))
    instruction = (1.4, 1.4)
    assert found == {
        **dict.fromkeys(("add", "mul", "ac"), instruction),
        **{"mac": (2.8, 2.8), "compare": comparison, "event": event},
    }
    (memory,) = load_profile("seneca22").memories
    assert (16 * memory.read.central_pj, 16 * memory.write.central_pj) == (3.7, 3.9)


def test_a_table_of_ones_own_sends_units_unless_it_says_otherwise(load_own):
    assert load_own().integer_spikes == "units"
    assert load_own('scope = "per_term"', 'scope = "per_term"\ninteger_spikes = "graded"').integer_spikes == "graded"


def test_a_source_and_a_note_are_read(load_own):
    profile = load_own('unit = "pJ/op"', 'unit = "pJ/op"\nsource = "Table 3"\nnote = "of one"')
    assert (profile.prices["mac"].source, profile.prices["mac"].note) == ("Table 3", "of one")
    assert load_own('unit = "pJ/byte"', 'unit = "pJ/byte"\nsource = "p. 4"').memories[1].write.source == "p. 4"


SENT_WRONGLY = [
    ('integer_spikes = "twice"', "integer_spikes is 'twice'; it must be one of units, graded"),
    ("integer_spikes = 3", "integer_spikes must be a text"),
    ('integer_spikes = "graded"\n[prices.ac]\npj = 1\nunit = "pJ/event"', "which carries no number"),
]


@pytest.mark.parametrize(("lines", "message"), SENT_WRONGLY)
def test_a_machine_that_sends_otherwise_is_refused(tmp_path, lines, message):
    refused(tmp_path, lines, message)
