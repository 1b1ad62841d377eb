"""Models that come with spikegpt, on the command line; `list` of them and of runs."""

import importlib
import json
from pathlib import Path

import pytest
from command_line import spikegpt

from spikegpt.checkpoint.shipped import CARD, PAIR

HEAD = """---
license: apache-2.0
model-index:
- name: novels-5m
  results:
  - dataset: {name: English novels}
    metrics: [{type: bits_per_byte, value: 1.5}, {type: firing_rate, value: 0.19}]
---
# novels-5m
"""


def test_list_reads_the_cards(shipped):
    (shipped / PAIR[0] / CARD).write_text(HEAD)
    titles, *lines = spikegpt("list").stdout.splitlines()
    assert titles.split() == [
        "name",
        "parameters",
        "generation",
        "spiking",
        "bits/byte",
        "firing",
        "licence",
        "trained",
        "on",
    ]
    assert lines[0].split() == [
        "novels-5m",
        "0.0M",
        "rwkv4",
        "input",
        "1.500",
        "19.0%",
        "apache-2.0",
        "English",
        "novels",
    ]
    # without a card
    assert lines[1].split() == ["novels-5m-twin", "0.0M", "rwkv4", "none"]
    first, second = json.loads(spikegpt("list", "--json").stdout)
    assert (first["bits_per_byte"], first["source"], second["licence"]) == (1.5, "English novels", None)


@pytest.mark.parametrize("text", ["no card", "---\n[\n---\n", "---\n- a\n---\n"])
def test_a_broken_card_is_named(shipped, text):
    (shipped / PAIR[0] / CARD).write_text(text)
    assert f"{shipped / PAIR[0] / CARD} is no model card" in spikegpt("list", check=False).stderr


def test_list_of_runs_says_how_far_they_came(trained, tmp_path):
    (tmp_path / "trained").symlink_to(trained)
    (tmp_path / "other").mkdir()
    titles, line = spikegpt("list", tmp_path).stdout.splitlines()
    assert titles.split() == ["name", "parameters", "generation", "spiking", "steps", "bits/byte", "trained", "on"]
    assert line.split()[:7] == ["trained", "0.0M", "rwkv4", "input", "12", "of", "12"]
    assert line.endswith("  python-docs")
    assert spikegpt("list", trained).stdout.splitlines()[1].startswith("trained  ")


def test_list_of_what_holds_no_runs_is_refused(tmp_path):
    assert "holds no runs; train one with: spikegpt train" in spikegpt("list", tmp_path, check=False).stderr
    assert "is no folder" in spikegpt("list", tmp_path / "none", check=False).stderr


def test_list_without_any_says_so(shipped, tmp_path, monkeypatch):
    monkeypatch.setattr("spikegpt.checkpoint.shipped.home", lambda: tmp_path / "none")
    assert spikegpt("list").stdout == "no models come with this installation\n"


def test_verbs_take_the_name(shipped):
    assert spikegpt("generate", PAIR[0], "It", "--max-tokens", "3").stdout.startswith("It")
    assert json.loads(spikegpt("info", PAIR[0], "--json").stdout)["source"] == str(shipped / PAIR[0])
    spikegpt("raster", PAIR[0], "It was")
    assert Path("spikes.png").exists()


@pytest.mark.slow
def test_a_report_of_both_is_written_here(shipped):
    before = sorted(shipped.rglob("*"))
    Path("text.txt").write_text("It was the best of times, it was the worst of times.")
    said = spikegpt("compare", PAIR[0], "--twin", "--file", "text.txt", "--threads", "1").stdout
    assert said.endswith("report: runs/measured/novels-5m/report/report.html\n")
    assert "novels-5m-twin" in said and Path("runs/measured/novels-5m/report/report.html").exists()
    assert sorted(shipped.rglob("*")) == before


def test_a_text_is_asked_for_where_it_has_none(shipped):
    for words in (["evaluate", PAIR[0]], ["measure", PAIR[0]]):
        assert "give one with --file" in spikegpt(*words, check=False).stderr
    assert "give the text with --data" in spikegpt("convert", PAIR[1], check=False).stderr


def test_serve_without_a_run_shows_the_pair(shipped, monkeypatch):
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    shown = []
    server = importlib.import_module("spikegpt.serve.server")
    monkeypatch.setattr(server, "serve", lambda runs, *_, **__: shown.extend(runs))
    spikegpt("serve")
    assert shown == list(map(Path, PAIR))
