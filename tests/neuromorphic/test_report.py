"""Reports: whole or not there, safe whatever the names are, and the same figures in every form."""

import csv
import dataclasses
import html.parser
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from reports import PAIR, energy, layer_firing, memory_point, model

from neuromorphic import Claims
from neuromorphic.count.counts import Counts
from neuromorphic.report import folder as report_module
from neuromorphic.report.folder import ReportError, _replace, check_folder, comparison_table, write_report
from neuromorphic.report.measurement import per_token

CLAIMS = Claims(
    per_projection_ratio=33.33,
    total_ratio=32.15,
    idealised_ratio=25.0,
    as_built_ratio=1.0,
    sentence="No product <reads> a spike.",
)


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

    def handle_startendtag(self, tag, attributes):
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_asks_nobody_for_anything(tmp_path):
    page = write_report(tmp_path / "report", PAIR, title="A title", claims=CLAIMS).read_text()
    parsed = Nesting(page)
    assert not parsed.tags & {"script", "link", "iframe", "object"}
    assert not [name for name, value in parsed.attributes if "http" in value or name in ("src", "srcset", "data")]
    assert set(re.findall(r"(?:url\(|href=.)(.)", page)) == {"#"} and "@import" not in page
    assert ("lang", "en") in parsed.attributes and ("name", "viewport") in parsed.attributes


def test_what_a_figure_refers_to_is_there_once(tmp_path):
    attributes = Nesting(write_report(tmp_path / "report", PAIR, title="t").read_text()).attributes
    ids = [value for name, value in attributes if name == "id"]
    referred = {value[1:] for name, value in attributes if name == "href"}
    referred |= {reference for _, value in attributes for reference in re.findall(r"url\(#(.+?)\)", value)}
    assert len(ids) == len(set(ids)) and set(ids) == referred


def test_every_figure_is_described_by_what_is_seen(tmp_path):
    attributes = Nesting(write_report(tmp_path / "report", PAIR, title="t").read_text()).attributes
    labels = [value for name, value in attributes if name == "aria-label"]
    assert attributes.count(("role", "img")) == len(labels) == 6
    assert "spiking: no matrix product reads a spike" in labels


def test_names_and_sentences_are_escaped(tmp_path):
    evil = model("<script>alert(1)</script>", text="<b>", uncounted=({"operator": "<i>x", "calls": 1, "elements": 2},))
    page = write_report(tmp_path / "report", [evil], title="<h1>&", claims=CLAIMS).read_text()
    assert not Nesting(page).tags & {"script", "b", "i"}
    assert "&lt;h1&gt;&amp;" in page


def test_names_that_are_no_text_are_shown_all_the_same(tmp_path):
    evil = model("a\udc80\x00$x_1$", firing={"layers": {"\udc80\n": layer_firing(0.1)}})
    Nesting(write_report(tmp_path / "report", [evil], title="\udc80").read_text())
    assert json.loads((tmp_path / "report" / "report.json").read_text())["measurements"][0]["name"] == evil.name


def test_the_price_tables_say_what_they_have_no_price_for(tmp_path):
    page = write_report(tmp_path / "report", PAIR, title="t").read_text()
    # 7 in a measurement of 10 tokens
    assert "no price for exp" in page and "<td>no price<small>[700 m per token]</small></td>" in page
    assert "Grade: simulated" in page and "Source: Doe 2031" in page


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


def test_what_memory_costs_stands_where_it_was_measured(tmp_path):
    points = (memory_point(), memory_point("full", 128, None), memory_point("constant state", model="spiking"))
    # measured together, so both runs have the first point
    pair = (dataclasses.replace(PAIR[0], context=points), dataclasses.replace(PAIR[1], context=points[:1]))
    page = write_report(tmp_path / "r", pair, title="a title").read_text()
    assert "What a text&#x27;s memory costs" in page or "What a text's memory costs" in page
    assert "3 points" in page and "4.00 kB" in page and "not predicted" in page
    assert page.index(">full<") < page.index(">roco:16<")
    assert (tmp_path / "r" / "figures" / "bits_against_bytes.png").is_file()
    written = json.loads((tmp_path / "r" / "report.json").read_text())["measurements"]
    assert [len(measurement["context"]) for measurement in written] == [3, 1]
    assert "memory costs" not in write_report(tmp_path / "s", PAIR, title="a title").read_text()


def test_reports_that_are_written_at_once_do_not_stop_each_other(tmp_path):
    """Of two, one is there in the end, whole: its two files bear the same number."""

    def write(number: int) -> None:
        for turn in range(20):
            unfinished = tmp_path / f".{number}.{turn}"
            unfinished.mkdir()
            for name in ("report.json", "report.html"):
                (unfinished / name).write_text(str(number))
            _replace(tmp_path / "report", unfinished)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    written = [(tmp_path / "report" / name).read_text() for name in ("report.json", "report.html")]
    assert written[0] == written[1]


@pytest.mark.parametrize("event", ["another comes", "the old one goes"])
def test_what_another_writer_does_in_between_is_no_hindrance(event, tmp_path, monkeypatch):
    report, other = tmp_path / "report", tmp_path / "other"
    for folder in (report, other):
        write_report(folder, PAIR, title=folder.name)
    rename = report_module.os.replace

    def raced(source, target):
        if event == "another comes" and target == report and other.exists():
            rename(other, report)
        if event == "the old one goes" and source == report and other.exists():
            rename(report, tmp_path / "gone")
            rename(other, tmp_path / "away")
        rename(source, target)

    monkeypatch.setattr(report_module.os, "replace", raced)
    assert "last" in write_report(report, PAIR, title="last").read_text() and not other.exists()
    assert {path.name for path in tmp_path.iterdir()} - {"gone", "away"} == {"report"}


def test_where_no_folder_can_be_is_said_before_the_measurement(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ReportError, match="file is no folder to write in"):
        check_folder(tmp_path / "file" / "deep" / "report")


def test_notes_such_as_the_steps_of_a_training_are_a_row_of_the_table():
    done, begun = (dataclasses.replace(PAIR[0], notes=(f"trained for {steps} of 12 steps",)) for steps in (12, 8))
    row = next(line for line in comparison_table([done, begun]).splitlines() if line.startswith("notes"))
    assert row.split("  trained for ")[1:] == ["12 of 12 steps", "8 of 12 steps"]
    assert "notes" not in comparison_table(PAIR)


@pytest.mark.parametrize("tokens", [0, -1, float("nan")])
def test_nothing_is_divided_by_no_tokens(tokens):
    with pytest.raises(ValueError, match="per_token needs at least 1 token"):
        per_token(Counts(), tokens)


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


def test_an_interruption_between_the_two_renamings_brings_the_report_back(tmp_path, monkeypatch):
    before = write_report(tmp_path / "report", PAIR, title="first").read_text()
    rename = report_module.os.replace

    def interrupted(source, target):
        if source.name.startswith(".") and not source.name.endswith(".old"):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(report_module.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path / "report", PAIR, title="second")
    assert (tmp_path / "report" / "report.html").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


@pytest.mark.parametrize("beside", [(), ("report.json",)], ids=["alone", "in a report"])
@pytest.mark.parametrize("name", ["thesis.tex", "figures/photo.jpg"])
def test_a_folder_with_something_else_in_it_is_not_replaced(tmp_path, name, beside):
    (tmp_path / "figures").mkdir()
    for file in (name, *beside):
        (tmp_path / file).write_text("years of work")
    with pytest.raises(ReportError, match=rf"is no report: .*{name} is none of its files"):
        write_report(tmp_path, PAIR, title="t")
    assert (tmp_path / name).read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path, monkeypatch):
    (tmp_path / "report").mkdir()
    monkeypatch.chdir(tmp_path / "report")
    assert write_report(Path("."), PAIR, title="t") == Path("report.html")
    assert (tmp_path / "report" / "report.html").is_file()


def test_json_has_null_for_what_is_not_finite(tmp_path):
    claims = dataclasses.replace(CLAIMS, idealised_ratio=float("inf"))
    write_report(tmp_path / "report", [model(bits_per_byte=float("nan"))], title="t", claims=claims)
    content = json.loads((tmp_path / "report" / "report.json").read_text(), parse_constant=pytest.fail)
    assert content["claims"]["idealised_ratio"] is content["measurements"][0]["bits_per_byte"] is None


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
    assert priced.split(None, 1)[1].startswith("> 2.00 µJ [1.00–4.00 µJ]")
    assert priceless.split() == ["priceless", "no", "price", "no", "price"]


def test_the_table_fits_a_terminal_however_many_models_there_are():
    long = "a-name-that-is-much-too-long-for-a-column"
    table = comparison_table(
        [model(f"{long}-{index}", energy={"prefill": {"t": energy(9.99e8, ("exp",))}}) for index in range(4)]
    )
    assert max(map(len, table.splitlines())) <= 120
    assert table.count("bits per byte") == 2


def test_what_an_estimate_assumed_stands_with_it(tmp_path):
    assumed = {"integer spikes": "units, that is, n events", "neurons": "an update stands for <lif>"}
    energies = {"prefill": {"table": {**energy(), "assumptions": assumed}}}
    energies["prefill"]["table"]["terms"][0]["source"] = "Table 9"
    measured = [model(name="first", energy=energies), model(name="second", energy=energies)]
    page = write_report(tmp_path / "report", measured, title="t").read_text()
    assert "Assumed of first, second: integer spikes: units, that is, n events." in page
    assert "stands for &lt;lif&gt;" in page and "from Table 9" in page
    assert "integer spikes in table: units, that is, n events" in comparison_table(measured)
    assert "integer spikes" not in comparison_table(PAIR)
