"""How many CPU threads torch works with, and our kernels with it: as asked for, or what is fastest at present.

A number that was asked for stays. Without one, the fastest depends on what else the machine does, and is measured.
"""

import os
import statistics
import time
from collections.abc import Callable

import torch

from .errors import warn_on_stderr

# times that the work is done with each number of threads, unless it has taken so long already
ROUNDS, ENOUGH_S = 3, 3.0
# fewer threads must be faster by this factor: other numbers of threads round sums otherwise
WORTH = 1.25
# a number of threads that is slower by this factor is not followed by smaller ones
HOPELESS = 2.0
# steps whose median is a pace, and the factor from which on it is another one
STEPS, CHANGED = 10, 1.5


def use_threads(threads: int) -> None:
    """Work with so many CPU threads from now on; 0 leaves torch's choice."""
    if threads:
        cpus = os.cpu_count() or threads
        if threads > cpus:
            warn_on_stderr(f"{threads} threads on {cpus} CPU(s) wait for each other; {cpus} would be faster")
        torch.set_num_threads(threads)


def fastest_threads(work: Callable[[], object], most: int, clock: Callable[[], float] = time.perf_counter) -> int:
    """Return with how many CPU threads `work` is done fastest at present: `most`, its half, and so on down to 1.

    From then on torch works with so many. The clock does not see the first call, which may have to compile.
    """

    def timed(threads: int) -> float:
        torch.set_num_threads(threads)
        started = clock()
        work()
        return clock() - started

    work()
    began, seconds = clock(), dict[int, list[float]]()
    while threads := most >> len(seconds):
        seconds[threads] = [timed(threads)]
        if seconds[threads][0] > HOPELESS * min(found[0] for found in seconds.values()):
            break
    while len(seconds[most]) < ROUNDS and clock() - began < ENOUGH_S:
        for threads, found in seconds.items():
            found.append(timed(threads))
    paces = {threads: statistics.median(found) for threads, found in seconds.items()}
    fastest = max(threads for threads, pace in paces.items() if WORTH * min(paces.values()) >= pace)
    torch.set_num_threads(fastest)
    return fastest


class Pace:
    """Notices when steps begin to take another time: something else has come to the machine, or gone."""

    def __init__(self):
        self._seconds, self._usual = list[float](), None

    def changes(self, seconds: float) -> bool:
        """Return whether the last STEPS steps, of which this one took `seconds`, took CHANGED times what was usual.

        Or that part of it. If so, what is usual is learned anew from the steps that follow.
        """
        self._seconds.append(seconds)
        if len(self._seconds) < STEPS:
            return False
        now, self._seconds = statistics.median(self._seconds), []
        before, self._usual = self._usual or now, self._usual or now
        if 1 / CHANGED < now / before < CHANGED:
            return False
        self._usual = None
        return True
