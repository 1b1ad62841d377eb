"""Token files of Megatron-LM and RWKV-LM: read as others wrote them, written as they read them, refused if corrupt."""

import json
import struct

import numpy as np
import pytest

from spikegpt.common.errors import SpikegptError
from spikegpt.data.prepare import prepare
from spikegpt.data.tokenizers import BPETokenizer, ByteTokenizer
from spikegpt.data.tokens import binidx, pretokenised
from spikegpt.data.tokens.binidx import read_binidx, write_binidx
from spikegpt.data.tokens.pretokenised import export_binidx

DOCUMENTS = [[5, 6, 7], [8], [9, 10]]
# by hand: lengths in tokens, offsets in bytes of two-byte tokens, document bounds
INDEX = struct.pack("<9sQBQQ3i3q4q", b"MMIDIDX\0\0", 1, 8, 3, 4, 3, 1, 2, 0, 6, 8, 0, 1, 2, 3)
TOKENS = struct.pack("<6H", 5, 6, 7, 8, 9, 10)


@pytest.fixture
def pair(tmp_path):
    """The pair of files made by hand; returns the path of the tokens."""
    (tmp_path / "hand.idx").write_bytes(INDEX)
    (tmp_path / "hand.bin").write_bytes(TOKENS)
    return tmp_path / "hand.bin"


def pieces(documents):
    return [(np.array(document), True) for document in documents]


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_files_made_by_hand_are_read(suffix, pair):
    found = read_binidx(pair.with_suffix(suffix))
    assert found.tokens.tolist() == [5, 6, 7, 8, 9, 10]
    assert found.starts.tolist() == [0, 3, 4]
    assert isinstance(found.tokens, np.memmap)


def test_a_bare_prefix_is_found_as_others_take_it(pair, tmp_path):
    for suffix in (".bin", ".idx"):
        pair.with_suffix(suffix).rename(tmp_path / f"my.v1_text_document{suffix}")
    prefix = tmp_path / "my.v1_text_document"
    assert binidx.is_binidx(prefix) and read_binidx(prefix).tokens.tolist() == [5, 6, 7, 8, 9, 10]
    assert not binidx.is_binidx(tmp_path / "nothing")
    prefix.write_text("a text of that name is itself")
    assert not binidx.is_binidx(prefix)


def test_tokens_train_by_their_prefix(tmp_path):
    path = save_documents(tmp_path, [100, 85, 10, 5])
    assert len(prepare(path.with_suffix(""), "byte").split("train")) == 185


def test_the_same_documents_are_written_byte_for_byte(tmp_path):
    write_binidx(tmp_path / "ours.v1", pieces(DOCUMENTS), vocab_size=50277)
    assert (tmp_path / "ours.v1.idx").read_bytes() == INDEX
    assert (tmp_path / "ours.v1.bin").read_bytes() == TOKENS


def test_a_document_may_come_in_pieces(tmp_path):
    parts = [
        (np.array([5, 6]), False),
        (np.array([7]), True),
        (np.array([8]), True),
        (np.array([9]), False),
        (np.array([10]), True),
    ]
    write_binidx(tmp_path / "ours", parts, vocab_size=300)
    assert (tmp_path / "ours.idx").read_bytes() == INDEX


@pytest.mark.parametrize(("vocab_size", "dtype"), [(256, "<u2"), (65536, "<u2"), (65537, "<i4")])
def test_tokens_take_the_type_that_others_expect(vocab_size, dtype, tmp_path):
    found = write_binidx(tmp_path / "ours", pieces([[1, vocab_size - 1]]), vocab_size)
    assert found.tokens.dtype == dtype
    assert found.tokens.tolist() == [1, vocab_size - 1]


def changed(offset, form, value):
    return INDEX[:offset] + struct.pack(form, value) + INDEX[offset + struct.calcsize(form) :]


# where things stand: magic 0, version 9, type 17, sequences 18, bounds 26, lengths 34, offsets 46, document bounds 70
@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"", "has 0 bytes, an index has at least 34"),
        (INDEX[:40], "has 40 bytes, but 3 sequences and 4 document bounds take 102"),
        (INDEX + b"\0", "has 103 bytes"),
        (b"TNTIDX\0\0\0" + INDEX[9:], "begins with b'TNTIDX"),
        (changed(9, "<Q", 2), "has version 2, known is 1"),
        (changed(17, "<B", 7), "has the token type 7, known are 1, 2, 3, 4, 5, 8"),
        (changed(18, "<Q", 2**62), "sequences and 4 document bounds take"),
        (changed(34, "<i", -1), "gives sequence 0 a negative length, -1"),
        (changed(34, "<i", 4), "counts 7 tokens of 2 byte"),
        (changed(17, "<B", 4), r"counts 6 tokens of 4 byte\(s\), but hand.bin has 12 bytes"),
        (changed(54, "<q", 4), "places sequence 1 at byte 4, but it begins at byte 6"),
        (changed(94, "<q", 9), "has document bounds that do not run from 0 to 3"),
        (struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, 0, 0), "counts no sequences"),
    ],
)
def test_a_corrupt_index_is_refused_with_what_is_wrong(index, message, pair):
    pair.with_suffix(".idx").write_bytes(index)
    with pytest.raises(SpikegptError, match=rf"hand\.idx is corrupt or not of this hand\.bin: it .*{message}"):
        read_binidx(pair)


def test_tokens_that_were_cut_off_are_refused(pair):
    pair.write_bytes(TOKENS[:-2])
    with pytest.raises(SpikegptError, match=r"counts 6 tokens of 2 byte.* but hand.bin has 10 bytes"):
        read_binidx(pair)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_half_is_named(suffix, pair):
    pair.with_suffix(suffix).unlink()
    with pytest.raises(SpikegptError, match=rf"cannot read .*hand\{suffix}: No such file.*needs its PREFIX.idx"):
        read_binidx(pair)


def test_a_document_beyond_the_format_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(binidx, "LONGEST_SEQUENCE", 2)
    with pytest.raises(SpikegptError, match="document 0 has more than the 2 tokens"):
        write_binidx(tmp_path / "ours", pieces(DOCUMENTS), 300)
    assert list(tmp_path.iterdir()) == []


# --- training on them


def save_documents(tmp_path, lengths, vocab_size=256):
    tokens = iter(range(sum(lengths)))
    write_binidx(
        tmp_path / "many",
        pieces([[next(tokens) % vocab_size for _ in range(length)] for length in lengths]),
        vocab_size,
    )
    return tmp_path / "many.bin"


def test_splits_begin_with_a_document(tmp_path):
    # 200 tokens; cuts at 180 and 190 move to the documents that begin at 185 and 195
    data = prepare(save_documents(tmp_path, [100, 85, 10, 5]), "byte")
    assert [len(data.split(name)) for name in ("train", "valid", "test")] == [185, 10, 5]
    assert data.split("valid")[0] == 185


@pytest.mark.parametrize("lengths", [[200], [100, 100], [199, 1]])
def test_few_documents_are_split_by_position(lengths, tmp_path):
    data = prepare(save_documents(tmp_path, lengths), "byte")
    assert [len(data.split(name)) for name in ("train", "valid", "test")] == [180, 10, 10]


def test_bytes_and_characters_are_those_of_the_text(tmp_path, monkeypatch):
    # chunks of 7 tokens: sums must not depend on them
    monkeypatch.setattr(pretokenised, "COUNTED_TOKENS", 7)
    text = "Größe 5 € 🦔\n" * 60
    tokenizer = BPETokenizer.train(text.encode(), 280)
    write_binidx(tmp_path / "text", pieces([tokenizer.encode(text.encode())]), tokenizer.vocab_size)
    data = prepare(tmp_path / "text.bin", tokenizer)
    for name in ("train", "valid", "test"):
        whole = tokenizer.decode(data.split(name))
        facts = data.header["splits"][name]
        assert (facts["bytes"], facts["characters"]) == (len(whole), len(whole.decode(errors="ignore")))


def test_a_token_outside_the_vocabulary_is_named(tmp_path):
    path = save_documents(tmp_path, [300], vocab_size=300)
    with pytest.raises(
        SpikegptError, match=r"holds the token 269, the tokenizer byte has a vocabulary of 256; .*--tokenizer FILE"
    ):
        prepare(path, "byte")


@pytest.mark.parametrize("which", ["char", "bpe"])
def test_a_tokenizer_to_be_made_is_refused(which, pair):
    with pytest.raises(SpikegptError, match="holds tokens already: give the file of the tokenizer that made them"):
        prepare(pair, which)


def test_too_few_tokens_for_three_splits_are_refused(pair):
    with pytest.raises(SpikegptError, match="has 6 tokens, too few for three splits"):
        prepare(pair, "byte")


# --- writing them


def test_a_document_is_a_file_or_a_line_and_may_have_an_end_token(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("one\ntwo")
    (tmp_path / "texts" / "b.jsonl").write_text('{"story": "three"}\n\n{"story": ""}\n{"story": "four"}\n')
    found = export_binidx(tmp_path / "texts", ByteTokenizer(), tmp_path / "out", text_column="story", end_token=0)
    assert bytes(found.tokens.astype(np.uint8)) == b"one\ntwo\0three\0four\0"
    assert found.starts.tolist() == [0, 8, 14]


def test_valid_and_test_come_after_train(tmp_path):
    for name in ("test", "train", "valid"):
        (tmp_path / f"{name}.txt").write_text(name)
    found = export_binidx(tmp_path, ByteTokenizer(), tmp_path / "out")
    assert bytes(found.tokens.astype(np.uint8)) == b"trainvalidtest"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_long_document_is_written_whole(processes, tmp_path, monkeypatch):
    monkeypatch.setattr("spikegpt.data.tokenizers.encoding.BYTES_PER_PROCESS", 1000)
    text = b"the spiking neuron fires, and rests. " * 9000
    files = [tmp_path / "long.txt", tmp_path / "too.txt"]
    for file in files:
        file.write_bytes(text)
    tokenizer = BPETokenizer.train(text[:1000], 300)
    found = export_binidx(files, tokenizer, tmp_path / "out", processes=processes)
    once = tokenizer.encode(text)
    assert found.starts.tolist() == [0, len(once)]
    assert np.array_equal(found.tokens, np.tile(once, 2))


def test_an_end_token_outside_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(SpikegptError, match="end token 256 is outside the vocabulary of 256"):
        export_binidx("python-docs", ByteTokenizer(), tmp_path / "out", end_token=256)


def test_a_line_without_the_column_leaves_no_files(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "one"}) + "\n" + json.dumps({"body": "two"}))
    with pytest.raises(SpikegptError, match=r"a\.jsonl, line 2, has no 'text', only body"):
        export_binidx(tmp_path / "a.jsonl", ByteTokenizer(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("there", ["out.bin", "out.idx"])
def test_files_that_are_there_are_not_replaced(there, tmp_path):
    (tmp_path / there).write_text("mine")
    with pytest.raises(SpikegptError, match=rf"{there} exists; give another name, or remove it"):
        export_binidx("python-docs", ByteTokenizer(), tmp_path / "out")
    assert (tmp_path / there).read_text() == "mine"


def test_a_folder_is_no_prefix(tmp_path):
    with pytest.raises(SpikegptError, match="is a folder; give a name in it, such as"):
        export_binidx("python-docs", ByteTokenizer(), tmp_path)


def test_a_link_to_nowhere_is_not_replaced(tmp_path):
    (tmp_path / "out.idx").symlink_to(tmp_path / "nothing")
    with pytest.raises(SpikegptError, match=r"out\.idx exists"):
        export_binidx("python-docs", ByteTokenizer(), tmp_path / "out")


@pytest.mark.parametrize("prefix", ["out", "out.bin", "out.idx"])
def test_tokens_are_written_under_the_names_that_they_are_read_by(prefix, tmp_path):
    write_binidx(tmp_path / prefix, pieces(DOCUMENTS), 300)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.bin", "out.idx"]
