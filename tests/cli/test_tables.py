"""Tables in files: what stands in them by their ending, and that a bad place is found before the long part."""

import csv
import json

import pytest

from spikegpt.cli.parsing import UsageError
from spikegpt.cli.tables import check_table, write_table
from spikegpt.cli.verbs import VERBS, main
from spikegpt.common.errors import SpikegptError

CELLS = [["run", "a_b", "100%"], ["bits/byte", "1.5000", "2.0000"]]
RESULTS = [{"run": "a_b", "stream": {"bits": 1.5}}, {"run": "=1+1", "stream": {"bits": 2.0, "words": 3}}]


def test_a_spreadsheet_gets_a_line_for_each_result_and_no_formula(tmp_path):
    write_table(tmp_path / "t.csv", CELLS, RESULTS)
    rows = list(csv.reader((tmp_path / "t.csv").read_text().splitlines()))
    assert rows == [["run", "stream.bits", "stream.words"], ["a_b", "1.5", ""], ["'=1+1", "2.0", "3"]]


def test_a_paper_gets_the_printed_cells(tmp_path):
    write_table(tmp_path / "t.TEX", CELLS, RESULTS)
    lines = (tmp_path / "t.TEX").read_text().splitlines()
    assert lines[0] == r"\begin{tabular}{lrr}" and lines[2] == r"run & a\_b & 100\% \\"
    assert lines[4] == r"bits/byte & 1.5000 & 2.0000 \\" and lines[-1] == r"\end{tabular}"


def test_a_program_gets_the_results(tmp_path):
    write_table(tmp_path / "t.json", CELLS, RESULTS)
    assert json.loads((tmp_path / "t.json").read_text()) == RESULTS


def test_a_place_where_no_table_can_be_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"table\.pdf, whose ending says no format; give one of \.csv, \.tex, \.json"):
        check_table(tmp_path / "table.pdf")
    with pytest.raises(SpikegptError, match="give a file in a folder that is there"):
        check_table(tmp_path / "absent" / "table.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(SpikegptError, match="give a file"):
        check_table(tmp_path / "folder.csv")


def test_evaluate_writes_what_it_prints(trained, cache, tmp_path, capsys):
    reading = ["--tokens", "100", "--cache", str(cache), "--threads", "1"]
    assert VERBS["evaluate"]([str(trained), *reading, "--out", str(tmp_path / "t.tex")]) == 0
    shown, written = capsys.readouterr().out, (tmp_path / "t.tex").read_text()
    bits = [line.split()[-1] for line in shown.splitlines() if line.startswith("  bits/character")]
    assert len(bits) == 2 and all(number in written for number in bits) and str(trained).replace("_", r"\_") in written


def test_last_words_are_written_too(trained, tmp_path, capsys):
    (tmp_path / "passages").write_text("two words\n")
    words = ["--last-word", str(tmp_path / "passages"), "--threads", "1", "--out", str(tmp_path / "t.csv")]
    assert VERBS["evaluate"]([str(trained), *words]) == 0
    header, line = csv.reader((tmp_path / "t.csv").read_text().splitlines())
    assert line[header.index("passages")] == "1" and "accuracy" in header


def test_evaluate_reads_nothing_for_a_table_that_it_cannot_write(trained, tmp_path, capsys):
    assert main(["evaluate", str(trained), "--out", str(tmp_path / "t.pdf")]) != 0
    assert "says no format" in capsys.readouterr().err
