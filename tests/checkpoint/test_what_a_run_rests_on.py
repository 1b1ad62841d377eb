"""What a run rests on is checked: text, configuration, teacher, log; its numbers are finite, its writer is one."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import spikegpt
from runs import MODEL, TRAIN, break_off, weights_of, without_newest
from safetensors.torch import load_file, save_file

from benchmarks.mutated_runs import FAULTS, try_all
from spikegpt.checkpoint.files import write_manifest
from spikegpt.checkpoint.run import latest_checkpoint, read_run_config
from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.common.files import locked
from spikegpt.data.tokenizers import CharTokenizer
from spikegpt.interop.weights import import_weights
from spikegpt.measure.runs import report_folder
from spikegpt.measure.twins import find_twin
from spikegpt.train import resume, train
from spikegpt.train.basis import with_places
from spikegpt.train.journal import read_metrics
from spikegpt.train.loop import Loop


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(trained, tmp_path / "runs" / "copy")


@pytest.fixture
def broken(trained, tmp_path):
    """A copy of a run that was killed when its log was ahead of its newest checkpoint, step 8."""
    return without_newest(trained, tmp_path / "runs" / "broken")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the sea and the stones of the day\n" * 200)
    return path


def newest(run: Path) -> Path:
    return latest_checkpoint(run, warn=lambda message: None)


def change(path: Path, *keys: str, to) -> None:
    values = json.loads(path.read_text())
    inner = values
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    path.write_text(json.dumps(values, indent=1))


def poison(checkpoint: Path, name: str, value: float) -> None:
    """Put one `value` into a tensor, as a training that diverged would have left it: the manifest says so too."""
    weights = load_file(checkpoint / "model.safetensors")
    weights[name].view(-1)[3] = value
    save_file(weights, checkpoint / "model.safetensors")
    write_manifest(checkpoint)


# text


def test_a_text_that_changed_is_neither_trained_on_nor_evaluated(make_run, text, cache, monkeypatch, tmp_path):
    break_off(monkeypatch, tmp_path / "run", cache, 8, data=(str(text),))
    text.write_text(text.read_text().translate(str.maketrans("sn", "ns")))
    for verb in (["train", "--resume"], ["evaluate"]):
        done = spikegpt(*verb, tmp_path / "run", "--cache", cache, check=False)
        assert done.returncode == 1
        assert "is not what it was trained on: it has another sha256; put that text back" in done.stderr


def test_tokens_of_others_that_changed_are_noticed(text, cache, tmp_path, monkeypatch):
    spikegpt("data", text, "--binidx", tmp_path / "tokens", "--cache", cache)
    break_off(monkeypatch, tmp_path / "run", cache, 8, data=(str(tmp_path / "tokens.bin"),))
    tokens = np.fromfile(tmp_path / "tokens.bin", np.uint16)
    tokens[:100] = tokens[:100][::-1]
    tokens.tofile(tmp_path / "tokens.bin")
    with pytest.raises(SpikegptError, match="is not what it was trained on: its tokens are others"):
        resume(tmp_path / "run", cache=cache)


def test_a_text_may_lie_elsewhere(text, cache, tmp_path, monkeypatch):
    break_off(monkeypatch, tmp_path / "run", cache, 8, data=(str(text),))
    moved = text.rename(tmp_path / "moved.txt")
    change(tmp_path / "run" / "config.json", "train", "data", to=[str(moved)])
    assert resume(tmp_path / "run", cache=cache, quiet=True).step == 12


def test_where_a_text_lies_now_can_be_told(text, cache, tmp_path, monkeypatch):
    break_off(monkeypatch, tmp_path / "run", cache, 8, data=(str(text),))
    moved = text.rename(tmp_path / "moved.txt")
    for verb in (["train", "--resume"], ["evaluate"]):
        lost = spikegpt(*verb, tmp_path / "run", "--cache", cache, check=False)
        assert f"is not at {text}; say where it lies now: spikegpt train --resume" in lost.stderr
    monkeypatch.chdir(tmp_path)
    spikegpt("train", "--resume", tmp_path / "run", "--data", "moved.txt", "--cache", cache)
    assert read_run_config(tmp_path / "run")["train"]["data"] == [str(moved)]
    assert f"{moved} (test)" in spikegpt("evaluate", tmp_path / "run", "--cache", cache).stdout


def test_another_text_is_not_taken_for_the_one_that_was_moved(text, cache, tmp_path, monkeypatch):
    break_off(monkeypatch, tmp_path / "run", cache, 8, data=(str(text),))
    (tmp_path / "other.txt").write_text(text.read_text().replace("sea", "air"))
    with pytest.raises(SpikegptError, match=r"other\.txt, is not what it was trained on: it has another sha256"):
        resume(tmp_path / "run", data=tmp_path / "other.txt", cache=cache)
    assert read_run_config(tmp_path / "run")["train"]["data"] == [str(text)]


def test_a_place_that_no_digest_of_an_old_run_proves_is_taken_at_its_word(trained, capsys):
    values = read_run_config(trained)
    del values["corpus"]
    assert with_places(trained, values, ("/new.txt",), None)["train"]["data"] == ("/new.txt",)
    assert "that --data is what it began with is taken at its word" in capsys.readouterr().err
    with_places(trained, read_run_config(trained), ("/new.txt",), None)
    assert capsys.readouterr().err == ""


def test_where_a_teacher_lies_now_can_be_told(trained, copy, cache, tmp_path, monkeypatch):
    break_off(monkeypatch, tmp_path / "run", cache, 8, teacher=str(copy))
    moved = copy.rename(tmp_path / "moved")
    with pytest.raises(SpikegptError, match=r"the teacher of .* is not at .*copy; say where it lies now: .*--teacher"):
        resume(tmp_path / "run", cache=cache)
    assert resume(tmp_path / "run", teacher=moved, cache=cache, quiet=True).step == 12
    assert read_run_config(tmp_path / "run")["train"]["teacher"] == str(moved)
    with pytest.raises(SpikegptError, match="has no teacher; leave out --teacher"):
        resume(trained, teacher=moved, cache=cache)


def test_weights_that_a_run_began_with_may_be_gone_once_it_has_its_own(copy, cache, tmp_path, monkeypatch):
    break_off(monkeypatch, tmp_path / "run", cache, 8, start=copy)
    shutil.rmtree(copy)
    assert resume(tmp_path / "run", cache=cache, quiet=True).step == 12


def test_a_twin_is_found_although_the_text_was_moved(text, cache, tmp_path):
    for name, model in (("run", MODEL), ("run-twin", MODEL.twin())):
        train(model, dataclasses.replace(TRAIN, steps=1, data=(str(text),)), tmp_path / name, cache=cache, quiet=True)
    moved = text.rename(tmp_path / "moved.txt")
    resume(tmp_path / "run", data=moved, cache=cache, quiet=True)
    assert find_twin(tmp_path / "run") == tmp_path / "run-twin"


# configuration


@pytest.mark.parametrize(
    "keys, to, found",
    [
        (("train", "lr"), 0.063, "train.lr is 0.063, but 0.003"),
        (("model", "neuron", "levels"), 6, "model.neuron.levels is 6, but 8"),
        (("train", "steps"), 12.0, "train.steps is 12.0, but 12"),
        (("train", "grad_clip"), True, "train.grad_clip is true, but 1.0"),
        (("corpus", "text_sha256"), "0", 'corpus.text_sha256 is "0", but "'),
    ],
)
def test_a_changed_configuration_is_refused_and_the_change_named(broken, cache, keys, to, found):
    change(broken / "config.json", *keys, to=to)
    for verb in (["train", "--resume"], ["evaluate"]):
        done = spikegpt(*verb, broken, "--cache", cache, check=False)
        assert done.returncode == 1 and found in done.stderr and "put that back" in done.stderr


def test_a_run_from_before_checkpoints_held_a_copy_is_held_to_its_model(broken, cache, capsys):
    path = newest(broken) / "training.json"
    values = json.loads(path.read_text())
    for key in ("run", "marks", "put_off"):
        del values[key]
    path.write_text(json.dumps(values))
    write_manifest(path.parent)
    assert read_run_config(broken)["train"]["steps"] == 12
    change(broken / "config.json", "train", "lr", to=0.004)
    resume(shutil.copytree(broken, broken.parent / "old"), cache=cache, quiet=True)
    assert "its configuration and log are taken as they are" in capsys.readouterr().err
    change(broken / "config.json", "model", "neuron", "levels", to=6)
    with pytest.raises(SpikegptError, match=r"levels is 6, but 8 in .*step-00000008/config.json"):
        read_run_config(broken)


def test_a_checkpoint_that_its_manifest_does_not_name_is_not_whole(copy):
    (newest(copy) / "manifest.json").write_text('{"format": 1, "files": {}}')
    assert newest(copy).name == "step-00000008"


def test_a_run_without_its_configuration_is_not_begun_anew(broken, cache):
    (broken / "config.json").unlink()
    with pytest.raises(SpikegptError, match=r"holds the checkpoints of a run, but no config.json; put that back"):
        train(MODEL, TRAIN, broken, cache=cache)


def test_a_teacher_that_changed_is_refused(trained, tmp_path, cache, monkeypatch):
    teacher = shutil.copytree(trained, tmp_path / "teacher")
    break_off(monkeypatch, tmp_path / "pupil", cache, 8, teacher=str(teacher))
    for path in (teacher / "checkpoints").iterdir():
        poison(path, "head.weight", 0.5)
    with pytest.raises(SpikegptError, match=r"the teacher .* is not what .*pupil began with"):
        resume(tmp_path / "pupil", cache=cache)


# folders without a manifest


def test_a_copied_folder_without_a_manifest_is_said_to_be_unproven(copy, capsys):
    (newest(copy) / "manifest.json").unlink()
    load_model(copy / "checkpoints" / "step-00000012")
    assert "has no manifest.json, so nobody can say whether its files are whole" in capsys.readouterr().err


def test_an_imported_model_that_was_damaged_is_refused(make_run, tmp_path, capsys):
    dense = make_run("dense", MODEL.twin(), steps=1)
    import_weights(newest(dense), tmp_path / "model")
    capsys.readouterr()
    load_model(tmp_path / "model")
    assert capsys.readouterr().err == ""
    path = tmp_path / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1000:] = bytes(1000)
    path.write_bytes(content)
    with pytest.raises(SpikegptError, match=r"model\.safetensors has changed since it was written"):
        load_model(tmp_path / "model")


def test_damaged_checkpoints_ahead_do_not_push_out_those_that_are_written(broken, cache, monkeypatch):
    """A run whose newest checkpoints are damaged goes on from the one before, and is never left without one."""
    for ahead in ("step-00000010", "step-00000011"):
        shutil.copytree(newest(broken), broken / "checkpoints" / ahead)
        (broken / "checkpoints" / ahead / "training.json").write_text("{")
    step = Loop.train_step

    def stopping(self):
        self.signals.number = signal.SIGTERM if self.step == 8 else None
        return step(self)

    monkeypatch.setattr(Loop, "train_step", stopping)
    assert resume(broken, cache=cache, quiet=True).step == 9
    assert newest(broken).name == "step-00000009"


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(broken, cache):
    for checkpoint in (broken / "checkpoints").iterdir():
        (checkpoint / "manifest.json").write_text("{")
    with pytest.raises(SpikegptError, match=r"none of the checkpoints of .* is whole"):
        resume(broken, cache=cache, quiet=True)


def test_a_teacher_that_comes_or_goes_is_a_difference(broken, copy, cache):
    change(broken / "config.json", "train", "teacher", to=str(copy))
    with pytest.raises(SpikegptError, match=r"train\.teacher is .*, but null"):
        resume(broken, cache=cache, quiet=True)


def test_weights_of_another_model_do_not_take_another_tokenizer(trained, tmp_path, cache):
    changed = dataclasses.replace(TRAIN, tokenizer="char")
    with pytest.raises(SpikegptError, match=r"the tokenizer is not that of .*; leave out --tokenizer"):
        train(MODEL, changed, tmp_path / "run", start=trained, cache=cache, quiet=True)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_weights_that_are_no_real_numbers_are_refused(copy, dtype):
    replace_head(copy, lambda head: torch.ones(head.shape).to(dtype))
    with pytest.raises(SpikegptError, match=r"'head.weight' holds torch\.\w+ numbers, want float32"):
        load_model(copy)


def test_weights_beyond_float32_are_not_finite(copy):
    replace_head(copy, lambda head: head.double() + 1e300)
    with pytest.raises(SpikegptError, match=r"'head.weight' holds NaN or infinity"):
        load_model(copy)


def replace_head(run: Path, change) -> None:
    for checkpoint in (run / "checkpoints").iterdir():
        weights = load_file(checkpoint / "model.safetensors")
        weights["head.weight"] = change(weights["head.weight"])
        save_file(weights, checkpoint / "model.safetensors")
        write_manifest(checkpoint)


@pytest.mark.parametrize("run", ["", "."])
def test_the_current_folder_is_no_run_by_accident(run, cache):
    with pytest.raises(SpikegptError, match="the current folder"):
        train(MODEL, TRAIN, run, cache=cache, quiet=True)


def test_a_cache_may_be_named_by_a_string(tmp_path):
    train(MODEL, dataclasses.replace(TRAIN, steps=1), tmp_path / "run", cache=str(tmp_path / "cache"), quiet=True)
    assert any((tmp_path / "cache").iterdir())


def test_a_tokenizer_of_another_model_is_refused(copy):
    folder = newest(copy)
    CharTokenizer("abc").save(folder / "tokenizer.json")
    (folder / "manifest.json").unlink()
    with pytest.raises(SpikegptError, match="has 3 tokens, the model 256: it is not this model's tokenizer"):
        load_model(folder)


def test_the_report_of_a_copied_checkpoint_lies_inside_it(copy, tmp_path):
    assert report_folder(newest(copy)) == copy / "report"
    alone = shutil.copytree(newest(copy), tmp_path / "alone")
    assert report_folder(alone) == alone / "report"


def test_a_twin_is_found_beside_models_that_were_not_trained(trained, tmp_path, make_run):
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.copytree(newest(trained), tmp_path / "alone")
    (tmp_path / "other").mkdir()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / "other" / name).write_text("[")
    twin = make_run("twin", MODEL.twin())
    assert find_twin(run) == twin.resolve()


# log


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b'"loss": ', b'"loss": 1', 1),
        lambda content: b"\xff" * 10 + content[10:],
        lambda content: b"[" * 100_000 + b"\n" + content,
        None,
    ],
    ids=["emptied", "truncated", "a digit", "no text", "nested", "removed"],
)
def test_a_damaged_history_is_said_and_what_can_be_read_is_kept(broken, cache, capsys, damage):
    path = broken / "metrics.jsonl"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    wanted = [line["step"] for line in read_metrics(broken) if line["step"] <= 8] + [9, 12, 12]
    resume(broken, cache=cache, quiet=True)
    assert "metrics.jsonl is not what it was when the checkpoint was written" in capsys.readouterr().err
    assert [line["step"] for line in read_metrics(broken)] == wanted


def test_an_old_run_says_how_much_of_its_history_cannot_be_read(broken, cache, capsys):
    change(newest(broken) / "training.json", "marks", to={})
    write_manifest(broken / "checkpoints" / "step-00000008")
    with (broken / "metrics.jsonl").open("a") as file:
        file.write("nonsense\n[1]\ncut off")
    resume(broken, cache=cache, quiet=True)
    assert "metrics.jsonl: 2 lines cannot be read and are left out" in capsys.readouterr().err
    assert [line["step"] for line in read_metrics(broken)] == [1, 3, 6, 6, 9, 12, 12]


def test_log_and_samples_of_a_killed_run_are_those_of_the_unbroken_one(trained, broken, cache, capsys):
    with (broken / "samples.txt").open("a") as file:
        file.write("--- step 10 ---\nnewer than the checkpoint\n")
    resume(broken, cache=cache, quiet=True)
    assert (broken / "samples.txt").read_text() == (trained / "samples.txt").read_text()
    assert capsys.readouterr().err == ""
    assert weights_of(broken) == weights_of(trained)


def test_a_finished_run_is_evaluated_again_and_nothing_is_written(copy, cache):
    before = (copy / "metrics.jsonl").read_bytes()
    assert resume(copy, cache=cache, quiet=True).valid.bits_per_byte == read_metrics(copy)[-1]["bits_per_byte"]
    assert (copy / "metrics.jsonl").read_bytes() == before


# numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(copy, cache, value):
    for checkpoint in (copy / "checkpoints").iterdir():
        poison(checkpoint, "blocks.1.ffn.key.weight", value)
    for verb in (["generate"], ["evaluate"], ["info"], ["train", "--resume"]):
        done = spikegpt(*verb, copy, check=False)
        assert done.returncode == 1
        assert "'blocks.1.ffn.key.weight' holds NaN or infinity" in done.stderr


def test_a_model_that_computes_nothing_finite_is_not_evaluated(copy, cache):
    for checkpoint in (copy / "checkpoints").iterdir():
        poison(checkpoint, "head.weight", 3e38)
        poison(checkpoint, "ln_out.weight", 3e38)
    done = spikegpt("evaluate", copy, "--cache", cache, "--json", check=False)
    assert (done.returncode, done.stdout) == (1, "") and "cross-entropy is" in done.stderr


@pytest.mark.parametrize("steps, save_every", [(1, 4), (3, 1)])
def test_no_checkpoint_of_a_model_that_diverged_is_kept(make_run, tmp_path, steps, save_every):
    with pytest.raises(SpikegptError, match=r"step 1: .*; no checkpoint was written yet\. Lower --lr"):
        make_run(steps=steps, save_every=save_every, eval_every=0, lr=1e30, warmup_steps=0, grad_clip=0.0)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert all(line["kind"] == "train" for line in read_metrics(tmp_path / "run"))


# one process


def _hold(folder, held, release):
    with locked(folder):
        held.set()
        release.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_run_has_one_writer_until_it_dies(broken, cache):
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(broken, held, release), daemon=True)
    holder.start()
    assert held.wait(30)
    for verb in (["--resume"], ["--out"]):
        done = spikegpt("train", *verb, broken, "--cache", cache, check=False)
        assert done.returncode == 1 and f"is in use by process {holder.pid} on " in done.stderr
    holder.kill()
    holder.join()
    assert resume(broken, cache=cache, quiet=True).step == 12
    assert not (broken / ".lock").exists()


def test_a_folder_that_was_locked_for_nothing_is_not_left(tmp_path):
    (tmp_path / "old").mkdir()
    for folder in ("old", "new/inner"):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / folder):
            raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


# modes


@pytest.mark.skipif(os.name == "nt", reason="has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_every_file_has_the_mode_that_the_umask_lets(make_run, umask):
    before = os.umask(umask)
    try:
        run = make_run(steps=1)
    finally:
        os.umask(before)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


# all together


@pytest.mark.slow
def test_nothing_wrong_is_taken_in_silence(tmp_path):
    counts, faults = try_all(tmp_path, 12, seed=3, verbs=["resume", "evaluate", "generate", "info"])
    assert not faults, "\n\n".join(faults)
    assert not any(counts[verb].keys() & set(FAULTS) for verb in counts)
    assert torch.get_num_threads() == 1
