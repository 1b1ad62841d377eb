"""serve.py beside Hugging Face's server: with it where it is installed, and a word about it where it is not."""

import importlib.util

import pytest
from runs import MODEL

from benchmarks import serve
from spikegpt.checkpoint import save_model
from spikegpt.checkpoint.files import write_manifest
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.model import SpikeGPT


def test_what_is_not_installed_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert serve.beside(tmp_path, tmp_path, 1, 1) == (
        "not measured: fastapi is not installed, which transformers serve needs"
    )


@pytest.mark.slow
def test_both_servers_give_the_same_answers(tmp_path):
    pytest.importorskip("fastapi", reason="transformers serve needs fastapi")
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    twin = tmp_path / "twin"
    twin.mkdir()
    save_model(twin, SpikeGPT(MODEL.twin()), ByteTokenizer())
    write_manifest(twin)
    found = serve.beside(twin, tmp_path, 2, 4)
    assert (found["same_answers"], found["ours"]["failures"], found["hugging_face"]["failures"]) == (4, 0, 0)
