"""Whoever reads a run that was broken off is told so, by every verb, once."""

import pytest
from classification import write_examples
from command_line import spikegpt
from runs import MODEL, break_off, without_newest


@pytest.fixture
def broken(trained, tmp_path):
    """A copy of a run of 12 steps whose newest checkpoint is step 8."""
    return without_newest(trained, tmp_path / "runs" / "broken")


def arguments(verb: str, broken, tmp_path, cache) -> list:
    """A short command line of `verb` that reads the run `broken`."""
    text = ["--tokens", "32", "--cache", cache]
    training = ["--steps", "1", "--cache", cache]
    report = [*text, "--prices", "horowitz45-fp32", "--out", tmp_path / "report"]
    (tmp_path / "passages.txt").write_text("the cat sat on the mat\n")
    rows = write_examples(tmp_path / "rows.tsv", 30, seed=0)
    quick = ["--epochs", "1", "--seeds", "0", "--batch-size", "8"]
    return {
        "generate": ["generate", broken, "--max-tokens", "1"],
        "evaluate": ["evaluate", broken, *text],
        "evaluate --last-word": ["evaluate", broken, "--last-word", tmp_path / "passages.txt"],
        "info": ["info", broken],
        "measure": ["measure", broken, *report],
        "train --from": ["train", "--from", broken, "--out", tmp_path / "tuned", *training],
        "train --teacher": ["train", "--teacher", broken, "--out", tmp_path / "pupil", "--n-layer", "1", *training],
        "import": ["import", broken, "--out", tmp_path / "imported"],
        "export": ["export", broken, tmp_path / "exported", "--layout", "auto"],
        "finetune-classify": [
            *("finetune-classify", broken, "--train", rows, "--test", rows, "--out", tmp_path / "classifiers"),
            *quick,
        ],
    }[verb]


@pytest.mark.parametrize(
    "verb",
    [
        "generate",
        "evaluate",
        "evaluate --last-word",
        "info",
        "train --from",
        "train --teacher",
        "import",
        "finetune-classify",
        pytest.param("measure", marks=pytest.mark.slow),
        pytest.param("export", marks=pytest.mark.slow),
    ],
)
def test_a_verb_says_that_a_run_is_unfinished(verb, broken, tmp_path, cache):
    done = spikegpt(*arguments(verb, broken, tmp_path, cache))
    assert done.stderr.count(f"{broken}: step 8 of 12, unfinished") == 1


def test_lm_eval_says_that_a_run_is_unfinished(broken, capsys):
    pytest.importorskip("lm_eval")
    from spikegpt.evaluate.harness import SpikeGPTHarness

    SpikeGPTHarness(str(broken))
    assert capsys.readouterr().err.count(f"{broken}: step 8 of 12, unfinished") == 1


def test_export_in_the_layout_of_others_says_that_a_run_is_unfinished(tmp_path, cache, monkeypatch):
    break_off(monkeypatch, tmp_path / "dense", cache, 8, model=MODEL.twin())
    done = spikegpt("export", tmp_path / "dense", tmp_path / "dense.pth", "--layout", "pth")
    assert f"{tmp_path / 'dense'}: step 8 of 12, unfinished" in done.stderr


@pytest.mark.slow
def test_runs_that_are_compared_say_that_one_is_unfinished(broken, trained, tmp_path, cache):
    options = ["--tokens", "32", "--cache", cache, "--prices", "horowitz45-fp32", "--out", tmp_path / "report"]
    assert "broken: step 8 of 12, unfinished" in spikegpt("compare", trained, broken, *options).stderr


def test_a_finished_run_is_not_said_to_be_unfinished(trained):
    assert spikegpt("info", trained).stderr == ""
