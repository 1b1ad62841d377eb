"""One line on the terminal for work that takes long; nothing where standard error is no terminal."""

import sys
import time

_EVERY_S = 0.2


class Progress:
    """A line that each `progress.advance(size)` moves within `with Progress(...) as progress:`; cleared at the end."""

    def __init__(self, title: str, total: int | None, unit: str = "MB"):
        """`total`: size of the whole work, in bytes unless the `unit` is another; None if nobody knows."""
        self._title, self._total, self._done, self._before = title, total, 0, 0
        self._unit = unit
        self._scale, self._digits = (1e6, 1) if unit == "MB" else (1.0, 0)
        self._shown = sys.stderr.isatty()
        self._started = self._last = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def restart(self, done: int, total: int | None) -> None:
        """So much of the whole is done already; the speed counts from now on."""
        self._done = self._before = done
        self._total = total
        self._started = time.monotonic()

    def advance(self, size: int) -> None:
        self._done += size
        now = time.monotonic()
        if self._shown and now - self._last >= _EVERY_S:
            self._last = now
            print(f"\r\x1b[K{self._title}: {self._line(now - self._started)}", end="", file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        speed = (self._done - self._before) / max(seconds, 1e-9)
        pace = f"{self._amount(speed)} {self._unit}/s"
        if not self._total:
            return f"{self._amount(self._done)} {self._unit}, {pace}"
        left = max(self._total - self._done, 0) / max(speed, 1e-9)
        share = f"{self._done / self._total:4.0%} of {self._amount(self._total)} {self._unit}"
        return f"{share}, {pace}, {left:.0f} s left"

    def _amount(self, size: float) -> str:
        return f"{size / self._scale:,.{self._digits}f}"
