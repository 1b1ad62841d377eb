"""The one exception that is meant for the user's eyes, the way to warn, and what the system's own errors say."""

import errno
import os
import sys
from collections.abc import Callable

from .printing import one_line

Warn = Callable[[str], None]

_ADVICE = {
    errno.ENOSPC: "make room, or write elsewhere",
    errno.EDQUOT: "make room, or write elsewhere",
    errno.EACCES: "ask its owner, or give another path",
    errno.EPERM: "ask its owner, or give another path",
    errno.EROFS: "give another path",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "a part of this path is a file; give another path",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOENT: "give one that exists",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
    errno.EAGAIN: "too many processes are running; end some, or try again",
}


class SpikegptError(Exception):
    """An error whose message tells the user what to do; the command line prints it without a traceback."""


def warn_on_stderr(message: str) -> None:
    print(f"warning: {one_line(message)}", file=sys.stderr)


def in_words(error: OSError) -> str:
    """Return what the system said: the path, what is wrong with it, and what to do where that is known."""
    paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if isinstance(path, str | bytes)]
    where = " -> ".join(dict.fromkeys(paths))
    said = error.strerror or str(error) or type(error).__name__
    advice = _ADVICE.get(error.errno or 0)
    return (f"{where}: " if where else "") + said + (f"; {advice}" if advice else "")
