"""The one exception that is meant for the user's eyes, and the way to warn."""

import sys
from collections.abc import Callable

Warn = Callable[[str], None]


class SpikegptError(Exception):
    """An error whose message tells the user what to do; the command line prints it without a traceback."""


def warn_on_stderr(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
