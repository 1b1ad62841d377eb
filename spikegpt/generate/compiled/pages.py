"""Memory in huge pages for weights: rows that are read here and there do not wait for the look-up of small ones."""

import contextlib
import mmap

import numpy as np

# of x86-64, and of AArch64 with pages of 4 KiB
HUGE_PAGE = 2 << 20


def in_huge_pages(array: np.ndarray) -> np.ndarray:
    """Return a copy of `array` in huge pages, where the system has them; small arrays are returned as they are."""
    if array.nbytes < HUGE_PAGE // 2 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return array
    room = mmap.mmap(-1, array.nbytes + 2 * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # a kernel built without them
    with contextlib.suppress(OSError):
        room.madvise(mmap.MADV_HUGEPAGE)
    found = np.frombuffer(room, np.uint8)
    start = -found.ctypes.data % HUGE_PAGE
    found = found[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    found[:] = array
    return found
