"""How much memory a process may still take, the error where something asks for more, and memory that is kept."""

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMINFO, _STATM, _GROUP = Path("/proc/meminfo"), Path("/proc/self/statm"), Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Return the bytes of main memory that are free, swap included, within a container's limit; None if unknown."""
    known = (free for free in (_free_of_machine(), _free_of_group()) if free is not None)
    return min(known, default=None)


def resident_bytes() -> int:
    """Return the bytes of main memory that this process occupies; where the system does not say, the most it ever
    did."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        # in kilobytes, but on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _free_of_machine() -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
        return 1024 * sum(int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    except (OSError, KeyError, ValueError):
        pass
    try:
        # all that there is: other systems do not say what is free
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _free_of_group() -> int | None:
    try:
        limit, used = ((_GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return None if limit == "max" else max(int(limit) - int(used), 0)
    except (OSError, ValueError):
        return None


def check_fits(needed: int, what: str, advice: str, available: int | None = None) -> None:
    """Raise ValueError if `what` needs more bytes than there are: `available`, or the main memory that is free."""
    free = available_bytes() if available is None else available
    if free is not None and needed > free:
        raise ValueError(f"{what} needs {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free; {advice}")


# parameters of GNU's mallopt and what they are without it, source: malloc.h
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_LIBRARY_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}


# of Linux's madvise: memory is to come in huge pages
_HUGE_PAGES = 14
# bytes asked for in advance, at most, fewer than the library keeps; they are not taken before they are written to
_MOST_ADVISED = 3 << 29


@contextmanager
def pages_kept() -> Iterator[None]:
    """Within this block freed memory stays with the process, and is given back to the system at its end.

    A training step asks for what the one before it has freed, and pages that are new to a process cost as much as the
    arithmetic on them. By GNU's C library; with others nothing is different, nor in a process in which the system has
    refused memory before: that library has then left the heap that can be kept.

    New pages are huge ones where the system has them: within virtual machines a step is up to a tenth faster so.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    _advise_huge_pages(library)
    try:
        yield
    finally:
        for parameter, value in _LIBRARY_DEFAULTS.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)


def _advise_huge_pages(library: ctypes.CDLL) -> None:
    """Let the heap grow by memory that nobody has touched, and its pages be huge."""
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    # memory that is refused costs more than it brings: the library then leaves the heap
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        return
    page = os.sysconf("SC_PAGE_SIZE")
    size = min((available_bytes() or 0) // 2, _MOST_ADVISED)
    library.malloc.restype = ctypes.c_void_p
    address = library.malloc(ctypes.c_size_t(size))
    if address is None:
        return
    first = -(-address // page) * page
    library.madvise(ctypes.c_void_p(first), ctypes.c_size_t((address + size - first) // page * page), _HUGE_PAGES)
    library.free(ctypes.c_void_p(address))
