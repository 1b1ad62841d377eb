"""One process or two: measured by processes that know of each other, and said in words."""

import subprocess
import sys

import pytest
import torch
from processes import HANGS_S

from spikegpt.measure import processes

TWICE = """
import sys
from spikegpt.measure import processes

processes.WARM_UP, processes.ROUNDS = 0, 2
processes._compare(*map(int, sys.argv[1:]))
"""


def test_both_are_measured():
    one, two = processes.in_processes([sys.executable, "-c", TWICE, "2"], patience_s=HANGS_S)
    assert one > 0 and two > 0


@pytest.mark.parametrize(("two", "started"), [(109, "spikegpt train, one process"), (111, "accelerate launch")])
def test_two_are_started_where_they_are_faster(monkeypatch, two, started):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(processes, "in_processes", lambda command: [100, two])
    found = processes.training()
    assert found["start"].startswith(started)
    assert found["tokens_per_s of one process, 4 threads"] == 100
    assert found["tokens_per_s of two processes, 2 thread(s) each"] == two


def test_one_thread_is_not_shared_out(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert processes.training() == {"start": "one process, of 1 thread(s): there is nothing to share out"}


FAULTY = "import sys, time; sys.argv[1] == '1' or time.sleep(60); sys.exit('no way to gloo')"


def test_what_fails_is_said_and_leaves_nobody_behind(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    failing = [sys.executable, "-c", "import sys; sys.exit('no way to gloo')"]
    with pytest.raises(RuntimeError, match="ended with 1: no way to gloo"):
        processes.in_processes(failing)
    with pytest.raises(subprocess.TimeoutExpired):
        processes.in_processes([sys.executable, "-c", FAULTY], patience_s=1)
    monkeypatch.setattr(processes.sys, "executable", "false")
    assert "two could not be tried" in processes.training()["start"]
