"""Sums of rows against numpy, for every kind of stored weights, and the engine without the newest instructions."""

import os
import sys

import numpy as np
import pytest
import torch
from processes import run

from spikegpt.config import ModelConfig
from spikegpt.generate.compiled.sums import sum_rows
from spikegpt.generate.compiled.team import fused
from spikegpt.model.network import SpikeGPT

pytestmark = pytest.mark.slow
INPUTS, LISTED = 40, ((7, 11, 39), (), tuple(range(40)))
# the logits that the engine of another process computed, beside those of the model, which this one is handed
DECODES = """
import sys, torch
from spikegpt.generate.compiled.lists import compresses
from spikegpt.generate.compiled.sums import registers
from spikegpt.generate.engine import Engine

assert not compresses() and registers() == (8, 32)
model, state, ids, logits = torch.load(sys.argv[1], weights_only=False)
engine = Engine(model, threads=1)
engine.start(state, by_rows=True)
found = torch.stack([engine.step(token) for token in ids.T], dim=1)
torch.testing.assert_close(found, logits, rtol=1e-10, atol=1e-10)
print("equal")
"""


@fused
def call_sum_rows(weights, is_whole, active, amount, listed, place, first, last, out, start):
    sum_rows(weights, is_whole, active, amount, listed, place, first, last, out, start)


def store(weights: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return weights as they are stored, and the numbers that these stand for."""
    if kind == "bfloat16":
        short = torch.from_numpy(weights).to(torch.bfloat16)
        return short.view(torch.int16).numpy().view(np.uint16), short.double().numpy()
    stored = np.clip(np.round(weights * 50), -128, 127).astype(np.int8) if kind == "int8" else weights
    return stored, stored.astype(np.float64)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("real", np.float32), ("real", np.float64), ("bfloat16", np.float32), ("int8", np.float32), ("int8", np.float64)],
)
@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize(("first", "last"), [(0, 0), (0, 1), (1, 49), (3, 90), (0, 256), (16, 700)])
def test_sums_are_those_of_the_listed_rows(kind, dtype, is_whole, first, last):
    rng = np.random.default_rng(last)
    stored, weights = store(rng.standard_normal((INPUTS, 701)).astype(dtype), kind)
    active, amount = np.full((3, 2, INPUTS + 1), INPUTS - 1, np.int32), np.full((3, 2, INPUTS + 1), np.nan, dtype)
    wanted = np.full((3, 720), np.nan, dtype)
    for text, rows in enumerate(LISTED):
        # as many levels as a neuron may have; their sums stay below 2 ** 24
        factors = rng.integers(-127, 128, len(rows)).astype(dtype)
        active[text, 1, : len(rows)], amount[text, 1, : len(rows)] = rows, factors
        wanted[text, 5 + first : 5 + last] = factors @ weights[list(rows), first:last]
    listed, out = np.array([[INPUTS, len(rows)] for rows in LISTED]), np.full((3, 720), np.nan, dtype)
    call_sum_rows(stored, is_whole, active, amount, listed, 1, first, last, out, 5)
    if kind == "int8":
        np.testing.assert_array_equal(out, wanted)
    else:
        np.testing.assert_allclose(out, wanted, rtol=1e-4 if dtype == np.float32 else 1e-12, atol=1e-4)


def test_a_column_is_the_same_number_in_every_run():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((INPUTS, 333)).astype(np.float32)
    active = np.arange(INPUTS, dtype=np.int32)[None, None]
    amount, listed = rng.standard_normal((1, 1, INPUTS)).astype(np.float32), np.full((1, 1), INPUTS)
    whole, pieces = np.zeros((2, 1, 333), np.float32)
    call_sum_rows(weights, False, active, amount, listed, 0, 0, 333, whole, 0)
    for first, last in ((0, 1), (1, 80), (80, 333)):
        call_sum_rows(weights, False, active, amount, listed, 0, first, last, pieces, 0)
    np.testing.assert_array_equal(whole, pieces)


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="names a processor of x86-64")
def test_a_processor_without_avx512_decodes_the_same(tmp_path):
    config = ModelConfig(n_layer=2, n_embd=72, vocab_size=61, spiking="input", spiking_head=True)
    model, ids = SpikeGPT(config).double().eval(), torch.randint(61, (2, 9))
    with torch.no_grad():
        state, logits = model(ids[:, :4]).state, model(ids).logits[:, 4:]
    torch.save((model, state, ids[:, 4:], logits), tmp_path / "case.pt")
    limits = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", DECODES, str(tmp_path / "case.pt")]
    done = run(command, env={**os.environ, **limits}, capture_output=True, text=True, check=False)
    assert done.stdout == "equal\n", done.stderr
