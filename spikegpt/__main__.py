"""`python -m spikegpt`: the command line, which lives in `cli/verbs.py`; and what ends it before or beside that."""

import signal
import sys


def _terminate(number, frame):
    # as an exception, so that unfinished files are removed
    print("\nstopped", file=sys.stderr)
    sys.exit(128 + number)


def main() -> int:
    """Run the verb that the command line names; return the exit status: 130 after SIGINT, 143 after SIGTERM."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # here, for the signal may come while it is imported
        from .cli.verbs import main as run

        return run()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
