"""Memory that a training step frees is there for the next one, and goes back to the system afterwards."""

import ctypes
import sys
from pathlib import Path

import processes
import pytest

from spikegpt.common import memory
from spikegpt.common.memory import pages_kept, resident_bytes

# above all that the C library keeps of its own accord
MIB = 64

needs_gnu = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="GNU's C library only"
)

SCRIPT = f"""
import resource, torch
from spikegpt.common import memory
from spikegpt.common.memory import pages_kept, resident_bytes

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones({MIB << 20} // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as facts:
        return int(facts.read().split()[1]) * resource.getpagesize() >> 20

outside = min(new_pages(), new_pages())
with pages_kept():
    # the crumbs that aligning leaves part the first blocks, until the seven that a thread keeps for itself are there
    for step in range(16):
        inside = new_pages()
    kept = resident()
print(outside, inside, kept - resident())
"""


@needs_gnu
def test_memory_is_kept_for_the_next_step_and_given_back_at_the_end():
    # in a process of its own: one in which an allocation has failed, as other tests make it, keeps nothing
    printed = processes.run([sys.executable, "-c", SCRIPT], check=True).stdout
    outside, inside, given_back = (int(word) for word in printed.split())
    # of each new page one fault; with huge pages, of 2 MiB, there are fewer
    assert outside >= MIB / 2 and inside < outside / 10
    assert given_back > MIB / 2


HUGE_SCRIPT = f"""
import re, torch
from pathlib import Path
from spikegpt.common import memory
from spikegpt.common.memory import pages_kept, resident_bytes

def huge():
    return sum(map(int, re.findall(r"AnonHugePages: +([0-9]+) kB", Path("/proc/self/smaps").read_text()))) >> 10

with pages_kept():
    kept = torch.ones({MIB << 20} // 4)
    inside = huge()
    del kept
print(inside, huge())
"""
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@needs_gnu
@pytest.mark.skipif(
    not ENABLED.exists() or "[never]" in ENABLED.read_text(), reason="the system has no huge pages for processes"
)
def test_new_pages_are_huge():
    inside, after = map(int, processes.run([sys.executable, "-c", HUGE_SCRIPT], check=True).stdout.split())
    # where memory is in pieces there are fewer
    assert inside >= MIB / 2 and after < inside / 2


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, -1))\n"


@needs_gnu
def test_within_limits_pages_are_kept_and_nothing_is_asked_for_in_advance():
    printed = processes.run([sys.executable, "-c", LIMITED + SCRIPT], check=True).stdout
    outside, inside, given_back = (int(word) for word in printed.split())
    assert outside >= MIB / 2 and inside < outside / 10 and given_back > MIB / 2
    huge, _ = map(int, processes.run([sys.executable, "-c", LIMITED + HUGE_SCRIPT], check=True).stdout.split())
    assert huge < MIB / 2 or "[always]" in ENABLED.read_text()


def test_elsewhere_nothing_is_different(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pages_kept():
        pass


def test_resident_memory_grows_with_what_is_written():
    before = resident_bytes()
    block = bytearray(b"x" * (64 << 20))
    assert resident_bytes() - before > len(block) // 2


def test_resident_memory_is_known_where_there_is_no_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATM", tmp_path / "missing")
    assert resident_bytes() > 1 << 20
