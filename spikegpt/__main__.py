"""`python -m spikegpt`: the command line, which lives in `cli/verbs.py`; and how a signal ends it."""

import os
import signal
import sys
from contextlib import suppress

from .common.hangup import HANGUP, let_go_of_terminal, stop_numbers

# How threads of OpenMP wait for each other, where the user has not said it: by default they spin for milliseconds, and
# where another program needs the core too, each of the thousand waits of a training step lasts until the scheduler
# takes the core away. GNU's, which torch's Linux wheels bring, spin ten thousand times, less than a millisecond, and
# then sleep: what Python does between two operators is shorter, and to wake a thread of a virtual machine takes longer
# than many an operator. Others sleep
WAITING = {"GOMP_SPINCOUNT": "10000", "OMP_WAIT_POLICY": "passive"}


def _stop(number, frame):
    said = b"\nstopped\n"
    if number == HANGUP:
        let_go_of_terminal()
    while frame is not None:
        # libraries catch what is raised while they are imported, or cannot be imported again; nothing has been begun
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _say(said)
            os._exit(128 + number)
        frame = frame.f_back
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    # as an exception as well, so that unfinished files are removed
    _say(said)
    sys.exit(128 + number)


def _say(text):
    # past sys.stderr, which may be in the middle of a line; and it may be closed
    with suppress(OSError):
        os.write(2, text)


def main() -> int:
    """Run the verb that the command line names; return the exit status: after a signal 128 and its number."""
    for number in stop_numbers():
        signal.signal(number, _stop)
    if not os.environ.keys() & WAITING.keys():
        os.environ.update(WAITING)  # only read when torch is loaded
    # here, for a signal may come while it is imported
    from .cli.verbs import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
