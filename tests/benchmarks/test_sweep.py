"""A sweep gives the same lines whether it was broken off or not, and leaves no training behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest

from benchmarks.sweep import (
    Running,
    check,
    is_free,
    keep_configurations,
    read_configurations,
    read_results,
    sweep,
    words_of,
)
from spikegpt.checkpoint.run import latest_checkpoint, step_of
from spikegpt.common.errors import SpikegptError
from spikegpt.config import model_preset, train_preset
from spikegpt.train import train

SWEEP = Path(__file__).parents[2] / "benchmarks" / "sweep.py"
TINY = {"n_layer": 1, "n_embd": 16, "ctx_len": 16, "batch_size": 2, "eval_tokens": 200, "sample_every": 0}


def command(out: Path, cache: Path, *configurations: dict) -> list:
    file = out.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(TINY | given) + "\n" for given in configurations))
    return [sys.executable, SWEEP, out, file, "--jobs", "1", "--cache", cache]


def results(out: Path) -> list[dict]:
    """The lines of the results, without what the machine decides."""
    lines = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    return [{key: line[key] for key in line if key not in ("seconds", "tokens_per_s", "commit")} for line in lines]


def wait_for(happened) -> None:
    ends = time.monotonic() + processes.HANGS_S
    while not happened():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_sweep_leaves_nobody_behind_and_goes_on(tmp_path, cache):
    """What failed is a line and stops nobody; what was broken off ends as if it had not been."""
    # at the first checkpoint a training has seconds to go
    long = {"name": "long", "steps": 80, "save_every": 5}
    diverging = {"name": "diverging", "spiking": "none", "lr": 1e30, "steps": 3, "warmup_steps": 0}
    arguments = command(tmp_path / "out", cache, long, diverging, {"name": "refused", "n_layer": 0})
    broken, run = processes.start(arguments), tmp_path / "out" / "long"
    wait_for(lambda: latest_checkpoint(run, warn=lambda message: None))
    broken.kill()
    # nobody tells the training to stop: it sees that the sweep is gone
    wait_for(lambda: is_free(run))
    assert step_of(latest_checkpoint(run)) < 80
    assert processes.run(arguments).returncode == 1
    by_name = {line["name"]: line for line in results(tmp_path / "out")}
    assert "n_layer must be a whole number from 1" in by_name["refused"]["error"]
    assert "not finite" in by_name["diverging"]["error"] or "nan" in by_name["diverging"]["error"]
    configuration = TINY | {key: long[key] for key in ("steps", "save_every")}
    check(configuration)
    sizes = {key: configuration[key] for key in ("n_layer", "n_embd", "ctx_len")}
    rest = {key: configuration[key] for key in configuration if key not in sizes}
    unbroken = train(
        model_preset("tiny", **sizes),
        train_preset("tiny", "input", threads=1, precision=words_of({})[-1], **rest),
        tmp_path / "unbroken",
        cache=cache,
        quiet=True,
    )
    assert by_name["long"] == {
        "name": "long",
        "configuration": configuration,
        "step": 80,
        "bits_per_byte": unbroken.valid.bits_per_byte,
        "firing_rate": unbroken.valid.firing_rate,
    }


def test_a_signal_stops_the_trainings_and_begins_no_other(tmp_path, monkeypatch):
    """The trainings are stood for by a program that ends with its standard input, and says it was stopped."""
    begun = []

    def start(out, name, configuration, more):
        begun.append(name)
        os.kill(os.getpid(), signal.SIGTERM)
        process = processes.start(["sh", "-c", "cat; exit 143"], stdin=subprocess.PIPE)
        return Running(name, process, tmp_path / "log", 0, 0.0)

    monkeypatch.setattr("benchmarks.sweep.start", start)
    configurations = {"a": {"seed": 0}, "b": {"seed": 1}}
    assert sweep(tmp_path, configurations, 1, [], "commit") == signal.SIGTERM
    assert begun == ["a"]
    assert read_results(tmp_path) == {}


def test_a_name_does_not_change_its_meaning(tmp_path):
    keep_configurations(tmp_path, {"a": {"lr": 0.1}})
    # nothing was trained yet
    keep_configurations(tmp_path, {"a": {"lr": 0.2}})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    with pytest.raises(SpikegptError, match="give it another name"):
        keep_configurations(tmp_path, {"a": {"lr": 0.1}})


def test_grid_gives_each_value_with_each():
    found = read_configurations(None, ["lr=1e-3,2e-3", "spiking=none"])
    assert found == {
        "lr=0.001_spiking=none": {"lr": 0.001, "spiking": "none"},
        "lr=0.002_spiking=none": {"lr": 0.002, "spiking": "none"},
    }


def test_flags_may_have_dashes_as_on_the_command_line(tmp_path):
    file = tmp_path / "sweep.jsonl"
    file.write_text('{"name": "a", "eval-every": 20}')
    (configuration,) = read_configurations(file, ["save-every=10"]).values()
    assert configuration == {"eval_every": 20, "save_every": 10}
    check(configuration)


def test_one_text_is_a_list_of_one():
    (configuration,) = read_configurations(None, ["data=a text.txt"]).values()
    check(configuration)
    assert words_of(configuration) == [*words_of({}), "--data", "a text.txt"]


def test_names_are_those_of_folders_and_stand_once(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text('[[run]]\nname = "../a b"\nsteps = 2\n')
    assert list(read_configurations(file, ["seed=0,1"])) == ["a-b_seed=0", "a-b_seed=1"]
    with pytest.raises(SpikegptError, match="not the only one"):
        read_configurations(file, ["seed=0,0"])


def test_values_become_flags():
    configuration = {"freeze": ["emb.*", "*.att.*"], "signed": False, "spiking_head": True, "lr": 0.1}
    words = ["--freeze", "emb.*", "*.att.*", "--no-signed", "--spiking-head", "--lr", "0.1"]
    assert words_of(configuration) == [*words_of({}), *words]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"lr": -1.0}, "lr must be"),
        ({"stepz": 3}, "did you mean 'steps'"),
        ({"preset": "huge"}, "unknown preset"),
        ({"membrane_decay": 2.0}, "membrane_decay must be"),
    ],
)
def test_a_wrong_configuration_is_refused_in_words(wrong, said):
    with pytest.raises(ValueError, match=said):
        check(wrong)


def test_all_that_are_compared_have_one_precision_and_one_thread():
    *words, precision = words_of({})
    assert words == ["--threads", "1", "--precision"] and precision in ("bf16", "no")
    # the last counts
    assert words_of({"precision": "no"})[-2:] == ["--precision", "no"]
