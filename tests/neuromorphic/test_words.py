"""What is printed, what is asked for by a wrong name, and what is put into price tables, spreadsheets and pages."""

import csv
import io
from pathlib import Path

import pytest
import torch
from reports import PAIR, model
from torch import nn

import neuromorphic
from neuromorphic import CountError, OpCounter, PriceError, break_even_density, estimate, load_profile
from neuromorphic.report.figures import operations
from neuromorphic.report.folder import write_report

TABLE = (Path(neuromorphic.__file__).parent / "energy" / "price_tables" / "convention-4.6-0.9.toml").read_text()


class Network(nn.Module):
    def __init__(self, layers=2):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(layers))
        self.rest = nn.Dropout()

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.rest(torch.fft.fft(x).real)


def tally_of(network, **options):
    with torch.no_grad(), OpCounter(network.eval(), **options) as counter:
        network(torch.ones(1, 3, 4))
    return counter.tally()


@pytest.fixture
def tally():
    return tally_of(Network())


def test_a_tally_is_printed_as_a_table_by_module_and_kind_with_what_is_uncounted(tally):
    lines = str(tally).splitlines()
    assert lines[0].split()[:3] == ["dense", "products", "MACs"]
    # 3 tokens, 4 x 4 weights
    assert lines[1].split()[:2] == ["layers.0", "48"] and lines[2].startswith("layers.1")
    assert "kind: matmul" in str(tally) and lines[-2] == "tokens: 3 in prefill"
    assert lines[-1].startswith("uncounted: ") and "fft" in lines[-1]
    assert "96" in next(line for line in lines if line.startswith("all"))
    assert len(repr(tally)) < 120


def test_a_table_of_many_modules_sums_up_the_rest():
    text = str(tally_of(Network(layers=60)))
    assert "21 more modules" in text and len(text.splitlines()) < 60


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"module": "layer"}, "there is no module 'layer'; did you mean 'layers'?"),
        ({"module": "nosuch"}, "there is no module 'nosuch'; known: "),
        ({"kind": "matmuls"}, "did you mean 'matmul'?"),
        ({"phase": "prefil"}, "did you mean 'prefill'?"),
    ],
)
def test_an_unknown_name_is_no_zero(tally, asked, message):
    with pytest.raises(ValueError, match=message.replace("?", "[?]")):
        tally.total(**asked)


def test_tokens_of_an_unknown_phase_are_no_zero(tally):
    with pytest.raises(ValueError, match="there is no phase 'nosuch'; known: prefill"):
        tally.token_count("nosuch")
    assert tally.token_count("decode") == 0


def test_a_module_without_work_and_a_phase_without_tokens_are_zero(tally):
    assert tally.total(module="rest", phase="decode").dense_ops == 0
    assert tally.total(module="layers").dense_ops == tally.total(module="").dense_ops == 96


@pytest.mark.parametrize("what", [None, torch.relu, "model"])
def test_only_a_module_is_counted(what):
    with pytest.raises(CountError, match="want a torch module to count"):
        OpCounter(what)


def test_a_mask_is_a_tensor():
    with pytest.raises(CountError, match="mask must be a tensor"):
        OpCounter(Network(), mask=[True])


def test_a_price_table_goes_by_its_name(tally):
    assert estimate(tally, "seneca22").to_dict() == estimate(tally, load_profile("seneca22")).to_dict()
    assert break_even_density("seneca22") == break_even_density(load_profile("seneca22"))
    with pytest.raises(PriceError, match="no price profile 'seneca23'; did you mean 'seneca22'"):
        estimate(tally, "seneca23")
    with pytest.raises(PriceError, match="got None"):
        estimate(tally, None)
    with pytest.raises(ValueError, match="want a Tally"):
        estimate(None, "seneca22")
    assert str(estimate(tally, "seneca22")).splitlines()[-1].startswith("sum of what has a price")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a" + ".a" * 50_000 + " = 1", "more than 200 dots"),
        ("a = " + "[" * 100_000, "nested too deeply"),
        ("a = " + "{a=" * 50_000, "nested too deeply"),
        ("x = 1\n" * 200_000, "a price table has at most"),
        (TABLE.replace("4.6", "1" + "0" * 400), "from 1e-12 to 1e12, got 1000"),
        (TABLE.replace("4.6", "1" + "0" * 5000), "is not TOML"),
        (TABLE.replace("4.6", "1e308"), "from 1e-12 to 1e12, got 1e[+]308"),
        (TABLE.replace("4.6", "1e-320"), "from 1e-12 to 1e12"),
        (TABLE.replace("weight_bits = 32", "weight_bits = 99999999999"), "from 1 to 1024"),
    ],
    ids=["dots", "brackets", "braces", "long", "400 digits", "5000 digits", "1e308", "1e-320", "bits"],
)
def test_a_monstrous_price_table_is_refused_in_one_line(text, message, tmp_path):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(PriceError, match=message) as refused:
        load_profile(tmp_path / "own.toml")
    assert len(str(refused.value)) < 500 and "\n" not in str(refused.value)


def test_a_cell_of_the_csv_is_no_formula(tmp_path):
    names = ["=cmd|' /C calc'!A0", "+1", "-1", "@a", "a\x1b[31m", "plain"]
    write_report(tmp_path / "report", [model(name=name) for name in names], title="t")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report" / "report.csv").read_text())))
    assert [row["model"] for row in rows] == ["'=cmd|' /C calc'!A0", "'+1", "'-1", "'@a", "a□[31m", "plain"]


def test_a_report_says_how_it_was_made_and_what_its_words_mean(tmp_path):
    measured = [model(notes=("step 12 of 60, unfinished",)), PAIR[1]]
    write_report(tmp_path / "report", measured, title="t", made={"command": "count <it>", "version": "1.2"})
    page = (tmp_path / "report" / "report.html").read_text()
    for words in ("step 12 of 60, unfinished", "command: count &lt;it&gt;", "version: 1.2", "date: 20", "<dt>MAC</dt>"):
        assert words in page


def test_a_notebook_shows_a_figure():
    assert operations(PAIR)._repr_png_().startswith(b"\x89PNG")


def test_a_measurement_is_one_line():
    assert repr(PAIR[0]) == "<Measurement of spiking: 10 tokens, 1.5000 bits per byte, 1 products>"
