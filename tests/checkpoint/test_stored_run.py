"""A run that commit f7666a2 made, before the house had wings: it loads, decodes and resumes as it did then.

Spike-driven, leaky neurons that learn their decay, a spiking head, carried state: all that a checkpoint can hold.
`expected.npz` and `final.safetensors` are what that commit gave, perhaps on another machine: sums may round otherwise.
"""

import shutil

import numpy as np
import pytest
import torch
from golden import GOLDEN
from safetensors.torch import load_file

from spikegpt import Engine, SamplingConfig, load_model
from spikegpt.generate import generate
from spikegpt.train import resume

STORED = GOLDEN / "stored_run"


@pytest.fixture(scope="module")
def expected():
    with np.load(STORED / "expected.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def loaded():
    return load_model(STORED / "run")


@pytest.fixture
def ids(loaded):
    text = (STORED / "text.txt").read_bytes()[:200]
    return torch.from_numpy(loaded[1].encode(text).astype("int64")).view(2, -1)


@torch.no_grad()
def test_it_gives_the_same_logits(loaded, ids, expected):
    found = loaded[0](ids).logits
    torch.testing.assert_close(found, torch.from_numpy(expected["logits"]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_engine_gives_the_same_logits_and_counts_the_same_spikes(loaded, ids, expected):
    model, _ = loaded
    engine = Engine(model)
    engine.start(model(ids[:1, :10]).state)
    found = torch.stack([engine.step(ids[0, t : t + 1])[0] for t in range(10, 40)])
    torch.testing.assert_close(found, torch.from_numpy(expected["decoded"]), rtol=1e-3, atol=1e-3)
    assert list(engine.spike_counts().values()) == pytest.approx(expected["counts"].tolist(), abs=2)


def test_it_writes_the_same_text(loaded, expected):
    sampling = SamplingConfig(max_tokens=40, temperature=0)
    assert generate(*loaded, ["The "], sampling) == [str(expected["text"])]


def test_it_resumes_to_the_weights_that_it_had_at_its_end(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    shutil.copy(STORED / "text.txt", tmp_path)
    shutil.copytree(STORED / "run", tmp_path / "run")
    assert resume(tmp_path / "run", cache=cache, quiet=True).step == 40
    found = load_file(tmp_path / "run" / "checkpoints" / "step-00000040" / "model.safetensors")
    wanted = load_file(STORED / "final.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-3, msg=name)
