"""Text survives every tokenizer and every stream; what cannot be encoded is named."""

import contextlib
import io
import json
import os
import random

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from spikegpt.common.errors import SpikegptError
from spikegpt.data.cutting import cut_pieces
from spikegpt.data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, bpe, char, load_tokenizer
from spikegpt.data.tokenizers.bpe import training_pieces

# é as one character and as e with a combining mark, three bytes, four bytes, a family of seven code points, NUL
TRICKY = "é e\u0301 € 🦔 👩\u200d👩\u200d👧\u200d👦 \0\ufeff\u3000\r\n\n \n  ab's\t\n\n\nx"
TRAINING = (TRICKY + "the spiking neuron fires and the neuron rests. " * 20).encode()


def make(name: str):
    if name == "byte":
        return ByteTokenizer()
    return CharTokenizer.from_text(TRAINING) if name == "char" else BPETokenizer.train(TRAINING, 300)


every_tokenizer = pytest.mark.parametrize("name", ["byte", "char", "bpe"])


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="terminals of Unix")
@pytest.mark.parametrize("is_shown", [True, False], ids=["terminal", "elsewhere"])
def test_byte_pairs_show_how_far_they_are_where_errors_go_to_a_terminal(is_shown, monkeypatch):
    """The library writes past Python, into the second descriptor."""
    before, (inside, outside) = os.dup(2), os.openpty()
    os.dup2(outside, 2)
    try:
        with os.fdopen(outside, "w") as terminal, monkeypatch.context() as patch:
            patch.setattr("sys.stderr", terminal if is_shown else io.StringIO())
            BPETokenizer.train(b"the neuron fires and rests. " * 50, 300)
    finally:
        os.dup2(before, 2)
        os.close(before)
    said = b""
    # how a terminal that nobody writes to any more says that it is empty
    with contextlib.suppress(OSError):
        said = os.read(inside, 1 << 16)
    os.close(inside)
    assert (b"sequences" in said) == is_shown and bool(said) == is_shown


@every_tokenizer
@pytest.mark.parametrize("text", ["", "a", TRICKY, TRICKY * 7], ids=["empty", "one", "tricky", "long"])
def test_decoding_gives_the_encoded_text_back(name, text):
    tokenizer = CharTokenizer.from_text(text.encode() or b"a") if name == "char" else make(name)
    assert tokenizer.decode(tokenizer.encode(text.encode())) == text.encode()


@pytest.mark.parametrize("seed", range(5))
def test_bytes_that_are_no_text_survive_the_byte_tokenizer(seed):
    tokenizer, text = ByteTokenizer(), random.Random(seed).randbytes(400)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@every_tokenizer
def test_a_stream_adds_up_to_the_text_and_never_breaks_a_character(name):
    tokenizer = make(name)
    stream = tokenizer.stream()
    pieces = [stream.push(id) for id in tokenizer.encode(TRICKY.encode())]
    assert "\ufffd" not in "".join(pieces)
    assert "".join([*pieces, stream.flush()]) == TRICKY


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["byte", "bpe"])
def test_a_stream_of_random_tokens_is_the_text_with_invalid_bytes_replaced(name, seed):
    tokenizer = make(name)
    ids = np.random.default_rng(seed).integers(tokenizer.vocab_size, size=300)
    stream = tokenizer.stream()
    streamed = "".join([stream.push(id) for id in ids]) + stream.flush()
    assert streamed == tokenizer.decode(ids).decode(errors="replace")


def test_an_unfinished_character_is_held_until_the_flush():
    stream = ByteTokenizer().stream()
    assert [stream.push(byte) for byte in "🦔".encode()[:3]] == ["", "", ""]
    assert stream.flush() == "\ufffd"


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_ids_take_the_smallest_type_that_holds_them(vocab_size, dtype):
    characters = "".join(chr(0x10000 + number) for number in range(vocab_size))
    ids = CharTokenizer(characters).encode(characters[-1].encode())
    assert ids.dtype == dtype
    assert ids.tolist() == [vocab_size - 1]


def test_the_alphabet_is_sorted_and_complete():
    assert CharTokenizer.from_text(b"ba", "é🦔a".encode()).characters == "abé🦔"


def test_a_character_outside_the_alphabet_is_named(monkeypatch):
    # pieces of 4 bytes: the position must count from the start of the text
    monkeypatch.setattr(char, "CHARACTER_PIECE_BYTES", 4)
    with pytest.raises(SpikegptError, match=r"'é' \(U\+00E9\) at position 11 is not among the 2 .*byte tokenizer"):
        CharTokenizer("ab").encode("abababababaébbb".encode())


def test_a_character_above_the_alphabet_is_refused():
    with pytest.raises(SpikegptError, match=r"U\+1F994"):
        CharTokenizer("ab").encode("🦔".encode())


@pytest.mark.parametrize("make_tokenizer", [CharTokenizer.from_text, lambda text: BPETokenizer.train(text, 300)])
def test_text_that_is_not_utf8_is_refused_with_its_byte(make_tokenizer):
    with pytest.raises(SpikegptError, match=r"not UTF-8 at byte 3 \(0xff\).*byte tokenizer"):
        make_tokenizer("é1".encode() + b"\xff")


def test_pieces_never_cut_a_character(monkeypatch):
    monkeypatch.setattr(char, "CHARACTER_PIECE_BYTES", 1)
    tokenizer = CharTokenizer.from_text(TRICKY.encode())
    assert tokenizer.decode(tokenizer.encode(TRICKY.encode())).decode() == TRICKY


@every_tokenizer
@pytest.mark.parametrize("bad", [-1, 100_000])
def test_an_id_outside_the_vocabulary_is_named(name, bad):
    tokenizer = make(name)
    with pytest.raises(SpikegptError, match=f"token id {bad} is outside the vocabulary of {tokenizer.vocab_size} "):
        tokenizer.decode([0, bad])


@every_tokenizer
def test_a_saved_tokenizer_comes_back_equal(name, tmp_path):
    tokenizer = make(name)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert (loaded.name, loaded.fingerprint) == (tokenizer.name, tokenizer.fingerprint)
    assert np.array_equal(loaded.encode(TRAINING), tokenizer.encode(TRAINING))


def test_different_tokenizers_have_different_fingerprints():
    assert (
        len(
            {
                make("byte").fingerprint,
                make("char").fingerprint,
                make("bpe").fingerprint,
                CharTokenizer("ab").fingerprint,
            }
        )
        == 4
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a tokenizer"),
        ('{"model": {"type": "no such"}}', "not a tokenizer that the tokenizers library reads"),
        ('{"format": 99, "tokenizer": "byte"}', "format 99, this spikegpt reads 1"),
        ('{"format": 1, "tokenizer": "char", "characters": "aa"}', "2 characters, 1 of them different"),
        ('{"format": 1, "tokenizer": "char", "characters": "\\ud800"}', r"U\+D800"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(content, message, tmp_path):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(SpikegptError, match=message):
        load_tokenizer(tmp_path / "t.json")


def test_a_missing_tokenizer_file_is_named(tmp_path):
    with pytest.raises(SpikegptError, match=r"cannot read the tokenizer .*none\.json: No such file"):
        load_tokenizer(tmp_path / "none.json")


def test_training_twice_gives_the_same_tokenizer():
    assert BPETokenizer.train(TRAINING, 320).to_json() == BPETokenizer.train(TRAINING, 320).to_json()


def test_bpe_learns_frequent_words_as_one_token():
    assert len(make("bpe").encode(b" neuron")) == 1


def test_bpe_below_256_is_refused():
    with pytest.raises(SpikegptError, match="at least 256, got 255"):
        BPETokenizer.train(b"abc", 255)


def test_encoding_in_pieces_gives_the_tokens_of_the_whole(monkeypatch):
    tokenizer = make("bpe")
    text = (TRICKY + "a\n\n b.\n\n\tc\n 1\n\u3000\nжe\n" * 9).encode()
    whole = tokenizer.encode(text)
    monkeypatch.setattr(bpe, "PAIR_PIECE_BYTES", 1)
    assert len(list(cut_pieces([text], 1, tokenizer.next_cut))) > 9
    assert np.array_equal(tokenizer.encode(text), whole)


def save_neox_like(path) -> None:
    """As GPT-NeoX's file: byte level, NFC, a special token, runs of spaces as added tokens, and holes among the ids.

    The holes are the ids 256 and 259 to 299.
    """
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = Library(models.BPE(vocab=letters | {"ĠĠ": 300}, merges=[("Ġ", "Ġ")]))
    library.normalizer, library.pre_tokenizer, library.decoder = (
        normalizers.NFC(),
        pre_tokenizers.ByteLevel(False),
        decoders.ByteLevel(),
    )
    library.add_special_tokens(["<é>"])
    library.add_tokens(["    "])
    library.enable_truncation(4)
    library.save(str(path))


def test_a_library_file_keeps_its_special_and_added_tokens(tmp_path):
    save_neox_like(tmp_path / "neox.json")
    tokenizer, text = BPETokenizer.from_file(tmp_path / "neox.json"), "a<é>    bé   c".encode()
    ids = tokenizer.encode(text)
    # 257 and 258: the special token and the four spaces; é is two bytes; two of three spaces are 300
    assert [id for id in ids if id > 255] == [257, 258, 300]
    assert len(ids) == 9
    assert tokenizer.decode(ids) == text


def test_a_hole_in_the_vocabulary_is_silent(tmp_path):
    save_neox_like(tmp_path / "neox.json")
    assert BPETokenizer.from_file(tmp_path / "neox.json").decode([299]) == b""


def test_a_tokenizer_without_byte_level_is_decoded_by_the_library(tmp_path):
    library = Library(models.WordLevel({"[UNK]": 0, "one": 1, "two": 2}, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "words.json"))
    tokenizer = load_tokenizer(tmp_path / "words.json")
    ids, stream = tokenizer.encode(b"one two\nthree"), tokenizer.stream()
    assert tokenizer.decode(ids) == b"one two [UNK]"
    assert "".join([stream.push(id) for id in ids]) + stream.flush() == "one two [UNK]"


def test_the_file_of_a_trained_bpe_is_one_the_library_reads(tmp_path):
    tokenizer = make("bpe")
    tokenizer.save(tmp_path / "tokenizer.json")
    library = Library.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode(TRICKY).ids == tokenizer.encode(TRICKY.encode()).tolist()
    assert json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["type"] == "BPE"


# --- text as str, and what is no text


@every_tokenizer
@pytest.mark.parametrize("kind", [str, bytearray, memoryview])
def test_a_string_is_encoded_as_its_bytes_are(name, kind):
    text = TRAINING[:200]
    given = text.decode() if kind is str else kind(text)
    assert make(name).encode(given).tolist() == make(name).encode(text).tolist()


@every_tokenizer
@pytest.mark.parametrize("text", [3, None, ["a"], np.arange(3)])
def test_what_is_no_text_is_not_encoded(name, text):
    with pytest.raises(SpikegptError, match="a tokenizer encodes one str or bytes, got "):
        make(name).encode(text)


@every_tokenizer
def test_half_a_character_is_not_encoded(name):
    with pytest.raises(SpikegptError, match=r"holds U\+D800 at position 2, half a character"):
        make(name).encode("ab\ud800")


@every_tokenizer
@pytest.mark.parametrize("ids", [[1.5], [[1, 2]], [True]])
def test_what_are_no_ids_is_not_decoded(name, ids):
    with pytest.raises(SpikegptError, match=r"ids must be whole numbers \(N,\), got "):
        make(name).decode(ids)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 200_000, "is not JSON .brackets nested too deeply"),
        ('{"format": "1", "tokenizer": "byte"}', "has format '1', want 1"),
        ('{"format": true, "tokenizer": "byte"}', "has format True, want 1"),
        ('{"format": 1, "tokenizer": "char", "characters": "aa"}', r"t.json: the alphabet has 2"),
        ('{"format": 1, "tokenizer": "char", "characters": 5}', "has no 'characters' that are a string"),
    ],
)
def test_a_tokenizer_file_of_others_is_refused_with_what_is_wrong(content, message, tmp_path):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(SpikegptError, match=message):
        load_tokenizer(tmp_path / "t.json")


# --- words without an end


@pytest.mark.parametrize("text", ["ACGT" * 5000, "9" * 20_000, "-=" * 10_000, " \n" * 10_000, "字符" * 10_000])
def test_byte_pairs_are_learned_from_words_of_bounded_length(text):
    # the library's work grows with the square of a word's length
    pieces = list(training_pieces([text[:999].encode(), text[999:].encode()]))
    assert "".join(pieces) == text and max(map(len, pieces)) == bpe.LONGEST_TRAINING_WORD


def test_words_of_usual_length_are_learned_from_as_they_are():
    assert list(training_pieces([TRAINING])) == [TRAINING.decode()]


def test_a_text_of_one_word_gets_pairs_and_back():
    tokenizer, text = BPETokenizer.train(b"ACGTTGCA" * 20_000, 400), b"TTGCAACG" * 100
    assert tokenizer.decode(tokenizer.encode(text)) == text and len(tokenizer.encode(text)) < len(text) / 8
