"""What is no text is refused, whatever its name; text is read, however it is packed, encoded or broken into lines."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import sys
import tarfile
import zipfile

import numpy as np
import pytest

from spikegpt.common.errors import SpikegptError
from spikegpt.data.documents import rows
from spikegpt.data.labelled import load_file_task
from spikegpt.data.prepare import prepare
from spikegpt.data.reading import text_lines
from spikegpt.data.sources import read_corpus
from spikegpt.evaluate.last_word import read_passages
from spikegpt.evaluate.runs import read_text

TEXT = "The neuron fires, größer als je, and rests.\n" * 30


def whole(corpus) -> bytes:
    return b"".join(corpus.split(name).read() for name in ("train", "valid", "test"))


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(300))
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(TEXT.encode())
        archive.addfile(member, io.BytesIO(TEXT.encode()))
    return file.getvalue()


def zipped(name: str = "a.txt") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, TEXT)
    return file.getvalue()


NO_TEXT = {
    "pdf": (
        b"%PDF-1.7\n" + b"1 0 obj\n" * 50,
        "is a PDF, not text; convert it to plain text, for instance with pdftotext",
    ),
    "rtf": (rb"{\rtf1\ansi " + b"text " * 50, "is an RTF document"),
    "array": (array(), "is an array of NumPy"),
    "zip": (zipped(), "is a zip archive"),
    "tar": (tarred(), "is a tar archive"),
    "packed tar": (gzip.compress(tarred()), "is a tar archive"),
    "packed twice": (gzip.compress(bz2.compress(TEXT.encode())), "is packed twice"),
    "zstd": (b"\x28\xb5\x2f\xfd" + b"\x04" * 50, "is packed by zstd, not text; unpack it: zstd -d"),
    "program": (b"\x7fELF\x02\x01\x01" + bytes(500), "is a program"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(500), "is an image"),
    "pickle": (pickle.dumps(list(range(1000))), "is a pickle of Python"),
    "docx": (zipped("[Content_Types].xml"), "is an office document, not text; convert it to plain text"),
    "npz": (zipped("weight.npy"), "is a file of NumPy's arrays, not text; name a file of text"),
    "zip without files": (b"PK\5\6" + bytes(18), "is a zip archive without files, not text; name a file of text"),
    "mp3": (b"ID3\4" + bytes(500), "is sound, not text; name a file of text, such as a transcript"),
    "mp3 without a title": (b"\xff\xfb\x90" + bytes(500), "is sound"),
    "wav": (b"RIFF\x24\x08\0\0WAVEfmt " + bytes(500), "is sound"),
    "mp4": (b"\0\0\0\x20ftypisom" + bytes(500), "is a film or sound"),
    "webp": (b"RIFF\x24\x08\0\0WEBPVP8 " + bytes(500), "is an image, not text; name a file of text$"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(500), "is an image"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(500), "is packed by lz4, not text; unpack it: lz4 -d FILE"),
    "parquet": (b"PAR1\x19" + bytes(500), "is a Parquet file, not text; have its folder read: spikegpt data FOLDER"),
    "weights": (
        (40).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1]}}' + bytes(11),
        "is weights of a model",
    ),
    "postscript": (b"%!PS-Adobe-3.0\n" + b"0 0 moveto\n" * 50, "is a PostScript document, not text; convert it"),
    "unknown": (bytes(range(256)) * 20, "is no text: it holds NUL bytes; name a file of text$"),
    "noise": (random.Random(0).randbytes(5000), "NUL bytes"),
    "noise without NUL": (
        random.Random(0).randbytes(5000).replace(b"\0", b""),
        "% of its bytes are control characters",
    ),
    "text, then noise": (b"a text " * 200_000 + random.Random(0).randbytes(1 << 20), "control characters"),
    "UTF-16 without its mark": (TEXT.encode("utf-16-le"), "UTF-16 without byte order mark"),
    "no UTF-16 in spite of its mark": (b"\xff\xfe\x00\xd8\x41\x00" * 40, "is marked as utf-16 and is not"),
    "half of a packed text": (gzip.compress(TEXT.encode())[:-20], "is packed and damaged"),
    "damaged": (b"\x1f\x8b\x08" + b"\x55" * 100, "is packed and damaged"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "fetch it: git lfs pull"),
}


@pytest.mark.parametrize("kind", NO_TEXT)
def test_what_is_no_text_is_refused_whatever_it_is_called(kind, tmp_path):
    content, message = NO_TEXT[kind]
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(SpikegptError, match=rf"a\.txt.*{message}" if "|" not in message else message):
        prepare(tmp_path / "a.txt", "byte", tmp_path / "cache")


ENCODED = {
    "plain": TEXT.encode(),
    "marked": TEXT.encode("utf-8-sig"),
    "utf-16": TEXT.encode("utf-16"),
    "utf-16-be": b"\xfe\xff" + TEXT.encode("utf-16-be"),
    "utf-32": TEXT.encode("utf-32"),
    "gzip": gzip.compress(TEXT.encode()),
    "bzip2": bz2.compress(TEXT.encode()),
    "xz": lzma.compress(TEXT.encode()),
    "lzma": lzma.compress(TEXT.encode(), format=lzma.FORMAT_ALONE),
    "marked twice": b"\xef\xbb\xbf" + TEXT.encode("utf-8-sig"),
    "packed and marked": gzip.compress(TEXT.encode("utf-16")),
}


@pytest.mark.parametrize("how", ENCODED)
def test_text_is_read_however_it_is_packed_and_encoded(how, tmp_path):
    (tmp_path / "a.txt").write_bytes(ENCODED[how])
    assert whole(read_corpus(tmp_path / "a.txt", cache_dir=tmp_path / "cache")).decode() == TEXT


@pytest.mark.parametrize("how", ["utf-16", "gzip"])
def test_a_text_is_laid_down_once_and_anew_when_it_is_damaged(how, tmp_path):
    (tmp_path / "a.txt").write_bytes(ENCODED[how])
    read_corpus(tmp_path / "a.txt", cache_dir=tmp_path / "cache")
    (laid_down,) = (tmp_path / "cache" / "texts").iterdir()
    os.utime(laid_down, (1, 1))
    read_corpus(tmp_path / "a.txt", cache_dir=tmp_path / "cache")
    assert laid_down.stat().st_mtime == 1
    laid_down.write_bytes(laid_down.read_bytes().replace(b"neuron", b"muscle"))
    assert whole(read_corpus(tmp_path / "a.txt", cache_dir=tmp_path / "cache")).decode() == TEXT


def test_text_in_another_one_byte_encoding_is_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(("größer\x0c\x1b[1m\t" * 50).encode("latin-1"))
    assert len(read_corpus(tmp_path / "a.txt")) == 600


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
@pytest.mark.parametrize("tokenizer", [None, "pipe"])
def test_a_pipe_is_refused_before_it_is_opened(tokenizer, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    source = "python-docs" if tokenizer else tmp_path / "pipe"
    with pytest.raises(SpikegptError, match="pipe is a pipe, socket or device; write its content to a file"):
        prepare(source, tmp_path / "pipe" if tokenizer else "byte", tmp_path / "cache")


def test_json_in_one_piece_is_not_trained_on_as_it_stands(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"text": TEXT}]))
    with pytest.raises(SpikegptError, match=r"a\.json is JSON: name it \.jsonl if it holds an object per line"):
        read_corpus(tmp_path / "a.json")


# --- lines and rows


def test_a_line_ends_with_a_newline_and_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028\x85\x0c\vand\rmore\r\n\ntwo".encode())
    assert [line for _, line in text_lines(tmp_path / "a.txt")] == ["one\u2028\x85\x0c\vand\rmore", "", "two"]


@pytest.mark.parametrize(
    "text", ["ORCA swims. ", "BMW drives. ", "GGUF is a format. ", "MMORPG ", "LZIPPED ", "PAR1S "]
)
def test_text_that_begins_as_others_do_is_text(text, tmp_path):
    (tmp_path / "a.txt").write_text(text * 30)
    assert whole(read_corpus(tmp_path / "a.txt")).decode() == text * 30


def test_a_few_control_characters_at_the_end_of_a_long_text_are_no_fault(tmp_path, monkeypatch):
    monkeypatch.setattr("spikegpt.data.reading.BLOCK_BYTES", 1000)
    (tmp_path / "a.tsv").write_bytes(b"text\n" + b"x" * 994 + b"\n\x1aend")
    assert len([row for _, row in rows(tmp_path / "a.tsv")]) == 2


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_lines_of_old_macs_end_with_a_carriage_return(block, tmp_path, monkeypatch):
    monkeypatch.setattr("spikegpt.data.reading.BLOCK_BYTES", block)
    (tmp_path / "a.csv").write_bytes(b'text,label\rone,1\r"two\rlines",2\r')
    assert [row["text"] for _, row in rows(tmp_path / "a.csv")] == ["one", "two\nlines"]


@pytest.mark.parametrize("content", [b"text,label\r\none,1\rtwo,2\r\n", b"text,label\none,1\rtwo,2\n"])
def test_line_ends_of_two_kinds_are_named(content, tmp_path):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(SpikegptError, match=r"line 2: not a row of a CSV file: a CR in it; mend the line ends"):
        list(rows(tmp_path / "a.csv"))


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_lines_do_not_depend_on_how_much_is_read_at_once(block, tmp_path, monkeypatch):
    monkeypatch.setattr("spikegpt.data.reading.BLOCK_BYTES", block)
    (tmp_path / "a.txt").write_bytes(b"one\r\n\nthree\n")
    assert list(text_lines(tmp_path / "a.txt")) == [
        (f"{tmp_path / 'a.txt'}, line {number}", line) for number, line in enumerate(["one", "", "three"], 1)
    ]


TABLES = {
    "a.tsv": 'id\ttext\n1\tone "quoted\n2\ttwo, \u2028too\n',
    "a.csv": 'id,text\r\n1,"one ""quoted"\r\n2,"two, \u2028too"\r\n',
    "a.jsonl": '{"id": "1", "text": "one \\"quoted"}\n\n{"id": "2", "text": "two, \u2028too"}\n',
    "A.NDJSON": '{"id": "1", "text": "one \\"quoted"}\n{"id": "2", "text": "two, \u2028too"}\n',
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_the_rows_of_every_kind_of_file_are_the_same(name, packed, tmp_path):
    content = TABLES[name].encode()
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert [row for _, row in rows(path)] == [
        {"id": "1", "text": 'one "quoted'},
        {"id": "2", "text": "two, \u2028too"},
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_trains_by_its_column_and_never_as_it_stands(name, tmp_path):
    between = "," if name == "a.csv" else "\t"
    (tmp_path / name).write_text(f"id{between}body\n" + "".join(f"{n}{between}text {n}\n" for n in range(50)))
    with pytest.raises(SpikegptError, match=r"line 2, has no 'text', only id, body; name the one .* --text-column"):
        read_corpus(tmp_path / name, cache_dir=tmp_path / "cache")
    corpus = read_corpus(tmp_path / name, "body", tmp_path / "cache")
    assert whole(corpus).decode() == "\n".join(f"text {n}" for n in range(50))


def test_a_column_of_files_without_rows_is_told(tmp_path, capsys):
    (tmp_path / "a.txt").write_text(TEXT)
    read_corpus(tmp_path / "a.txt", "body")
    assert "there is no column 'body' to take" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_cell_may_be_as_long_as_a_book(name, tmp_path):
    (tmp_path / name).write_text("text\n" + "x" * 200_000 + "\n")
    assert [len(row["text"]) for _, row in rows(tmp_path / name)] == [200_000]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,text\na,b\n"),
        ("a.csv", "text, text ,label\na,b,c\n"),
        ("a.tsv", "text\tid\ttext\na\t1\tb\n"),
        ("a.jsonl", '{"text": "a", "text": "b"}\n'),
        ("a.jsonl", '{"id": 1, "meta": {"text": 1, "text": 2}}\n'),
    ],
)
def test_two_columns_of_one_name_are_refused(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(SpikegptError, match=r"two (columns|values) of the name 'text'"):
        list(rows(tmp_path / name))


@pytest.mark.parametrize("name", ["a.jsonlines", "a.ldjson", "a.jsonl.lzma"])
def test_rows_are_known_by_their_other_names(name, tmp_path):
    content = b'{"text": "one"}\n'
    (tmp_path / name).write_bytes(lzma.compress(content) if name.endswith("lzma") else content)
    assert [row for _, row in rows(tmp_path / name)] == [{"text": "one"}]


@pytest.mark.parametrize("content", ['[\n{"text": "a"},\n{"text": "b"}\n]', '{\n "text": "a"\n}'])
def test_json_in_one_piece_that_is_named_as_lines_is_told(content, tmp_path):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(SpikegptError, match=r"line 1, is not JSON: .*; write one object per line"):
        list(rows(tmp_path / "a.jsonl"))


def test_the_names_of_columns_are_no_row(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,1\ntext,label\nb,2\n")
    with pytest.raises(SpikegptError, match=r"line 3: the names of the columns again, as in joined files"):
        list(rows(tmp_path / "a.csv"))


@pytest.mark.parametrize("which", ["char", "bpe"])
@pytest.mark.parametrize("packed", [False, True])
def test_of_many_files_the_one_that_is_no_utf8_is_named(which, packed, tmp_path):
    for name in ("a.txt", "c.txt"):
        (tmp_path / name).write_text(f"größer als {name} " * 50)
    content = b"x" * 5000 + "größer ".encode("latin-1")
    path = tmp_path / ("b.txt.gz" if packed else "b.txt")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(
        SpikegptError, match=rf"^{path} is not UTF-8 at byte 5002; convert it, or use the byte tokenizer"
    ):
        prepare(tmp_path, which, tmp_path / "cache", 300)


@pytest.mark.parametrize(
    ("name", "content"), [("a.csv", "text;label\na;1\n"), ("a.csv", "text\tlabel\n"), ("a.tsv", "text,label\na,1\n")]
)
def test_other_separators_are_told(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(
        SpikegptError, match=r"begins with one column, 'text.+label'; cells of a \.csv file are separated"
    ):
        list(rows(tmp_path / name))


def test_rows_full_of_control_characters_are_told_by_the_name_of_their_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "\\u0000\\u0001"}\n' * 200)
    with pytest.raises(SpikegptError, match=r"^[^ ]*/a\.jsonl is no text: 100% of its bytes are control characters"):
        prepare(tmp_path / "a.jsonl", "byte", tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "fine"}\n' + "[" * 200_000, "line 2, is not JSON: brackets nested too deeply"),
        (
            "a.tsv",
            "text\tlabel\n\u2028\u2028\tfine\nlate\ttab\tfine",
            r"line 3: 3 cell\(s\), but the first line names 2",
        ),
        ("a.csv", 'text\n"two\nlines"\nthree,four\n', r"line 4: 2 cell\(s\)"),
        ("a.csv", 'text\n"never closed\n', "line 2: not a row of a CSV file: unexpected end of data"),
        ("a.tsv", b"text\nfine\n\xfc", r"line 3, is not UTF-8 \(0xfc\)"),
    ],
)
def test_a_broken_row_is_named_by_its_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpikegptError, match=rf"{name}, {message}"):
        list(rows(tmp_path / name))


def test_labels_are_words_without_white_space_around_them(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\none\t1\ntwo\t1 \nthree\t 2\nfour\t2\r\n")
    task = load_file_task(tmp_path / "a.tsv", tmp_path / "a.tsv", tmp_path / "a.tsv")
    assert task.classes == ("1", "2") and [example.label for example in task.train] == [0, 0, 1, 1]


def labelled(path, *labels):
    """Write a text for each label, given as JSON, twice; return the path."""
    lines = [f'{{"text": "text {n}", "label": {label}}}\n' for n, label in enumerate(labels * 2)]
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize(
    "labels",
    [
        ("true", "0", "1"),
        ("1", "1.0", "0"),
        ('"1"', "1", "0"),
        ('"true"', "false", "true"),
        ('"01"', '"2"', '"1"'),
        ("-0.0", "1.0", "0.0"),
    ],
    ids=str,
)
def test_a_label_that_is_written_in_two_ways_is_refused(labels, tmp_path):
    path = labelled(tmp_path / "a.jsonl", *labels)
    with pytest.raises(
        SpikegptError, match=r"a\.jsonl, line \d: the label is .*, and .* in .*, line \d; write both in one"
    ):
        load_file_task(path, None, path)


def test_a_label_of_a_table_that_is_written_in_two_ways_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,1\nb,0\nc,1.0\n")
    with pytest.raises(SpikegptError, match=r"line 4: the label is '1\.0', and '1' in .*line 2"):
        load_file_task(tmp_path / "a.csv", None, tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["valid", "test"])
@pytest.mark.parametrize(("here", "there"), [(("0", "1"), ('"0"', '"1"')), (("0", "1"), ("0.0", "1.0"))], ids=str)
def test_a_label_that_two_files_write_in_two_ways_is_refused(here, there, name, tmp_path):
    train = labelled(tmp_path / "train.jsonl", *here)
    other = labelled(tmp_path / "other.jsonl", *there)
    files = {"valid": None, "test": train} | {name: other}
    with pytest.raises(
        SpikegptError, match=r"other\.jsonl, line 1: the label is .*0.*, and 0 in .*train\.jsonl, line 1"
    ):
        load_file_task(train, **files)


def test_a_label_of_a_table_may_be_a_number_or_a_text_of_a_jsonl_file(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\none\t1\ntwo\t0\nthree\t1\nfour\t0\n")
    for label in ("1", '"1"'):
        test = labelled(tmp_path / "test.jsonl", label)
        task = load_file_task(tmp_path / "a.tsv", None, test)
        assert task.classes == ("0", "1") and {example.label for example in task.test} == {1}


@pytest.mark.parametrize("labels", [('"pos"', '"Pos"', '"neg"'), ('"a"', '"\\u00e1"', '"a\\u0301"')], ids=str)
def test_classes_that_look_alike_are_told(labels, tmp_path):
    path, messages = labelled(tmp_path / "a.jsonl", *labels), []
    assert len(load_file_task(path, None, path, warn=messages.append).classes) == 3
    assert "are 2 classes; if they mean one, write one" in messages[0]


def test_texts_of_the_test_that_are_learned_too_are_told(tmp_path):
    labelled(tmp_path / "train.jsonl", "1", "2", "1", "2")
    labelled(tmp_path / "test.jsonl", "1", "2")
    messages = []
    load_file_task(tmp_path / "train.jsonl", None, tmp_path / "test.jsonl", warn=messages.append)
    assert messages == ["train: 4 of 4 texts to be tested on are among those of train and valid as well"]


def test_the_text_is_not_its_own_label(tmp_path):
    path = labelled(tmp_path / "a.jsonl", "1", "2")
    with pytest.raises(SpikegptError, match="text and label are both to be column 'label'"):
        load_file_task(path, None, path, text_column="label")


def test_half_a_character_in_an_example_is_named_by_its_line(tmp_path):
    path = labelled(tmp_path / "a.jsonl", "1", "2")
    path.write_text(path.read_text().replace("text 2", "text \\ud800"))
    with pytest.raises(SpikegptError, match="line 3, has half a character in the text"):
        load_file_task(path, None, path)


@pytest.mark.parametrize("label", ['" "', "[1]", "{}", "NaN", "1e999"])
def test_a_label_that_is_no_word_is_refused(label, tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a", "label": "x"}}\n{{"text": "b", "label": {label}}}\n')
    with pytest.raises(SpikegptError, match=r"line 2: the label is .*; every example needs a word or a number"):
        load_file_task(tmp_path / "a.jsonl", None, tmp_path / "a.jsonl")


def test_a_digit_that_is_no_number_is_a_class_all_the_same(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\none\t²\ntwo\t1\n")
    assert load_file_task(tmp_path / "a.tsv", tmp_path / "a.tsv", tmp_path / "a.tsv").classes == ("1", "²")


def test_passages_are_read_as_texts_are(tmp_path):
    (tmp_path / "a.txt").write_bytes(gzip.compress("one two\u2028\r\nthree four".encode("utf-16")))
    assert [passage[1:] for passage in read_passages(tmp_path / "a.txt")] == [("one", " two"), ("three", " four")]


def test_a_file_to_evaluate_on_is_read_as_training_reads_it(trained, tmp_path, cache):
    (tmp_path / "a.txt").write_text(TEXT)
    tokenizer = prepare(tmp_path / "a.txt", "byte", cache).tokenizer
    (tmp_path / "a.txt").write_bytes(gzip.compress(TEXT.encode("utf-16")))
    assert bytes(read_text(trained, tokenizer, file=tmp_path / "a.txt", cache=cache)[0]).decode() == TEXT
    (tmp_path / "a.txt").write_bytes(array())
    with pytest.raises(SpikegptError, match="is an array of NumPy"):
        read_text(trained, tokenizer, file=tmp_path / "a.txt", cache=cache)
