"""The command line: run in this process, which takes no seconds to start, or as a user starts it."""

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import processes

from spikegpt.cli.verbs import main


def spikegpt(*arguments, check: bool = True) -> subprocess.CompletedProcess:
    """Run `spikegpt ARGUMENTS` in this process; return its exit status and what it printed."""
    words, out, err = list(map(str, arguments)), io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(words)
        # how the parser of the flags refuses, and how it ends after help
        except SystemExit as ended:
            status = ended.code
    return _checked(subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue()), check)


def started(*arguments, check: bool = True) -> subprocess.CompletedProcess:
    """Run `python -m spikegpt ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-m", "spikegpt", *map(str, arguments)]
    return _checked(processes.run(command), check)


def _checked(done: subprocess.CompletedProcess, check: bool) -> subprocess.CompletedProcess:
    assert not check or done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done
