"""What evaluations and measurements are asked for: splits, sizes and tokens that are none are refused."""

import numpy as np
import pytest

from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.evaluate import evaluate_stream, evaluate_windows
from spikegpt.evaluate.runs import evaluate_run
from spikegpt.measure.runs import measure_runs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "nosuch"}, "split is 'nosuch'; known: train, valid, test"),
        ({"split": None}, "split is None"),
        ({"limit": 1.5}, "limit must be a whole number from 1 to 1,000,000,000,000, got 1.5"),
        ({"limit": 0}, "limit must be a whole number"),
        ({"limit": True}, "limit must be a whole number"),
        ({"limit": "9"}, "limit must be a whole number .* got '9'"),
    ],
    ids=str,
)
def test_odd_requests_are_refused_by_both(trained, options, message, cache):
    with pytest.raises(ValueError, match=message):
        evaluate_run(trained, **options, cache=cache)
    with pytest.raises(ValueError, match=message):
        measure_runs([trained], **options, cache=cache)


@pytest.mark.parametrize("options", [{"ctx_len": 2.5}, {"ctx_len": -1}, {"stride": 0}, {"stride": "2"}], ids=str)
def test_odd_windows_are_refused(trained, options, cache):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be a whole number from 1"):
        evaluate_run(trained, **options, limit=50, cache=cache)


@pytest.mark.parametrize("tokens", [[1, 2, 3], "abc", np.ones(5), np.ones((2, 5), int), None], ids=str)
def test_tokens_that_are_none_are_refused(trained, tokens):
    model, tokenizer = load_model(trained)
    with pytest.raises(ValueError, match=r"want a numpy array \(N,\) of whole numbers"):
        evaluate_stream(model, tokens, tokenizer)
    with pytest.raises(ValueError, match=r"want a numpy array \(N,\) of whole numbers"):
        evaluate_windows(model, tokens, tokenizer, 4, 2)


@pytest.mark.parametrize("chunk", [0, -5, 1.5])
def test_a_chunk_that_reads_nothing_is_refused(trained, chunk):
    model, tokenizer = load_model(trained)
    with pytest.raises(ValueError, match="chunk must be a whole number from 1"):
        evaluate_stream(model, np.arange(10), tokenizer, chunk=chunk)


@pytest.mark.parametrize("prompt", ["", b"a", 7], ids=repr)
def test_a_raster_of_nothing_is_refused_before_the_long_part(trained, prompt, monkeypatch, cache):
    monkeypatch.setattr("spikegpt.measure.runs.read_text", None)
    with pytest.raises(SpikegptError, match="the prompt of the raster is"):
        measure_runs([trained], prompt=prompt, cache=cache)


@pytest.mark.parametrize("path", [None, 7, b"run", ["run"]], ids=repr)
def test_what_is_no_path_is_no_run(path, cache):
    for read in (load_model, evaluate_run, lambda path: measure_runs([path])):
        with pytest.raises(SpikegptError, match="give a path"):
            read(path)


@pytest.mark.parametrize("runs", ["run", None, []], ids=repr)
def test_runs_are_a_list(runs):
    with pytest.raises(SpikegptError, match="give a list with the folder of at least one run"):
        measure_runs(runs)


@pytest.mark.parametrize("device", [0, None, "gpu", "cuda:x", ""], ids=repr)
def test_what_is_no_device_is_refused(trained, device):
    with pytest.raises(SpikegptError, match="is unknown; known: auto, cpu, cuda"):
        load_model(trained, device=device)
