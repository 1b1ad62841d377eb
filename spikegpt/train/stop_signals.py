"""Asked to stop: Ctrl-C or a scheduler's SIGTERM lets the step in hand end and a checkpoint be written."""

import signal


class StopSignals:
    """Within this block the first SIGINT or SIGTERM only sets `asked`; a second one ends the program at once."""

    def __init__(self):
        self.asked = False

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __enter__(self):
        self.before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
