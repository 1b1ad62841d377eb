"""The examples of docs/examples/ run, each in an empty folder: scripts, and notebooks cell by cell in a kernel."""

import os
import runpy
from pathlib import Path

import pytest

TREE = Path(__file__).parents[1]
EXAMPLES = TREE / "docs" / "examples"
SHORTER = {"steps=150": "steps=20", "eval_every=50": "eval_every=10", '"steps": 40': '"steps": 8'}
SCRIPTS, NOTEBOOKS = sorted(EXAMPLES.glob("*.py")), sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip()


@pytest.fixture
def kernel_environment(monkeypatch, tmp_path_factory):
    """Kernels are processes of their own: the tree comes first there, and one thread is enough."""
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(TREE), before))))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))


def _to_be_run(notebook):
    """Without outputs, and with fewer steps than it was kept with."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            for long, short in SHORTER.items():
                cell.source = cell.source.replace(long, short)
    return notebook


def _pictures(notebook) -> int:
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", ()))
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_the_pictures_that_it_is_kept_with(path, tmp_path, kernel_environment):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    kept = nbformat.read(path, as_version=4)
    pictures = _pictures(kept)
    where = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(_to_be_run(kept), timeout=600, kernel_name="python3", resources=where)
    assert _pictures(client.execute()) == pictures >= 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_as_it_ran_from_top_to_bottom_and_without_warnings(path):
    nbformat = pytest.importorskip("nbformat")
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    said = [output for cell in cells for output in cell.outputs if output.output_type == "stream"]
    assert not [output.text for output in said if output.name == "stderr" and "Warning" in output.text]


def test_three_notebooks_and_some_scripts_are_there():
    assert len(NOTEBOOKS) == 3 and len(SCRIPTS) >= 3


def test_what_is_run_shorter_stands_in_a_notebook():
    text = "".join(path.read_text() for path in NOTEBOOKS).replace('\\"', '"')
    assert all(long in text for long in SHORTER)
