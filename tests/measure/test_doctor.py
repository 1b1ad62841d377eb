"""What `doctor` examines, that it sees a wrong kernel, and what it says of threads."""

from pathlib import Path

import pytest
import torch

import spikegpt.kernels
from spikegpt.config import ModelConfig
from spikegpt.generate import engine as engine_module
from spikegpt.generate.compiled import decoder
from spikegpt.generate.engine import Engine
from spikegpt.measure import doctor
from spikegpt.measure.doctor import KERNELS, threads_for
from spikegpt.model.network import SpikeGPT


def make_engine(threads: int) -> Engine:
    torch.set_num_threads(threads)
    return Engine(SpikeGPT(ModelConfig(n_layer=1, n_embd=32, vocab_size=40)).eval())


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def the_last_is_fastest(monkeypatch):
    monkeypatch.setattr(decoder, "fastest", lambda seconds: dict([list(seconds.items())[-1]]))


def test_every_operation_with_a_kernel_on_a_gpu_is_examined():
    folders = Path(spikegpt.kernels.__file__).parent.glob("*/gpu.py")
    assert {file.parent.name for file in folders} == KERNELS.keys()


@pytest.fixture
def small_shape(monkeypatch):
    monkeypatch.setattr(doctor, "SHAPE", (2, 9, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wkv6", "wkv7", "event_wkv7"])
def test_wkv7_is_examined_and_right(small_shape, name):
    make, run = KERNELS[name]
    assert doctor._examine(make, run, "cpu")["is_right"]


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_errs_is_seen(small_shape, name):
    make, run = KERNELS[name]

    def errs(inputs, backend):
        # one number in ten is out by a hundredth of the largest
        output = run(inputs, "reference")
        is_hit = torch.arange(output.numel()).view_as(output) % 10 == 0
        return output + is_hit * 0.01 * output.abs().max() * (backend == "auto")

    assert not doctor._examine(make, errs, "cpu")["is_right"]


@pytest.mark.slow
def test_one_text_of_a_small_model_is_said_to_be_read_by_one_thread():
    assert threads_for(make_engine(2), 1) == "1; more are not tried for one text of fewer than 10,000,000 weights"
    assert threads_for(make_engine(1), 1) == "1; torch has no more"


@pytest.mark.slow
def test_how_several_texts_are_divided_is_said_with_what_was_tried(the_last_is_fastest):
    said = threads_for(make_engine(2), 3)
    assert said == "2, each its texts; the fastest of (1), (2, each its texts) on the first tokens"


@pytest.mark.slow
def test_how_a_large_model_is_divided_is_said_with_what_was_tried(the_last_is_fastest, monkeypatch):
    monkeypatch.setattr(engine_module, "SHARED_WEIGHTS", 1)
    assert threads_for(make_engine(2), 1) == "1; the fastest of (2, each its columns), (1) on the first tokens"


@pytest.mark.slow
def test_texts_that_go_through_the_forward_pass_are_said_to():
    assert threads_for(make_engine(2), 100) == "2, as many as torch has, in the model's forward pass"
