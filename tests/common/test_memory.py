"""Memory that a training step frees is there for the next one, and goes back to the system afterwards."""

import ctypes
import resource
import sys

import pytest
import torch

from spikegpt.common.memory import pages_kept

PAGE = resource.getpagesize()
# bytes, above all that the C library keeps of its own accord
SIZE = 256 << 20

needs_gnu = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="GNU's C library only"
)


def new_pages() -> int:
    """Return how many pages filling SIZE bytes takes from the system."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(SIZE // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@needs_gnu
def test_a_step_gets_what_the_one_before_it_has_freed():
    outside = min(new_pages(), new_pages())
    with pages_kept():
        new_pages()
        inside = new_pages()
    # with huge pages there are fewer
    assert inside < outside / 10 and outside > SIZE / (2 << 20)


@needs_gnu
def test_at_the_end_memory_is_given_back():
    def resident() -> int:
        with open("/proc/self/statm") as facts:
            return int(facts.read().split()[1]) * PAGE

    with pages_kept():
        new_pages()
        kept = resident()
    assert kept - resident() > SIZE / 2


def test_elsewhere_nothing_is_different(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pages_kept():
        pass
