"""A download arrives whole or not at all, whatever the server does: each test has a server of its own misbehaviour."""

import hashlib
import random
import socket
from pathlib import Path

import pytest
from http_server import Reply, serving

from spikegpt.common import download
from spikegpt.common.download import fetch
from spikegpt.common.errors import SpikegptError

CONTENT = random.Random(0).randbytes(200_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
# no measure of speed: a busy machine may take its time
QUICK = {"wait_s": 0.0, "timeout_s": 60.0}


def reply(content=CONTENT, **changes):
    return Reply(content, **changes)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_and_nothing_else_stays(tmp_path):
    with serving(reply()) as (url, _):
        assert fetch(url, tmp_path / "deep" / "file", sha256=SHA256, size=len(CONTENT)).read_bytes() == CONTENT
    assert names(tmp_path / "deep") == ["file"]


def test_a_second_call_asks_nothing(tmp_path):
    with serving(reply()) as (url, asked):
        for _ in range(2):
            fetch(url, tmp_path / "file", sha256=SHA256)
    assert len(asked) == 1


def test_a_damaged_file_is_fetched_anew_with_a_message(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT[:-1] + b"?")
    messages = []
    with serving(reply()) as (url, _):
        fetch(url, tmp_path / "file", sha256=SHA256, warn=messages.append)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert "expected is" in messages[0]


def test_a_truncated_answer_is_resumed_where_it_ended(tmp_path):
    with serving(reply(cut=70_000), reply(cut=50_000), reply()) as (url, asked):
        fetch(url, tmp_path / "file", sha256=SHA256, **QUICK)
    assert asked == [None, "bytes=70000-", "bytes=120000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_later_call_resumes_what_an_earlier_one_left(tmp_path):
    with serving(reply(cut=70_000), reply(status=404)) as (url, asked):
        with pytest.raises(SpikegptError, match="404"):
            fetch(url, tmp_path / "file", **QUICK)
        assert names(tmp_path) == ["file.part", "file.part.json"]
        port = int(url.split(":")[2].split("/")[0])
    # the server was away and came back
    with serving(reply(), port=port) as (url, asked):
        fetch(url, tmp_path / "file", **QUICK)
    assert asked == ["bytes=70000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert names(tmp_path) == ["file"]


def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(tmp_path):
    newer = CONTENT[::-1]
    with serving(reply(cut=70_000), reply(content=newer, etag='"two"')) as (url, asked):
        fetch(url, tmp_path / "file", **QUICK)
    assert asked[1] == "bytes=70000-"
    assert (tmp_path / "file").read_bytes() == newer


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_validator_and_checksum_nothing_is_resumed(etag, tmp_path):
    with serving(reply(cut=70_000, etag=etag), reply(etag=etag)) as (url, asked):
        fetch(url, tmp_path / "file", **QUICK)
    assert asked == [None, None]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_the_date_of_change_is_a_validator_too(tmp_path):
    dated = {"etag": "", "headers": {"Last-Modified": "Tue, 03 Jun 2008 11:05:30 GMT"}}
    with serving(reply(cut=70_000, **dated), reply(**{**dated, "etag": "Tue, 03 Jun 2008 11:05:30 GMT"})) as (
        url,
        asked,
    ):
        fetch(url, tmp_path / "file", **QUICK)
    assert asked == [None, "bytes=70000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_ignores_ranges_sends_all_again(tmp_path):
    with serving(reply(cut=70_000), reply(honours_range=False)) as (url, _):
        fetch(url, tmp_path / "file", sha256=SHA256, **QUICK)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_sends_another_range_is_asked_again(tmp_path):
    wrong = reply(status=206, honours_range=False)
    with serving(reply(cut=70_000), wrong, reply()) as (url, _):
        fetch(url, tmp_path / "file", sha256=SHA256, **QUICK)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_length_that_is_too_long_does_not_hinder_a_file_with_a_checksum(tmp_path):
    with serving(reply(length=len(CONTENT) + 9)) as (url, _):
        assert fetch(url, tmp_path / "file", sha256=SHA256, **QUICK).read_bytes() == CONTENT


def test_a_length_that_is_too_long_ends_without_a_checksum(tmp_path):
    with (
        serving(reply(length=len(CONTENT) + 9, etag="")) as (url, asked),
        pytest.raises(SpikegptError, match="ended after 200,000 of 200,009"),
    ):
        fetch(url, tmp_path / "file", attempts=3, **QUICK)
    assert len(asked) == 4
    assert "file" not in names(tmp_path)


def test_a_length_that_is_too_short_is_seen_by_the_size(tmp_path):
    with (
        serving(reply(length=150_000)) as (url, _),
        pytest.raises(SpikegptError, match="has 150,000 bytes, expected are 200,000"),
    ):
        fetch(url, tmp_path / "file", size=len(CONTENT), **QUICK)
    assert names(tmp_path) == []


def test_wrong_bytes_are_refused_and_removed(tmp_path):
    wrong = CONTENT[::-1]
    with (
        serving(reply(content=wrong)) as (url, _),
        pytest.raises(SpikegptError, match=f"{hashlib.sha256(wrong).hexdigest()}, expected is {SHA256}"),
    ):
        fetch(url, tmp_path / "file", sha256=SHA256, **QUICK)
    assert names(tmp_path) == []


@pytest.mark.parametrize("status", [500, 503, 429])
def test_an_error_that_passes_is_tried_again(status, tmp_path):
    with serving(reply(status=status), reply(status=status), reply()) as (url, asked):
        fetch(url, tmp_path / "file", sha256=SHA256, **QUICK)
    assert len(asked) == 3


def test_an_error_that_stays_ends_after_the_attempts(tmp_path):
    with (
        serving(reply(status=500)) as (url, asked),
        pytest.raises(SpikegptError, match=r"answers 500 Internal Server Error.*Run again later"),
    ):
        fetch(url, tmp_path / "file", attempts=3, **QUICK)
    assert len(asked) == 3


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_is_not_tried_again(status, tmp_path):
    with serving(reply(status=status)) as (url, asked), pytest.raises(SpikegptError, match=f"answers {status}"):
        fetch(url, tmp_path / "file", **QUICK)
    assert len(asked) == 1


def test_waiting_doubles_and_starts_anew_when_something_arrived(tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(download.time, "sleep", waits.append)
    with serving(reply(status=500), reply(status=500), reply(cut=70_000), reply(status=500), reply()) as (url, _):
        fetch(url, tmp_path / "file", sha256=SHA256, wait_s=1.0)
    assert waits == [1.0, 2.0, 1.0, 1.0]


def test_no_network_is_told_with_what_to_do(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        with pytest.raises(
            SpikegptError,
            match=r"Connection refused.*Is this machine online\? Run again later, or fetch it yourself to .*file$",
        ):
            fetch(url, tmp_path / "file", attempts=2, **QUICK)


def test_a_server_that_is_silent_is_left_after_the_timeout(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(SpikegptError, match="timed out"):
            fetch(url, tmp_path / "file", attempts=1, wait_s=0.0, timeout_s=0.2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told(tmp_path):
    (tmp_path / "file.part").symlink_to("/dev/full")
    with (
        serving(reply()) as (url, _),
        pytest.raises(SpikegptError, match="No space left on device; free space and run again"),
    ):
        fetch(url, tmp_path / "file", **QUICK)
    assert "file" not in names(tmp_path)
