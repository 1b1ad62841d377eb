"""What a watched text fires: the model's own forward pass reads its tokens after they were drawn.

The engine, which draws them, has no list of single neurons. Both compute the same, but in another order of sums: where
a current lies within rounding of a threshold one may fire and the other not.
"""

import torch
from torch import nn

from ..model.mixers import weights_of
from ..model.network import SpikeGPT
from ..model.state import State
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
        x, self._state, spikes = self._model.hidden(ids, self._state)
        # the neurons of a head fire too
        self._model.read_out(x, spikes)
        return Spikes(noted, {name: fired[0] for name, fired in spikes.items()}, is_prompt=False)


class Operations:
    """What the matrix products of a token cost: a multiply-accumulate per weight, or an accumulate per unit spike and
    synapse where a product reads spikes.

    Attributes:
        macs: per token, of products that read real numbers.
        dense_macs: per token of the dense twin, where every product does.
        synapses: layer of neurons -> accumulates per unit spike.
    """

    def __init__(self, model: SpikeGPT):
        placed = {name: site for name, site in model.sites().items() if site.products}
        read = [product for site in placed.values() for product in site.products]
        linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
        self.dense_macs = linear + sum(weights_of(product) for product in read if not isinstance(product, nn.Linear))
        self.macs = self.dense_macs - sum(map(weights_of, read))
        self.synapses = {
            name: sum(map(weights_of, site.products)) // site.site.channels for name, site in placed.items()
        }
