"""Token files are whole or written anew, and the order of samples depends on the position only."""

import errno
import importlib
import os
import re

import numpy as np
import pytest
from texts import write
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers

from spikegpt.common.errors import SpikegptError
from spikegpt.common.files import atomic_path, write_atomically
from spikegpt.data.prepare import prepare
from spikegpt.data.sources import read_corpus
from spikegpt.data.tokenizers import BPETokenizer, CharTokenizer
from spikegpt.train.sampler import StreamSampler, WindowSampler

TEXT = "The spiking neuron fires. Größe: 5 €, 🦔!\n" * 40
TOKENS = np.arange(1000, dtype=np.uint16)


@pytest.fixture
def text_file(tmp_path):
    (tmp_path / "story.txt").write_bytes(TEXT.encode())
    return tmp_path / "story.txt"


# --- token files


@pytest.mark.parametrize("name", ["byte", "char", "bpe"])
def test_every_split_decodes_to_its_text(name, text_file, tmp_path):
    data, corpus = prepare(text_file, name, tmp_path / "cache", bpe_vocab_size=300), read_corpus(text_file)
    for split in ("train", "valid", "test"):
        assert data.tokenizer.decode(data.split(split)) == corpus.split(split).read()
        assert data.header["splits"][split]["bytes"] == len(corpus.split(split))
        assert data.header["splits"][split]["characters"] == len(corpus.split(split).read().decode())
    assert data.header["is_exact"]
    assert data.header["tokenizer_fingerprint"] == data.tokenizer.fingerprint


def test_bpe_is_trained_on_the_train_split_only(tmp_path):
    texts = {"train": "abc " * 50, "valid": "neuron " * 50, "test": "neuron " * 50}
    data = prepare(write(tmp_path, **texts), "bpe", tmp_path / "cache")
    assert data.tokenizer.fingerprint == BPETokenizer.train(b"abc " * 50, 4096).fingerprint
    assert len(data.tokenizer.encode(b"neuron")) == 6


def test_bpe_of_a_long_text_is_trained_on_parts_of_it_evenly(tmp_path, monkeypatch):
    module = importlib.import_module("spikegpt.data.prepare")
    monkeypatch.setattr(module, "TRAINING_BYTES", 90)
    monkeypatch.setattr(module, "TRAINING_PARTS", 3)
    # parts of 30 bytes at 0, 600 and 1200 of 1800
    text = "a" * 600 + "é" * 300 + "c" * 600
    write(tmp_path / "texts", train=text, valid="xx", test="yy")
    data = prepare(tmp_path / "texts", "bpe", tmp_path / "cache")
    sample = "\n".join(["a" * 30, "é" * 15, "c" * 30])
    assert data.tokenizer.fingerprint == BPETokenizer.train(sample.encode(), 4096).fingerprint


def test_several_processes_write_the_same_token_file(tmp_path, monkeypatch):
    monkeypatch.setattr("spikegpt.data.tokenizers.encoding.BYTES_PER_PROCESS", 1000)
    monkeypatch.setattr("spikegpt.data.tokenizers.encoding.PAIR_PIECE_BYTES", 100)
    (tmp_path / "story.txt").write_bytes(TEXT.encode())
    tokenizer = BPETokenizer.train(TEXT.encode(), 300)
    files = [
        prepare(tmp_path / "story.txt", tokenizer, tmp_path / f"cache{n}", processes=n).path.read_bytes()
        for n in (1, 2)
    ]
    assert files[0] == files[1]


def test_the_alphabet_is_that_of_the_whole_corpus(tmp_path):
    data = prepare(write(tmp_path, train="aa", valid="bb", test="cc"), "char", tmp_path / "cache")
    assert data.tokenizer.characters == "abc"


def test_a_token_file_is_reused(text_file, tmp_path):
    path = prepare(text_file, "bpe", tmp_path / "cache", 300).path
    # the past: a rewrite would set the present
    os.utime(path, (1, 1))
    assert prepare(text_file, "bpe", tmp_path / "cache", 300).path == path
    assert path.stat().st_mtime == 1


def test_another_text_gets_another_token_file(text_file, tmp_path):
    first = prepare(text_file, "byte", tmp_path / "cache")
    text_file.write_bytes(TEXT.encode().swapcase())
    second = prepare(text_file, "byte", tmp_path / "cache")
    assert first.path != second.path
    assert second.tokenizer.decode(second.split("train")[:3]) == b"tHE"


def test_the_same_text_split_elsewhere_is_tokenised_anew(tmp_path):
    messages, folder = [], tmp_path / "texts"
    prepare(write(folder, train="aabb", valid="cc", test="dd"), "byte", tmp_path / "cache")
    moved = prepare(
        write(folder, train="aa", valid="bbcc", test="dd"), "byte", tmp_path / "cache", warn=messages.append
    )
    assert bytes(moved.split("valid")) == b"bbcc"
    assert "another text, split or tokenizer" in messages[0]


def truncate(content):
    return content[:-1]


def lengthen_header(content):
    return content[:8] + b"\xff" * 8 + content[16:]


def raise_format(content):
    return content.replace(b'"format": 1', b'"format": 2')


def overwrite_tokens(content):
    return content[:-1000] + b"e" * 900 + content[-100:]


def miscount(content):
    return content.replace(b'"characters": ', b'"characters": 9', 1)[: len(content)]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"has \d+ bytes instead of \d+"),
        (lengthen_header, "has a broken header"),
        (raise_format, "has another format"),
        (overwrite_tokens, "has tokens that are not as they were written"),
        (miscount, "has a header that is not as it was written"),
        (lambda _: b"PK\x03\x04 a foreign file", "is not a token file"),
        (lambda _: b"", "is not a token file"),
        (lambda content: content[:12], "is not a token file"),
        (lambda content: content[:40], "has a broken header"),
    ],
)
def test_a_damaged_token_file_is_written_anew_with_a_message(damage, message, text_file, tmp_path):
    path = prepare(text_file, "byte", tmp_path / "cache").path
    whole, messages = path.read_bytes(), []
    path.write_bytes(damage(whole))
    prepare(text_file, "byte", tmp_path / "cache", warn=messages.append)
    assert path.read_bytes() == whole
    assert re.search(f"{message}; writing it anew", *messages)


def test_a_damaged_cached_tokenizer_is_trained_anew_with_a_message(text_file, tmp_path):
    first, messages = prepare(text_file, "bpe", tmp_path / "cache", 300), []
    (cached,) = (tmp_path / "cache").glob("*.json")
    cached.write_bytes(cached.read_bytes()[:-9])
    second = prepare(text_file, "bpe", tmp_path / "cache", 300, warn=messages.append)
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert "training the tokenizer anew" in messages[0]


def test_a_cached_tokenizer_with_another_vocabulary_is_trained_anew_with_a_message(text_file, tmp_path):
    first, messages = prepare(text_file, "bpe", tmp_path / "cache", 300), []
    (cached,) = (tmp_path / "cache").glob("*.json")
    other = BPETokenizer.train(b"another text altogether " * 30, 300)
    other.save(cached)
    second = prepare(text_file, "bpe", tmp_path / "cache", 300, warn=messages.append)
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint != other.fingerprint
    assert "is not as it was trained; training the tokenizer anew" in messages[0]


@pytest.mark.parametrize("processes", [0, -3])
def test_no_processes_are_refused(processes, text_file, tmp_path):
    with pytest.raises(SpikegptError, match=f"processes must be at least 1, got {processes}"):
        prepare(text_file, "byte", tmp_path / "cache", processes=processes)


def test_a_tokenizer_from_a_file_or_at_hand_is_used(text_file, tmp_path):
    BPETokenizer.train(b"some other text", 260).save(tmp_path / "mine.json")
    from_file = prepare(text_file, str(tmp_path / "mine.json"), tmp_path / "cache")
    at_hand = prepare(text_file, from_file.tokenizer, tmp_path / "cache")
    assert from_file.path == at_hand.path
    assert from_file.header["vocab_size"] == 260


def test_an_unknown_tokenizer_is_refused(text_file, tmp_path):
    with pytest.raises(
        SpikegptError, match=r"cannot read the tokenizer bite: .*give byte, char, bpe or a tokenizer\.json"
    ):
        prepare(text_file, "bite", tmp_path / "cache")


def test_a_text_that_does_not_fit_the_tokenizer_leaves_no_file(text_file, tmp_path):
    with pytest.raises(SpikegptError, match="'T'"):
        prepare(text_file, CharTokenizer("ab"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_text_that_changes_while_it_is_tokenised_is_told(text_file, tmp_path, monkeypatch):
    # the checksum is taken first: what is read later is another text of the same length
    monkeypatch.setattr("spikegpt.data.sources.Corpus.sha256", "0" * 64)
    with pytest.raises(SpikegptError, match=r"story\.txt changed while it was tokenised"):
        prepare(text_file, "byte", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_tokenizer_that_loses_text_is_reported(text_file, tmp_path):
    library, messages = Library(models.WordLevel({"?": 0}, unk_token="?")), []
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.save(str(tmp_path / "lossy.json"))
    data = prepare(text_file, tmp_path / "lossy.json", tmp_path / "cache", warn=messages.append)
    assert not data.header["is_exact"]
    assert "does not give the text of story.txt back exactly" in messages[0]


def test_a_full_disk_is_told_and_leaves_the_cache_as_it_was(text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail_with_full_disk)
    with pytest.raises(SpikegptError, match=r"cannot write to the cache .*No space left on device; free space"):
        prepare(text_file, "byte", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


# --- atomic files


def fail_with_full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failed_write_leaves_the_old_file_alone(call, tmp_path, monkeypatch):
    write_atomically(tmp_path / "file", "old")
    monkeypatch.setattr(os, call, fail_with_full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


# --- samplers


def windows(sampler, steps):
    return [sampler.next()[0].tolist() for _ in range(steps)]


def first_tokens(sampler, steps):
    return [row[0] for batch in windows(sampler, steps) for row in batch]


def test_targets_are_the_next_tokens():
    ids, targets = WindowSampler(TOKENS, 7, 4).next()
    assert ids.shape == targets.shape == (4, 7)
    assert (targets == ids + 1).all()


def test_an_epoch_visits_each_window_once():
    sampler = WindowSampler(TOKENS, 10, 1, seed=3)
    for _ in range(3):
        starts = first_tokens(sampler, sampler.samples_per_epoch)
        assert starts != sorted(starts)
        assert np.array_equal(np.diff(sorted(starts)), np.full(98, 10))


def test_epochs_differ_in_phase_and_order():
    sampler = WindowSampler(TOKENS, 10, 1)
    epochs = [first_tokens(sampler, sampler.samples_per_epoch) for _ in range(20)]
    assert len({min(starts) for starts in epochs}) > 5
    assert len({tuple(np.argsort(starts)) for starts in epochs}) == 20


def test_windows_reach_the_first_and_the_last_token():
    sampler = WindowSampler(TOKENS, 10, 99)
    batches = [sampler.next() for _ in range(200)]
    assert min(ids.min().item() for ids, _ in batches) == 0
    assert max(targets.max().item() for _, targets in batches) == 999


@pytest.mark.parametrize("length", [11, 19, 20, 21, 29])
def test_windows_of_a_short_split_stay_inside_it(length):
    sampler = WindowSampler(TOKENS[:length], 10, 8)
    assert max(sampler.next()[1].max().item() for _ in range(50)) == length - 1


@pytest.mark.parametrize("position", [0, 4, 6, 96, 100, 1000])
@pytest.mark.parametrize("kind", [WindowSampler, StreamSampler])
def test_a_sampler_resumes_from_any_position(kind, position):
    unbroken, resumed = kind(TOKENS, 10, 2, seed=5), kind(TOKENS, 10, 2, seed=5)
    windows(unbroken, position // 2)
    resumed.position = position
    assert unbroken.position == position
    assert windows(resumed, 60) == windows(unbroken, 60)


@pytest.mark.parametrize("kind", [WindowSampler, StreamSampler])
def test_two_processes_share_out_what_one_would_draw(kind):
    one = windows(kind(TOKENS, 10, 6, seed=1), 40)
    ranks = [windows(kind(TOKENS, 10, 3, seed=1, rank=rank, world_size=2), 40) for rank in (0, 1)]
    assert [first + second for first, second in zip(*ranks, strict=True)] == one


def test_the_order_depends_on_the_seed_and_stays_the_same_for_ever():
    assert first_tokens(WindowSampler(TOKENS, 100, 4, seed=1), 1) != first_tokens(
        WindowSampler(TOKENS, 100, 4, seed=0), 1
    )
    # a run resumed with another version of numpy must go on in this order
    assert first_tokens(WindowSampler(TOKENS, 100, 4, seed=0), 1) == [159, 859, 59, 759]


def test_a_train_window_never_holds_a_valid_token(tmp_path):
    data = prepare(write(tmp_path, train="a" * 100, valid="b" * 100, test="c" * 100), "byte", tmp_path / "cache")
    sampler = WindowSampler(data.split("train"), 10, 50)
    assert {token for _ in range(20) for batch in sampler.next() for token in batch.flatten().tolist()} == {ord("a")}


@pytest.mark.parametrize(("kind", "needed"), [(WindowSampler, 11), (StreamSampler, 21)])
def test_a_split_that_is_too_short_is_refused_with_both_numbers(kind, needed):
    kind(TOKENS[:needed], 10, 2)
    with pytest.raises(SpikegptError, match=rf"has {needed - 1} tokens, .* 10 needs? {needed}"):
        kind(TOKENS[: needed - 1], 10, 2)


@pytest.mark.parametrize("wrong", [{"ctx_len": 0}, {"batch_size": 0}, {"rank": 1}, {"world_size": 0}, {"seed": -1}])
def test_a_senseless_argument_is_refused_by_name(wrong):
    with pytest.raises(SpikegptError, match=f"{next(iter(wrong))} must be"):
        WindowSampler(TOKENS, **{"ctx_len": 10, "batch_size": 2, **wrong})


def test_lanes_run_on_from_step_to_step_and_start_again_together():
    # 999 predictions in 3 lanes of 333: 33 steps of 10
    sampler = StreamSampler(TOKENS, 10, 3)
    batches = [sampler.next() for _ in range(34)]
    ids = np.concatenate([batch[0].numpy() for batch in batches[:33]], axis=1)
    assert np.array_equal(ids - ids[:, :1], np.tile(np.arange(330), (3, 1)))
    assert np.diff(ids[:, 0]).tolist() == [333, 333]
    assert [batch[2].tolist() for batch in batches] == [[True] * 3] + [[False] * 3] * 32 + [[True] * 3]


def test_a_stream_refuses_a_position_between_steps():
    sampler = StreamSampler(TOKENS, 10, 3)
    sampler.position = 4
    with pytest.raises(SpikegptError, match="position 4 is not a multiple of the 3 lanes"):
        sampler.next()
