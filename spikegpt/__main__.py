"""`python -m spikegpt`: the command line, which lives in `cli/verbs.py`; and how a signal ends it."""

import os
import signal
import sys
from contextlib import suppress


def _stop(number, frame):
    said = b"\nstopped\n"
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
    """Run the verb that the command line names; return the exit status: 130 after SIGINT, 143 after SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    # here, for a signal may come while it is imported
    from .cli.verbs import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
