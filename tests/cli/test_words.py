"""What the command line says: help, hints, warnings, errors of one line, and nothing that moves a terminal."""

import errno
import html
import importlib
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
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
from spikegpt.train import beginning, trainer


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
        ("sing", "known: train, convert, data, generate"),
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
        ("finetune-classify r --task mr --test x.tsv", "either --task NAME, or --train FILE and --test FILE"),
        ("finetune-classify r --task mr --valid x.tsv", "either --task NAME, or --train FILE and --test FILE"),
        ("train --mixer rwkv9", "--mixer is 'rwkv9'; known: rwkv4"),
        ("train --spiking none --levels 3", "a dense model has no neurons"),
        ("train --device gpu", "device 'gpu' is unknown; known: auto, cpu, cuda, cuda:N"),
        ("train --resume r --device cuda:", "device 'cuda:' is unknown"),
        ("generate r --device CPU", "device 'CPU' is unknown"),
        ("evaluate", "no run given"),
        ("compare --twin", "no run given"),
        ("train --threads 9999", "got 9999: more threads than CPUs only wait for each other"),
        ("train --seed -1", "seed must be a whole number from 0"),
        ("generate r --seed -1", "seed must be a whole number from 0"),
        ("finetune-classify r --task mr --seeds -1", "seeds must be a whole number from 0"),
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
        ["train", "--text-column", ""],
        ["train", "--freeze", ""],
        ["finetune-classify", "run", "--text-column", ""],
        ["measure", "run", "--prompt", ""],
        ["compare", "run", "--prompt", ""],
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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    "name", ["-run", "--", "a b", "it's", "$HOME", "~", "two\nlines", "\\x41", "\x1b[31m'", "\u202e"]
)
def test_a_printed_command_names_what_it_is_about(name):
    words = command("generate", Path(name)).removeprefix("spikegpt generate ")
    done = processes.run(["bash", "-c", f"printf %s {words}"])
    assert Path(done.stdout) == Path(name) and not done.stdout.startswith("-")
    assert printable(words, keep="") == words


def test_a_prompt_that_begins_with_a_dash_comes_last(trained):
    assert "unknown: -x; a text that begins with a dash comes last, after --;" in refused("generate", trained, "-x")
    assert spikegpt("generate", trained, "--max-tokens", "2", "--", "-x").stdout.startswith("-x")


def test_what_to_do_about_a_folder_without_a_checkpoint(trained, tmp_path):
    assert f"train one with: spikegpt train --out {tmp_path / 'none'}" in refused(
        "info", str(tmp_path / "none"), status=1
    )
    (tmp_path / "file").touch()
    assert "is a file, not the folder of a run" in refused("info", str(tmp_path / "file"), status=1)
    begun = tmp_path / "begun"
    begun.mkdir()
    assert f"train it with: spikegpt train --out {begun}" in refused("info", str(begun), status=1)
    (begun / "model.PTH").touch()
    assert f"make a model of them: spikegpt import {begun}" in refused("info", str(begun), status=1)
    (begun / "model.PTH").unlink()
    shutil.copy(trained / "config.json", begun)
    assert f"go on with its training: spikegpt train --resume {begun}" in refused("info", str(begun), status=1)
    (begun / "checkpoints" / "step-00000001").mkdir(parents=True)
    done = spikegpt("info", begun, check=False)
    assert done.returncode == 1 and "holds no whole checkpoint; put one back" in done.stderr


@pytest.mark.parametrize(
    ("words", "warnings"),
    [
        ("train --teacher t --teacher-weight 0", ["--teacher t has no effect: teacher_weight is 0"]),
        ("train --firing-rate-target 0.1 --firing-rate-weight 0", ["--firing-rate-target 0.1 has no effect"]),
        ("train --synop-budget 0.1 --synop-weight 0", ["--synop-budget 0.1 has no effect: synop_weight is 0"]),
        ("train --text-column body", ["--text-column body has no effect: no JSONL, CSV or TSV file is read"]),
        ("train --text-column body --data a.txt", ["--text-column body has no effect"]),
        ("train --text-column body --data a.jsonl", []),
        ("train --text-column body --data b.tsv.gz", []),
        ("train --spiking none --rescale-every 6 --n-layer 1", ["--rescale-every 6 has no effect"]),
        (
            "train --spiking none --no-binary-embedding --spiking-head",
            ["--spiking-head has", "--no-binary-embedding has"],
        ),
        ("train --from RUN --threshold 2", ["--threshold 2.0 has no effect"]),
        ("train --save-every 500", ["--save-every 500 has no effect: every evaluation saves, eval_every 250"]),
        ("data --limit-bytes 5", ["--limit-bytes 5 has no effect: no text is named"]),
    ],
)
def test_an_option_without_effect_is_warned_of(words, warnings, trained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "a.jsonl", "b.tsv.gz"):
        (tmp_path / name).touch()
    monkeypatch.setattr(trainer, "train", lambda *_, **__: SimpleNamespace(is_main=False, interrupted=False))
    done = spikegpt(*(str(trained) if word == "RUN" else word for word in words.split()))
    assert done.stderr.count("\n") == len(warnings)
    for warning in warnings:
        assert f"warning: {warning}" in done.stderr


def test_options_of_the_verbs_without_effect(trained, tmp_path, cache):
    (tmp_path / "text.txt").write_text("the sea and the stones\n" * 20)
    options = ["--file", tmp_path / "text.txt", "--tokens", "50", "--cache", cache]
    done = spikegpt("evaluate", trained, *options, "--split", "valid", "--layers", "--json")
    assert "--split valid has no effect: " in done.stderr and "--layers has no effect: JSON" in done.stderr
    done = spikegpt("generate", trained, "a", "--max-tokens", "1", "--temperature", "0", "--top-k", "3")
    assert done.stderr == "warning: --top-k 3 has no effect: at temperature 0 the most likely token is taken always\n"


def test_what_cannot_work_is_refused_before_the_long_part(trained, tmp_path, cache, monkeypatch):
    for module, name in (("spikegpt.evaluate.runs", "evaluate_run"), ("spikegpt.measure.twins", "make_twin")):
        monkeypatch.setattr(importlib.import_module(module), name, None)
    assert "nothing is not the folder" in refused("evaluate", str(trained), "nothing", status=1)
    assert "nothing is not the folder" in refused("compare", str(trained), "nothing", "--twin", status=1)
    files = ["--train", "x.tsv", "--test", "y.tsv", "--out", str(tmp_path / "out")]
    assert "nothing is not the folder" in refused("finetune-classify", str(trained), "nothing", *files, status=1)


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


@pytest.mark.parametrize("self_teacher, passes", [(0.0, 1), (1.0, 2)])
def test_a_pass_without_neurons_counts_in_what_a_batch_needs(make_run, monkeypatch, self_teacher, passes):
    def stop(model, copies, tokens):
        raise ValueError(f"{tokens} tokens")

    monkeypatch.setattr(beginning, "check_sizes", stop)
    with pytest.raises(ValueError, match=f"^{passes * 3 * 16} tokens$"):
        make_run(batch_size=3, model=ModelConfig(n_layer=2, n_embd=16, ctx_len=16), self_teacher=self_teacher)
