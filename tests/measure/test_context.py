"""What a text's memory costs and buys, measured: points, files, and what is refused."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spikegpt import SpikeGPT
from spikegpt.checkpoint.run import save_model
from spikegpt.checkpoint.weights import load_model
from spikegpt.cli.context import context_verb
from spikegpt.cli.verbs import main
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.measure.context import measure_context
from spikegpt.measure.context_folder import read_context, write_context
from spikegpt.measure.context_windows import Score, recall_windows

KINDS = {
    "attention": {"mixer": "attention", "spiking": "none", "n_head": 2},
    "dense": {"spiking": "none"},
    "spiking": {"spiking": "input"},
}
BYTES = 700


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder of untrained models, and a text."""
    base = tmp_path_factory.mktemp("context")
    for name, changes in KINDS.items():
        torch.manual_seed(0)
        model = SpikeGPT(ModelConfig(n_layer=2, n_embd=16, ctx_len=64, **changes))
        if name == "attention":
            for block in model.blocks:
                torch.nn.init.normal_(block.att.output.weight, std=0.5)
        (base / name).mkdir()
        save_model(base / name, model, ByteTokenizer())
    (base / "text.txt").write_bytes(bytes(97 + number * number % 23 for number in range(BYTES)))
    return base


def measured(base, names, policies=(), lengths=(32,), **options):
    return measure_context([base / name for name in names], policies, lengths, file=base / "text.txt", **options)


def test_a_constant_state_is_as_large_after_thousands_of_tokens(base):
    points = measured(base, ["dense", "spiking"], lengths=(2, 64, 5000), texts=2)
    carried = {(point.model, point.bytes_per_text) for point in points}
    # float32: five numbers a channel and layer of RWKV-4, four where the neurons carry nothing and values are spikes
    assert carried == {("dense", 4 * 2 * 5 * 16), ("spiking", 4 * 2 * 4 * 16)}
    assert [point.bits_per_byte is None for point in points] == [False, False, True] * 2
    assert "repeated" in points[2].notes[0] and points[0].policy == "constant state"


@pytest.mark.parametrize("name", ["attention", "dense"])
def test_bits_are_those_of_a_plain_forward_pass(name, base):
    (point,) = measured(base, [name], lengths=(50,), texts=3, dtype=torch.float32)
    model, tokenizer = load_model(base / name)
    tokens = tokenizer.encode((base / "text.txt").read_bytes()).astype(np.int64)
    windows = torch.from_numpy(np.stack([tokens[start : start + 50] for start in (0, 325, 650)]))
    with torch.no_grad():
        logits = model.eval()(windows).logits[:, 24:-1]
    nats = F.cross_entropy(logits.flatten(0, 1), windows[:, 25:].flatten(), reduction="sum").item()
    assert point.predicted_tokens == 3 * 25
    assert point.bits_per_byte == pytest.approx(nats / math.log(2) / 75, rel=1e-5)


def test_a_budget_of_the_whole_window_predicts_bit_for_bit_as_the_full_cache(base):
    points = measured(base, ["attention"], ["full", "roco:32", "h2o:32", "tova:99", "recency:32,sinks=4", "roco:8"])
    full, *others, small = (point.bits_per_byte for point in points)
    assert others == [full] * 4 and small != full


def test_bytes_and_operations_grow_with_what_is_kept(base):
    policies = ["full", "recency:8", "rotate:2,outliers=0", "mikv:2,share=0.25", "fastkv:0.75", "dynamic:12"]
    points = measured(base, ["attention"], policies, lengths=(32, 64))
    found = {(point.policy, point.context): point for point in points}
    # half precision: keys and values of 16 channels in two layers
    assert [found["full", length].bytes_per_text for length in (32, 64)] == [32 * 128, 64 * 128]
    assert [found["recency:8", length].bytes_per_text for length in (32, 64)] == [8 * 128] * 2
    # two bits a number; scale and offset of each of the four heads' keys and values
    assert found["rotate:2,outliers=0", 32].bytes_per_text == 32 * (64 * 2 + 8 * 32) / 8
    assert found["full", 64].operations_per_token > found["full", 32].operations_per_token
    assert found["recency:8", 64].operations["macs"] == pytest.approx(
        found["recency:8", 32].operations["macs"], rel=0.1
    )
    assert sum(point.budget or 0 for point in points) == 2 * (8 + 2 + 2 + 0.75 + 12)


def test_longer_than_trained_is_read_and_said(base, capsys):
    measured(base, ["attention"], lengths=(64,))
    assert "any distance" not in capsys.readouterr().err
    measured(base, ["attention"], lengths=(65,))
    assert "was trained on texts of 64 tokens: at 65" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "policies", "options", "message"),
    [
        (["dense", "spiking"], ["roco:8"], {}, "carry a constant state, no key-value cache, which policies are of"),
        (["attention"], ["roco:8"], {"lengths": (701,)}, "a length of 701 is beyond the text, which has 700 tokens"),
        (["attention"], ["fastkv:0.25"], {}, "'fastkv:0.25' at a length of 32, .* no more than its window of 8"),
        (["attention"], ["roco:0"], {}, "a budget of 0 tokens holds nothing"),
        (["attention"], [], {"lengths": (1,)}, "lengths must be a whole number from 2"),
        (["attention"], [], {"texts": 0}, "texts must be a whole number from 1"),
        ([], [], {}, "no run given"),
    ],
)
def test_what_cannot_be_measured_is_refused(names, policies, options, message, base):
    with pytest.raises((SpikegptError, ValueError), match=message):
        measured(base, names, policies, **options)


def test_the_verb_writes_points_tables_and_figures(base, tmp_path, capsys):
    words = [str(base / name) for name in KINDS] + [
        "--policy",
        "full",
        "roco:4",
        "--policy=roco:16",
        "--lengths",
        "8,32",
    ]
    out = tmp_path / "out"
    assert context_verb([*words, "--file", str(base / "text.txt"), "--texts", "2", "--out", str(out)]) == 0
    assert "constant state" in capsys.readouterr().out
    points = json.loads((out / "context.json").read_text())["points"]
    assert len(points) == 2 * (3 + 1 + 1)
    wanted = {"model", "policy", "budget", "bytes_per_text", "operations_per_token", "bits"}
    assert all(wanted <= point.keys() for point in points)
    assert "operations/token" in (out / "context.tex").read_text()
    rows = list(csv.DictReader((out / "context.csv").open()))
    assert [row["policy"] for row in rows] == [point["policy"] for point in points]
    assert float(rows[0]["keys_bytes"]) == points[0]["bytes_by_part"]["keys"]
    assert sorted(path.suffix for path in out.iterdir()) == [".csv", ".json", ".png", ".png", ".tex"]
    (out / "mine.txt").write_text("mine")
    assert main(["context", *words, "--file", str(base / "text.txt"), "--out", str(out)]) == 1
    assert "holds mine.txt, which is none of what context writes" in capsys.readouterr().err
    # before anything is measured
    nowhere = out / "mine.txt" / "x"
    assert main(["context", str(base / "dense"), "--file", str(base / "text.txt"), "--out", str(nowhere)]) == 1
    said = capsys.readouterr()
    assert f"cannot write the points {nowhere}: {out / 'mine.txt'} is no folder to write in" in said.err
    assert "constant state" not in said.out


@pytest.mark.parametrize("letters", [1, 2])
def test_what_recall_asks_was_told_in_the_first_half(letters):
    windows = recall_windows(41, 5, letters, 0, ByteTokenizer())
    assert windows.ids.shape == (5, 41) and windows.first == 20
    for ids, asked in zip(windows.ids, windows.asked, strict=True):
        text = bytes(ids.astype(np.uint8))
        told = dict(part.split(b"=") for part in text[:20].strip(b"\n").split(b";")[:-1])
        questions = [part.split(b"=") for part in text[20:].strip(b"\n").split(b";")[:-1]]
        # 20 bytes hold five pairs of one letter each and three of two; 21 as many questions
        assert len(told) == len(questions) == {1: 5, 2: 3}[letters]
        assert all(told[key] == value for key, value in questions)
        assert bytes(ids[asked].astype(np.uint8)) == b"".join(value for _, value in questions)
    assert windows.predicted_bytes == windows.asked.sum()


def test_an_answer_is_right_if_all_its_letters_are():
    ids = torch.tensor([[0, 1, 2, 1, 2, 3, 3]])
    asked = np.array([[False, False, False, True, True, True, True]])
    score = Score(ids, asked)
    score.add(F.one_hot(torch.tensor([[0, 1]]), 4).float(), 1)
    score.add(10 * F.one_hot(torch.tensor([[1, 2, 3, 0]]), 4).float(), 3)
    assert score.answers(2) == (1, 2) and score.answers(1) == (3, 4)
    # three letters are nearly certain, one is as good as excluded
    assert score.nats() == pytest.approx(4 * math.log(1 + 3 * math.exp(-10)) + 10)


def test_recall_is_measured_by_every_policy(base):
    points = measured(base, ["attention", "spiking"], ["full", "recency:4", "dynamic:12"], lengths=(40,), recall=2)
    assert [point.policy for point in points] == ["full", "recency:4", "dynamic:12", "constant state"]
    # three questions of two letters in each of eight windows
    assert {point.predicted_tokens for point in points} == {8 * 3 * 2}
    assert all(0 <= point.recalled <= 1 and point.bits_per_byte > 4 for point in points)
    again = measured(base, ["spiking"], lengths=(40,), recall=2)
    other = measured(base, ["spiking"], lengths=(40,), recall=2, seed=1)
    assert again[0].bits_per_byte == points[-1].bits_per_byte != other[0].bits_per_byte


def test_a_model_that_remembers_recalls(base, tmp_path):
    """A table of what followed each key, as an attention that finds it would have it."""

    class Table(torch.nn.Module):
        def forward(self, ids):
            logits = torch.zeros(*ids.shape, 256)
            for row, text in enumerate(ids.tolist()):
                seen = {}
                for place, byte in enumerate(text):
                    logits[row, place, seen.get(tuple(text[max(place - 1, 0) : place + 1]), 0)] = 50.0
                    if place >= 2:
                        seen[tuple(text[place - 2 : place])] = byte
            return logits

    windows = recall_windows(40, 4, 1, 0, ByteTokenizer())
    ids = torch.from_numpy(windows.ids.astype(np.int64))
    score = Score(ids, windows.asked)
    score.add(Table()(ids)[:, 19:-1], 20)
    right, answers = score.answers(1)
    assert answers == 4 * 5 and right == answers and score.nats() < 1e-6


def test_recall_has_a_folder_of_its_own(base, tmp_path, capsys):
    words = ["context", str(base / "attention"), "--policy", "full", "recency:4", "--lengths", "40", "--recall"]
    assert main([*words, "--texts", "2", "--split", "valid"]) == 0
    said = capsys.readouterr()
    assert "recalled" in said.out and "--split valid has no effect: --recall reads no text" in said.err
    folder = base / "attention" / "recall"
    assert {path.name for path in folder.glob("*.png")} == {
        "recall_against_bytes.png",
        "operations_against_context.png",
    }
    assert [point.recalled is not None for point in read_context(folder)] == [True, True]
    assert next(csv.DictReader((folder / "context.csv").open()))["recalled"] != ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"lengths": (11,)},
            "11 has no room for a pair of 6 bytes in each half; give --lengths of at least 12",
        ),
        ({"recall": 5}, "letters must be a whole number from 1 to 4"),
    ],
)
def test_recall_that_cannot_be_asked_is_refused(options, message, base):
    with pytest.raises((SpikegptError, ValueError), match=message):
        measured(base, ["spiking"], **{"recall": 2, "lengths": (40,), **options})


def test_points_that_are_not_as_written_are_refused(base, tmp_path):
    points = measured(base, ["spiking"], lengths=(8,))
    write_context(tmp_path / "c", points, made={})
    assert read_context(tmp_path / "c") == points and read_context(tmp_path / "none") == []
    for content in ("[]", "{", '{"points": [{}]}', '{"points": 3}'):
        (tmp_path / "c" / "context.json").write_text(content)
        with pytest.raises(SpikegptError, match=r"cannot read the points in .*; measure them anew"):
            read_context(tmp_path / "c")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lengths", "many"], "--lengths is 'many'; give whole numbers between commas"),
        (["--policy"], "--policy wants a value, such as roco:64"),
    ],
)
def test_odd_words_are_refused(words, message, base, capsys):
    assert main(["context", str(base / "attention"), *words]) == 2
    assert message in capsys.readouterr().err
