"""A server that several tests ask: a spiking run and its dense twin, with little room."""

import shutil

import pytest

pytest.importorskip("uvicorn", reason="the extra serve is not installed")
pytest.importorskip("starlette", reason="the extra serve is not installed")

from runs import MODEL, TRAIN
from served import serving_runs

from spikegpt.train.trainer import train


@pytest.fixture(scope="session")
def pair(tmp_path_factory, trained):
    """(a spiking run, its dense twin)."""
    base = tmp_path_factory.mktemp("pair")
    train(MODEL.twin(), TRAIN, base / "twin", cache=base / "cache", quiet=True)
    shutil.copytree(trained, base / "spiking")
    return base / "spiking", base / "twin"


@pytest.fixture(scope="session")
def served(pair):
    with serving_runs(*pair, texts=8, queue=64, most_tokens=400, max_prompt=2000) as server:
        yield server


@pytest.fixture(scope="session")
def hasty(pair):
    """A server that waits a second for its clients, no longer."""
    with serving_runs(pair[0], most_tokens=100_000, client_s=1.0) as server:
        yield server
