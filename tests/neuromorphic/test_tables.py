"""A tally as rows, CSV and LaTeX, and what a reader sees of it."""

import csv
import io

import pytest
import torch
from counting import Computes, count
from reports import PAIR, model
from torch import nn

from neuromorphic import Counts, OpCounter, total
from neuromorphic.count.counts import MAXIMA, QUANTITIES
from neuromorphic.count.text import harmless, latex_table, text_table
from neuromorphic.report import comparison_csv, comparison_latex


class Network(nn.Module):
    """Two layers, spikes between them, and something that has no rule."""

    def __init__(self):
        super().__init__()
        self.up_1, self.down = nn.Linear(4, 6, bias=False), nn.Linear(6, 2)
        self.spike = Computes(lambda v: (v >= 0).float())
        self.rest = nn.ModuleDict({"a&b": Computes(lambda v: torch.fft.fft(v).real)})

    def forward(self, x):
        return self.rest["a&b"](self.down(self.spike(self.up_1(x))))


@pytest.fixture
def tally():
    return count(Network(), torch.ones(1, 3, 4))


def test_rows_are_modules_and_sum_to_the_total(tally):
    rows = tally.rows()
    assert [row["module"] for row in rows] == ["up_1", "spike", "down", "rest.a&b"]
    parts = [Counts(**{name: row[name] for name in QUANTITIES}) for row in rows]
    assert total(parts) == tally.total()
    # 3 tokens, 4 x 6 weights; 18 neurons; 6 x 2 weights
    assert [row["dense_ops"] for row in rows] == [72, 0, 36, 0]
    assert [row["neuron_updates"] for row in rows] == [0, 18, 0, 0]
    assert {row["tokens"] for row in rows} == {3}


def test_rows_are_what_a_data_frame_takes(tally):
    rows = tally.rows()
    assert len({tuple(row) for row in rows}) == 1 and set(QUANTITIES) < set(rows[0])
    kinds = {type(value) for row in rows for value in row.values()}
    assert kinds <= {str, int, float, type(None)}
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows).set_index("module")
    assert frame.loc["up_1", "dense_ops"] == 72 and frame[list(set(QUANTITIES) - set(MAXIMA))].to_numpy().sum() > 0


def test_a_module_says_what_is_not_counted_in_it(tally):
    assert [row["uncounted"] for row in tally.rows()] == ["", "", "", "aten._fft_r2c.default"]
    line = next(line for line in str(tally).splitlines() if line.startswith("rest.a&b"))
    assert line.endswith("1 operator")
    assert str(tally).splitlines()[0].endswith("not counted")


def test_work_that_multiplies_nothing_has_its_row_too(tally):
    line = next(line for line in str(tally).splitlines() if line.startswith("spike"))
    assert line.split()[1:4] == ["0", "0", "0"] and line.split()[-2] == "18"


def test_of_many_modules_those_that_multiply_are_shown():
    model = nn.Sequential(*(nn.ReLU() for _ in range(45)), nn.Linear(4, 2))
    lines = str(count(model, torch.rand(3, 4))).splitlines()
    assert any(line.startswith("45 ") for line in lines) and any(line.startswith("7 more modules") for line in lines)


def test_a_column_in_which_nothing_stands_is_left_out():
    header = str(count(nn.Linear(4, 2), torch.rand(3, 4) + 0.1)).splitlines()[0]
    assert "neuron updates" not in header and "not counted" not in header and "elementwise" in header


def test_a_module_that_is_called_twice_has_one_row():
    layer = nn.Linear(4, 4)
    rows = count(nn.Sequential(layer, layer), torch.rand(3, 4)).rows()
    assert [(row["module"], row["dense_ops"]) for row in rows] == [("0", 2 * 3 * 16)]


def test_rows_of_a_phase_are_of_that_phase():
    layer = nn.Linear(4, 2)
    with torch.no_grad(), OpCounter(layer) as counter:
        layer(torch.rand(3, 4))
        with counter.phase("decode"):
            layer(torch.rand(1, 4))
    tally = counter.tally()
    assert [tally.rows(phase)[0]["dense_ops"] for phase in ("prefill", "decode", None)] == [24, 8, 32]
    assert [tally.rows(phase)[0]["tokens"] for phase in ("prefill", "decode", None)] == [3, 1, 4]


def test_csv_has_a_header_and_a_line_per_module(tally):
    rows = list(csv.DictReader(io.StringIO(tally.to_csv())))
    assert [row["module"] for row in rows] == ["up_1", "spike", "down", "rest.a&b"]
    assert rows[0]["dense_ops"] == "72" and rows[1]["density"] == ""


def test_nothing_counted_is_a_table_with_a_header_only():
    with OpCounter(nn.Linear(1, 1)) as counter:
        pass
    tally = counter.tally()
    assert tally.rows() == [] and len(tally.to_csv().splitlines()) == 1
    assert str(tally).splitlines()[-1] == "uncounted: nothing" and r"\bottomrule" in tally.to_latex()


def test_latex_has_the_rules_of_booktabs_and_escaped_names(tally):
    lines = tally.to_latex().splitlines()
    columns = lines[2].count("&")
    assert lines[0] == rf"\begin{{tabular}}{{l{'r' * columns}}}"
    assert lines[1] == r"\toprule" and lines[3] == r"\midrule"
    assert lines[-2:] == [r"\bottomrule", r"\end{tabular}"]
    assert lines[4].startswith(r"up\_1 & 72 & ") and r"100.0\% &" in lines[4]
    assert any(line.startswith(r"rest.a\&b & ") for line in lines)
    assert {line.count("&") - line.count(r"\&") for line in lines if line.endswith(r"\\")} == {columns}


def test_every_character_that_latex_reads_is_escaped():
    table = latex_table([["", "n"], ["a_b%c&d#e$f{g}h", "1"], ["i~j^k\\l<m>n", "1"]])
    assert r"a\_b\%c\&d\#e\$f\{g\}h" in table
    assert r"i\textasciitilde{}j\textasciicircum{}k\textbackslash{}l\textless{}m\textgreater{}n" in table


def test_names_reach_no_terminal_and_no_spreadsheet_unread():
    model = nn.Sequential()
    model.add_module("=a\x1b[31m\n", nn.Linear(2, 2))
    tally = count(model, torch.rand(1, 2))
    assert "\x1b" not in str(tally) and "=a□[31m□" in str(tally) and "\x1b" not in tally.to_latex()
    assert tally.to_csv().splitlines()[1].startswith("'=a□[31m□")
    assert (harmless("-1"), harmless("a")) == ("'-1", "a")
    assert text_table([["a", "b"], ["long name", "1,000"]]) == "a              b\nlong name  1,000"


@pytest.mark.parametrize("ask", ["rows", "to_csv", "to_latex", "by_module", "by_kind", "token_count"])
def test_an_unknown_phase_is_no_empty_table(tally, ask):
    with pytest.raises(ValueError, match=r"there is no phase 'prefil'; did you mean 'prefill'[?]"):
        getattr(tally, ask)(phase="prefil")
    getattr(tally, ask)(phase="decode")


def test_all_close_names_are_said(tally):
    with pytest.raises(ValueError, match=r"no module 'up_2'; did you mean 'up_1'[?]$"):
        tally.total(module="up_2")
    tower = count(nn.Sequential(*(nn.Linear(2, 2) for _ in range(12))), torch.rand(1, 2))
    with pytest.raises(ValueError, match=r"no module '110'; did you mean '11'[?] close too: '10'"):
        tower.total(module="110")


@pytest.mark.parametrize("module", [3, nn.Linear(1, 1), nn.ModuleList(), b"up_1"])
def test_a_module_goes_by_its_path(tally, module):
    with pytest.raises(ValueError, match=r"there is no module"):
        tally.total(module=module)


def test_models_side_by_side_are_a_table_for_a_spreadsheet_and_for_a_paper():
    rows = list(csv.reader(io.StringIO(comparison_csv([*PAIR, model("=1+1")]))))
    assert rows[0] == ["quantity", "spiking", "dense", "'=1+1"]
    assert ["bits per byte", "1.5000", "1.5000", "1.5000"] in rows and {len(row) for row in rows} == {4}
    latex = comparison_latex(PAIR)
    assert r" & spiking & dense \\" in latex and r"bits per byte & 1.5000 & 1.5000 \\" in latex
