"""`spikegpt convert`: a dense run becomes a spike-driven one, with its own text, taught by it."""

import json

import pytest
from command_line import spikegpt
from runs import MODEL

from spikegpt.config import HEALING, TrainConfig
from spikegpt.train.convert import healing_of


@pytest.fixture
def dense(make_run):
    return make_run("dense", model=MODEL.twin(), seed=3, batch_size=2, steps=14)


def test_a_dense_run_is_healed_on_its_own_text_taught_by_itself(dense, tmp_path, cache):
    out = tmp_path / "healed"
    done = json.loads(spikegpt("convert", dense, "--out", out, "--cache", cache, "--json", "--lr", "1e-3").stdout)
    # three for seven of its fourteen
    assert done["step"] == 6 and done["valid"]["firing_rate"] > 0
    values = json.loads((out / "config.json").read_text())
    begun = TrainConfig.from_dict(json.loads((dense / "config.json").read_text())["train"])
    training = TrainConfig.from_dict(values["train"])
    assert (training.data, training.seed, training.batch_size) == (begun.data, 3, 2)
    assert training.teacher == values["started_from"] == str(dense)
    # what is given changes the recipe
    assert training.lr == 1e-3
    assert all(getattr(training, name) == value for name, value in HEALING.items() if name != "lr")
    assert (values["model"]["spiking"], values["model"]["n_embd"]) == ("input", MODEL.n_embd)


def test_a_checkpoint_of_a_run_brings_the_runs_text(dense):
    (checkpoint,) = (dense / "checkpoints").glob("step-*14")
    _, training = healing_of(checkpoint)
    assert (training.seed, training.steps, training.teacher) == (3, 6, str(checkpoint))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["SPIKING"], "has --spiking input; only a dense model (--spiking none) is converted"),
        (["nothing"], "nothing is not the folder of a run or of a checkpoint"),
        ([], "PATH is missing: folder of a dense run"),
        (["DENSE", "--spiking", "output"], "what is converted becomes --spiking input"),
        (["DENSE", "--n-embd", "8"], "--n-embd cannot change to 8"),
        (["DENSE", "--resume", "run"], "unknown: --resume"),
        (["MODEL"], "is a model, not a run with a text of its own; give the text with --data"),
    ],
)
def test_what_cannot_be_converted_is_said_in_one_line(make_run, dense, tmp_path, cache, flags, message):
    runs = {"DENSE": dense, "MODEL": tmp_path / "model"}
    runs["MODEL"].mkdir()
    if "SPIKING" in flags:
        runs["SPIKING"] = make_run("spiking", steps=1)
    words = [str(runs.get(flag, flag)) for flag in flags]
    done = spikegpt("convert", *words, "--out", tmp_path / "out", "--cache", cache, check=False)
    assert done.returncode in (1, 2)
    assert message in done.stderr and "Traceback" not in done.stderr
