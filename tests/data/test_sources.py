"""Corpora are read from files, folders and JSON lines, and split where they should be."""

import json
import platform

import pytest
from texts import write

from spikegpt.common.errors import SpikegptError
from spikegpt.common.files import sha256_of
from spikegpt.data import text as text_module
from spikegpt.data.prepare import prepare
from spikegpt.data.sources import read_corpus, split_text
from spikegpt.data.splits import SPLITS
from spikegpt.data.text import Text
from spikegpt.evaluate.runs import evaluate_run


def texts_of(corpus):
    return tuple(corpus.split(name).read() for name in SPLITS)


# --- corpora


def test_python_docs_are_there_and_name_their_python():
    corpus = read_corpus("python-docs")
    text = b"".join(texts_of(corpus)).decode()
    # 465,048 in Python 3.11; they grow slowly from version to version
    assert 400_000 < len(text) < 700_000
    assert corpus.metadata["python"] == platform.python_version()
    assert text.startswith('The "assert" statement\n')


def test_a_file_is_split_into_its_first_90_next_5_and_last_5_percent(tmp_path):
    (tmp_path / "digits.txt").write_bytes(bytes(range(128, 228)))
    corpus = read_corpus(tmp_path / "digits.txt")
    assert texts_of(corpus) == (bytes(range(128, 218)), bytes(range(218, 223)), bytes(range(223, 228)))
    assert corpus.sha256 == sha256_of(tmp_path / "digits.txt")


@pytest.mark.parametrize("shift", range(4))
def test_no_split_breaks_a_character(shift):
    text = "x" * shift + "🦔" * 25
    corpus = split_text("hedgehogs", Text.of(text.encode()))
    assert "".join(part.decode() for part in texts_of(corpus)) == text


def test_text_that_is_not_utf8_is_split_all_the_same():
    corpus = split_text("continuation bytes", Text.of(b"\x80" * 200))
    assert [len(part) for part in (corpus.train, corpus.valid, corpus.test)] == [180, 10, 10]


def test_files_are_joined_in_the_given_order(tmp_path):
    folder = write(tmp_path, b="second " * 20, a="first " * 20)
    corpus = read_corpus([str(folder / "b.txt"), str(folder / "a.txt")])
    assert corpus.train.read().startswith(b"second second")
    assert corpus.metadata["files"] == ["b.txt", "a.txt"]


def test_a_folder_is_all_its_texts_sorted_by_path(tmp_path):
    folder = write(tmp_path / "books", b="second " * 20, a="first " * 20)
    (folder / "deeper").mkdir()
    (folder / "deeper" / "c.md").write_text("third " * 20)
    (folder / "image.png").write_bytes(b"\x89PNG")
    corpus = read_corpus(folder)
    assert corpus.metadata["files"] == ["a.txt", "b.txt", "deeper/c.md"]
    assert corpus.name == "books"


@pytest.mark.parametrize("stem", ["valid", "validation", "val"])
def test_a_split_folder_is_used_as_it_is_split(stem, tmp_path):
    corpus = read_corpus(write(tmp_path, train="learn", test="judge", **{stem: "tune"}))
    assert texts_of(corpus) == (b"learn", b"tune", b"judge")


@pytest.mark.parametrize(
    "texts", [{"train": "a" * 99, "test": "b" * 99}, {"train": "aa", "valid": "bb", "test": "cc", "notes": "dd"}]
)
def test_a_folder_that_is_nearly_split_is_refused(texts, tmp_path):
    with pytest.raises(SpikegptError, match=r"looks split but holds .*keep exactly train, valid and test"):
        read_corpus(write(tmp_path, **texts))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"has 0 byte\(s\) of text"),
        (b"x", r"has 1 byte\(s\) of text"),
        (b"x" * 20, "train 18, valid 1, test 1"),
        ("é".encode(), "every split needs at least 2 bytes"),
    ],
)
def test_a_corpus_that_is_too_short_is_refused(content, message, tmp_path):
    (tmp_path / "short.txt").write_bytes(content)
    with pytest.raises(SpikegptError, match=message):
        read_corpus(tmp_path / "short.txt")


@pytest.mark.parametrize(
    ("name", "fault"),
    [("no/such.txt", "No such file"), ("x" * 300, "File name too long"), ("a\0b", "embedded null byte")],
)
def test_a_file_that_cannot_be_is_named(name, fault):
    with pytest.raises(SpikegptError, match=rf"cannot read .*: {fault}"):
        prepare(name, "byte")


def test_a_folder_without_text_is_refused(tmp_path):
    with pytest.raises(SpikegptError, match=r"holds no \*\.txt, \*\.md, \*\.text, \*\.jsonl, \*\.ndjson file"):
        read_corpus(tmp_path)


@pytest.mark.parametrize("source", [[], "", ["a.txt", ""]])
def test_no_source_is_refused(source):
    with pytest.raises(SpikegptError, match="no source given"):
        read_corpus(source)


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_a_text_of_several_files_is_cut_and_read_as_one(block, tmp_path, monkeypatch):
    monkeypatch.setattr(text_module, "BLOCK_BYTES", block)
    folder = write(tmp_path, a="0123456789", b="", c="abcdefghij")
    text = Text.joined([Text.of_file(folder / f"{stem}.txt") for stem in "abc"], b"--")
    whole = b"0123456789----abcdefghij"
    assert text.read() == whole and len(text) == 24
    assert text.cut(0, 0).read() == b""
    assert [text.cut(start, start + 7).read() for start in range(25)] == [
        whole[start : start + 7] for start in range(25)
    ]
    assert text.cut(3, 20).cut(5, 9).read() == whole[8:12]


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path):
    text = Text.of_file(write(tmp_path, a="0123456789") / "a.txt")
    write(tmp_path, a="0123")
    with pytest.raises(SpikegptError, match=r"a\.txt became shorter while it was read"):
        text.read()


# --- JSONL


def write_lines(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_documents_of_a_jsonl_file_are_joined_by_newlines(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"id": 1, "body": "Größe " * 20}, "", {"body": "two\nlines " * 20})
    corpus = read_corpus(path, "body", tmp_path / "cache")
    assert b"".join(texts_of(corpus)).decode() == "Größe " * 20 + "\n" + "two\nlines " * 20
    assert corpus.name == "a.jsonl"


def test_jsonl_and_text_files_mix_in_a_folder(tmp_path):
    folder = write(tmp_path / "books", b="second " * 20)
    write_lines(folder / "a.jsonl", {"text": "first " * 20})
    corpus = read_corpus(folder, cache_dir=tmp_path / "cache")
    assert corpus.metadata["files"] == ["a.jsonl", "b.txt"]
    assert corpus.train.read().startswith(b"first first")


def test_a_folder_may_be_split_into_jsonl_files(tmp_path):
    for split in SPLITS:
        write_lines(tmp_path / f"{split}.jsonl", {"text": f"the {split} text"})
    assert texts_of(read_corpus(tmp_path, cache_dir=tmp_path / "cache")) == (
        b"the train text",
        b"the valid text",
        b"the test text",
    )


def test_a_changed_jsonl_file_or_column_is_read_anew(tmp_path):
    path, row = tmp_path / "a.jsonl", {"text": "old " * 50, "title": "name " * 50}
    assert read_corpus(write_lines(path, row), cache_dir=tmp_path).train.read()[:4] == b"old "
    assert read_corpus(path, "title", tmp_path).train.read()[:4] == b"name"
    assert read_corpus(write_lines(path, {"text": "new " * 50}), cache_dir=tmp_path).train.read()[:4] == b"new "


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "half', "is not JSON: Unterminated string"),
        ('["a", "b"]', "is not an object but a list"),
        ('{"body": "x", "id": 3}', r"has no 'text', only body, id; name the one that holds the text: --text-column"),
        ('{"text": null}', "has null as 'text', not text"),
        ('{"text": "\\ud800"}', "has half a character in 'text'"),
    ],
)
def test_a_line_without_text_is_named(line, message, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"text": "fine"}, "", line)
    with pytest.raises(SpikegptError, match=rf"a\.jsonl, line 3, {message}"):
        read_corpus(path, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache" / "texts").iterdir()) == []


def test_a_run_trains_on_a_jsonl_column_and_is_evaluated_on_it(make_run, tmp_path, cache):
    path = write_lines(tmp_path / "a.jsonl", *({"body": f"neuron {number} fires"} for number in range(200)))
    run = make_run(data=(str(path),), text_column="body")
    assert evaluate_run(run, limit=50, cache=cache)["text"] == f"{path} (test)"
