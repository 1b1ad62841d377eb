"""What a watched text fires: the model's own forward pass reads its tokens after they were drawn.

The engine, which draws them, has no list of single neurons. Both compute the same, but in another order of sums: where
a current lies within rounding of a threshold one may fire and the other not.
"""

import torch

from ..model.network import SpikeGPT
from ..model.state import State
from .operations import Multiplications
from .texts import Score, Spikes


class Spectator:
    """Reads the tokens of one text after its prompt, whose state it begins with."""

    def __init__(self, model: SpikeGPT, state: State):
        self._model, self._state, self._noted = model, state, list[Score]()

    def note(self, drawn: Score) -> None:
        """Let this token be read with the next."""
        self._noted.append(drawn)

    @property
    def pending(self) -> int:
        return len(self._noted)

    def read(self) -> Spikes:
        """Read the noted tokens, at least one, and return what they fired."""
        noted, self._noted = tuple(self._noted), []
        ids = torch.tensor([[one.token for one in noted]], device=self._model.device)
        with Multiplications(self._model) as multiplications:
            x, self._state, spikes = self._model.hidden(ids, self._state)
            # the neurons of a head fire too
            self._model.read_out(x, spikes)
        fired = {name: fired[0] for name, fired in spikes.items()}
        return Spikes(noted, fired, multiplications.macs, is_prompt=False)
