"""Asked to stop: Ctrl-C or a scheduler's SIGTERM lets the step in hand end and a checkpoint be written."""

import signal
import threading
from typing import Self


class StopSignals:
    """Within this block the first SIGINT or SIGTERM only sets `asked`; a second one ends the program at once.

    Signals arrive in the main thread; in another one this block does nothing.
    """

    def __init__(self):
        self.asked = False

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self) -> Self:
        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
        self.before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
