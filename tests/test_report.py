"""Reports: whole or not there, safe whatever the names are, and the same figures in every form."""

import csv
import dataclasses
import html.parser
import json

import pytest

from neuromorphic import Claims, LayerOps, Measurement, Raster, figures
from neuromorphic import report as report_module
from neuromorphic.canvas import to_png, to_svg
from neuromorphic.report import ReportError, comparison_table, write_report

LAYER = LayerOps(
    module="blocks.0.att.key",
    dense_ops=100.0,
    effective_macs=90.0,
    effective_acs=0.0,
    unit_acs=0.0,
    idealised_acs=20.0,
    density=0.9,
    alphabet="real",
    fan_out=10,
)
CLAIMS = Claims(per_projection_ratio=33.33, total_ratio=32.15, idealised_ratio=25.0, as_built_ratio=1.0, sentence="No product <reads> a spike.")


def term(name, energy_pj):
    ends = {f"{end}_pj": energy_pj for end in ("low", "central", "high")}
    return {"name": name, "count": 7, "priced": energy_pj is not None, "note": "", **ends}


def energy(central=2e6, unpriced=()):
    low, high = (None, None) if central is None else (central / 2, central * 2)
    return {
        "profile": "table",
        "title": "A table",
        "citation": "Doe 2031",
        "grade": "simulated",
        "scope": "per_term",
        "includes": ["arithmetic"],
        "excludes": ["memory"],
        "tokens": 10,
        "terms": [term("mac", central), *(term(name, None) for name in unpriced)],
        "memory_level": None,
        "footprint_bytes": 4000,
        "low_pj": low,
        "central_pj": central,
        "high_pj": high,
        "unpriced": list(unpriced),
        "included": [],
        "mac_over_ac": 5.0,
        "break_even": {reuse: {"without_memory": 5.0, "with_memory": None} for reuse in ("1", "32")},
    }


def layer_firing(rate):
    synchrony = {"mean": None, "neurons": 4, "constant": 4, "histogram": []}
    return {"firing_rate": rate, "neurons": 8, "dead": 1, "saturated": 0, "mean_interval": 3.0, "synchrony": synchrony}


def model(name="spiking", block="output", **changes):
    is_spiking = block != "none"
    raster = Raster(layer="blocks.0.time_mix_neuron", prompt=tuple("a \t$<é"), tokens=(0, 2), neurons=(1, 0), n_neurons=4)
    values = {
        "name": name,
        "block": block,
        "text": "a text",
        "protocol": "stream",
        "tokens": 10,
        "text_bytes": 20,
        "parameters": 1000,
        "bits_per_byte": 1.5,
        "firing_rate": 0.2 if is_spiking else None,
        "layers": (LAYER if is_spiking else dataclasses.replace(LAYER, idealised_acs=None),),
        "per_token": {phase: {"dense_ops": 100.0, "add": 7.0, "exp": 2.0} for phase in ("prefill", "decode")},
        "by_kind": {"matmul": {"dense_ops": 100.0}},
        "firing": {"layers": {f"blocks.0.{half}_mix_neuron": layer_firing(0.2) for half in ("time", "channel")}} if is_spiking else None,
        "rasters": (raster,) if is_spiking else (),
        "energy": {phase: {"table": energy(unpriced=("exp",)), "priceless": energy(None, ("mac",))} for phase in ("prefill", "decode")},
        "state_elements": 50,
        "key_value_elements_per_token": 20,
        "parameter_bits": 32,
        "tokens_per_s": {"prefill": 1000.0, "decode": 100.0},
        "host": "a processor",
    }
    return Measurement(**values | changes)


PAIR = (model(), model("dense", "none"))


class Nesting(html.parser.HTMLParser):
    """Notes every tag and attribute, and fails where one closes another."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], set(), []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_asks_nobody_for_anything(tmp_path):
    page = write_report(tmp_path / "report", PAIR, title="A title", claims=CLAIMS).read_text()
    parsed = Nesting(page)
    assert not parsed.tags & {"script", "link", "iframe", "object"}
    sources = [value for name, value in parsed.attributes if name in ("src", "href", "srcset", "data")]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in page and "@import" not in page
    assert ("lang", "en") in parsed.attributes and ("name", "viewport") in parsed.attributes


def test_names_and_sentences_are_escaped(tmp_path):
    evil = model("<script>alert(1)</script>", text="<b>", uncounted=({"operator": "<i>x", "calls": 1, "elements": 2},))
    page = write_report(tmp_path / "report", [evil], title="<h1>&", claims=CLAIMS).read_text()
    assert not Nesting(page).tags & {"script", "b", "i"}
    assert "&lt;h1&gt;&amp;" in page


def test_what_was_not_counted_is_said_loudly(tmp_path):
    uncounted = ({"operator": "mine.scan.default", "calls": 3, "elements": 9},)
    page = write_report(tmp_path / "report", [model(uncounted=uncounted)], title="t").read_text()
    assert 'class="alarm"' in page and "mine.scan.default (3 calls)" in page
    assert 'class="alarm"' not in write_report(tmp_path / "other", PAIR, title="t").read_text()


def test_json_and_csv_hold_what_was_measured(tmp_path):
    write_report(tmp_path / "report", PAIR, title="t", claims=CLAIMS)
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert content["measurements"] == json.loads(json.dumps([measurement.to_dict() for measurement in PAIR]))
    assert content["claims"]["total_ratio"] == 32.15
    with (tmp_path / "report" / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["module"], float(row["dense_ops"]), row["is_spike_driven"]) for row in rows] == [
        ("spiking", "blocks.0.att.key", 100.0, "False"),
        ("dense", "blocks.0.att.key", 100.0, "False"),
    ]


def test_figures_lie_beside_the_page(tmp_path):
    write_report(tmp_path / "report", PAIR, title="t")
    drawn = {path.name for path in (tmp_path / "report" / "figures").iterdir()}
    names = ("operations", "energy", "quality_against_operations", "state_memory", "firing_rates", "raster")
    assert drawn == {f"{name}.png" for name in names}


def test_a_report_replaces_the_one_before_and_leaves_nothing_behind(tmp_path):
    write_report(tmp_path / "report", PAIR, title="first")
    assert "second" in write_report(tmp_path / "report", PAIR, title="second").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_an_interruption_leaves_the_report_before_untouched(tmp_path, monkeypatch):
    before = write_report(tmp_path / "report", PAIR, title="first").read_text()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report_module, "_csv", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path / "report", PAIR, title="second")
    assert (tmp_path / "report" / "report.html").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ReportError, match="is no report"):
        write_report(tmp_path, PAIR, title="t")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"cannot write the report .*file.*give another folder"):
        write_report(tmp_path / "file" / "report", PAIR, title="t")


def test_nothing_to_report_is_refused(tmp_path):
    with pytest.raises(ReportError, match="nothing to report"):
        write_report(tmp_path / "report", [], title="t")


def test_the_table_marks_what_has_no_price():
    table = comparison_table(PAIR)
    (priced,) = (line for line in table.splitlines() if line.startswith("  table"))
    (priceless,) = (line for line in table.splitlines() if line.startswith("  priceless"))
    assert priced.split(None, 1)[1].startswith("> 2.00 µJ (1.00 µJ to 4.00 µJ)")
    assert priceless.split() == ["priceless", "no", "price", "no", "price"]
    assert max(map(len, table.splitlines())) <= 120


@pytest.mark.parametrize("models", [PAIR, PAIR[1:], PAIR[:1], (*PAIR, model("third", "input"), model("fourth"))], ids=len)
@pytest.mark.parametrize("name", ["operations", "energy", "quality_against_operations", "state_memory", "firing_rates"])
def test_a_figure_is_drawn_of_any_set_of_models(name, models):
    assert to_png(getattr(figures, name)(models)).startswith(b"\x89PNG")


def test_the_same_figure_is_the_same_file():
    assert to_svg(figures.operations(PAIR)) == to_svg(figures.operations(PAIR))


def test_a_silent_raster_and_a_dense_model_are_drawn():
    silent = dataclasses.replace(PAIR[0].rasters[0], tokens=(), neurons=())
    for shown in (model(rasters=(silent,)), PAIR[1]):
        assert to_png(figures.raster(shown)).startswith(b"\x89PNG")


def test_a_raster_shows_its_prompt_with_visible_white_space():
    drawn = to_svg(figures.raster(PAIR[0]))
    for character in ("␣", "⇥", "$", "&lt;", "é"):
        assert f">{character}</text>" in drawn


def test_the_idealised_bar_is_drawn_as_hypothetical():
    assert "hypothetical" in to_svg(figures.operations(PAIR))
    assert "hypothetical" not in to_svg(figures.operations(PAIR[1:]))
