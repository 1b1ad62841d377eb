"""What the matrix products of a token cost, zeros left out.

An accumulate per unit spike and synapse where a product reads spikes, a multiply-accumulate per weight whose input is
not 0 where it reads real numbers. All else that a model computes is `spikegpt measure`'s to count.
"""

import dataclasses
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..model.mixers import weights_of
from ..model.network import SpikeGPT


def dense_macs(model: SpikeGPT) -> int:
    """Return the multiply-accumulates of a token of the dense twin, zeros included: one for each weight."""
    # pairs of low rank are parameters; that they are multiplied, only sites of a model whose products read spikes say
    config = model.config
    if config.mixer != "attention":
        config = dataclasses.replace(config, spiking="input", rescale_every=0)
    with torch.device("meta"):
        same = SpikeGPT(config, init=False)
    linear = sum(module.weight.numel() for module in same.modules() if isinstance(module, nn.Linear))
    read = [product for placed in same.sites().values() for product in placed.products]
    return linear + sum(weights_of(product) for product in read if not isinstance(product, nn.Linear))


def synapses(model: SpikeGPT) -> dict[str, int]:
    """Return layer of neurons -> accumulates per unit spike."""
    sites = {name: placed for name, placed in model.sites().items() if placed.products}
    return {name: sum(map(weights_of, placed.products)) // placed.site.channels for name, placed in sites.items()}


class Multiplications:
    """Counts, while it is entered, what the products of `model` multiply that read real numbers.

    Attributes:
        macs: (tokens,) afterwards, of the one text that the model has read meanwhile.
    """

    def __init__(self, model: SpikeGPT):
        read = {id(product) for placed in model.sites().values() for product in placed.products}
        linear = (module for module in model.modules() if isinstance(module, nn.Linear))
        self._real, self._hooks = [one for one in linear if id(one) not in read], list[RemovableHandle]()
        self.macs = torch.zeros(1, dtype=torch.long)

    def __enter__(self) -> Self:
        self._hooks = [linear.register_forward_pre_hook(self._count) for linear in self._real]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(linear, nn.Linear)
        self.macs = self.macs + linear.out_features * (inputs[0][0] != 0).sum(dim=-1).cpu()
