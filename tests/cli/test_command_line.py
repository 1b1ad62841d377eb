"""The command line as a user types it: every verb, its JSON, and errors of one or two lines.

What is a fact about the process (streaming, signals, exit status, a quick start) is tested in one of its own.
"""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
from command_line import spikegpt, started

import neuromorphic
from spikegpt.cli.verbs import VERBS, main
from spikegpt.config import INPUT_NEURON, NeuronConfig
from spikegpt.measure import doctor
from spikegpt.train import trainer


@pytest.mark.slow
def test_train_then_evaluate_then_generate(tmp_path, cache):
    sizes = [
        "--n-layer",
        "1",
        "--n-embd",
        "8",
        "--ctx-len",
        "8",
        "--steps",
        "3",
        "--eval-tokens",
        "64",
        "--threads",
        "1",
    ]
    done = json.loads(
        spikegpt("train", "--out", tmp_path / "run", "--cache", cache, "--json", "--spiking", "none", *sizes).stdout
    )
    assert done["step"] == 3 and not done["interrupted"]
    (result,) = json.loads(spikegpt("evaluate", tmp_path / "run", "--cache", cache, "--tokens", "100", "--json").stdout)
    assert result["spiking"] == "none" and result["stream"]["firing_rate"] is None
    texts = json.loads(spikegpt("generate", tmp_path / "run", "a", "b", "--max-tokens", "5", "--json").stdout)
    assert [text["prompt"] for text in texts] == ["a", "b"]


def test_train_from_a_run_takes_its_sizes_and_its_tokenizer(tmp_path, trained, cache):
    options = ["--cache", cache, "--json", "--steps", "1", "--eval-tokens", "64", "--threads", "1", "--freeze", "emb.*"]
    done = json.loads(spikegpt("train", "--from", trained, "--out", tmp_path / "run", *options).stdout)
    assert done["step"] == 1
    ours, theirs = (json.loads((run / "config.json").read_text())["model"] for run in (tmp_path / "run", trained))
    assert ours == theirs
    refused = spikegpt("train", "--resume", tmp_path / "run", "--from", trained, check=False)
    assert refused.returncode == 2 and "leave out" in refused.stderr and "--from" in refused.stderr


def test_data_lists_the_corpora_and_writes_tokens_that_train(tmp_path, cache):
    assert spikegpt("data").stdout.startswith("enwik8 ")
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"body": f"neuron {number} fires"}) + "\n" for number in range(100))
    )
    export = ["--column", "body", "--binidx", tmp_path / "docs", "--tokenizer", "byte", "--json"]
    written = json.loads(spikegpt("data", tmp_path / "a.jsonl", *export).stdout)
    assert written == {"tokens_file": str(tmp_path / "docs.bin"), "tokens": 10 * 14 + 90 * 15, "documents": 100}
    options = [
        "--n-layer",
        "1",
        "--n-embd",
        "8",
        "--ctx-len",
        "8",
        "--steps",
        "2",
        "--eval-tokens",
        "64",
        "--threads",
        "1",
        "--spiking",
        "none",
    ]
    trained = spikegpt(
        "train", "--data", tmp_path / "docs.idx", "--out", tmp_path / "run", "--cache", cache, "--json", *options
    )
    assert json.loads(trained.stdout)["step"] == 2
    idle = spikegpt("data", tmp_path / "a.jsonl", *export[:2], "--binidx", tmp_path / "b", "--split", "test").stderr
    assert "--split test has no effect" in idle and "--column" not in idle
    refused = spikegpt("data", "enwik7", check=False)
    assert refused.returncode == 1 and "known: enwik8" in refused.stderr


def test_generate_streams_the_prompt_and_its_continuation(trained):
    assert started("generate", trained, "The ", "--max-tokens", "5").stdout.startswith("The ")


def test_a_process_ends_with_the_status_of_its_verb(tmp_path):
    refused = started("info", tmp_path / "nothing", check=False)
    assert (refused.returncode, refused.stdout) == (1, "") and refused.stderr.startswith("error: ")
    assert started("sing", check=False).returncode == 2


@pytest.mark.slow
def test_measure_and_compare_write_a_report(trained, tmp_path, cache):
    options = ["--tokens", "200", "--cache", cache, "--prices", "horowitz45-fp32", "--out", tmp_path / "report"]
    shown = spikegpt("measure", trained, *options).stdout
    assert "as built: ACs" in shown and f"report: {tmp_path / 'report' / 'report.html'}" in shown
    (measured,) = json.loads(spikegpt("measure", trained, *options, "--json").stdout)
    assert measured["layers"][0]["alphabet"] in ("binary", "ternary", "integer") and list(
        measured["energy"]["prefill"]
    ) == ["horowitz45-fp32"]
    both = json.loads(spikegpt("compare", trained, trained, *options, "--json").stdout)
    assert both[0]["bits_per_byte"] == both[1]["bits_per_byte"]
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.html",
        "report.json",
        "report.csv",
        "comparison.csv",
        "comparison.tex",
        "figures",
    }


@pytest.mark.slow
def test_a_price_table_of_ones_own_is_used_and_its_mistakes_are_named(trained, tmp_path, cache):
    table = tmp_path / "mine.toml"
    options = [
        "measure",
        trained,
        "--tokens",
        "50",
        "--cache",
        cache,
        "--prices",
        table,
        "--out",
        tmp_path / "report",
        "--json",
    ]
    bundled = Path(neuromorphic.__file__).parent / "energy" / "price_tables" / "convention-4.6-0.9.toml"
    table.write_text(bundled.read_text().replace("convention-4.6-0.9", "mine", 1))
    (measured,) = json.loads(spikegpt(*options).stdout)
    assert list(measured["energy"]["decode"]) == ["mine"]
    table.write_text(bundled.read_text().replace('unit = "pJ/op"', 'unit = "calories"', 1))
    refused = spikegpt(*options, check=False)
    assert refused.returncode == 1 and "mine.toml" in refused.stderr and "calories" in refused.stderr


@pytest.mark.slow
def test_an_interrupted_measurement_writes_nothing(trained, tmp_path, cache):
    out = tmp_path / "report"
    arguments = ["measure", trained, "--cache", cache, "--out", out, "--threads", "1"]
    # what runs in a shell's background is born deaf to SIGINT
    hears = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    running = processes.start([sys.executable, "-m", "spikegpt", *map(str, arguments)], stderr=subprocess.PIPE, **hears)
    assert running.stderr.readline().startswith("measuring")
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=processes.HANGS_S) == 130
    assert "Traceback" not in running.stderr.read()
    assert list(tmp_path.iterdir()) == []


def test_info_gives_the_sizes_of_a_preset_and_of_a_run(trained):
    assert (
        json.loads(spikegpt("info", "spikegpt-216m", "--json").stdout)["matrix_macs_per_token"]
        == 18 * 13 * 768**2 + 768 * 50277
    )
    facts = json.loads(spikegpt("info", trained, "--tensors", "--json").stdout)
    assert facts["tensors"]["blocks.1.att.key.weight"] == "16 x 16"
    # per layer two shifts and two WKV sums of 16 channels, 4 bytes each: its neurons are memoryless
    assert facts["state_bytes"] == 2 * 4 * 16 * 4
    assert facts["matrix_macs_per_token"] == 2 * 13 * 16 * 16 + 256 * 16


@pytest.mark.slow
def test_doctor_finds_the_kernels_right(monkeypatch):
    monkeypatch.setattr(doctor, "SHAPE", (2, 40, 128))
    report = json.loads(spikegpt("doctor", "--json", "--threads", "1").stdout)
    assert report["healthy"] and report["kernels"]["cpu"] == "numba"


def test_help_lists_every_verb():
    text = spikegpt("--help").stdout
    assert all(f"spikegpt {verb}" in text for verb in VERBS)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "lm-eval"])
def test_every_verb_has_help(verb):
    assert f"usage: spikegpt {verb}" in spikegpt(verb, "--help").stdout


def test_help_imports_no_torch():
    code = (
        "import sys, spikegpt.cli.verbs as m; sys.argv = ['spikegpt', '--help']; m.main(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert processes.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def begun(monkeypatch):
    """What `train` and `train --resume` were asked for, without training."""
    calls = []

    def begin(*arguments, **options):
        calls.append((*arguments, options))
        return SimpleNamespace(is_main=False, interrupted=False)

    monkeypatch.setattr(trainer, "train", begin)
    monkeypatch.setattr(trainer, "resume", begin)
    return calls


@pytest.mark.parametrize("arguments", [["--preset", "small", "--n-layer", "2"], ["--n-layer=2", "--preset=small"]])
def test_preset_sets_the_defaults_and_flags_change_them(begun, arguments):
    assert main(["train", *arguments]) == 0
    ((model, training, out, _),) = begun
    assert (model.n_layer, model.n_embd, training.steps, out) == (2, 256, 2000, Path("runs/small-input"))


def test_each_block_has_its_own_neuron_and_flags_change_that(begun):
    assert main(["train", "--spiking", "output", "--threshold", "2"]) == 0
    assert main(["train", "--threshold", "2"]) == 0
    published, ours = (model.neuron for model, *_ in begun)
    assert published == NeuronConfig(threshold=2.0)
    assert ours == dataclasses.replace(INPUT_NEURON, threshold=2.0)


@pytest.mark.parametrize(
    "flags, self_teacher",
    [
        ([], 1.0),
        (["--spiking", "none"], 0.0),
        (["--spiking", "output"], 0.0),
        (["--preset", "spikegpt-46m"], 0.0),
        (["--teacher", "RUN"], 0.0),
        (["--carry-state"], 0.0),
        (["--anneal", "0.5"], 0.0),
        (["--self-teacher", "0.5"], 0.5),
    ],
)
def test_the_spike_driven_block_is_its_own_teacher_unless_another_is_asked_for(begun, flags, self_teacher):
    assert main(["train", *flags]) == 0
    ((_, training, *_),) = begun
    assert training.self_teacher == self_teacher


def test_from_a_run_its_sizes_are_the_defaults(begun, trained):
    assert main(["train", "--from", str(trained), "--spiking", "none", "--ctx-len", "32"]) == 0
    ((model, _, _, options),) = begun
    assert (model.n_layer, model.n_embd, model.ctx_len, model.spiking) == (2, 16, 32, "none")
    assert options["start"] == trained


def test_resume_takes_where_and_how_to_report_and_nothing_else(begun):
    assert main(["train", "--resume", "run", "--cache", "here", "--device", "cpu", "--json"]) == 0
    assert begun == [
        (
            Path("run"),
            {"data": None, "teacher": None, "cache": Path("here"), "quiet": True, "device": "cpu", "shard": False},
        )
    ]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--preset", "small"], "--preset"),
        (["--out", "there"], "--out"),
        (["--from", "RUN"], "--from"),
        # said, though it is the default
        (["--steps", "1000"], "--steps"),
        (["--lr=1", "--no-carry-state", "--json", "--freeze", "emb.*", "head.*"], "--lr, --no-carry-state, --freeze"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_resume_refuses_other_flags_and_names_those_that_were_given(begun, trained, flags, named):
    flags = [str(trained) if flag == "RUN" else flag for flag in flags]
    refused = spikegpt("train", "--resume", "run", *flags, check=False)
    assert refused.returncode == 2 and refused.stderr.endswith(f"leave out {named}\n")
    assert not begun


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sing"], "unknown verb 'sing'; known: train, convert, data, generate"),
        (["train", "--preset", "huge"], "huge"),
        (["train", "--n-layers", "3"], "--n-layer"),
        (["train", "--n-layer", "0"], "n_layer must be a whole number from 1 to 1,024, got 0"),
        (["train", "--data", "nothing.txt"], "nothing.txt"),
        (["train", "--resume", "nothing"], "nothing/config.json does not exist"),
        (["train", "--resume", "nothing", "--lr", "1"], "leave out --lr"),
        (["train", "--resume", "nothing", "more"], "more"),
        (["train", "--from", "nothing"], "is not the folder of a run"),
        (["train", "--from", "nothing", "--preset", "small"], "the sizes are those of nothing; leave out --preset"),
        (["train", "--lr-scales", "head"], "lr_scales wants PATTERN=FACTOR"),
        (["generate", "nothing"], "is not the folder of a run"),
        (["generate", "nothing", "--top-p", "2"], "top_p must lie in (0, 1], got 2"),
        (["evaluate"], "no run given"),
        (["evaluate", "run", "--last-word", "x.jsonl", "--tokens", "5"], "leave out --tokens"),
        (["measure", "nothing"], "is not the folder of a run"),
        (["measure", "nothing", "--prices", "loihi9"], "loihi9"),
        (["compare"], "no run given"),
        (["info", "nothing"], "is not the folder of a run"),
    ],
)
def test_mistake_is_answered_without_a_traceback(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = spikegpt(*arguments, check=False)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["", "x"])
def test_empty_and_one_character_corpus_are_refused(tmp_path, text, cache):
    (tmp_path / "text.txt").write_text(text)
    done = spikegpt("train", "--data", tmp_path / "text.txt", "--out", tmp_path / "run", "--cache", cache, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") <= 2


def test_text_that_is_not_utf8_trains_with_bytes_and_not_with_characters(tmp_path, cache):
    (tmp_path / "text.txt").write_bytes(bytes(range(32, 256)) * 40)
    arguments = [
        "train",
        "--data",
        tmp_path / "text.txt",
        "--cache",
        cache,
        "--n-layer",
        "1",
        "--n-embd",
        "8",
        "--ctx-len",
        "8",
        "--steps",
        "2",
    ]
    arguments += ["--eval-tokens", "64"]
    spikegpt(*arguments, "--out", tmp_path / "bytes")
    refused = spikegpt(*arguments, "--out", tmp_path / "characters", "--tokenizer", "char", check=False)
    assert refused.returncode == 1 and "UTF-8" in refused.stderr


@pytest.mark.slow
def test_second_start_of_generate_is_quick_beyond_torch(trained):
    # no timed assert: machines are shared. The fact is that the second start compiles nothing.
    spikegpt("generate", trained, "a", "--max-tokens", "2")
    code = (
        "import sys, numba.core.dispatcher as d; sys.argv = ['spikegpt', 'generate', sys.argv[1], 'a', "
        "'--max-tokens', '2']; "
        "import spikegpt.cli.verbs as m; assert m.main() == 0; "
        "ms = [m for name, m in sys.modules.items() if name.startswith('spikegpt.generate.compiled')]; "
        "ds = [x for m in ms for x in vars(m).values() if isinstance(x, d.Dispatcher)]; assert ds; "
        "sys.exit(sum(sum(x.stats.cache_misses.values()) for x in ds))"
    )
    assert processes.run([sys.executable, "-c", code, str(trained)]).returncode == 0
