"""What a model does with a text, as figures that a notebook shows: spikes, membranes, weights that are read."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from neuromorphic import Wording
from neuromorphic.report.firing_figures import spike_raster
from neuromorphic.report.trace_figures import membrane_traces, weight_reads

from ..common.errors import SpikegptError
from ..data.tokenizers import Tokenizer
from ..model.network import SpikeGPT
from ..model.sites import matching_sites
from ..model.tracing import trace
from .rasters import RASTER_NEURONS, encoded_text, labels_of, neuron_places, text_rasters

NAME = "model"


def raster_figure(
    model: SpikeGPT,
    tokenizer: Tokenizer,
    text: str,
    sites: str | Sequence[str] = (),
    *,
    neurons: int = RASTER_NEURONS,
    name: str = NAME,
) -> Figure:
    """Return which neurons fire at which token of `text`; arguments and errors as of `text_rasters`."""
    bands = text_rasters(model, tokenizer, encoded_text(tokenizer, text), sites, neurons)
    return spike_raster(bands, name, Wording(places=neuron_places(model, model.sites())))


def membrane_figure(
    model: SpikeGPT, tokenizer: Tokenizer, text: str, site: str, neurons: int | Sequence[int] = 4
) -> Figure:
    """Return the membranes of some neurons at `site` along `text`.

    Args:
        neurons: which, or how many: then those whose membranes vary most.

    Raises:
        SpikegptError: the text is empty, the pattern `site` fits none or several, or its neurons have no membrane that
            we know.
    """
    tokens = encoded_text(tokenizer, text)
    names = matching_sites(model, site)
    if len(names) > 1:
        raise SpikegptError(f"{site!r} fits {len(names)} sites, {names[0]} the first of them; name one")
    found = trace(model, _ids(model, tokens))
    if names[0] not in found.membranes:
        neuron = type(model.sites()[names[0]].neuron).__name__
        raise SpikegptError(f"{names[0]} has neurons of {neuron}, whose membrane only they know; draw one of our LIF")
    membranes, spikes = (_row(values[names[0]][0]) for values in (found.membranes, found.spikes))
    if isinstance(neurons, int):
        # the mean over many is little; what moves is worth a look
        neurons = np.sort(np.argsort(-membranes.std(axis=0), kind="stable")[:neurons]).tolist()
    thresholds = _row(found.thresholds[names[0]])
    return membrane_traces(membranes, spikes, thresholds, labels_of(tokenizer, tokens), name=names[0], neurons=neurons)


def weight_read_figure(model: SpikeGPT, tokenizer: Tokenizer, text: str, *, name: str = NAME) -> Figure:
    """Return the share of the weights behind neurons that each token of `text` reads.

    Raises:
        SpikegptError: the text is empty.
    """
    tokens = encoded_text(tokenizer, text)
    spikes, placed = trace(model, _ids(model, tokens)).spikes, model.sites()
    reads = {
        site: _row((spikes[site][0] != 0).sum(dim=-1))
        * sum(product.weight.shape[0] for product in placed[site].products)
        for site in model.synapses()
    }
    wording = Wording(places=neuron_places(model, placed))
    return weight_reads(reads, model.synapses(), labels_of(tokenizer, tokens), name=name, wording=wording)


def _ids(model: SpikeGPT, tokens: np.ndarray) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64)).to(model.device)[None]


def _row(values: Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
