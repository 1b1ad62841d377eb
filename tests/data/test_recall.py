"""Keys and values: every question was told before, and what is drawn is drawn again by the same seed."""

import numpy as np
import pytest

from spikegpt.cli.verbs import main
from spikegpt.common.errors import SpikegptError
from spikegpt.data.corpora import recall_corpus
from spikegpt.data.recall import make_episode, recall_text, statement_size, value_of


def statements(line):
    return [part.partition(b"=")[::2] for part in line.rstrip(b"\n").split(b";")[:-1]]


@pytest.mark.parametrize("letters", [1, 2, 4])
def test_every_question_was_told_and_no_key_twice(letters):
    told, asked = make_episode(9, 21, letters, np.random.default_rng(0))
    assert told.shape == (9, statement_size(letters)) and asked.shape == (21, statement_size(letters))
    pairs = statements(told.tobytes())
    assert len(dict(pairs)) == 9 and all(len(part) == letters for pair in pairs for part in pair)
    questions = statements(asked.tobytes())
    assert set(questions) == set(pairs)
    # rounds of all pairs: after 18 questions every pair was asked twice
    assert sorted(questions[:9]) == sorted(questions[9:18]) == sorted(pairs) != questions[:9]
    assert [row.tobytes() for row in told[:, value_of(letters)]] == [value for _, value in pairs]


def test_lines_have_all_numbers_of_pairs_and_small_ones_as_often_as_large():
    lines = list(recall_text(8, 2, seed=0, size=60_000))
    sizes = [len(statements(line)) // 2 for line in lines]
    assert set(sizes) == set(range(1, 9))
    # uniform in the logarithm: one pair is as likely as four to eight
    assert sizes.count(1) / len(sizes) == pytest.approx(np.log(2) / np.log(9), abs=0.03)
    for line in lines:
        first, second = np.array_split(np.array(statements(line)), 2)
        assert {tuple(pair) for pair in first} == {tuple(pair) for pair in second}


def test_a_corpus_is_drawn_by_its_seed(tmp_path):
    folders = [recall_corpus(tmp_path / str(place), seed=seed, size=5000) for place, seed in enumerate((0, 0, 1))]
    texts = [(folder / "train.txt").read_bytes() for folder in folders]
    assert texts[0] == texts[1] != texts[2] and len(texts[0]) >= 4500
    assert recall_corpus(folders[0], seed=0, size=5000) == folders[0]
    with pytest.raises(SpikegptError, match="holds another corpus"):
        recall_corpus(folders[0], seed=1, size=5000)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--letters", "5"], "letters must be a whole number from 1 to 4"),
        (["--letters", "1", "--pairs", "27"], "pairs must be between 1 and 26, the keys of 1 letters, got 27"),
        (["--pairs", "0"], "pairs must be between 1 and 676"),
        (["--seed", "-1"], "by seed -1: expected non-negative integer"),
        (["--limit-bytes", "10"], "recall needs at least 1,000 bytes, got 10"),
    ],
)
def test_numbers_that_cannot_be_are_refused(words, message, tmp_path, capsys):
    assert main(["data", "recall", "--cache", str(tmp_path), *words]) == 1
    assert message in capsys.readouterr().err


def test_the_verb_draws_and_says_what_changes_nothing(tmp_path, capsys):
    words = ["data", "recall", "--pairs", "3", "--limit-bytes", "2000", "--column", "body"]
    assert main([*words, "--out", str(tmp_path / "r")]) == 0
    said = capsys.readouterr()
    assert "--column body has no effect: recall is no data set of rows" in said.err
    assert (tmp_path / "r" / "test.txt").is_file() and "spikegpt train --data" in said.out
    assert main(["data", "--pairs", "3"]) == 0
    assert "--pairs 3 has no effect" in capsys.readouterr().err
