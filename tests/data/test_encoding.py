"""A text cut into pieces and encoded by several processes has the tokens of the text at once, wherever it is cut."""

import json
import random
import sys

import numpy as np
import processes
import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Regex as LibraryRegex
from tokenizers import Tokenizer as Library

from spikegpt.common.errors import SpikegptError
from spikegpt.data.cutting import PAIR_CUTS, cut_pieces, next_pair_cut, pair_pattern
from spikegpt.data.text import Text
from spikegpt.data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, bpe, encoding
from spikegpt.data.tokenizers.encoding import encode_first, encode_pieces, encode_text

WORDS = ["neuron", "Größe", "don't", "x1", "123", "中文。", "e\u0301", "🦔", "...", "a,b", "'s"]
SPACES = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "\u3000", "\u2028"]


def random_text(seed, words=400):
    choose = random.Random(seed)
    return "".join(choose.choice(WORDS + SPACES) + choose.choice(["", " ", " ", "\n"]) for _ in range(words)).encode()


def gpt2_like(normalizer=None, pattern=None, added=()):
    """A byte-level tokenizer of the library; its only merges are runs that a wrong cut would break.

    The runs are of spaces and of letters.
    """
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ġ", "Ġ"), ("Ċ", "Ċ"), ("Ġ", "n"), (".", "Ċ"), ("1", "2"), ("Ċ", "Ġ")]
    library = Library(
        models.BPE(vocab=letters | {a + b: 256 + rank for rank, (a, b) in enumerate(merges)}, merges=merges)
    )
    split = [pre_tokenizers.Split(LibraryRegex(pattern), "isolated")] if pattern else []
    library.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.ByteLevel(False, use_regex=not pattern)])
    library.normalizer, library.decoder = normalizer, decoders.ByteLevel()
    library.add_tokens(list(added))
    return library


def load(library, tmp_path):
    library.save(str(tmp_path / "tokenizer.json"))
    return BPETokenizer.from_file(tmp_path / "tokenizer.json")


# a newline belongs to the mark before it, as in the patterns of GPT-4 and Llama 3
CL100K = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def check_pieces(tokenizer, library, text, size):
    """Our pieces, one by one, against the library on the whole text; returns how many there were."""
    pieces = list(
        cut_pieces([text[start : start + size] for start in range(0, len(text), size)], size, tokenizer.next_cut)
    )
    assert b"".join(pieces) == text
    ids = np.concatenate([tokenizer.encode(piece) for piece in pieces])
    assert ids.tolist() == library.encode(text.decode(), add_special_tokens=False).ids
    return len(pieces)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
@pytest.mark.parametrize("pattern", [None, CL100K], ids=["gpt2", "cl100k"])
def test_pieces_of_any_size_have_the_tokens_of_the_whole(pattern, size, tmp_path):
    library = gpt2_like(pattern=pattern)
    tokenizer = load(library, tmp_path)
    for seed in range(5):
        assert check_pieces(tokenizer, library, random_text(seed), size) > 10


def test_a_mark_and_its_newline_stay_together_where_the_tokenizer_joins_them(tmp_path):
    text = b"neuron.\nfires"
    assert load(gpt2_like(), tmp_path).next_cut(text, 1) == 7
    assert load(gpt2_like(pattern=CL100K), tmp_path).next_cut(text, 1) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": normalizers.Prepend("_")},
        {"normalizer": normalizers.Strip()},
        {"added": ["end of text"]},
        {"added": ["text, "]},
        {"added": [AddedToken("neuron", rstrip=True)]},
        {"pattern": r"\w+\s\w+|\s|."},
    ],
    ids=[
        "prepends",
        "strips",
        "token with a space",
        "token that ends with one",
        "token that takes spaces",
        "pairs of words",
    ],
)
def test_a_tokenizer_that_a_cut_would_change_is_not_cut_there(changes, tmp_path):
    library = gpt2_like(**changes)
    text = b"the neuron rests\nend of text, neuron one two three.\nfour five\n" * 5
    check_pieces(load(library, tmp_path), library, text, 1)


def test_forgetting_words_changes_nothing(monkeypatch):
    monkeypatch.setattr(bpe, "KNOWN_WORDS", 3)
    monkeypatch.setattr(bpe, "PAIR_PIECE_BYTES", 50)
    text = random_text(2)
    tokenizer = BPETokenizer.train(text, 300)
    library = Library.from_str(json.dumps(tokenizer.to_json()))
    assert tokenizer.encode(text).tolist() == library.encode(text.decode()).ids
    assert len(tokenizer._known) < 20


def test_a_long_word_is_not_remembered():
    tokenizer = BPETokenizer.train(b"ab " * 9, 260)
    tokenizer.encode(b"a" * 1000 + b" ab")
    assert list(tokenizer._known) == [" ab"]


def test_one_long_line_is_cut_between_words():
    tokenizer = BPETokenizer.train(b"the neuron fires " * 9, 270)
    assert len(list(cut_pieces([b"the neuron fires " * 100], 50, tokenizer.next_cut))) > 20


def test_a_place_at_the_end_of_a_block_is_decided_by_the_next():
    everywhere = pair_pattern(PAIR_CUTS)
    pieces = cut_pieces(
        [b"one ", b"two ", "é".encode()[:1], "é".encode()[1:]],
        1,
        lambda held, start: next_pair_cut(held, start, everywhere),
    )
    assert list(pieces) == [b"one", b" two", " é".encode()]


def test_a_text_without_any_place_to_cut_is_one_piece():
    assert list(
        cut_pieces([b"a" * 10] * 30, 7, lambda held, start: next_pair_cut(held, start, pair_pattern(PAIR_CUTS)))
    ) == [b"a" * 300]


def test_training_does_not_depend_on_the_blocks():
    text = random_text(1)
    blocks = [text[start : start + 3] for start in range(0, len(text), 3)]
    assert BPETokenizer.train(blocks, 300).to_json() == BPETokenizer.train(text, 300).to_json()
    assert CharTokenizer.from_text(blocks).characters == CharTokenizer.from_text(text).characters


# --- processes


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_several_processes_give_the_tokens_of_one_in_order(processes, monkeypatch):
    monkeypatch.setattr(encoding, "BYTES_PER_PROCESS", 1000)
    monkeypatch.setattr(encoding, "PAIR_PIECE_BYTES", 997)
    text = b"".join(map(random_text, range(20)))
    tokenizer = BPETokenizer.train(text, 400)
    done = list(encode_text(tokenizer, Text.of(text), processes))
    assert b"".join(piece for piece, _ in done) == text
    assert len(done) > 20
    assert np.array_equal(np.concatenate([ids for _, ids in done]), tokenizer.encode(text))


def test_a_piece_that_does_not_fit_is_told_by_the_worker_with_its_place(monkeypatch):
    tokenizer = CharTokenizer("ab")
    monkeypatch.setattr(encoding, "PAIR_PIECE_BYTES", 1)
    with pytest.raises(
        SpikegptError, match=r"in the text from byte 4 on: character 'x' \(U\+0078\) at position 1 is not among the 2"
    ):
        list(encode_pieces(tokenizer, [b"aabb", b"bxb"], 2))


@pytest.mark.parametrize("processes", [1, 2])
def test_short_pieces_travel_together_and_come_back_one_by_one(processes, monkeypatch):
    monkeypatch.setattr(encoding, "PAIR_PIECE_BYTES", 10)
    pieces = [b"neuron", b"", b"fires", b"a" * 30, b"b", b"\0"]
    done = list(encode_pieces(ByteTokenizer(), pieces, processes))
    assert [(piece, bytes(ids)) for piece, ids in done] == [(piece, piece) for piece in pieces]


def test_a_worker_that_dies_is_told(monkeypatch):
    monkeypatch.setattr(encoding.sys, "path", [])
    with pytest.raises(
        SpikegptError, match=r"a tokenising process ended unexpectedly \(status 1\); if the memory is full"
    ):
        list(encode_pieces(ByteTokenizer(), [b"a"] * 20, 2))


def test_leaving_early_ends_the_workers():
    code = (
        "from spikegpt.data.tokenizers import ByteTokenizer\n"
        "from spikegpt.data.tokenizers.encoding import encode_pieces\n"
        "pieces = encode_pieces(ByteTokenizer(), iter(lambda: b'abc', None), 2)\nprint(next(pieces)[1].tolist())"
    )
    # no guard: the workers must not run the script again
    done = processes.run([sys.executable, "-c", code])
    assert (done.returncode, done.stdout, done.stderr) == (0, "[97, 98, 99]\n", "")


def test_only_as_much_is_read_as_the_limit_takes():
    class Endless(Text):
        def blocks(self):
            yield from iter(lambda: b"neuron " * 1000, None)

    assert encode_first(ByteTokenizer(), Endless([]), 10).tolist() == list(b"neuron neu")


def test_short_texts_and_fast_tokenizers_need_no_processes():
    bpe = BPETokenizer.train(b"abc", 256)
    assert encoding.useful_processes(bpe, 1000, 8) == 1
    assert encoding.useful_processes(bpe, 20 << 20, 8) == 5
    assert encoding.useful_processes(bpe, 1 << 30, 3) == 3
    assert encoding.useful_processes(ByteTokenizer(), 1 << 30, 3) == 1
