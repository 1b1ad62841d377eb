"""`spikegpt raster`: the spikes of a text as a picture and as a film."""

import io

import numpy as np
import pytest
from command_line import spikegpt
from PIL import Image
from reports import PAIR

from neuromorphic.report.film import spike_film
from neuromorphic.report.firing_figures import spike_raster
from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.measure.rasters import encoded_text, text_rasters
from spikegpt.model import SpikeGPT


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.webp", b"RIFF")])
def test_the_ending_says_what_is_written(name, begins, trained, tmp_path):
    said = spikegpt("raster", trained, "It was", "-o", tmp_path / name).stdout
    assert said == f"{tmp_path / name}\n" and (tmp_path / name).read_bytes().startswith(begins)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["It was", "-o", "a.jpg"], "whose ending says no format"),
        (["It was", "--sites", "blocks.7.*"], "no site of neurons is called 'blocks.7.*'; the first are blocks.0.att"),
        (["It was", "--neurons", "0"], "--neurons must be a whole number from 1"),
        (["It was", "-o", "none/there/a.png"], "cannot write none/there/a.png"),
        ([""], "text is an empty string"),
        ([], "STR is missing: what is read"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(words, said, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = spikegpt("raster", trained, *words, check=False)
    assert done.returncode != 0 and said in done.stderr and not list(tmp_path.glob("*.*"))


def test_a_raster_has_the_sites_that_are_asked_for_and_what_fires_there(trained):
    model, tokenizer = load_model(trained)
    (band,) = text_rasters(model, tokenizer, encoded_text(tokenizer, "It was"), "blocks.1.ffn.key*", neurons=16)
    assert (band.layer, band.prompt, band.n_neurons) == ("blocks.1.ffn.key_neuron", tuple("It was"), 16)
    ids = encoded_text(tokenizer, "It was")
    spikes = model(model.emb.weight.new_tensor(ids.tolist()).long()[None]).spikes[band.layer][0]
    assert list(zip(band.tokens, band.neurons, strict=True)) == [tuple(at) for at in spikes.nonzero().tolist()]


def test_a_dense_model_has_no_raster(trained):
    _, tokenizer = load_model(trained)
    dense = SpikeGPT(ModelConfig(n_layer=1, n_embd=16, spiking="none"))
    with pytest.raises(SpikegptError, match="the model is dense"):
        text_rasters(dense, tokenizer, encoded_text(tokenizer, "a"))


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_film_shows_a_token_more_in_each_frame_and_ends_as_the_picture(suffix):
    bands = PAIR[0].rasters
    film = Image.open(io.BytesIO(spike_film(bands, "spiking", suffix=suffix, tokens_per_s=20.0)))
    inked = []
    for frame in range(len(bands[0].prompt)):
        film.seek(frame)
        above_labels = np.asarray(film.convert("RGB").crop((0, 0, film.width, int(0.6 * film.height)))).astype(int)
        inked.append(int((above_labels[..., 2] - above_labels[..., 0] > 60).sum()))
    # spikes come with tokens 0 and 2
    assert 0 < inked[0] < 0.7 * inked[2]
    assert inked[::2] == pytest.approx([inked[1], inked[-1], inked[-1]], rel=0.2)


def test_a_film_needs_spikes_a_format_and_a_pace():
    for bands, how in (((), {}), (PAIR[0].rasters, {"suffix": ".mp4"}), (PAIR[0].rasters, {"tokens_per_s": 0})):
        with pytest.raises(ValueError, match=r"no spikes to show|want one of"):
            spike_film(bands, "spiking", **how)


def test_a_picture_without_spikes_says_so():
    assert "dense has no spikes to show" in spike_raster((), "dense").get_suptitle().replace("\n", " ")
