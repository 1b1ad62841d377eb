"""Models that come with spikegpt: found by name from everywhere, and left as they are. Small ones stand for them."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from runs import MODEL, TRAIN

from spikegpt.checkpoint import load_model, save_model
from spikegpt.checkpoint.files import write_manifest
from spikegpt.checkpoint.run import results_folder
from spikegpt.checkpoint.shipped import PAIR, from_everywhere, home, shipped_folder, shipped_names
from spikegpt.common.errors import SpikegptError
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.measure.twins import make_twin
from spikegpt.model import SpikeGPT
from spikegpt.train import resume, train

DENSE = dataclasses.replace(MODEL, spiking="none", weight_bits=8)


def test_it_is_loaded_by_its_name(shipped):
    by_name, by_place = (load_model(path)[0].state_dict() for path in (PAIR[0], shipped / PAIR[0]))
    assert all(torch.equal(by_name[name], tensor) for name, tensor in by_place.items())


def test_its_codes_are_a_quarter_of_the_numbers(shipped, tmp_path):
    model, _ = load_model(PAIR[0])
    assert (
        model.weight_steps and (shipped / PAIR[0] / "model.safetensors").stat().st_size < 2 * model.count_parameters()
    )


def test_what_lies_here_under_its_name_is_meant_first(shipped):
    here = Path(PAIR[0])
    here.mkdir()
    save_model(here, SpikeGPT(dataclasses.replace(MODEL, n_layer=1)), ByteTokenizer())
    write_manifest(here)
    assert load_model(PAIR[0])[0].config.n_layer == 1
    assert shipped_folder(here) is None and from_everywhere(here) == here.absolute()


def test_a_name_that_is_almost_one_is_asked_back(shipped):
    with pytest.raises(
        SpikegptError, match=r"novel-5m is not the folder of a run .*; did you mean novels-5m, which comes"
    ):
        load_model("novel-5m")
    with pytest.raises(SpikegptError, match="train one with: spikegpt train --out runs/mine"):
        load_model("runs/mine")


def test_without_them_nothing_is_named(shipped, tmp_path, monkeypatch):
    monkeypatch.setattr("spikegpt.checkpoint.shipped.home", lambda: tmp_path / "none")
    assert shipped_names() == [] and shipped_folder(Path(PAIR[0])) is None


@pytest.mark.parametrize("path", [Path(PAIR[0]), "place"])
def test_what_is_measured_of_it_goes_into_the_folder_where_one_works(shipped, path):
    path = shipped / PAIR[0] if path == "place" else path
    assert results_folder(path) == Path("runs/measured") / PAIR[0]


def test_it_is_not_trained_on(shipped):
    before = {path: path.read_bytes() for path in shipped.rglob("*") if path.is_file()}
    for path in (PAIR[0], shipped / PAIR[0]):
        with pytest.raises(SpikegptError, match=r"stays as it is; begin a run .*: spikegpt train --from novels-5m"):
            resume(path)
    assert {path: path.read_bytes() for path in shipped.rglob("*") if path.is_file()} == before


def test_a_run_begins_with_its_weights_and_goes_on_from_any_folder(shipped, tmp_path, cache, monkeypatch):
    run, begun = tmp_path / "run", dataclasses.replace(TRAIN, steps=2, teacher=PAIR[1])
    train(DENSE, begun, run, start=PAIR[1], cache=cache, quiet=True)
    values = json.loads((run / "config.json").read_text())
    assert (values["started_from"], values["train"]["teacher"]) == (PAIR[1], PAIR[1])
    monkeypatch.chdir(tmp_path)
    assert resume(run, cache=cache, quiet=True).step == 2


def test_its_twin_came_with_it(shipped):
    assert make_twin(Path(PAIR[0])) == Path(PAIR[1])
    with pytest.raises(SpikegptError, match="no dense twin of novels-5m-twin comes with spikegpt"):
        make_twin(Path(PAIR[1]))


def test_they_lie_in_the_package():
    assert home() == Path(__file__).parents[2] / "spikegpt" / "shipped"
