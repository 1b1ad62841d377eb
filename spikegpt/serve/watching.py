"""What the page is told of a watched text: each token with its surprise, its spikes and what it cost."""

import base64
from typing import Any

import numpy as np
import torch

from .answers import label
from .runs import ServedRun
from .texts import Score, Spikes


class Watching:
    """Turns the events of a watched text into what is sent, as JSON."""

    def __init__(self, run: ServedRun):
        self._run, self._stream = run, run.tokenizer.stream()

    def tokens(self, event: Spikes) -> dict[str, Any]:
        """Return tokens in order. Of each: the text that it completes, its surprise in bits, the unit spikes of every
        layer, which neurons fired (bits, the layers one behind the other, in base64), and its accumulates and
        multiply-accumulates (operations.py)."""
        layers = {name: event.spikes[name].cpu() for name in self._run.layers}
        # in front of a dense model's, which has none
        nothing = torch.zeros(len(event.tokens), 0)
        units = torch.stack([fired.abs().sum(dim=-1) for fired in layers.values()], dim=1) if layers else nothing
        masks = torch.cat([nothing, *layers.values()], dim=1) != 0
        bits = np.packbits(masks.numpy(), axis=1)
        synapses = np.asarray([self._run.synapses.get(name, 0) for name in layers])
        costs = [
            {"units": spikes.tolist(), "acs": float(spikes @ synapses), "macs": int(macs)}
            for spikes, macs in zip(units.double().numpy(), event.macs, strict=True)
        ]
        tokens = [
            {**self._token(one), **cost, "fired": _words(row)}
            for one, cost, row in zip(event.tokens, costs, bits, strict=True)
        ]
        return {"type": "tokens", "is_prompt": event.is_prompt, "tokens": tokens}

    def _token(self, one: Score) -> dict[str, Any]:
        text, name = self._stream.push(one.token), label(self._run.tokenizer, one.token)
        return {"id": one.token, "label": name, "text": text, "bits": one.bits}


def _words(row: np.ndarray) -> str:
    return base64.b64encode(row.tobytes()).decode()
