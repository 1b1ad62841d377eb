"""The models that come with spikegpt, as they lie in the tree: small, whole, described, and fluent."""

from pathlib import Path

import pytest

from spikegpt.checkpoint import load_model
from spikegpt.checkpoint.files import MANIFEST, MODEL_FILES, fault_of
from spikegpt.checkpoint.shipped import CARD, PAIR, home
from spikegpt.config import SamplingConfig
from spikegpt.evaluate import evaluate_stream
from spikegpt.generate import generate
from spikegpt.measure.listing import shipped_models

pytestmark = pytest.mark.skipif(not home().is_dir(), reason="no models have been put into spikegpt/shipped yet")
MOST_BYTES = 20_000_000
# of the manner of its text, and not from it
SENTENCE = "He opened the door of the room, and saw that she was sitting by the fire with her mother."


def test_they_are_folders_of_a_model_and_its_card_and_small():
    files = sorted(path.relative_to(home()) for path in home().rglob("*") if path.is_file())
    wanted = {*MODEL_FILES, MANIFEST, CARD}
    assert files == sorted(Path(name) / file for name in PAIR for file in wanted)
    assert sum((home() / file).stat().st_size for file in files) < MOST_BYTES
    assert [fault_of(home() / name) for name in PAIR] == [None, None]


def test_they_are_a_pair_whose_cards_say_what_they_are():
    spiking, twin = shipped_models()
    assert (spiking.name, spiking.block, twin.name, twin.block) == (PAIR[0], "input", PAIR[1], "none")
    assert twin.bits_per_byte < spiking.bits_per_byte < 1.6 and spiking.firing_rate < 0.25
    assert {spiking.licence, twin.licence} == {"apache-2.0"} and "public domain" in spiking.source


@pytest.mark.parametrize("name", PAIR)
def test_it_knows_english(name):
    model, tokenizer = load_model(name)
    assert evaluate_stream(model, tokenizer.encode(SENTENCE), tokenizer).bits_per_byte < 2.3
    (text,) = generate(model, tokenizer, ["The old house"], SamplingConfig(temperature=0, max_tokens=40))
    assert {"the", "of", "to", "and", "was", "his", "her", "a"} & set(text.split())
