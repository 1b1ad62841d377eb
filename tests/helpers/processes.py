"""How tests start processes: with patience, for a busy machine may have no room for one more at this moment."""

import subprocess
from collections.abc import Callable
from time import sleep
from typing import Any

# between attempts; together some minutes
PAUSES_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60)
# after so long a test hangs: no measure of speed, which is the machine's
HANGS_S = 1800


def run(command: list[Any], **options: Any) -> subprocess.CompletedProcess:
    """Run `command` to its end and return its exit status and, as text, what it printed."""
    settings = {"capture_output": True, "text": True, "timeout": HANGS_S, **options}
    return _patiently(lambda: subprocess.run(list(map(str, command)), **settings))


def start(command: list[Any], **options: Any) -> subprocess.Popen:
    """Start `command`; its pipes carry text."""
    return _patiently(lambda: subprocess.Popen(list(map(str, command)), **{"text": True, **options}))


def _patiently(begin: Callable[[], Any]) -> Any:
    for pause in PAUSES_S:
        try:
            return begin()
        except BlockingIOError:
            sleep(pause)
    return begin()
