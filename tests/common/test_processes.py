"""The tests' own way to start processes waits out a machine that has no room for one more."""

import subprocess
import sys

import processes
import pytest


@pytest.fixture
def busy(monkeypatch):
    """A machine that refuses so many processes; the pauses that were made."""
    pauses: list[float] = []
    monkeypatch.setattr(processes, "sleep", pauses.append)

    def refuse(times: int) -> list[float]:
        begin = subprocess.Popen.__init__

        def init(self, *arguments, **options):
            if len(pauses) < times:
                # as the constructor is left where the fork fails
                self.returncode = None
                self._child_created = False
                raise BlockingIOError(11, "Resource temporarily unavailable")
            begin(self, *arguments, **options)

        monkeypatch.setattr(subprocess.Popen, "__init__", init)
        return pauses

    return refuse


def test_a_process_that_finds_no_room_is_started_later(busy):
    pauses = busy(2)
    assert processes.run([sys.executable, "-c", "print(1)"]).stdout == "1\n"
    assert pauses == [0.1, 0.2]


def test_a_machine_that_never_has_room_is_told_of(busy):
    busy(1000)
    with pytest.raises(BlockingIOError):
        processes.start([sys.executable, "-c", ""])
