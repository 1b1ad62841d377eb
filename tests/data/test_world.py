"""RWKV World's tokens: always the longest, of any bytes, whole, in pieces, streamed; a broken file names its line."""

import random

import numpy as np
import pytest
from world import TEXT, by_trying_lengths, line, vocabulary, world, write_vocabulary

from spikegpt import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.data.cutting import cut_pieces
from spikegpt.data.tokenizers import WorldTokenizer, load_tokenizer
from spikegpt.data.tokenizers.encoding import encode_pieces


def odd_text(seed: int) -> bytes:
    """Pieces of a text, runs of spaces and bytes by chance."""
    draw, source = random.Random(seed), TEXT.encode()
    parts = []
    for _ in range(60):
        start = draw.randrange(len(source))
        parts += [source[start : start + draw.randint(1, 20)], b" " * draw.randrange(90), draw.randbytes(2)]
    return b"".join(parts)


def test_the_longest_token_is_taken_by_hand():
    tokenizer = WorldTokenizer({b"a": 1, b"ab": 2, b"abcd": 3, b"b": 4, b"c": 5, b"e": 9})
    # "abc" begins "abcd", which does not come: back to "ab"
    assert tokenizer.encode(b"abce").tolist() == [2, 5, 9]
    assert tokenizer.encode(b"abcdab").tolist() == [3, 2]
    assert tokenizer.decode([2, 5, 9, 0]) == b"abce"


@pytest.mark.parametrize("seed", range(5))
def test_ids_are_those_of_the_plain_reference(seed):
    tokens, text = vocabulary(seed), odd_text(seed)
    ids = WorldTokenizer(tokens).encode(text)
    assert ids.tolist() == by_trying_lengths(tokens, text) and ids.dtype == np.uint16
    assert len(ids) < len(text) / 2


@pytest.mark.parametrize("text", [b"", bytes(range(256)), TEXT.encode(), "é🦔".encode()[:-1], b" " * 1000])
def test_any_bytes_come_back(text):
    tokenizer = world()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("seed", range(3))
def test_pieces_have_the_tokens_of_the_whole(seed, size):
    tokenizer, text = world(seed=seed), odd_text(seed)
    pieces = list(cut_pieces([text[at : at + 50] for at in range(0, len(text), 50)], size, tokenizer.next_cut))
    assert len(pieces) > 3 and b"".join(pieces) == text
    assert np.array_equal(np.concatenate([tokenizer.encode(piece) for piece in pieces]), tokenizer.encode(text))


def test_a_place_within_a_token_is_never_cut():
    tokenizer = WorldTokenizer({b"a": 1, b"b": 2, b"abab": 3})
    # within the four letters, and where the text ends and might go on
    assert [tokenizer.next_cut(b"babab", start) for start in (1, 2, 4)] == [1, None, None]
    # two that overlap are one stretch, from 1 to 7
    assert [tokenizer.next_cut(b"babababbb", start) for start in (1, 2, 6, 8)] == [1, 7, 7, 8]


@pytest.mark.slow
def test_worker_processes_encode_the_same():
    tokenizer, pieces = world(), [odd_text(seed) for seed in range(3)]
    assert [ids.tolist() for _, ids in encode_pieces(tokenizer, pieces, 2)] == [
        tokenizer.encode(piece).tolist() for piece in pieces
    ]


def test_a_stream_adds_up_to_the_text_and_never_breaks_a_character():
    tokenizer = world(n_longer=300)
    stream = tokenizer.stream()
    pieces = [stream.push(id) for id in tokenizer.encode(TEXT.encode())]
    assert "\ufffd" not in "".join(pieces) and "".join([*pieces, stream.flush()]) == TEXT


def test_the_end_of_a_text_is_a_token_that_says_nothing():
    tokenizer = world()
    assert tokenizer.has_token.all() and tokenizer.decode([0]) == b"" and tokenizer.stream().push(0) == ""
    assert 0 not in tokenizer.encode(bytes(range(256)))


def test_a_hole_among_the_ids_is_no_token():
    assert WorldTokenizer({b"a": 1, b"b": 4}).has_token.tolist() == [True, True, False, False, True]


def test_a_byte_that_begins_no_token_is_named():
    with pytest.raises(SpikegptError, match=r"byte 0x63 at position 2 begins no token .*byte tokenizer"):
        WorldTokenizer({b"a": 1, b"b": 2}).encode(b"abc")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_file_is_read(end, mark, tmp_path):
    tokens = vocabulary() | {"\u2028'\"\\".encode(): 900}
    lines = "".join(line(id, token) for token, id in tokens.items()).replace("\n", end)
    (tmp_path / "vocabulary.txt").write_bytes((mark + lines).encode())
    tokenizer = load_tokenizer(tmp_path / "vocabulary.txt")
    assert isinstance(tokenizer, WorldTokenizer) and tokenizer.vocabulary == tokens and tokenizer.vocab_size == 901


def test_what_was_stored_is_the_same_tokenizer(tmp_path):
    tokenizer = load_tokenizer(write_vocabulary(tmp_path / "v.txt", vocabulary()))
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again.fingerprint == tokenizer.fingerprint and again.vocabulary == vocabulary()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("2 'b'", "want an id, a token in quotes and its bytes, found \"2 'b'\""),
        ("", "want an id"),
        ("2 b 1", "want an id"),
        ("2 'b' 2", "the token has 1 bytes, its line says 2"),
        ("2 'é' 1", "the token has 2 bytes, its line says 1"),
        ("2 '' 0", "the token has 0 bytes"),
        ("1 'b' 1", "id 1 is that of line 1 too"),
        ("2 'a' 1", "the token is that of line 1 too"),
        ("2 b'\\x61' 1", "the token is that of line 1 too"),
        ("0 'b' 1", "id 0 is outside 1 to 65535; 0 is the end of a text"),
        ("65536 'b' 1", "id 65536 is outside"),
        ("2 'a' + 'b' 2", "is no string and no bytes"),
        ("2 'a'.__class__('b') 1", "want an id"),
        ("2 'a' if 1 else 'b' 1", "is no string and no bytes"),
        ("2 '\\ud800' 3", "holds half a character"),
        ("2 'a', 'b' 2", "is no string and no bytes"),
        ("2 '\\x6' 1", "is no string and no bytes"),
    ],
)
def test_a_line_at_fault_is_named(wrong, words, tmp_path):
    (tmp_path / "v.txt").write_text(f"1 'a' 1\n{wrong}\n3 'c' 1\n", encoding="utf-8")
    with pytest.raises(SpikegptError, match=r"line 2: .*get the file again") as error:
        load_tokenizer(tmp_path / "v.txt")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_utf8_is_told_by_its_line(tmp_path):
    (tmp_path / "v.txt").write_bytes(b"1 'a' 1\n2 '\xff' 1\n")
    with pytest.raises(SpikegptError, match=r"line 2: is not UTF-8"):
        load_tokenizer(tmp_path / "v.txt")


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ("[]", "there is no 'vocabulary'"),
        ('{"a": "1"}', "there is no 'vocabulary'"),
        ('{"a": true}', "there is no 'vocabulary'"),
        ("{}", "vocabulary of 0 tokens is broken"),
        ('{"a": 1, "b": 1}', "vocabulary of 2 tokens is broken"),
        ('{"": 1}', "is broken"),
        ('{"a": 65536}', "is broken"),
        ('{"\u0100": 1}', r"U\+0100 is no byte"),
    ],
)
def test_a_stored_vocabulary_at_fault_is_refused(stored, words, tmp_path):
    (tmp_path / "t.json").write_text(f'{{"format": 1, "tokenizer": "world", "vocabulary": {stored}}}', encoding="utf-8")
    with pytest.raises(SpikegptError, match=f"t.json: .*{words}"):
        load_tokenizer(tmp_path / "t.json")


def test_a_run_is_trained_by_the_file_and_keeps_its_tokens(make_run, tmp_path):
    run = make_run(tokenizer=str(write_vocabulary(tmp_path / "v.txt", vocabulary())), steps=1)
    model, tokenizer = load_model(run)
    assert tokenizer.fingerprint == world().fingerprint and model.config.vocab_size == tokenizer.vocab_size
