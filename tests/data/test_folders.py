"""Every file of a folder is read or said to be left out; splits that names tell are kept, or the folder is refused."""

import gzip
import os

import pytest
from texts import write

from spikegpt.common.errors import SpikegptError
from spikegpt.data.sources import read_corpus
from spikegpt.data.splits import SPLITS
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.data.tokens.pretokenised import export_binidx


def place(folder, *names):
    """Write a text that is its own name, often, under each name; return the folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} " * 9)
    return folder


def split_into(corpus):
    """Split -> names of the files in it."""
    return {split: sorted(set(corpus.split(split).read().decode().split())) for split in SPLITS}


# --- what is read


def test_text_is_found_by_its_name_in_any_case_and_packed(tmp_path):
    place(tmp_path / "books", "a.TXT", "b.md", "c.Text")
    (tmp_path / "books" / "d.txt.gz").write_bytes(gzip.compress(b"packed " * 9))
    (tmp_path / "books" / "e.jsonl.gz").write_bytes(gzip.compress(b'{"text": "row row row"}\n' * 9))
    messages = []
    corpus = read_corpus(tmp_path / "books", cache_dir=tmp_path / "cache", warn=messages.append)
    assert corpus.metadata["files"] == ["a.TXT", "b.md", "c.Text", "d.txt.gz", "e.jsonl.gz"] and not messages


def test_what_is_left_out_is_said_in_one_line(tmp_path):
    folder, messages = place(tmp_path / "books", "a.txt", "b.rst", "c.rst", "deeper/LICENSE", "corpus.json"), []
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"the same again"))
    corpus = read_corpus(folder, warn=messages.append)
    assert corpus.metadata["files"] == ["a.txt"]
    assert messages == [
        f"folder {folder}: left out *.rst (2), packed copies (1), names without ending (1); "
        "to read them too, name the files themselves"
    ]


def test_links_are_not_followed_out_of_a_folder(tmp_path):
    place(tmp_path / "private", "secret.txt")
    folder, messages = place(tmp_path / "books", "a.txt"), []
    (folder / "link.txt").symlink_to(tmp_path / "private" / "secret.txt")
    (folder / "deeper").symlink_to(tmp_path / "private")
    assert read_corpus(folder, warn=messages.append).metadata["files"] == ["a.txt"]
    assert "left out links (2)" in messages[0]


@pytest.mark.parametrize("name", ["a.pdf", "a.py", "README"])
def test_a_folder_without_text_says_what_it_holds(name, tmp_path):
    with pytest.raises(SpikegptError, match=r"holds no \*\.txt.* file, but .*\(1\); name the files themselves"):
        read_corpus(place(tmp_path, name))


def test_a_folder_of_what_is_no_text_says_so(tmp_path):
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(b"%PDF-1.7 ...")
    (folder / "b.png").write_bytes(b"\x89PNG....")
    with pytest.raises(SpikegptError, match="convert them to plain text, or give another folder"):
        read_corpus(folder)
    # one of them may be text
    (folder / "c.tex").write_text("text")
    with pytest.raises(SpikegptError, match="name the files themselves"):
        read_corpus(folder)


def test_a_folder_of_tables_says_how_they_are_read(tmp_path):
    message = rf"but \*\.parquet \(1\); read it by spikegpt data {tmp_path} --column NAME"
    with pytest.raises(SpikegptError, match=message):
        read_corpus(place(tmp_path, "train-00000-of-00001.parquet"))


def test_a_file_named_itself_is_read_whatever_its_ending(tmp_path):
    place(tmp_path, "a.rst", "LICENSE")
    assert read_corpus([tmp_path / "a.rst", tmp_path / "LICENSE"]).metadata["files"] == ["a.rst", "LICENSE"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_part_that_cannot_be_read_is_told(tmp_path):
    place(tmp_path, "a.txt", "closed/b.txt")
    (tmp_path / "closed").chmod(0)
    with pytest.raises(SpikegptError, match=r"cannot read the folder .*closed: Permission denied"):
        read_corpus(tmp_path)


@pytest.mark.parametrize("names", [["a.txt", "a.txt"], [".", "a.txt"], ["a.txt", "./a.txt"]], ids=str)
def test_a_text_that_is_named_twice_is_read_once(names, tmp_path, capsys):
    place(tmp_path, "a.txt")
    assert read_corpus([tmp_path / name for name in names]).metadata["files"] == ["a.txt"]
    assert "1 file(s) named twice are read once" in capsys.readouterr().err


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_text_that_is_named_by_a_link_too_is_read_once(link, tmp_path, capsys):
    place(tmp_path, "a.txt")
    getattr(tmp_path / "b.txt", link)(tmp_path / "a.txt")
    assert read_corpus([tmp_path / "a.txt", tmp_path / "b.txt"]).metadata["files"] == ["a.txt"]
    assert "1 file(s) named twice are read once" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("a.txt", "copy of a.txt"), ("train.txt", "valid.txt", "test.txt")])
def test_copies_are_told(names, tmp_path, capsys):
    place(tmp_path, *names)
    (tmp_path / names[-1]).write_text((tmp_path / names[0]).read_text())
    read_corpus(tmp_path)
    first, last = sorted(tmp_path / name for name in (names[0], names[-1]))
    told = f"{first} and 1 other(s), such as {last}, are the same: what is learned may be tested"
    assert told in capsys.readouterr().err


def test_empty_files_are_told(tmp_path, capsys):
    place(tmp_path, "a.txt")
    (tmp_path / "b.txt").touch()
    read_corpus(tmp_path)
    assert f"1 file(s) are empty, such as {tmp_path / 'b.txt'}" in capsys.readouterr().err


def test_a_link_that_leads_to_itself_ends(tmp_path):
    place(tmp_path, "a.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "deeper").symlink_to(tmp_path)
    assert read_corpus(tmp_path, warn=lambda message: None).metadata["files"] == ["a.txt"]
    with pytest.raises(SpikegptError, match=r"cannot read .*b\.txt: Too many levels of symbolic links"):
        read_corpus(tmp_path / "b.txt")


def test_a_folder_may_be_named_as_a_text_is(tmp_path):
    place(tmp_path, "story.txt/a.txt")
    assert read_corpus(tmp_path).metadata["files"] == ["story.txt/a.txt"]
    assert read_corpus(tmp_path / "story.txt").metadata["files"] == ["a.txt"]


def test_the_built_in_text_stands_alone(tmp_path):
    with pytest.raises(SpikegptError, match=r"'python-docs' stands alone; a file or folder of that name is \./"):
        read_corpus(["python-docs", place(tmp_path, "a.txt")])


def test_an_address_is_no_file():
    with pytest.raises(SpikegptError, match=r"https://example\.com/a\.txt is an address; fetch it"):
        read_corpus("https://example.com/a.txt")


def test_what_is_hidden_is_left_out_and_said(tmp_path, capsys):
    place(tmp_path, "a.txt", ".git/b.txt", ".c.txt", "__MACOSX/d.txt", "e/.f/g.txt")
    (tmp_path / "._a.txt").write_bytes(b"\0\5\x16\7\0")
    assert read_corpus(tmp_path).metadata["files"] == ["a.txt"]
    assert "left out hidden (5)" in capsys.readouterr().err


# --- splits


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("Train.txt", "Valid.txt", "TEST.txt"),
        ("train.txt", "dev.txt", "test.md"),
        ("training.txt", "validation.txt", "testing.txt"),
        ("train.txt", "val.txt", "eval.txt"),
        ("train.txt", "eval.txt", "test.txt"),
        ("Wiki.Train.txt", "wiki.valid.txt", "WIKI.test.txt"),
        ("de_train.md", "de_val.md", "de_test.md"),
        ("train-00000-of-00002.txt", "validation-00000-of-00001.txt", "test-00000-of-00001.txt"),
        ("train/neg/1.txt", "dev/neg/2.txt", "test/neg/3.txt"),
        ("train/a.txt", "valid.txt", "test.txt"),
        ("TrainData.txt", "ValidData.txt", "TestData.txt"),
        ("trainset.txt", "validset.txt", "testset.txt"),
        ("train.txt", "dev.txt", "held-out.txt"),
        ("texts/training/test1.txt", "texts/dev/a.txt", "texts/test/b.txt"),
        ("train.txt", "dev_clean.txt", "final-test.txt"),
        ("train.txt", "newsdev2016.txt", "newstest2016.txt"),
        ("eng.train.txt", "eng.deva.txt", "eng.testa.txt"),
        ("en/train.txt", "fr/valid.txt", "de/test.txt"),
        ("data/train-00000-of-00002.txt", "data/val_1-00000-of-00001.txt", "data/public_test-00000-of-00001.txt"),
    ],
)
def test_a_split_is_kept_however_it_is_spelled(train, valid, test, tmp_path):
    corpus = read_corpus(place(tmp_path, train, valid, test))
    assert split_into(corpus) == {"train": [train], "valid": [valid], "test": [test]}


def test_a_split_may_have_several_files(tmp_path):
    corpus = read_corpus(place(tmp_path, "train-1.txt", "train-2.txt", "valid.txt", "test1.txt"))
    assert split_into(corpus)["train"] == ["train-1.txt", "train-2.txt"]


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "eval.txt"),
        ("Train.txt", "Test.txt"),
        ("train/pos/1.txt", "test/pos/1.txt"),
        ("wiki.train.txt", "wiki.test.txt", "notes.txt"),
        ("train.txt", "public_test.txt", "private_test.txt"),
        ("train-00000-of-00001.txt", "public_test-00000-of-00001.txt", "private_test-00000-of-00001.txt"),
        ("train/a.txt", "PublicTest/b.txt"),
        ("train.txt", "testa.txt", "testb.txt"),
        ("train.txt", "newstest2014.txt"),
        ("train.txt", "devtest.txt"),
        ("corpus.train.txt", "heldout.txt"),
        ("TRAIN-1.txt", "HELD OUT.txt"),
        ("trainval.txt", "test.txt"),
        ("pos/train.txt", "neg/test.txt"),
        ("train.txt", "valid.txt", "test.txt", "unsupervised.txt"),
    ],
)
@pytest.mark.parametrize("how", ["folder", "files"])
def test_half_a_split_is_never_joined(how, names, tmp_path):
    place(tmp_path, *names)
    with pytest.raises(SpikegptError, match=r"looks split but holds .*keep exactly train, valid and test"):
        read_corpus(tmp_path if how == "folder" else [tmp_path / name for name in names])


@pytest.mark.parametrize(
    "names",
    [
        ("train_on_your_text.md", "test-plan.md", "developing.md"),
        ("latest.txt", "contest.txt", "trained.txt"),
        ("train.txt", "notes.txt"),
    ],
)
def test_words_in_other_names_are_no_splits(names, tmp_path):
    assert len(read_corpus(place(tmp_path, *names)).metadata["files"]) == len(names)


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "quiz.txt"),
        ("a_train.txt", "b_test.txt"),
        ("train/a.txt", "challenge/b.txt"),
        ("a.txt", "test.txt"),
    ],
)
def test_names_that_may_tell_splits_are_not_joined_in_silence(names, tmp_path, capsys):
    read_corpus(place(tmp_path, *names))
    assert f"the files {', '.join(sorted(names))} are joined and cut into splits anew" in capsys.readouterr().err


@pytest.mark.parametrize("names", [("notes.txt", "plans.txt"), ("train1.txt", "train2.txt"), ("test-plan.md", "a.md")])
def test_files_that_tell_no_splits_are_joined_without_a_word(names, tmp_path, capsys):
    read_corpus(place(tmp_path, *names))
    assert not capsys.readouterr().err


def test_what_tells_about_a_split_is_no_part_of_it(tmp_path, capsys):
    corpus = read_corpus(place(tmp_path, "train.txt", "valid.txt", "test.txt", "README.md", "license.txt"))
    assert split_into(corpus) == {"train": ["train.txt"], "valid": ["valid.txt"], "test": ["test.txt"]}
    assert "left out beside the splits" in capsys.readouterr().err


def test_the_files_of_a_split_keep_it_when_they_are_named_themselves(tmp_path):
    names = ["test.txt", "train.txt", "valid.txt"]
    corpus = read_corpus([place(tmp_path, *names) / name for name in names])
    assert split_into(corpus) == {"train": ["train.txt"], "valid": ["valid.txt"], "test": ["test.txt"]}


def test_tokens_for_others_keep_the_order_of_a_split_however_it_is_spelled(tmp_path):
    found = export_binidx(write(tmp_path, Dev="dev", Test="test", Train="train"), ByteTokenizer(), tmp_path / "out")
    assert bytes(found.tokens.astype("uint8")) == b"traindevtest"


def test_an_ending_may_be_the_split(tmp_path):
    names = ["ptb.test", "ptb.train", "ptb.valid"]
    corpus = read_corpus([place(tmp_path, *names) / name for name in names])
    assert split_into(corpus)["test"] == ["ptb.test"]
