"""The units in which an optimizer sees the weights behind neurons: per unit of current instead of per unit spike.

A product multiplies its weights with whole spikes, and so are they stored. Learned like that, a threshold that rises
makes fewer spikes and with them a smaller outcome, until all weights behind it have grown: the loss holds every
threshold where it is, and the rate of learning depends on how finely a current is resolved. So for the time of a step

    weight = stored weight / worth        worth: the current that a unit spike stands for, (1 + 1/levels) thresholds

and a threshold that changes takes the stored weights with it. As with learned steps of quantisation (Esser et al. 2020,
arXiv 1902.08153), the gradient of a threshold is then that of both, of the spikes and of what they are worth.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..common.shards import is_sharded, own_columns, part_of, whole
from ..model.mixers import Mixer, Rows
from ..model.network import SpikeGPT
from ..neuron import rescale_columns
from ..neuron.lif import LIF


class Reader(NamedTuple):
    """Neurons, the matrices that read their spikes, and the neurons in whose spikes their current is measured."""

    neuron: LIF
    products: tuple[nn.Linear | Rows, ...]
    measure: LIF | None

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """(out, in) each."""
        return tuple(product.weight for product in self.products)

    @property
    def measure_worth(self) -> Tensor:
        """The current in a unit of which that of the neurons is measured: (C,), or 1."""
        return torch.ones(()) if self.measure is None else _worth(self.measure)


class CurrentUnits:
    """The weights behind the neurons of `model`, as they are between `enter` and `leave`."""

    def __init__(self, model: nn.Module):
        self.readers = [
            reader for network in model.modules() if isinstance(network, SpikeGPT) for reader in _readers(network)
        ]

    @torch.no_grad()
    def enter(self, *_: Any) -> None:
        """Convert weights, thresholds and their gradients to units of current."""
        found: list[tuple[bool, LIF, Tensor, Tensor]] = []
        for reader in self.readers:
            neuron, measure = reader.neuron, reader.measure
            worth = _worth(neuron, measure)
            if measure is not None:
                _add(neuron.log_threshold, torch.log(_worth(measure)))
                if neuron.log_threshold.grad is not None and getattr(measure, "log_threshold", None) is not None:
                    _add_gradient(measure.log_threshold, -whole(neuron.log_threshold.grad))
            for product in reader.products:
                weight = product.weight
                own = worth.expand(weight.shape[1])[own_columns(weight)]
                if weight.grad is None:
                    _local(weight).div_(own)
                else:
                    found.append((isinstance(product, Rows), neuron, weight, own))
        # all at once, for threads to share; but what is seen transposed has gaps in memory, which no kernel takes
        for is_transposed in (False, True):
            chosen = [(neuron, weight, own) for turned, neuron, weight, own in found if turned == is_transposed]
            weights = [_local(weight) for neuron, weight, own in chosen]
            grads = [_local(cast(Tensor, weight.grad)) for neuron, weight, own in chosen]
            every = rescale_columns(weights, grads, [own for neuron, weight, own in chosen])
            for (neuron, weight, _own), sums in zip(chosen, every, strict=True):
                threshold = getattr(neuron, "log_threshold", None)
                if threshold is not None:
                    _add_gradient(threshold, _whole_sums(sums, weight))

    @torch.no_grad()
    def leave(self, *_: Any) -> None:
        """Convert weights and thresholds back, with the thresholds that the step has left."""
        for reader in self.readers:
            neuron, measure = reader.neuron, reader.measure
            if measure is not None:
                _add(neuron.log_threshold, -torch.log(_worth(measure)))
            for weight in reader.weights:
                _local(weight).mul_(_worth(neuron, measure).expand(weight.shape[1])[own_columns(weight)])


def _readers(network: SpikeGPT) -> list[Reader]:
    """The layers of neurons whose spikes products with weights that learn read."""
    found = []
    for placed in network.sites().values():
        neuron, owner = placed.neuron, placed.owner
        products = tuple(product for product in placed.products if product.weight.requires_grad)
        if not isinstance(neuron, LIF) or not products:
            continue
        threshold, inner = getattr(neuron, "log_threshold", None), None
        # a threshold that does not learn stays what it is in the units that it has
        if isinstance(owner, Mixer) and threshold is not None and threshold.requires_grad:
            inner = owner.measured_in.get(placed.site.name)
        measure = None if inner is None else getattr(owner, inner)
        found.append(Reader(neuron, products, measure if isinstance(measure, LIF) else None))
    return found


def _worth(neuron: LIF, measure: LIF | None = None) -> Tensor:
    """The current that a unit spike stands for, (C,) or one for all channels, whole in every process."""
    worth = whole(torch.as_tensor(neuron.spike_worth)).detach()
    return worth if measure is None else worth * _worth(measure)


def _local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def _add(parameter: Tensor, values: Tensor) -> None:
    _local(parameter).add_(_local(part_of(values.expand(parameter.shape), parameter)))


def _add_gradient(parameter: Tensor, values: Tensor) -> None:
    """Add `values` (C,) to the gradient of a parameter that learns."""
    if parameter.requires_grad:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        _add(parameter.grad, values)


def _whole_sums(sums: Tensor, weight: Tensor) -> Tensor:
    """Sums of the columns over what this process holds of `weight`, of all of it in every process."""
    if not is_sharded(weight):
        return sums
    every = sums.new_zeros(weight.shape[1])
    every[own_columns(weight)] = sums
    torch.distributed.all_reduce(every)
    return every
