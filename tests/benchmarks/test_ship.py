"""What ship.py makes of a pair: folders with cards that say what was measured; and which pairs it refuses."""

import dataclasses
import json
import shlex
import sys
from types import SimpleNamespace

import pytest
from runs import MODEL, TRAIN

from benchmarks import ship
from spikegpt.checkpoint import load_model
from spikegpt.checkpoint.files import fault_of
from spikegpt.checkpoint.run import configs_of, read_run_config
from spikegpt.checkpoint.shipped import CARD
from spikegpt.cli import training
from spikegpt.train import train, trainer

# the same numbers of tokens read, in two trainings
HALF = dataclasses.replace(TRAIN, steps=6, lr=2e-3, anneal=0.0)


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    run = base / "twin"
    train(MODEL.twin(), TRAIN, run, cache=base / "cache", quiet=True)
    return run


@pytest.fixture
def ship_pair(trained, twin, tmp_path, cache, monkeypatch):
    """Ships a pair as the command does, by default of the small finished runs, and returns where to."""
    monkeypatch.setattr(ship, "home", lambda: tmp_path / "out")
    monkeypatch.setattr(ship, "COUNTED_TOKENS", 64)
    monkeypatch.setattr(ship, "SAMPLING", dataclasses.replace(ship.SAMPLING, max_tokens=8))

    def run(*words, **runs):
        runs = {"spiking": trained, "twin": twin, "data": "python-docs", **runs}
        words += ("--tokens", 300, "--name", "mine", "--cache", cache, "--threads", 1)
        flags = [str(word) for name, run in runs.items() for word in (f"--{name}", run)]
        monkeypatch.setattr(sys, "argv", ["ship.py", *flags, *map(str, words)])
        ship.main()
        return tmp_path / "out"

    return run


def refused(ship_pair, *words, **runs) -> str:
    with pytest.raises(SystemExit) as refusal:
        ship_pair(*words, **runs)
    return str(refusal.value)


@pytest.fixture
def unpublished(monkeypatch):
    """What would have been published; a model of 12 steps may lose what it likes."""
    found = {}
    monkeypatch.setattr(ship, "LARGEST_LOSS", 1.0)
    monkeypatch.setattr(ship, "write_result", lambda name, facts: found.update({name: facts}))
    return found


def test_a_pair_becomes_two_folders_with_cards(ship_pair, unpublished, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("It was the best of times, it was the worst of times.")
    out = ship_pair("--other", other)
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts == json.loads(json.dumps(unpublished["shipped"]))
    for name in ("mine", "mine-twin"):
        model, _ = load_model(out / name)
        assert (fault_of(out / name), model.config.weight_bits) == (None, 8)
        text = (out / name / CARD).read_text()
        assert "| bits per byte: other.txt, 52 tokens |" in text and str(tmp_path) not in text
        assert f"{facts['models'][name]['bits_per_byte']['other.txt']:.4f}" in text
    assert facts["models"]["mine-twin"]["firing_rate"] is None and facts["models"]["mine"]["per_token"]["acs"] > 0
    assert facts["tokens_read"] == TRAIN.steps * TRAIN.batch_size * MODEL.ctx_len


def test_what_is_put_elsewhere_is_not_published(ship_pair, unpublished, tmp_path):
    ship_pair("--other", "--out", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "mine" / CARD).exists() and not unpublished


def test_what_is_not_a_pair_is_refused(ship_pair, trained, twin, make_run, tmp_path):
    assert "has --spiking none; give a spike-driven run there" in refused(ship_pair, spiking=twin)
    assert "has --spiking input; give its dense run there" in refused(ship_pair, twin=trained)
    narrow = make_run("narrow", dataclasses.replace(MODEL.twin(), n_embd=8))
    assert "is no twin: its n_embd is 8, that of" in refused(ship_pair, twin=narrow)
    short = make_run("short", MODEL.twin(), steps=6)
    assert "is no twin: tokens read 384, of" in refused(ship_pair, twin=short)
    (tmp_path / "a.txt").write_text("It was the best of times, it was the worst of times. " * 100)
    assert "learned from another text than --data" in refused(ship_pair, data=tmp_path / "a.txt")


def test_codes_that_cost_too_much_are_refused(ship_pair, monkeypatch, tmp_path):
    monkeypatch.setattr(ship, "LARGEST_LOSS", -1.0)
    assert "codes of 8 bits cost" in refused(ship_pair) and not (tmp_path / "out").exists()


def test_a_folder_of_others_is_not_replaced(ship_pair, tmp_path):
    (tmp_path / "out" / "mine").mkdir(parents=True)
    assert "is no model with a card" in refused(ship_pair)


def test_the_commands_of_a_card_train_the_same_again(make_run, tmp_path, cache, monkeypatch):
    first = make_run("first", steps=6)
    train(MODEL, HALF, tmp_path / "second", start=first, cache=cache, quiet=True)
    found = ship.read_trained(tmp_path / "second")
    assert found.tokens == 12 * TRAIN.batch_size * MODEL.ctx_len
    told, ended = [], SimpleNamespace(is_main=False, interrupted=False)
    monkeypatch.setattr(trainer, "train", lambda model, config, *_, **__: told.append((model, config)) or ended)
    for number, line in enumerate(ship.commands(found, "python-docs"), 1):
        words = shlex.split(line.replace("stage-1", str(first))) if number == 2 else shlex.split(line)
        training.train_verb(words[2:])
    for (model, config), run in zip(told, (first, tmp_path / "second"), strict=True):
        wanted_model, wanted = configs_of(run, read_run_config(run))
        # a vocabulary is the tokenizer's
        assert dataclasses.replace(model, vocab_size=wanted_model.vocab_size) == wanted_model
        # that of the run that it begins with
        same = {name: value for name, value in wanted.to_dict().items() if name not in ship.UNTOLD}
        assert same == {name: config.to_dict()[name] for name in same}
