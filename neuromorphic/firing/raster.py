"""The spikes of a few neurons while a text is read, as points of a plot. Nothing is drawn here."""

import numpy as np
from torch import Tensor


def sample_neurons(n_neurons: int, sample: int, seed: int = 0) -> np.ndarray:
    """Return min(sample, n_neurons) distinct neurons in ascending order; the same for the same three numbers."""
    return np.sort(np.random.default_rng(seed).choice(n_neurons, min(sample, n_neurons), replace=False))


def raster(spikes: Tensor, neurons: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens, rows): event i happened at token tokens[i] in row rows[i] of a raster plot, ordered by token.

    Args:
        spikes: (T, C); a spike is a nonzero.
        neurons: rows of the plot, at most C are used; row r shows neuron sample_neurons(C, neurons, seed)[r].

    Raises:
        ValueError: spikes are not (T, C), one is NaN or infinite, or fewer than one neuron is asked for.
    """
    if spikes.dim() != 2 or neurons < 1:
        raise ValueError(
            f"raster needs spikes (T, C) and at least 1 neuron, got {tuple(spikes.shape)} and {neurons}; "
            "take one row of a batch"
        )
    if not spikes.isfinite().all():
        raise ValueError("raster: the spikes hold NaN or infinity; a spike is a finite number that is not 0")
    rows = sample_neurons(spikes.shape[1], neurons, seed)
    tokens, plotted = np.nonzero((spikes.detach() != 0).cpu().numpy()[:, rows])
    return tokens, plotted
