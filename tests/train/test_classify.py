"""Classification: what is read is checked by line, padding changes nothing, test examples are read once, it learns."""

import dataclasses
import json
import os
import shutil
import signal

import pytest
import torch
from classification import write_examples
from runs import BLOCKS, MODEL, TRAIN

from spikegpt.checkpoint.weights import load_model
from spikegpt.cli import verbs as command_line
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ClassifyConfig
from spikegpt.data import labelled
from spikegpt.data.labelled import TASKS, Example, Task, load_file_task, load_hub_task
from spikegpt.train import classify as classification
from spikegpt.train.classify import Classifier, classify, finetune, load_classifier
from spikegpt.train.loop import Loop
from spikegpt.train.trainer import train as pretrain

QUICK = ClassifyConfig(epochs=4, lr=1e-2, batch_size=16, seeds=(0,))


@pytest.fixture
def task(tmp_path):
    files = [
        write_examples(tmp_path / name, count, seed)
        for seed, (name, count) in enumerate({"train.tsv": 1000, "test.jsonl": 200}.items())
    ]
    return load_file_task(files[0], None, files[1])


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_it_learns_a_task_of_a_thousand_examples_beyond_the_majority(task, tmp_path, cache, block):
    model = dataclasses.replace(MODEL, **BLOCKS[block], neuron=None)
    run = pretrain(model, dataclasses.replace(TRAIN, steps=60, lr=1e-2), tmp_path / "run", cache=cache, quiet=True).run
    result = finetune(run, task, QUICK, tmp_path / "out")
    assert result["accuracy"] > task.majority() + 0.1
    firing_rate = result["seeds"][0]["firing_rate"]
    assert firing_rate is None if model.spiking == "none" else 0 < firing_rate < 1


def test_a_tenth_of_each_class_is_held_out_the_same_always(task):
    assert len(task.train) + len(task.valid) == 1000 and set(task.train).isdisjoint(set(task.valid) - set(task.train))
    share = sum(example.label for example in task.valid) / len(task.valid)
    assert len(task.valid) == 100 and abs(share - 1 / 3) < 0.05


def test_the_majority_is_that_of_train_counted_on_test():
    train, test = [Example("x", 1)] * 3 + [Example("y", 0)], [Example("z", 0)] * 3 + [Example("u", 1)]
    task = Task(name="t", classes=("a", "b"), train=train, valid=[], test=test)
    assert task.majority() == 0.25


def test_classes_that_are_numbers_stand_in_their_order(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"text {n}\t{n}\n" for n in range(12)))
    assert load_file_task(tmp_path / "a.tsv", tmp_path / "a.tsv", tmp_path / "a.tsv").classes == tuple(
        map(str, range(12))
    )


def test_a_text_is_classified_alone_as_in_a_padded_batch(trained):
    model, tokenizer = load_model(trained)
    classifier = Classifier(model, 3).eval()
    texts = ["short", "a text that is a good deal longer"]
    together = classify(classifier, tokenizer, texts)
    for row, text in enumerate(texts):
        torch.testing.assert_close(together[row], classify(classifier, tokenizer, [text])[0])


def test_firing_rates_leave_padding_out(trained):
    model, tokenizer = load_model(trained)
    classifier = Classifier(model, 2)
    encoded = [
        classification._encode([Example(text, 0)], tokenizer, 512) for text in ("ab", "a much longer text than that")
    ]
    alone = [classification._measure(classifier, part, 1)[1] for part in encoded]
    tokens = [len(part[0][0]) for part in encoded]
    together = classification._measure(classifier, encoded[0] + encoded[1], 2)[1]
    assert together == pytest.approx(sum(rate * count for rate, count in zip(alone, tokens, strict=True)) / sum(tokens))


@pytest.mark.slow
def test_the_best_epoch_is_kept_and_test_is_read_once_per_seed(trained, task, tmp_path, monkeypatch):
    accuracies, read = iter([0.5, 0.9, 0.7, 0.1, 0.6, 0.7, 0.7, 0.4, 0.3, 0.2]), []

    def measure(classifier, encoded, batch_size):
        read.append(len(encoded))
        return next(accuracies), None

    monkeypatch.setattr(classification, "_measure", measure)
    result = finetune(trained, task, dataclasses.replace(QUICK, seeds=(0, 1)), tmp_path / "out")
    assert read == [100, 100, 100, 100, 200] * 2
    assert [(seed["epoch"], seed["valid_accuracy"], seed["test_accuracy"]) for seed in result["seeds"]] == [
        (2, 0.9, 0.6),
        (1, 0.7, 0.2),
    ]


def test_a_seed_gives_the_same_classifier_again_and_it_can_be_loaded(trained, task, tmp_path):
    small = dataclasses.replace(task, train=task.train[:50])
    results = [finetune(trained, small, dataclasses.replace(QUICK, epochs=1), tmp_path / name) for name in ("a", "b")]
    assert results[0]["seeds"] == results[1]["seeds"]
    first, second = (load_classifier(tmp_path / name / "seed-0") for name in ("a", "b"))
    assert first[2] == ("bad", "good")
    assert torch.equal(classify(*first[:2], ["the sea"]), classify(*second[:2], ["the sea"]))


def command(monkeypatch, *arguments) -> int:
    monkeypatch.setattr("sys.argv", ["spikegpt", "finetune-classify", *map(str, arguments)])
    return command_line.main()


def test_a_model_of_few_bits_stays_one(task, tmp_path, cache):
    model = dataclasses.replace(MODEL, weight_bits=2)
    run = pretrain(model, dataclasses.replace(TRAIN, steps=2), tmp_path / "run", cache=cache, quiet=True).run
    before = load_model(run)[0].state_dict()["blocks.1.ffn.key.weight"]
    small = dataclasses.replace(task, train=task.train[:64], valid=task.valid[:16], test=task.test[:16])
    finetune(run, small, dataclasses.replace(QUICK, epochs=2, lr=1e-2), tmp_path / "out")
    network = load_classifier(next((tmp_path / "out").glob("seed-*")))[0].network
    after = network.state_dict()["blocks.1.ffn.key.weight"]
    # four levels an output, which have moved
    assert all(len(row.unique()) <= 4 for row in after) and not torch.equal(after, before)


def test_the_command_sets_runs_beside_each_other(trained, tmp_path, monkeypatch, capsys):
    for name, count in (("train.jsonl", 40), ("valid.jsonl", 20), ("test.jsonl", 20)):
        write_examples(tmp_path / name, count, count)
    files = [word for name in ("train", "valid", "test") for word in (f"--{name}", tmp_path / f"{name}.jsonl")]
    options = [*files, "--epochs", "1", "--seeds", "3", "4", "--out", tmp_path / "out", "--threads", "1"]
    again = shutil.copytree(trained, tmp_path / "again")
    assert command(monkeypatch, trained, again, *options) == 0
    shown = capsys.readouterr().out
    assert "majority class" in shown and shown.count("of 2 seed(s)") == 2 and "published" not in shown
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [seed["seed"] for seed in values["results"][0]["seeds"]] == [3, 4] and values["config"]["epochs"] == 1
    table = (tmp_path / "out" / "results.csv").read_text().splitlines()
    assert table[0].startswith("run,spiking,parameters,seed,valid_accuracy,test_accuracy") and len(table) == 5
    assert "majority class &" in (tmp_path / "out" / "results.tex").read_text()
    # nothing is replaced: not by the same run, nor by another, nor in the same command line
    for runs in ((trained,), (shutil.copytree(trained, tmp_path / "third"),)):
        assert command(monkeypatch, *runs, *options) == 1
        assert "give another --out" in capsys.readouterr().err
    assert command(monkeypatch, trained, again, again, *options, "--out", tmp_path / "new") == 1
    assert "two of the runs are called again" in capsys.readouterr().err


def test_a_signal_ends_the_step_and_then_the_fine_tuning(trained, task, tmp_path, monkeypatch):
    steps, whole_step = [], Loop.train_step

    def step(self):
        steps.append(self.step)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole_step(self)

    monkeypatch.setattr(Loop, "train_step", step)
    with pytest.raises(SystemExit, match="143"):
        finetune(trained, task, QUICK, tmp_path / "out")
    assert steps == [0, 1, 2, 3] and not (tmp_path / "out").exists()


def test_a_diverging_classifier_is_said_to_diverge(make_run, task, tmp_path):
    config = dataclasses.replace(QUICK, lr=1e30)
    dense = make_run("dense", MODEL.twin(), steps=1)
    with pytest.raises(SpikegptError, match=r"step \d+: loss is .*; nothing of this training was kept. Lower --lr$"):
        finetune(dense, task, config, tmp_path / "out")


def test_a_classifier_that_diverges_in_its_last_step_is_said_to_diverge(make_run, task, tmp_path):
    dense = make_run("dense", MODEL.twin(), steps=1)
    config = dataclasses.replace(QUICK, lr=1e38, epochs=1, batch_size=10_000)
    with pytest.raises(SpikegptError, match=r"step 1: the classifier's logits are not finite; nothing .*Lower --lr$"):
        finetune(dense, task, config, tmp_path / "out")


def test_a_classifier_that_was_damaged_is_refused(trained, task, tmp_path):
    finetune(trained, task, dataclasses.replace(QUICK, seeds=(0,), epochs=1), tmp_path / "out")
    path = tmp_path / "out" / "seed-0" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8] + bytes(8))
    with pytest.raises(SpikegptError, match=r"model\.safetensors has changed since it was written"):
        load_classifier(tmp_path / "out" / "seed-0")


def test_a_full_gpu_names_what_makes_a_batch_of_texts_smaller(trained, task, tmp_path, monkeypatch):
    def full(self, ids, lengths):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Classifier, "forward", full)
    with pytest.raises(
        SpikegptError, match="step 1: the GPU's memory is full at batch_size 16 x max_tokens 512: lower --batch-size or"
    ):
        finetune(trained, task, QUICK, tmp_path / "out")


@pytest.mark.parametrize("name", TASKS)
def test_tasks_of_the_paper_are_read_as_they_lie_on_the_hub(name, monkeypatch):
    asked = []

    def rows(data_set, config, split):
        asked.append((data_set, split))
        return iter([{TASKS[name].text_column: f"text {n}", "label": n % 2} for n in range(40)])

    monkeypatch.setattr("spikegpt.data.hub_rows.rows", rows)
    task = load_hub_task(name)
    assert asked == [(TASKS[name].data_set, "train"), (TASKS[name].data_set, TASKS[name].test_split)]
    assert (len(task.train), len(task.valid), len(task.test)) == (36, 4, 40)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "text\tlabel\nfine\tgood\n\tbad\n", "a.tsv, line 3: the text is ''"),
        (
            "a.tsv",
            "text\tlabel\nfine\n",
            r"a.tsv, line 2: 1 cell\(s\), but the first line names 2 column",
        ),
        ("a.tsv", "sentence\tlabel\nfine\tgood\n", "a.tsv, line 2: no column 'text'; there are sentence, label"),
        (
            "a.tsv",
            "text\tlabel\nfine\tgood\nwell\tgood\n",
            r"train has 2 examples of 1 class\(es\) \(good\); at least two",
        ),
        ("a.jsonl", '{"text": "a", "label": 0}\n{"text": \n', "a.jsonl, line 2, is not JSON"),
        ("a.jsonl", '{"text": "a", "label": 0}\n[1]\n', "a.jsonl, line 2, is not an object but a list"),
        ("a.jsonl", '{"text": 3, "label": 0}\n{"text": "b", "label": 1}\n', "a.jsonl, line 1: the text is 3"),
        ("a.jsonl", "", "train has 0 examples"),
        ("a.txt", "text,label\n", "give a .tsv or .csv file, whose first line names the columns, or a .jsonl file"),
    ],
)
def test_faults_of_a_file_are_named_with_their_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(SpikegptError, match=message):
        load_file_task(tmp_path / name, tmp_path / name, tmp_path / name)


def test_a_label_that_train_does_not_have_is_refused(tmp_path):
    write_examples(tmp_path / "train.tsv", 20, 0)
    (tmp_path / "test.tsv").write_text("text\tlabel\nso so\tneutral\n")
    with pytest.raises(
        SpikegptError, match=r"test.tsv, line 2: label 'neutral' is not among those of train: bad, good"
    ):
        load_file_task(tmp_path / "train.tsv", None, tmp_path / "test.tsv")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SpikegptError, match=r"cannot read .*none.tsv"):
        load_file_task(tmp_path / "none.tsv", None, tmp_path / "none.tsv")


@pytest.mark.parametrize(
    "arguments",
    [["RUN"], ["RUN", "--task", "mr", "--train", "x.tsv", "--test", "x.tsv"], ["RUN", "--train", "x.tsv"], []],
)
def test_a_task_or_files_but_not_both(arguments, monkeypatch, capsys):
    assert command(monkeypatch, *arguments) == 2
    assert "either --task NAME, or --train FILE and --test FILE" in capsys.readouterr().err


def test_held_out_examples_are_not_those_of_one_class_first():
    rest, held = labelled._hold_out([Example(str(n), n % 2) for n in range(100)])
    assert sorted(example.label for example in held) == [0] * 5 + [1] * 5 and len(rest) == 90
