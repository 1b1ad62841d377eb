"""What a signal interrupts is said at once, ends with 130 or 143, and is made up for when the run goes on."""

import json
import os
import signal
import subprocess
import sys

import pytest
from command_line import spikegpt
from runs import MODEL, TRAIN, weights_of

from spikegpt.checkpoint.run import latest_checkpoint
from spikegpt.measure.twins import make_twin
from spikegpt.train import resume, train
from spikegpt.train.journal import read_metrics
from spikegpt.train.loop import Loop


@pytest.fixture
def interrupt(monkeypatch):
    """Send this process a signal before it does the optimizer step of that number, once."""

    def at(step: int, number: int = signal.SIGTERM) -> None:
        whole_step = Loop.train_step

        def signalled(self):
            if self.step == step - 1 and number not in sent:
                sent.append(number)
                os.kill(os.getpid(), number)
            return whole_step(self)

        sent: list[int] = []
        monkeypatch.setattr(Loop, "train_step", signalled)

    return at


@pytest.mark.parametrize("step", [5, 6, 12])
def test_what_a_signal_put_off_is_made_up_for(trained, tmp_path, cache, interrupt, capfd, step):
    interrupt(step)
    done = train(MODEL, TRAIN, tmp_path / "run", cache=cache, quiet=True)
    assert (done.step, done.interrupted) == (step, step < 12)
    assert "stopping after this step" in capfd.readouterr().err
    resume(tmp_path / "run", cache=cache, quiet=True)
    runs = (trained, tmp_path / "run")
    facts = [[(line["step"], line["kind"], line["bits_per_byte"]) for line in read_metrics(run)] for run in runs]
    assert facts[0] == facts[1]
    best = [json.loads((latest_checkpoint(run) / "training.json").read_text())["best"] for run in runs]
    assert best[0] == best[1]
    assert (tmp_path / "run" / "samples.txt").read_text() == (trained / "samples.txt").read_text()
    assert weights_of(tmp_path / "run") == weights_of(trained)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_training_ends_with_the_status_of_its_signal(tmp_path, cache, interrupt, number):
    interrupt(2, number)
    options = ["--n-layer", "1", "--n-embd", "16", "--ctx-len", "16", "--eval-tokens", "64", "--cache", cache]
    done = spikegpt("train", "--out", tmp_path / "run", *options, check=False)
    assert done.returncode == 128 + number and f"train --resume {tmp_path / 'run'}" in done.stdout


def test_the_training_of_a_twin_that_is_interrupted_ends_as_its_signal_says(make_run, cache, interrupt):
    run = make_run()
    interrupt(3)
    with pytest.raises(SystemExit, match="143"):
        make_twin(run, cache=cache, quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_torch_is_imported_needs_no_traceback(number):
    # the finder is asked for torch once, in the middle of the imports
    code = (
        "import os, sys; from spikegpt.__main__ import main\n"
        "class Finder:\n"
        "    def find_spec(name, path, target=None):\n"
        f"        if name == 'torch._C': os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Finder); sys.argv[1:] = ['info', 'tiny']; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr, done.stdout) == (128 + number, "\nstopped\n", "")
