"""The line of progress is for eyes only: on a terminal it moves and goes away, elsewhere there is none."""

import io

import pytest

from spikegpt.common import progress as module
from spikegpt.common.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_sees_share_speed_and_time_left_and_then_nothing(monkeypatch, clock):
    monkeypatch.setattr(module.sys, "stderr", Terminal())
    with Progress("fetching", 40_000_000) as progress:
        clock[0] += 2
        progress.advance(10_000_000)
    # 10 of 40 MB in 2 s: 5 MB/s, 6 s for the other 30
    assert module.sys.stderr.getvalue() == "\r\x1b[Kfetching:  25% of 40.0 MB, 5.0 MB/s, 6 s left\r\x1b[K"


def test_what_was_there_before_does_not_count_as_speed(monkeypatch, clock):
    monkeypatch.setattr(module.sys, "stderr", Terminal())
    with Progress("fetching", None) as progress:
        clock[0] += 50
        progress.restart(30_000_000, 40_000_000)
        clock[0] += 2
        progress.advance(4_000_000)
    assert "85% of 40.0 MB, 2.0 MB/s, 3 s left" in module.sys.stderr.getvalue()


def test_tokens_are_counted_one_by_one(monkeypatch, clock):
    monkeypatch.setattr(module.sys, "stderr", Terminal())
    with Progress("evaluating", 4000, "tokens") as progress:
        clock[0] += 2
        progress.advance(1000)
    assert "evaluating:  25% of 4,000 tokens, 500 tokens/s, 6 s left" in module.sys.stderr.getvalue()


def test_a_file_sees_nothing(monkeypatch, clock):
    monkeypatch.setattr(module.sys, "stderr", io.StringIO())
    with Progress("fetching", 10) as progress:
        clock[0] += 2
        progress.advance(5)
    assert module.sys.stderr.getvalue() == ""
