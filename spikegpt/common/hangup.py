"""The signals that ask a program to stop, and what a terminal that was closed leaves behind."""

import os
import signal
import stat
from contextlib import suppress

# other systems than Unix have none
HANGUP: int | None = getattr(signal, "SIGHUP", None)


def stop_numbers() -> tuple[int, ...]:
    """Return SIGINT and SIGTERM, and SIGHUP unless it is ignored, as under nohup."""
    hears = HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN
    return (signal.SIGINT, signal.SIGTERM, *((HANGUP,) if hears and HANGUP is not None else ()))


def let_go_of_terminal() -> None:
    """Point nowhere what still writes to a terminal that is gone: each word would else be an error."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
