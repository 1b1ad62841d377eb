"""What the command line says: help, hints, warnings, errors of one line, and nothing that moves a terminal."""

import errno
import html
import importlib
import json
import shlex
import shutil
import subprocess
import sys
from types import SimpleNamespace

import processes
import pytest
from command_line import spikegpt

from spikegpt.checkpoint import find_model
from spikegpt.cli import verbs
from spikegpt.common.errors import in_words
from spikegpt.common.printing import command, printable
from spikegpt.common.tables import columns
from spikegpt.common.version import __version__
from spikegpt.config import ModelConfig
from spikegpt.train import trainer


def refused(*words: str, status: int = 2) -> str:
    """Return the one line with which `words` are refused."""
    done = spikegpt(*words, check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("resume runs/a", "did you mean: spikegpt train --resume RUN?"),
        ("evalute runs/a", "did you mean: spikegpt evaluate?"),
        ("sing", "known: train, data, generate"),
        ("train --n-layers 3", "unknown: --n-layers, 3; did you mean --n-layer?; see: spikegpt train --help"),
        ("train --n-layer x", "--n-layer: want a whole number, got 'x'"),
        ("train --firing-rate-target x", "--firing-rate-target: want a number, got 'x'"),
        ("train --lr", "--lr wants a value"),
        ("train --steps 0", "error: steps must be a whole number from 1"),
        ("train --preset huge", "'huge'"),
        ("generate", "PATH is missing: folder of a run or of a checkpoint"),
        ("evaluate r --tokens -1", "--tokens must be a whole number from 1 to 1,000,000,000,000, got -1"),
        ("data x --processes -3", "--processes must be a whole number from 1 to 1,024, got -3"),
        ("doctor --threads 9999", "--threads must be a whole number from 0 to 1,024, got 9999"),
        ("doctor --threads -1", "--threads must be a whole number from 0"),
        ("generate r --seed 99999999999999999999", "64 bits"),
        ("finetune-classify r --task x", "'sst2', 'sst5', 'mr', 'subj'"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_a_hint_and_status_2(words, hint):
    assert hint in refused(*words.split())


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--out", ""],
        ["train", "--out="],
        ["train", "--from", ""],
        ["train", "--data", ""],
        ["train", "--teacher", ""],
        ["train", "--tokenizer", ""],
        ["train", "--resume", ""],
        ["import", ""],
        ["export", "", "x"],
        ["export", "run", ""],
        ["generate", ""],
        ["evaluate", ""],
        ["evaluate", "run", "--file", ""],
        ["info", ""],
        ["data", ""],
        ["data", "enwik8", "--out", ""],
        ["measure", "run", "--cache", ""],
        ["finetune-classify", "run", "--train", ""],
        ["generate", "run", "--device", ""],
    ],
    ids=" ".join,
)
def test_an_empty_string_is_no_path(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "empty string" in refused(*words)
    assert not list(tmp_path.iterdir())


def test_help_and_version_are_verbs():
    assert spikegpt("help").stdout == spikegpt("--help").stdout == spikegpt().stdout
    assert spikegpt("help", "measure").stdout == spikegpt("measure", "--help").stdout
    assert spikegpt("version").stdout == spikegpt("--version").stdout


def test_train_shows_ten_flags_and_all_when_asked():
    short, whole = spikegpt("train", "--help").stdout, spikegpt("train", "--help-all").stdout
    assert short.count("\n  --") == 10 and "--help-all" in short and "--adam-eps" not in short
    assert "--adam-eps" in whole and "--steps" in whole


@pytest.mark.parametrize("verb", [verb for verb in verbs.VERBS if verb != "lm-eval"])
def test_help_is_plain_and_free_of_none(verb):
    text = spikegpt(verb, "--help-all").stdout
    assert "None" not in text.replace("--spiking none", "") and not set("╭│╰") & set(text)


def test_what_changes_nothing_is_warned_of(monkeypatch):
    monkeypatch.setattr(trainer, "train", lambda *_, **__: SimpleNamespace(is_main=False, interrupted=False))
    done = spikegpt("train", "--threshold", "2", "--reset", "zero", "--vocab-size", "9", "--n-layer", "1")
    assert done.stderr.count("\n") == 3
    for flag in ("--threshold 2.0", "--reset zero", "--vocab-size 9"):
        assert f"warning: {flag} has no effect: " in done.stderr
    assert not spikegpt("train", "--spiking", "output", "--threshold", "2").stderr


def test_control_characters_are_shown():
    assert printable("a\x1b[31m\r\x00\x7f\x9b\u202e\udcff") == r"a\x1b[31m\r\x00\x7f\x9b\u202e\udcff"
    assert printable("é 日本\u3000\n\t") == "é 日本\u3000\n\t"
    assert printable("a\nb", keep="") == r"a\nb"
    assert columns([["a\x1bb", "c"], ["d", "e"]]) == "a\\x1bb  c\nd       e"


def test_a_name_that_holds_terminal_codes_is_shown_and_not_obeyed():
    assert r"a\x1b[31mb is not the folder" in refused("info", "a\x1b[31mb", status=1)


def test_what_a_model_writes_is_shown_and_not_obeyed(trained, monkeypatch):
    stream = importlib.import_module("spikegpt.generate.stream")
    pieces = [stream.Piece(0, "one\n\ttwo\x1b]0;title\x07")]
    monkeypatch.setattr(stream, "stream", lambda *_: iter(pieces))
    assert spikegpt("generate", trained, "a").stdout == "aone\n\ttwo\\x1b]0;title\\x07\n"
    assert "\\u001b" in spikegpt("generate", trained, "a", "--json").stdout


def test_a_printed_command_is_quoted():
    words = command("train", "--resume", "runs/my run; rm -rf *")
    assert shlex.split(words) == ["spikegpt", "train", "--resume", "runs/my run; rm -rf *"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device; make room"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", b"a"), "a: Is a directory; give a file"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), "x: File name too long; give a shorter name"),
        (OSError("no number"), "no number"),
    ],
)
def test_an_error_of_the_system_is_one_line_with_its_path(error, line, monkeypatch):
    assert in_words(error).startswith(line)

    def fail(arguments):
        raise error

    monkeypatch.setitem(verbs.VERBS, "info", fail)
    assert line in refused("info", status=1)


def test_no_memory_is_one_line(monkeypatch):
    def fail(arguments):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes")

    monkeypatch.setitem(verbs.VERBS, "info", fail)
    assert "memory does not suffice" in refused("info", status=1)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is of Linux")
@pytest.mark.parametrize("words", [["help"], ["data"], ["train", "--help"]], ids=" ".join)
def test_a_full_disk_behind_the_output_is_one_line(words):
    with open("/dev/full", "w") as full:
        command_line = [sys.executable, "-m", "spikegpt", *words]
        done = processes.run(command_line, stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert done.returncode == 1 and done.stderr == "error: No space left on device; make room, or write elsewhere\n"


def test_evaluate_says_first_what_matters_and_layers_when_asked(trained, cache):
    options = ["--tokens", "200", "--cache", cache]
    done = spikegpt("evaluate", trained, *options)
    first, *rest = done.stdout.splitlines()
    assert first.startswith(f"{trained}: ") and "bits per byte, firing" in first and first.endswith("step 12 of 12")
    assert len(rest) < 25 and "key_neuron" not in done.stdout
    assert done.stderr.startswith(f"evaluating {trained} on ") and "200 tokens" in done.stderr
    assert "blocks.0.att.key_neuron" in spikegpt("evaluate", trained, *options, "--layers").stdout
    (result,) = json.loads(spikegpt("evaluate", trained, *options, "--json").stdout)
    assert (result["step"], result["steps"]) == (12, 12)


def test_a_folder_of_runs_lists_them(trained):
    line = refused("generate", str(trained.parent), status=1)
    assert f"{trained.parent} is a folder of runs, name one: " in line and str(trained) in line


def test_a_preset_that_is_misspelt_is_named():
    assert "did you mean 'tiny'?" in refused("info", "tinyy", status=1)


def test_a_report_holds_the_command_the_version_and_the_steps(trained, tmp_path, cache):
    words = ["measure", str(trained), "--tokens", "100", "--cache", str(cache), "--out", str(tmp_path / "re port")]
    spikegpt(*words, "--prices", "seneca22")
    page = html.unescape((tmp_path / "re port" / "report.html").read_text())
    assert f"spikegpt: {__version__}" in page and "trained for 12 of 12 steps" in page
    assert f"command: spikegpt measure {trained} --tokens 100 --cache {cache} --out '{tmp_path}/re port'" in page


def test_a_warm_up_that_never_ends_is_said_in_python_too(make_run, capsys):
    make_run(steps=3, warmup_steps=50)
    assert "warning: warmup_steps 50 are not over within the 3 steps" in capsys.readouterr().err


def test_the_largest_seed_trains(make_run):
    make_run(steps=1, seed=2**64 - 1)


@pytest.mark.parametrize(("name", "value"), [("n_layer", 1000), ("n_embd", 60_000), ("vocab_size", 10_000_000)])
def test_sizes_that_the_weights_do_not_have_are_refused_before_they_are_made(name, value, trained, tmp_path):
    model = find_model(trained)
    for file in ("model.safetensors", "tokenizer.json"):
        shutil.copy(model / file, tmp_path)
    values = json.loads((model / "config.json").read_text())
    values["model"][name] = value
    (tmp_path / "config.json").write_text(json.dumps(values))
    done = spikegpt("info", tmp_path, check=False)
    assert done.returncode == 1 and f"config.json says {name} {value}, the weights have" in done.stderr


def test_a_batch_beyond_the_memory_is_refused(make_run):
    with pytest.raises(ValueError, match="tokens at once needs"):
        make_run(batch_size=2**20, model=ModelConfig(n_layer=2, n_embd=16, ctx_len=2**16))
