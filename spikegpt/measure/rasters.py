"""What pictures of neurons are drawn from: which fire at which token of a text, and how their layers are called."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from neuromorphic import NeuronPlace, Raster, raster

from ..common.errors import SpikegptError
from ..data.tokenizers import Tokenizer
from ..model.network import SpikeGPT
from ..model.sites import matching_sites

RASTER_NEURONS = 48
HALVES = {"att": "time mix", "ffn": "channel mix"}


@torch.inference_mode()
def text_rasters(
    model: SpikeGPT,
    tokenizer: Tokenizer,
    tokens: np.ndarray,
    sites: str | Sequence[str] = (),
    neurons: int = RASTER_NEURONS,
) -> tuple[Raster, ...]:
    """Return the spikes of at most so many `neurons` of each of `sites` while `tokens` (N,) are read.

    Args:
        sites: patterns of names, as "blocks.0.*"; none: the last of both halves of the first, the middle and the last
            block.

    Raises:
        SpikegptError: the model is dense, or a pattern fits no site.
    """
    if not model.sites():
        raise SpikegptError("the model is dense: no neurons of it fire; take one that spikes")
    shown = matching_sites(model, sites) if sites else _shown_layers(model)
    spikes = model(torch.from_numpy(tokens.astype(np.int64)).to(model.device)[None]).spikes
    labels = labels_of(tokenizer, tokens)
    rasters = []
    for layer in shown:
        n_neurons = min(neurons, spikes[layer].shape[-1])
        at, rows = raster(spikes[layer][0], n_neurons)
        rasters.append(
            Raster(
                layer=layer,
                prompt=labels,
                tokens=tuple(at.tolist()),
                neurons=tuple(rows.tolist()),
                n_neurons=n_neurons,
            )
        )
    return tuple(rasters)


def neuron_places(model: SpikeGPT, layers: Iterable[str]) -> dict[str, NeuronPlace]:
    """Return where `layers` that emit spikes stand in `model`.

    blocks.3.att.key_neuron is "att key" of block 3, in the time mix.
    """
    sites = model.sites()
    places = {}
    for layer in layers:
        placed = sites.get(layer)
        inside = layer if placed is None or placed.block is None else layer.removeprefix(f"blocks.{placed.block}.")
        part = inside.removesuffix("_neuron").replace("_", " ").replace(".", " ")
        half = HALVES[placed.half] if placed is not None and placed.half else "outside the blocks"
        places[layer] = NeuronPlace(half, part, None if placed is None else placed.block)
    return places


def encoded_text(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Return the tokens (N,) of a text for a raster; SpikegptError if it has none."""
    read = tokenizer.encode(text) if isinstance(text, str) else ()
    if not len(read):
        what = f"a {type(text).__name__}" if text else "empty"
        raise SpikegptError(f"the prompt of the raster is {what}; give some text, or leave it out")
    return np.asarray(read)


def labels_of(tokenizer: Tokenizer, tokens: np.ndarray) -> tuple[str, ...]:
    """Return the text of each token, U+FFFD where it is a part of a character."""
    return tuple(tokenizer.decode([token]).decode("utf-8", "replace") for token in tokens)


def _shown_layers(model: SpikeGPT) -> list[str]:
    """Names of the last layer of neurons in both halves of the first, the middle and the last block."""
    names = []
    for layer in sorted({0, model.config.n_layer // 2, model.config.n_layer - 1}):
        block = model.blocks[layer]
        halves = ("att.", block.att.sites[-1:]), ("ffn.", block.ffn.sites[-1:]), ("", block.sites)
        names += [f"blocks.{layer}.{half}{site.name}" for half, sites in halves for site in sites]
    return names
