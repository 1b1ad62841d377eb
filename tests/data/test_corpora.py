"""Corpora are fetched, split and noted once; data sets are read from folders as `datasets` does, without a network."""

import dataclasses
import errno
import hashlib
import json
import os

import pytest
from corpora import zipped
from http_server import Reply, serving

from spikegpt.common.errors import SpikegptError
from spikegpt.data import corpora
from spikegpt.data.corpora import CORPORA, RECALL, hub_corpus, listing, named_corpus, obtain
from spikegpt.data.prepare import prepare
from spikegpt.data.sources import read_corpus

SPLIT = ("train", "valid", "test")


@pytest.fixture
def serve(monkeypatch):
    """Serve `content` as the download of the corpus `name`: addresses, size and checksum of the table are replaced."""

    def make(server_url, name, content, urls=None):
        facts = {"urls": urls or (server_url,), "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        monkeypatch.setitem(CORPORA, name, dataclasses.replace(CORPORA[name], **facts))

    return make


def read(folder):
    return [(folder / f"{split}.txt").read_bytes() for split in SPLIT]


# --- named corpora


def test_enwik8_is_split_exactly_by_bytes(tmp_path, serve):
    # a cut moved to a character would be at 91
    text = b"a" * 89 + "é".encode() + b"b" * 9
    archive = zipped(enwik8=text)
    with serving(Reply(archive)) as (url, _):
        serve(url, "enwik8", archive)
        folder = named_corpus("enwik8", cache_dir=tmp_path)
    assert read(folder) == [text[:90], text[90:95], text[95:]]


def test_wikitext_keeps_its_own_splits_and_is_what_data_takes(tmp_path, serve):
    archive = zipped(**{f"wikitext-2-raw__wiki.{split}.raw": f"the {split} text" for split in SPLIT})
    with serving(Reply(archive)) as (url, _):
        serve(url, "wikitext-2", archive)
        folder = named_corpus("wikitext-2", cache_dir=tmp_path)
    assert read_corpus(folder).valid.read() == b"the valid text"
    assert prepare(folder, "byte", tmp_path).header["splits"]["train"]["bytes"] == len("the train text")


def test_a_plain_file_needs_no_archive(tmp_path, serve):
    with serving(Reply(b"0123456789" * 10)) as (url, _):
        serve(url, "tinyshakespeare", b"0123456789" * 10)
        folder = named_corpus("tinyshakespeare", tmp_path / "here", tmp_path / "cache")
    assert folder == tmp_path / "here"
    assert [len(part) for part in read(folder)] == [90, 5, 5]


@pytest.mark.parametrize("damage", [b"", b"x1234"])
def test_a_second_call_fetches_nothing_and_a_damaged_corpus_is_written_anew(damage, tmp_path, serve):
    content = b"0123456789" * 10
    with serving(Reply(content)) as (url, asked):
        serve(url, "tinyshakespeare", content)
        for _ in range(2):
            folder = named_corpus("tinyshakespeare", cache_dir=tmp_path)
        (folder / "valid.txt").write_bytes(damage)
        named_corpus("tinyshakespeare", cache_dir=tmp_path)
    assert read(folder)[1] == b"01234"
    # the third was made of the download that is kept
    assert len(asked) == 1


def test_the_next_address_is_tried_with_a_message(tmp_path, serve):
    content, messages = b"0123456789" * 10, []
    with serving(Reply(content, status=404), Reply(content)) as (url, _):
        serve(url, "tinyshakespeare", content, urls=(url, url))
        named_corpus("tinyshakespeare", cache_dir=tmp_path, warn=messages.append)
    assert "404" in messages[0] and messages[0].endswith("trying the next address")


def test_wrong_bytes_are_never_unpacked(tmp_path, serve):
    with serving(Reply(zipped(text8=b"right" * 30))) as (url, _):
        serve(url, "text8", zipped(text8=b"wrong" * 30))
        with pytest.raises(SpikegptError, match="sha256"):
            named_corpus("text8", cache_dir=tmp_path)
    assert not (tmp_path / "corpora").exists()


def test_a_broken_off_writing_is_repeated(tmp_path, serve, monkeypatch):
    content = b"0123456789" * 10
    with serving(Reply(content)) as (url, _):
        serve(url, "tinyshakespeare", content)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(corpora.os, "truncate", interrupt)
            named_corpus("tinyshakespeare", cache_dir=tmp_path)
        folder = named_corpus("tinyshakespeare", cache_dir=tmp_path)
    assert [len(part) for part in read(folder)] == [90, 5, 5]


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["train.txt", "corpus.json"])
@pytest.mark.parametrize("content", ["mine", "[]", '{"mine": 1}', "[" * 200_000])
def test_files_of_others_are_not_overwritten(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(SpikegptError, match="holds other files; choose another --out"):
        named_corpus("text8", tmp_path)


def test_every_checksum_is_a_sha256_and_every_corpus_is_listed():
    assert all(len(corpus.sha256) == 64 and int(corpus.sha256, 16) for corpus in CORPORA.values())
    assert [line.split()[0] for line in listing().splitlines()] == [*CORPORA, RECALL]


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(SpikegptError, match=r"unknown corpus 'enwik7'; known: enwik8, text8, .*OWNER/NAME"):
        obtain("enwik7")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.parquet", "is a Parquet file, not text; have its folder read: spikegpt data FOLDER"),
        ("a.txt", r"is a file: train on it as it is, --data .*a\.txt"),
        ("https://huggingface.co/datasets/owner/name", "is an address; give OWNER/NAME"),
    ],
)
def test_what_is_no_data_set_is_told(name, message, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1\x15" + bytes(99))
    (tmp_path / "a.txt").write_text("a text")
    with pytest.raises(SpikegptError, match=message):
        obtain(name if "://" in name else str(tmp_path / name))


# --- data sets


@pytest.fixture
def data_set(tmp_path, monkeypatch):
    """Write a data set of JSONL files, one per split, whose rows are dictionaries; return its folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_CACHE_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))

    def make(**splits):
        folder = tmp_path / "rows"
        folder.mkdir()
        for name, rows in splits.items():
            (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return str(folder)

    return make


def texts(*values):
    return [{"text": value, "number": 1} for value in values]


def test_a_data_set_keeps_its_own_splits(data_set, tmp_path):
    name = data_set(train=texts("one", "two"), validation=texts("three"), test=texts("four"))
    assert read(hub_corpus(name, tmp_path / "out")) == [b"one\ntwo", b"three", b"four"]


def test_a_data_set_without_all_three_splits_is_split_between_characters(data_set, tmp_path):
    name = data_set(train=texts(*["é" * 15] * 4), test=texts("not read"))
    parts = read(hub_corpus(name, tmp_path / "out", separator=" | "))
    # 4 * 30 bytes and 3 separators of 3: cuts at 116 and 122 of 129, both moved to the beginning of an é
    assert b"".join(parts).decode() == " | ".join(["é" * 15] * 4)
    assert [len(part) for part in parts] == [117, 6, 6]


def test_one_split_and_a_limit_can_be_asked_for(data_set, tmp_path):
    name = data_set(train=texts("not read"), test=texts(*["0123456789"] * 100))
    parts = read(hub_corpus(name, tmp_path / "out", split="test", limit_bytes=95))
    assert sum(map(len, parts)) == 98


def test_a_data_set_that_is_there_is_not_read_again(data_set, tmp_path, monkeypatch):
    name = data_set(train=texts("one", "two"), validation=texts("three"), test=texts("four"))
    folder = hub_corpus(name, tmp_path / "out")
    monkeypatch.setattr(corpora, "split_names", lambda *_: pytest.fail("read again"))
    assert hub_corpus(name, tmp_path / "out") == folder
    with pytest.raises(SpikegptError, match="holds another corpus"):
        hub_corpus(name, tmp_path / "out", column="number")


@pytest.mark.parametrize("others", [("test",), ("public_test", "private_test"), ("validation", "quiz"), ("eval",)])
def test_splits_that_are_left_out_are_named(others, data_set, tmp_path):
    name, messages = data_set(train=texts(*["learned"] * 9), **dict.fromkeys(others, texts("kept"))), []
    found = b"".join(read(hub_corpus(name, tmp_path / "out", warn=messages.append)))
    assert found.replace(b"learned", b"").strip() == b""
    (message,) = messages
    assert "left out" in message and message.endswith("choose another with --split")


@pytest.mark.parametrize("names", [("TRAIN", "TEST"), ("trainset", "testset"), ("corpus_trn", "corpus_tst")])
def test_splits_that_the_library_does_not_know_are_not_joined(names, data_set, tmp_path):
    name = data_set(**dict.fromkeys(names, texts("one", "two")))
    with pytest.raises(SpikegptError, match="looks split but holds"):
        hub_corpus(name, tmp_path / "out")


def test_all_three_splits_under_names_that_the_library_does_not_know_are_not_joined(data_set, tmp_path):
    name = data_set(**dict.fromkeys(("trainset", "devset", "testset"), texts("one", "two")))
    with pytest.raises(SpikegptError, match="the files of its split 'train' are train, valid and test by their names"):
        hub_corpus(name, tmp_path / "out")


def test_a_folder_that_changed_is_read_anew(data_set, tmp_path):
    name = data_set(train=texts(*["before"] * 9))
    hub_corpus(name, cache_dir=tmp_path / "cache")
    (tmp_path / "rows" / "train.jsonl").write_text("\n".join([json.dumps({"text": "after"})] * 9))
    assert b"before" not in b"".join(read(hub_corpus(name, cache_dir=tmp_path / "cache")))


def test_two_columns_of_one_name_are_refused(data_set, tmp_path):
    name = data_set()
    (tmp_path / "rows" / "train.csv").write_text("text,text\n" + "a,b\n" * 9)
    with pytest.raises(SpikegptError, match="has two columns of the name 'text'"):
        hub_corpus(name, tmp_path / "out")


def test_texts_full_of_control_characters_are_refused(data_set, tmp_path):
    with pytest.raises(SpikegptError, match=r"rows, train is no text: .* of its bytes are control characters"):
        hub_corpus(data_set(train=texts(*["\0\1\2"] * 99)), tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"column": "story"}, "has no column 'story', only text, number; name the one that holds the text: --column"),
        ({"column": "number"}, r"row 1 of train: the column 'number' holds a int, not text"),
        ({"split": "dev"}, "has no split 'dev', only train; choose one with --split"),
        ({"config": "english"}, "'english' not found"),
        ({"limit_bytes": -5}, "limit_bytes must be at least 1, got -5"),
    ],
)
def test_what_the_data_set_has_not_is_named(options, message, data_set, tmp_path):
    with pytest.raises(SpikegptError, match=message):
        hub_corpus(data_set(train=texts("one", "two")), tmp_path / "out", **options)


def test_a_failed_reading_leaves_the_folder_free(data_set, tmp_path):
    name = data_set(train=texts(*["0123456789"] * 10))
    with pytest.raises(SpikegptError, match="no column"):
        hub_corpus(name, tmp_path / "out", column="story")
    assert sum(map(len, read(hub_corpus(name, tmp_path / "out")))) == 109


def test_a_full_disk_is_told_and_leaves_the_place_free(data_set, tmp_path, monkeypatch):
    name = data_set(train=texts(*["0123456789"] * 10))
    with (
        monkeypatch.context() as patch,
        pytest.raises(SpikegptError, match=r"cannot write .*out: No space left on device; free space"),
    ):
        patch.setattr(os, "fsync", fail_with_full_disk)
        hub_corpus(name, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    hub_corpus(name, tmp_path / "out")


def fail_with_full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_data_set_that_runs_code_is_refused(tmp_path):
    pytest.importorskip("datasets")
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "program.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(SpikegptError, match="is refused, for it runs code of its repository"):
        hub_corpus(str(folder), tmp_path / "out")
    assert not (tmp_path / "ran").exists()
