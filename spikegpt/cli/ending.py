"""How the command line ends: an exit status, and one line for whatever could not be done."""

import os
import sys
from collections.abc import Callable

from ..common.errors import SpikegptError, in_words
from ..common.printing import printable
from .parsing import UsageError


def ended(run: Callable[[], int]) -> int:
    """Return the exit status of `run`, or of the error that ended it, which is said in one line on standard error.

    0: done. 1: it could not be done. 2: the command line is wrong. 130: interrupted.
    """
    try:
        status = run()
        if sys.stdout is not None:
            # what the system refuses only now (a full disk, a closed pipe) is still an error of ours
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        # the reader of our output went away; nothing is left to be said
        _let_go_of_output()
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except UsageError as error:
        return _refuse(str(error), 2)
    # the checks of the configurations and of the doors are ValueErrors, written for the user
    except (SpikegptError, ValueError) as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(in_words(error))
    except MemoryError as error:
        return _refuse(f"the memory of this machine does not suffice: {error}".rstrip(": "))
    except RuntimeError as error:
        # torch's way to say the same
        if "not enough memory" not in str(error) and "out of memory" not in str(error):
            raise
        return _refuse(f"the memory does not suffice: {error}")


def _refuse(message: str, status: int = 1) -> int:
    """Print an error as one line and return the exit status."""
    try:
        print("error:", " ".join(printable(message).split()), file=sys.stderr)
        print(end="", flush=True)
    except OSError:
        _let_go_of_output()
    return status


def _let_go_of_output() -> None:
    """Point standard output nowhere: Python flushes it once more at its end, and would complain there again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        # standard output is none of the system's files, or closed
        return
