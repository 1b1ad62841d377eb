"""A signal asks once; the second insists."""

import os
import signal
import threading

import pytest

from spikegpt.train.stop_signals import StopSignals


def test_the_first_signal_asks_and_the_second_ends():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.asked
        with pytest.raises(SystemExit, match="143"):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_that_signals_do_not_reach_trains_all_the_same():
    entered = []

    def train():
        with StopSignals() as signals:
            entered.append(signals.asked)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert entered == [False]
