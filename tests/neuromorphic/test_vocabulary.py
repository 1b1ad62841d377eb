"""neuromorphic counts any torch model, so it knows no module and no layer of ours by name."""

import re
from pathlib import Path

import pytest

import neuromorphic

FILES = sorted(Path(neuromorphic.__file__).parent.rglob("*.py"))
NAMES = r"_neuron[\"'.]|blocks\.|\b(?:att|ffn)\b|time_mix|channel_mix|[\"'](?:emb|head)[\"']"
COMPARED = r"== [\"'](?:none|input|output)[\"']"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_file_knows_our_modules_by_name(path):
    assert re.findall(f"{NAMES}|{COMPARED}", path.read_text()) == []
