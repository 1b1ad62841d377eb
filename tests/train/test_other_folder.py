"""What a run rests on is found from every folder, not only from the one where training began."""

import dataclasses
import json

import pytest
from runs import MODEL, TRAIN, break_off
from texts import write

from spikegpt.cli import verbs
from spikegpt.data.tokenizers import BPETokenizer
from spikegpt.evaluate.runs import evaluate_run
from spikegpt.measure.twins import find_twin
from spikegpt.train.trainer import resume, train

TEXT = "the neuron fires and rests, and fires again. " * 60


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A folder with a text, a tokenizer and a teacher, and the working folder: all of them are named from there."""
    folder = write(tmp_path / "begun", story=TEXT)
    BPETokenizer.train(TEXT.encode(), 280).save(folder / "tokenizer.json")
    monkeypatch.chdir(folder)
    return folder


def leave(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def test_a_run_goes_on_and_is_evaluated_in_another_folder(begun, tmp_path, cache, monkeypatch):
    relative = dataclasses.replace(TRAIN, data=("story.txt",), tokenizer="tokenizer.json")
    train(MODEL.twin(), relative, "teacher", cache=cache, quiet=True)
    paths = {"data": ("story.txt",), "tokenizer": "tokenizer.json", "teacher": "teacher"}
    break_off(monkeypatch, begun / "run", cache, after=6, start="teacher", **paths)
    leave(tmp_path, monkeypatch)
    assert resume(begun / "run", cache=cache, quiet=True).step == TRAIN.steps
    assert evaluate_run(begun / "run", limit=50, cache=cache)["text"] == f"{begun / 'story.txt'} (test)"
    values = json.loads((begun / "run" / "config.json").read_text())
    assert values["train"]["tokenizer"] == str(begun / "tokenizer.json")
    assert values["train"]["teacher"] == values["started_from"] == str(begun / "teacher")


def test_what_is_no_path_stays_as_it_is(begun, cache):
    train(MODEL, dataclasses.replace(TRAIN, steps=1, tokenizer="char"), "run", cache=cache, quiet=True)
    values = json.loads((begun / "run" / "config.json").read_text())["train"]
    assert (values["data"], values["tokenizer"], values["teacher"]) == (["python-docs"], "char", None)


def test_a_twin_is_found_beside_a_run_of_old_with_relative_paths(begun, cache):
    training = dataclasses.replace(TRAIN, steps=1, data=("story.txt",))
    for name, model in (("run", MODEL), ("run-twin", MODEL.twin())):
        train(model, training, name, cache=cache, quiet=True)
    config = begun / "run" / "config.json"
    config.write_text(config.read_text().replace(str(begun / "story.txt"), "story.txt"))
    assert find_twin(begun / "run") == begun / "run-twin"


def test_the_command_line_stores_whole_paths_too(begun, tmp_path, cache, monkeypatch):
    flags = ["--data", "story.txt", "--out", "run", "--steps", "1", "--n-embd", "16", "--ctx-len", "16", "--json"]
    assert verbs.main(["train", *flags, "--eval-tokens", "64", "--cache", str(cache)]) == 0
    leave(tmp_path, monkeypatch)
    assert verbs.main(["evaluate", str(begun / "run"), "--tokens", "50", "--cache", str(cache), "--json"]) == 0
