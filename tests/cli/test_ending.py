"""How a command ends that could not be done: what the system refuses is one line, whichever verb meets it."""

import io
import os
import shlex
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import processes
import pytest
import torch
from command_line import spikegpt

from spikegpt.cli.verbs import main
from spikegpt.train.loop import Loop

# packages: ours, and what takes long to import
WATCHED = {"spikegpt", "neuromorphic", "torch", "numpy", "tyro", "numba", "matplotlib"}


@pytest.fixture
def deny(monkeypatch):
    """Make the system refuse to open a path; by its rights it would not, where tests are root's."""

    def refuse(path: Path) -> None:
        for module, name in ((io, "open"), (os, "open")):
            monkeypatch.setattr(module, name, guarded(getattr(module, name), path))

    def guarded(function, path: Path):
        def opened(name, *arguments, **options):
            if isinstance(name, str | os.PathLike) and Path(name) == path:
                raise PermissionError(13, "Permission denied", os.fspath(name))
            return function(name, *arguments, **options)

        return opened

    return refuse


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ("evaluate RUN --file TEXT", "TEXT"),
        ("evaluate RUN --last-word TEXT", "TEXT"),
        ("train --data TEXT --out OUT --steps 1", "TEXT"),
        ("finetune-classify RUN --train TABLE --test TABLE --out OUT", "TABLE"),
        ("info CHECKPOINT", "CHECKPOINT/config.json"),
        ("generate CHECKPOINT", "CHECKPOINT/tokenizer.json"),
        ("import WEIGHTS --out OUT", "WEIGHTS"),
        ("export CHECKPOINT OUT --layout auto", "CHECKPOINT/model.safetensors"),
        ("train --out OUT", "OUT/.lock"),
    ],
)
def test_what_may_not_be_opened_is_one_line_with_its_path(words, path, trained, tmp_path, deny):
    (tmp_path / "text.txt").write_text("the sea and the stones\n" * 20)
    (tmp_path / "table.tsv").write_text("text\tlabel\na\t0\nb\t1\n")
    torch.save({"emb.weight": torch.zeros(2, 2)}, tmp_path / "weights.pth")
    checkpoint = trained / "checkpoints" / "step-00000012"
    places = {
        "RUN": trained,
        "CHECKPOINT": checkpoint,
        "TEXT": tmp_path / "text.txt",
        "TABLE": tmp_path / "table.tsv",
        "OUT": tmp_path / "out",
        "WEIGHTS": tmp_path / "weights.pth",
    }
    first, *rest = path.split("/")
    denied = places[first].joinpath(*rest)
    deny(denied)
    done = spikegpt(*(places.get(word, word) for word in words.split()), check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert all(part in done.stderr for part in (str(denied), "Permission denied", "give another"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is of Linux")
@pytest.mark.parametrize(
    "words",
    [
        "info RUN",
        "info RUN --json",
        "generate RUN --max-tokens 1",
        "generate RUN a b --max-tokens 1",
        "evaluate RUN TEXT",
        "evaluate RUN TEXT --json",
        pytest.param("measure RUN REPORT", marks=pytest.mark.slow),
        pytest.param("compare RUN RUN REPORT", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_behind_the_output_of_a_verb_is_one_line(words, trained, tmp_path, cache):
    text = ["--tokens", "32", "--cache", cache]
    report = [*text, "--prices", "horowitz45-fp32", "--out", tmp_path / "report"]
    given = {"RUN": [trained], "TEXT": text, "REPORT": report}
    error = io.StringIO()
    with open("/dev/full", "w") as full, redirect_stdout(full), redirect_stderr(error):
        status = main([str(part) for word in words.split() for part in given.get(word, [word])])
    lines = [line for line in error.getvalue().splitlines() if line.split()[0] not in ("evaluating", "measuring")]
    assert (status, lines) == (1, ["error: No space left on device; make room, or write elsewhere"])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is of Linux")
def test_nothing_is_said_of_a_full_disk_once_more_at_the_end(trained):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "spikegpt", "info", trained]
        done = processes.run(command, stdout=full, stderr=-1, capture_output=False)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device; make room, or write elsewhere\n")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_before_anybody_hears_it_ends_the_program_with_its_status(name):
    """The first thing that main() does is to hear signals, and until then nothing long is imported, nothing done."""
    number = int(getattr(signal, name))
    before = "default_int_handler" if name == "SIGINT" else "SIG_DFL"
    code = (
        "import os, signal, sys\n"
        # these tests may have begun with signals that are ignored, as under nohup
        f"hear = signal.signal; hear({number}, signal.{before})\n"
        "def heard(*arguments):\n"
        f"    print(*sorted(name for name in sys.modules if name.partition('.')[0] in {WATCHED}), flush=True)\n"
        f"    os.kill(os.getpid(), {number}); hear(*arguments)\n"
        "from spikegpt.__main__ import main\n"
        "signal.signal = heard; sys.argv[1:] = ['info', 'tiny']; sys.exit(main())"
    )
    done = processes.run([sys.executable, "-c", code])
    # a shell calls it 128 and the number
    assert (done.returncode, done.stdout) == (
        -number,
        "spikegpt spikegpt.__main__ spikegpt.common spikegpt.common.hangup spikegpt.common.version\n",
    )


@pytest.mark.parametrize("name", ["my run", "-run", "it's"])
def test_the_commands_that_train_prints_can_be_pasted(name, tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ["--n-layer", "1", "--n-embd", "16", "--ctx-len", "16", "--eval-tokens", "64", "--threads", "1"]
    done = spikegpt("train", f"--out={name}", "--steps", "1", *sizes, "--cache", cache)
    printed = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("  spikegpt ")]
    assert [words[:2] for words in printed] == [["spikegpt", "generate"], ["spikegpt", "evaluate"]]
    spikegpt(*printed[0][1:], "--max-tokens", "1")
    spikegpt(*printed[1][1:], "--tokens", "32", "--cache", cache)


@pytest.mark.parametrize("name", ["my run", "-run"])
def test_the_command_that_an_interrupted_training_prints_can_be_pasted(name, tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step = Loop.train_step

    def stopping(self):
        self.signals.number = signal.SIGTERM if self.step == 1 else None
        return step(self)

    sizes = ["--n-layer", "1", "--n-embd", "16", "--ctx-len", "16", "--eval-tokens", "64", "--threads", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "train_step", stopping)
        done = spikegpt("train", f"--out={name}", "--steps", "3", *sizes, "--cache", cache, check=False)
    words = shlex.split(done.stdout.strip().rpartition("continue with: ")[2])
    assert done.returncode == 143 and words[:3] == ["spikegpt", "train", "--resume"]
    assert "done: " in spikegpt(*words[1:], "--cache", cache).stdout
