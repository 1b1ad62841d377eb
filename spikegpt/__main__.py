"""`python -m spikegpt`: the command line, which lives in `cli/verbs.py`."""

import sys

from .cli.verbs import main

if __name__ == "__main__":
    sys.exit(main())
