"""What the page is told of a watched text: each token with its surprise, its spikes and what it cost."""

import base64
from typing import Any

import numpy as np
from torch import Tensor

from .answers import label
from .runs import ServedRun
from .texts import Score, Spikes


class Watching:
    """Turns the events of a watched text into what is sent, as JSON."""

    def __init__(self, run: ServedRun):
        self._run, self._stream = run, run.tokenizer.stream()

    def tokens(self, event: Spikes) -> dict[str, Any]:
        """Return tokens in order. Of each: the text that it completes, its surprise in bits, the unit spikes of every
        layer, which neurons fired (bits, the layers one behind the other, in base64), and accumulates of its spikes."""
        layers = {name: event.spikes[name].cpu() for name in self._run.layers}
        n = len(event.tokens)
        units = np.stack([_units(fired) for fired in layers.values()], axis=1) if layers else np.zeros((n, 0))
        masks = [fired.numpy() != 0 for fired in layers.values()]
        bits = np.packbits(np.concatenate(masks, axis=1), axis=1) if masks else np.zeros((n, 0), np.uint8)
        synapses = np.asarray([self._run.operations.synapses.get(name, 0) for name in layers])
        return {
            "type": "tokens",
            "is_prompt": event.is_prompt,
            "tokens": [
                {
                    **self._token(one),
                    "units": units[n].tolist(),
                    "acs": float(units[n] @ synapses),
                    "fired": _words(row),
                }
                for n, (one, row) in enumerate(zip(event.tokens, bits, strict=True))
            ],
        }

    def _token(self, one: Score) -> dict[str, Any]:
        text, name = self._stream.push(one.token), label(self._run.tokenizer, one.token)
        return {"id": one.token, "label": name, "text": text, "bits": one.bits}


def _units(fired: Tensor) -> np.ndarray:
    return fired.abs().sum(dim=-1).double().numpy()


def _words(row: np.ndarray) -> str:
    return base64.b64encode(row.tobytes()).decode()
