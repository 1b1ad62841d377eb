"""`python -m spikegpt`: the command line, which lives in `cli/verbs.py`."""

import os
import sys


def main() -> int:
    """Run the verb that the command line names; return the exit status."""
    # threads of OpenMP that wait sleep: by default they spin, and where another program needs the core too, each of the
    # thousand waits of a training step lasts until the scheduler takes the core away. Only read when torch is loaded
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from .cli.verbs import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
