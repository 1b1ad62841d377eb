"""Figures of what a model does with a text, and measurements of models that are no runs."""

import numpy as np
import pytest
import torch

from neuromorphic.report import comparison_table
from neuromorphic.report.canvas import to_png, to_svg
from neuromorphic.report.trace_figures import membrane_traces, weight_reads
from spikegpt import trace
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.measure.pictures import membrane_figure, raster_figure, weight_read_figure
from spikegpt.measure.runs import measure_models
from spikegpt.model import SpikeGPT

BYTES, TEXT, SITE = ByteTokenizer(), "It was the age of wisdom", "blocks.1.ffn.key_neuron"
CONFIG = ModelConfig(n_layer=2, n_embd=16, vocab_size=256)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SpikeGPT(CONFIG).eval()


def test_figures_show_themselves_in_a_notebook(model):
    for figure in (raster_figure(model, BYTES, TEXT), membrane_figure(model, BYTES, TEXT, SITE)):
        assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_membrane_is_drawn_with_its_threshold_and_its_spikes(model):
    figure = membrane_figure(model, BYTES, TEXT, SITE, neurons=[3])
    found = trace(model, torch.tensor(BYTES.encode(TEXT).astype(int))[None])
    potential, spikes = found.membranes[SITE][0, :, 3].numpy(), found.spikes[SITE][0, :, 3].numpy()
    threshold, *_, line, dots = figure.axes[0].lines
    assert threshold.get_ydata()[0] == pytest.approx(float(found.thresholds[SITE][3]))
    np.testing.assert_array_equal(line.get_ydata(), potential)
    assert dots.get_xdata().tolist() == np.nonzero(spikes)[0].tolist()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == [c.replace(" ", "␣") for c in TEXT]


def test_weight_reads_are_the_rows_of_the_neurons_that_fired(model):
    figure = weight_read_figure(model, BYTES, TEXT)
    heights = np.array([bar.get_height() for bar in figure.axes[0].patches]).reshape(2, len(TEXT)).sum(axis=0)
    spikes = trace(model, torch.tensor(BYTES.encode(TEXT).astype(int))[None]).spikes
    synapses = model.synapses()
    reads = sum((spikes[site][0] != 0).double().mean(dim=-1) * count for site, count in synapses.items())
    np.testing.assert_allclose(heights, reads / sum(synapses.values()), rtol=1e-9)


def test_a_model_without_synapses_and_neurons_of_ones_own_say_so(model):
    dense = SpikeGPT(CONFIG.twin())
    assert "no matrix product reads spikes" in to_svg(weight_read_figure(dense, BYTES, TEXT))
    with pytest.raises(SpikegptError, match=r"fits 2 sites, blocks\.0\.ffn\.key_neuron the first"):
        membrane_figure(model, BYTES, TEXT, "*.ffn.key_neuron")
    with pytest.raises(SpikegptError, match="is empty"):
        membrane_figure(model, BYTES, "", SITE)


def test_arrays_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"membranes are \(3, 2\), spikes \(3, 1\)"):
        membrane_traces(np.zeros((3, 2)), np.zeros((3, 1)), np.zeros(2), "abc", name="a", neurons=[0])
    with pytest.raises(ValueError, match=r"neurons are \[2\]; want some of 0 to 1"):
        membrane_traces(np.zeros((3, 2)), np.zeros((3, 2)), np.zeros(2), "abc", name="a", neurons=[2])
    with pytest.raises(ValueError, match="want the same layers"):
        weight_reads({"a": np.zeros(3)}, {}, "abc", name="m")


def test_models_that_are_no_runs_are_measured_side_by_side(model):
    torch.manual_seed(0)
    models = {"spiking": model, "dense": SpikeGPT(CONFIG.twin()).eval()}
    spiking, dense = measure_models(models, BYTES, TEXT)
    assert (spiking.name, spiking.tokens, dense.firing_rate) == ("spiking", len(TEXT) - 1, None)
    assert 0 < spiking.firing_rate < 1 and to_png(raster_figure(model, BYTES, TEXT, "blocks.0.*"))
    assert "spiking" in comparison_table([spiking, dense]) and "dense" in comparison_table([spiking, dense])
    for nothing in ({}, [model]):
        with pytest.raises(SpikegptError, match="models must be a dictionary"):
            measure_models(nothing, BYTES, TEXT)
