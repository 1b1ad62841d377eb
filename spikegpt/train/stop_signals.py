"""Asked to stop by Ctrl-C, a scheduler or a closed terminal: the step in hand ends, and a checkpoint is written."""

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import NoReturn, Self

from ..common.hangup import HANGUP, let_go_of_terminal, stop_numbers

_SAID = b"\nstopping after this step; once more stops at once\n"


class StopSignals:
    """Within this block the first SIGINT, SIGTERM or SIGHUP only sets `number`; a second one ends the program at once.

    Signals arrive in the main thread; in another one this block does nothing.
    """

    def __init__(self):
        self.number: int | None = None

    @property
    def asked(self) -> bool:
        return self.number is not None

    def _ask(self, number, frame):
        if self.asked:
            stop_now(number)
        self.number = number
        if number == HANGUP:
            let_go_of_terminal()
        # past sys.stderr, which may be in the middle of a line of its own
        with suppress(OSError):
            os.write(2, _SAID)

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        numbers = stop_numbers() if is_main else ()
        self.before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


def exit_status(number: int | None) -> int:
    """Return the status of a process that a signal ended (130, 143, ...); 143 where it reached a fellow process."""
    return 128 + (number or signal.SIGTERM)


def stop_now(number: int | None) -> NoReturn:
    """End as the signal would have: KeyboardInterrupt for SIGINT, else SystemExit with `exit_status`."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(exit_status(number))
