"""How a verb begins that works on runs: with its threads, and with all of the runs there."""

from collections.abc import Sequence
from pathlib import Path


def check_runs(runs: Sequence[Path]) -> None:
    """Raise SpikegptError if one of several runs is none, before the first is worked on for long."""
    from ..checkpoint.run import find_model

    for run in runs:
        find_model(run, warn=lambda message: None)


def use_threads(threads: int) -> None:
    if threads:
        from ..common import threads as torch_threads

        torch_threads.use_threads(threads)
