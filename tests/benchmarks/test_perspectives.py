"""What perspectives.py compares learns the same parameters; what its runs come to, worked out by hand."""

from argparse import Namespace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from benchmarks import perspectives
from spikegpt.config import ModelConfig
from spikegpt.model.network import SpikeGPT


def run(bits: float, macs: float = 0.0, parameters: int = 0) -> dict:
    return {"bits": bits, "macs": macs, "acs": 0.0, "state": 1.0, "elementwise": 2.0, "parameters": parameters}


FOUND = {
    "twin-0": run(2.0),
    "twin-1": run(3.0),
    "perspectives-1-0": run(1.9, 10.0, 100),
    "perspectives-1-1": run(2.1, 10.0, 100),
    "perspectives-2-0": run(1.71, 20.0, 130),
    "perspectives-2-1": run(2.1, 20.0, 130),
}


def test_gains_are_over_one_perspective_that_was_tuned_as_long():
    found = perspectives.summarise(FOUND, [1, 2], [0, 1])
    assert (found["before"], found["before_by_seed"]) == (2.5, [2.0, 3.0])
    one, two = found["by_perspectives"]["1"], found["by_perspectives"]["2"]
    assert (one["gain"], one["operations"], one["new_parameters"]) == (0, 13, 0)
    assert two["gain"] == pytest.approx(1 - 1.905 / 2.0)
    assert two["gain_by_seed"] == pytest.approx([0.1, 0.0])
    assert (two["operations"], two["new_parameters"]) == (23, 30)


def test_all_are_tuned_alike_from_the_same_base():
    options = Namespace(data=["x"], seeds=[0, 1], steps=100, lr=0.01, sizes={"batch_size": 4}, perspectives=[1, 4])
    base, tuned = perspectives.configurations(options, Path("/runs"))
    assert set(base) == {"twin-0", "twin-1"} and len(tuned) == 4
    one, four = tuned["perspectives-1-1"], tuned["perspectives-4-1"]
    assert {**one, "perspectives": 4} == four and one["from"] == "/runs/twin-1" and one["steps"] == 20


def test_only_mixes_of_tokens_what_joins_them_and_the_head_learn():
    model = SpikeGPT(ModelConfig(n_layer=1, n_embd=8, spiking="none", perspectives=2))
    names = [name for name, _ in model.named_parameters()]
    assert all(any(fnmatchcase(name, pattern) for name in names) for pattern in perspectives.FROZEN)
    learned = {name for name in names if not any(fnmatchcase(name, pattern) for pattern in perspectives.FROZEN)}
    mixes = {f"blocks.0.att.time_mix_{name}" for name in "kvr"} | {f"blocks.0.ffn.time_mix_{name}" for name in "kr"}
    assert learned == mixes | {"convert3.weight", "head.weight"}
