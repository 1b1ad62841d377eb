"""Threads are chosen by what work takes, and chosen again when its pace changes; the clock is the tests' own."""

import os
import sys

import processes
import pytest
import torch

from spikegpt.__main__ import WAITING
from spikegpt.common.threads import STEPS, Pace, fastest_threads, use_threads


class Machine:
    """Work whose seconds depend on torch's number of threads, after a first time that compiles."""

    def __init__(self, seconds: dict[int, float]):
        self.seconds, self.now, self.tried = seconds, 0.0, list[int]()

    def work(self):
        self.now += self.seconds[torch.get_num_threads()] if self.tried else 10.0
        self.tried.append(torch.get_num_threads())

    def clock(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "fastest"),
    [
        ({4: 0.1, 2: 0.2, 1: 0.4}, 4),
        ({4: 5.0, 2: 0.2, 1: 0.3}, 2),
        ({4: 5.0, 2: 5.0, 1: 0.3}, 1),
        # one thread is faster, but by too little to round otherwise than the unbroken run
        ({2: 0.22, 1: 0.2}, 2),
        ({6: 3.0, 3: 1.0, 1: 2.0}, 3),
        ({1: 1.0}, 1),
    ],
    ids=str,
)
def test_the_fastest_number_of_threads_is_found_and_used(seconds, fastest):
    machine = Machine(seconds)
    assert fastest_threads(machine.work, max(seconds), machine.clock) == fastest
    assert torch.get_num_threads() == fastest


def test_fewer_threads_than_what_was_far_slower_are_not_tried():
    machine = Machine({8: 0.1, 4: 0.21, 2: 0.4, 1: 0.8})
    assert fastest_threads(machine.work, 8, machine.clock) == 8
    assert 2 not in machine.tried and machine.tried.count(4) == 3


def test_what_takes_long_is_tried_once():
    machine = Machine({2: 60.0, 1: 50.0})
    fastest_threads(machine.work, 2, machine.clock)
    assert machine.tried[1:] == [2, 1]


def test_a_number_that_is_asked_for_is_used_and_none_leaves_what_is():
    use_threads(2)
    use_threads(0)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("later", "changes"), [(0.1, False), (0.14, False), (0.16, True), (0.06, True)])
def test_a_pace_changes_by_half_either_way(later, changes):
    pace = Pace()
    assert not any(pace.changes(0.1) for _ in range(2 * STEPS))
    assert any(pace.changes(later) for _ in range(STEPS)) is changes


def test_a_few_slow_steps_are_no_pace():
    pace = Pace()
    assert not any(pace.changes(seconds) for seconds in [0.1] * STEPS + ([9.0] * 4 + [0.1] * (STEPS - 4)) * 3)


def test_after_a_change_the_new_pace_is_the_usual_one():
    pace = Pace()
    assert sum(pace.changes(seconds) for seconds in [0.1] * STEPS + [0.9] * 5 * STEPS) == 1


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_the_command_says_how_threads_wait_unless_the_user_does(given):
    # the verb is asked for after the environment is set, and before torch is there
    code = (
        "import os, sys, spikegpt.__main__ as m; sys.argv = ['spikegpt', '--version']; torch = 'torch' in sys.modules; "
        "m.main(); print({name: os.environ[name] for name in m.WAITING if name in os.environ}, torch)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in WAITING} | given
    done = processes.run([sys.executable, "-c", code], env=environment)
    assert done.stdout.splitlines()[-1] == f"{given or WAITING} False"
