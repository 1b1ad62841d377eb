"""Streaming firing statistics: how often, where, how regularly and how jointly the neurons of each layer fire.

Only whole numbers are added up, so chunks, batches and dtypes change nothing. Memory depends on the sizes of the model,
and on the rows of the batch whose spike trains go on; never on the number of tokens. Nothing is drawn here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .layer import LayerStatistics
from .raster import sample_neurons


@dataclass(frozen=True, kw_only=True)
class FiringTotal:
    """Several layers together, every neuron counted equally."""

    tokens: int
    neurons: int
    firing_rate: float
    dead: int
    saturated: int


class FiringStatistics:
    """Firing statistics of every layer of a model, fed chunk by chunk.

    Args:
        vocab_size: also keep rates by token id; `update` then needs ids. None: do not.
        n_positions: bins of the rate by position; the last one holds position n_positions - 1 and all later ones.
        sample: neurons per layer whose synchrony is measured. Layers of the same width share the sample.
        seed: of that sample.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, *, vocab_size: int | None = None, n_positions: int = 1024, sample: int = 64, seed: int = 0):
        if n_positions < 1 or sample < 0 or (vocab_size is not None and vocab_size < 1):
            raise ValueError(
                "want n_positions >= 1, sample >= 0, vocab_size >= 1 or None; "
                f"got {n_positions}, {sample}, {vocab_size}"
            )
        self.vocab_size, self.n_positions, self.sample, self.seed = vocab_size, n_positions, sample, seed
        self.tokens = 0
        self._layers: dict[str, LayerStatistics] = {}
        self._clock: np.ndarray | None = None

    def update(
        self,
        spikes: Mapping[str, Tensor],
        *,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        start: int = 0,
        continued: bool = False,
    ) -> None:
        """Add one chunk of a batch of sequences. A refused chunk leaves the statistics as they were.

        Args:
            spikes: layer -> (B, T, C) whole numbers of any dtype on any device, e.g. 0/1 or -1/0/1; a spike is a
                nonzero. The same layers and widths in every update.
            ids: (B, T) token ids, needed if vocab_size was given and otherwise not looked at; anything may stand at
                padding.
            mask: (B, T) bool, False at padding, which counts nowhere. The tokens of a row must stand together, left or
                right.
            start: position of the first token of every row in its sequence; rows that are continued know theirs.
            continued: every row goes on where the same row of the last update ended: its position and its last spikes
                are carried over. The first update has nothing to go on from and begins anew.

        Raises:
            ValueError: shapes, layers, ids, mask or start do not fit, or a value is not a whole number (NaN, 0.3).
        """
        B, T = self._check_layers(spikes)
        live = _check_mask(mask, B, T)
        live_ids = self._check_ids(ids, live)
        clock = self._check_clock(start, continued, B)
        # everything is read before anything is added
        fired = {name: read_spikes(name, values, live) for name, values in spikes.items()}
        offset = clock - live.argmax(1)
        for name, (emitted, level_sum) in fired.items():
            if name not in self._layers:
                C = emitted.shape[2]
                self._layers[name] = LayerStatistics(
                    C, self.n_positions, self.vocab_size, sample_neurons(C, self.sample, self.seed)
                )
            self._layers[name].add(emitted, level_sum, live, offset, live_ids, continued)
        self.tokens += int(live.sum())
        self._clock = clock + live.sum(1)

    @property
    def layers(self) -> dict[str, LayerStatistics]:
        """Layer -> statistics, in the order of the first update.

        Raises:
            ValueError: no token was seen.
        """
        if not self.tokens:
            raise ValueError(
                "no token has been seen, so nothing has a rate; "
                "call update(spikes) with at least one token that is not padding"
            )
        return dict(self._layers)

    def total(self, layers: Iterable[str] | None = None) -> FiringTotal:
        """Return the total over `layers`, all by default.

        Raises:
            ValueError: no token was seen, or `layers` is empty or names a layer that is not there.
        """
        chosen = list(self._choose(layers).values())
        neurons = sum(layer.neurons for layer in chosen)
        return FiringTotal(
            tokens=self.tokens,
            neurons=neurons,
            firing_rate=sum(layer.spikes for layer in chosen) / (self.tokens * neurons),
            dead=sum(layer.dead for layer in chosen),
            saturated=sum(layer.saturated for layer in chosen),
        )

    def to_dict(self, layers: Iterable[str] | None = None, arrays: bool = False) -> dict[str, Any]:
        """Return total and layers as plain JSON values.

        `arrays` adds what is per neuron, position and token id. Raises as `total`.
        """
        chosen = self._choose(layers)
        return {
            "total": asdict(self.total(chosen)),
            "layers": {name: layer.to_dict(arrays) for name, layer in chosen.items()},
        }

    def _choose(self, layers: Iterable[str] | None) -> dict[str, LayerStatistics]:
        known = self.layers
        chosen = list(known if layers is None else dict.fromkeys(layers))
        missing = [name for name in chosen if name not in known]
        if missing or not chosen:
            raise ValueError(f"want some of the layers {', '.join(known)}; got {', '.join(missing) or 'none'}")
        return {name: known[name] for name in chosen}

    def _check_layers(self, spikes: Mapping[str, Tensor]) -> tuple[int, int]:
        """Return (B, T), which all layers share."""
        if not spikes:
            raise ValueError("spikes holds no layer; a dense model has no firing statistics, so do not ask for them")
        first, shape = next((name, values.shape) for name, values in spikes.items())
        for name, values in spikes.items():
            if values.dim() != 3 or 0 in values.shape:
                raise ValueError(f"{name} is {tuple(values.shape)}; want (B, T, C) with no empty side")
            if values.shape[:2] != shape[:2]:
                raise ValueError(
                    f"{name} is {tuple(values.shape)} and {first} is {tuple(shape)}; "
                    "all layers of one update must share B and T"
                )
            if name in self._layers and values.shape[2] != self._layers[name].neurons:
                raise ValueError(
                    f"{name} has {values.shape[2]} neurons and had {self._layers[name].neurons}; "
                    "one FiringStatistics per model"
                )
        if self._layers and spikes.keys() != self._layers.keys():
            raise ValueError(
                f"got the layers {', '.join(spikes)} and before {', '.join(self._layers)}; "
                "give the same in every update"
            )
        return shape[0], shape[1]

    def _check_ids(self, ids: Tensor | None, live: np.ndarray) -> np.ndarray | None:
        """Return the ids of the tokens that are not padding, (N,), or None if rates by id are not wanted."""
        if self.vocab_size is None:
            return None
        if ids is None:
            raise ValueError(
                f"rates by token id were asked for (vocab_size={self.vocab_size}), but ids is None; "
                "give ids or no vocab_size"
            )
        if tuple(ids.shape) != live.shape or ids.is_floating_point() or ids.dtype == torch.bool:
            raise ValueError(
                f"ids are {ids.dtype} {tuple(ids.shape)}; want whole numbers {live.shape}, one for each token of spikes"
            )
        tokens = ids.cpu().numpy()[live].astype(np.int64)
        outside = tokens[(tokens < 0) | (tokens >= self.vocab_size)]
        if outside.size:
            raise ValueError(
                f"id {outside[0]} lies outside the vocabulary of {self.vocab_size}; "
                "mask padding, or give the tokenizer's vocab_size"
            )
        return tokens

    def _check_clock(self, start: int, continued: bool, B: int) -> np.ndarray:
        """Return the position of the next token of every row, (B,)."""
        if start < 0:
            raise ValueError(f"start is {start}; positions begin at 0")
        if not continued or self._clock is None:
            return np.full(B, start)
        if len(self._clock) != B:
            raise ValueError(
                f"{B} rows cannot continue {len(self._clock)}; "
                "keep the batch, or give continued=False for new sequences"
            )
        if start and (self._clock != start).any():
            raise ValueError(
                f"start is {start}, but the rows go on at {sorted(set(self._clock.tolist()))}; "
                "leave start out when continued"
            )
        return self._clock


def read_spikes(name: str, values: Tensor, live: np.ndarray) -> tuple[Tensor, int | None]:
    """Return (fired (B, T, C) bool on the CPU, False at padding; the sum of |value|, None if all are of height 1).

    Raises:
        ValueError: a value that counts is not a whole number.
    """
    values = values.detach()
    if not live.all():
        values = values.masked_fill(torch.from_numpy(~live).to(values.device)[..., None], 0)
    if values.dtype == torch.bool:
        return values.cpu(), None
    fired = values != 0
    if torch.equal(values.abs(), fired.to(values.dtype)):
        return fired.cpu(), None
    whole = values.to(torch.int64)
    broken = values[whole.to(values.dtype) != values]
    if broken.numel():
        raise ValueError(
            f"{name} holds {broken[0].item()}; spikes are whole numbers: "
            "divide by the height of a spike, or give spikes != 0"
        )
    return fired.cpu(), int(whole.abs().sum())


def _check_mask(mask: Tensor | None, B: int, T: int) -> np.ndarray:
    """Return (B, T) bool, False at padding."""
    if mask is None:
        return np.ones((B, T), bool)
    if tuple(mask.shape) != (B, T) or mask.dtype != torch.bool:
        raise ValueError(
            f"mask is {mask.dtype} {tuple(mask.shape)}; want bool {(B, T)}, True at tokens and False at padding"
        )
    live = mask.cpu().numpy()
    # a run of tokens begins where a token follows padding, or the edge
    runs = (np.diff(live.astype(np.int8), axis=1, prepend=0) == 1).sum(1)
    if (runs > 1).any():
        raise ValueError(
            f"mask has padding between the tokens of row {int(runs.argmax())}; pad on the left or on the right"
        )
    return live
