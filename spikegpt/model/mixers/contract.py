"""What a mixer is: one half of a block, of one generation of RWKV. How to add one: docs/extending.md.

A generation is a file here with its two halves, their own initialisation and their own names. Whoever needs to know the
neurons of a model (synapses, conversion, rasters, engine, reports) asks for `sites`; nobody takes a name apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ...config import NeuronConfig
from ...kernels import gate, gated_lif, shifted_lif, squared_relu, squared_relu_lif, token_shift
from ...kernels.integer_lif.options import IntegerLIFOptions
from ...kernels.operators import product_dtype
from ...neuron.lif import LIF


@dataclass(frozen=True)
class Site:
    """Where a module has a layer of neurons: attribute `name` of its owner, in front of what reads their spikes."""

    name: str
    product: str | tuple[str, ...] | None
    """attribute of the same owner whose matrix product reads the spikes, or those of several that do; None where
    something else does"""
    channels: int
    neuron: NeuronConfig
    """the neuron that is meant here; another one may be put in its place"""
    initial_firing_rate: float = 0.45
    """share of the neurons that fires before the first step, where thresholds may learn"""

    @property
    def products(self) -> tuple[str, ...]:
        """Attributes of the owner whose matrix products read the spikes."""
        return (self.product,) if isinstance(self.product, str) else self.product or ()


class Rows(NamedTuple):
    """A parameter (in, out) of an owner whose product `x @ parameter` reads spikes, as the layer that it could be.

    Of several such matrices in one, (parts, in, out), each reads its own part of the inputs, (parts * in,) together.
    """

    parameter: nn.Parameter

    @property
    def weight(self) -> Tensor:
        """(out, in), in the memory of the parameter, as its gradient is in that of the parameter's."""
        weight = self.parameter.detach().flatten(0, -2).t().requires_grad_(self.parameter.requires_grad)
        if self.parameter.grad is not None:
            weight.grad = self.parameter.grad.flatten(0, -2).t()
        return weight


def product_of(owner: nn.Module, name: str) -> nn.Linear | Rows | None:
    """Return the matrix `name` of a module, whose product reads spikes; None if something else is in its place."""
    reader = getattr(owner, name)
    if isinstance(reader, nn.Parameter):
        return Rows(reader)
    return reader if isinstance(reader, nn.Linear) else None


def weights_of(product: nn.Linear | Rows) -> int:
    """Return how many weights the matrix of a product has."""
    return (product.parameter if isinstance(product, Rows) else product.weight).numel()


# makes the neurons of a site; returns a module like `neuron.LIF`:
# (current (B, T, C), state) -> (spikes (B, T, C), state)
NeuronFactory = Callable[[Site], nn.Module]


class Mixed(NamedTuple):
    """What a mixer gives back: y (B, T, C), its state after the last token, site -> spikes (B, T, channels)."""

    y: Tensor
    state: Any
    spikes: dict[str, Tensor]
    first: Tensor | None = None
    """only of a mixer that `takes_first`: what it was given, or in the first block what the blocks above are given"""


class Firing:
    """The neurons of one call of their owner: what they carried in, what they carry out, what they emitted."""

    def __init__(self, owner: nn.Module, before: dict[str, Any] | None):
        self._owner, self._before = owner, before
        self._after: dict[str, Any] = {}
        self.spikes: dict[str, Tensor] = {}

    def __call__(self, site: str, current: Tensor) -> Tensor:
        """Return the spikes of the neurons at `site`; where there are none, the current itself."""
        neuron = self._owner._modules.get(site)
        if neuron is None:
            return current
        self.spikes[site], self._after[site] = neuron(current, self._before[site] if self._before else None)
        return self.spikes[site]

    # what often drives neurons is one kernel with them, where nobody looks between

    def shifted(
        self, sites: Sequence[str], x: Tensor, previous: Tensor | None, shares: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return the spikes of each site's mix of tokens, see `mix_tokens`; where there are no neurons, the mixes."""
        fusible = self._fusible(*sites)
        if fusible is None:
            return [self(site, mix) for site, mix in zip(sites, mix_tokens(x, previous, *shares), strict=True)]
        neurons, kind = fusible
        thresholds = [neuron.threshold for neuron in neurons]
        spikes = shifted_lif(x, previous, shares, thresholds, kind, dtype=product_dtype(x))
        for site, neuron, spike in zip(sites, neurons, spikes, strict=True):
            self._note(site, neuron, spike)
        return spikes

    def squared_relu(self, site: str, x: Tensor) -> Tensor:
        """Return the spikes at `site` of max(x, 0)^2; where there are no neurons, that."""
        fusible = self._fusible(site)
        if fusible is None:
            return self(site, squared_relu(x))
        (neuron,), kind = fusible
        spikes = squared_relu_lif(x, neuron.threshold, kind, dtype=product_dtype(x))
        self._note(site, neuron, spikes)
        return spikes

    def gated(self, site: str, receptance: Tensor, y: Tensor) -> Tensor:
        """Return the spikes at `site` of sigmoid(receptance) * y; where there are no neurons, that."""
        fusible = self._fusible(site)
        if fusible is None:
            return self(site, gate(receptance, y))
        (neuron,), kind = fusible
        spikes = gated_lif(receptance, y, neuron.threshold, kind, dtype=product_dtype(y))
        self._note(site, neuron, spikes)
        return spikes

    def _fusible(self, *sites: str) -> tuple[list[LIF], IntegerLIFOptions] | None:
        """The neurons at `sites` and their kind, if one kernel may stand for a call of each: of one kind, stateless."""
        # nothing is fused without gradients
        if not torch.is_grad_enabled() or (self._before and any(self._before[site] is not None for site in sites)):
            return None
        neurons = [neuron for site in sites if isinstance(neuron := self._owner._modules.get(site), LIF)]
        kind, *others = {neuron.fusible for neuron in neurons} or {None}
        return None if kind is None or others or len(neurons) < len(sites) else (neurons, kind)

    def _note(self, site: str, neuron: LIF, spikes: Tensor) -> None:
        neuron.verify(spikes)
        self.spikes[site], self._after[site] = spikes, None

    @property
    def after(self) -> dict[str, Any] | None:
        """Site -> what its neurons carry, None where they are memoryless; None if there are no neurons."""
        return self._after or None


class Mixer(nn.Module):
    """One half of a block: what stands in it is the generation's own affair.

    A state is a NamedTuple, opaque outside of its mixer (and of the token step that is compiled for it). Each field is
    a tree of tensors with the texts first, and one, `neurons`, is `Firing.after`. None in the place of a state, or of a
    field, is the beginning of a text.
    """

    sites: tuple[Site, ...] = ()
    """layers of neurons in the order in which they fire; the last one's spikes drive what this half adds to the
    stream"""
    last_product: ClassVar[str]
    """attribute of the matrix whose outcome, gated or not, this half adds to the stream"""
    rate_scales: ClassVar[dict[str, float]] = {}
    """own parameter -> factor of the learning rate"""
    undecayed: ClassVar[frozenset[str]] = frozenset()
    """own parameters that no weight decay is for, though they are matrices"""
    takes_first: ClassVar[bool] = False
    """whether `forward` takes, beside x and the state, what the first block's mixer made of the same tokens; of the
    first half of a block only"""
    unread_in_first: ClassVar[frozenset[str]] = frozenset()
    """own parameters that nothing reads in the first block: they do not learn there and have no neurons, but stand in
    checkpoints"""
    state_grows: ClassVar[bool] = False
    """whether the tensors of its state have other shapes after a token"""
    measured_in: ClassVar[dict[str, str]] = {}
    """site -> site before it in whose spikes its current is measured, where no product lies between"""

    def forward(self, x: Tensor, state: Any) -> Mixed:
        """Return what this half adds to the residual stream, from its normalised input x (B, T, C)."""
        raise NotImplementedError

    def initialise(self, layer: int, n_layer: int) -> None:
        """Fill every own parameter but those of neurons, as the generation does in layer `layer` of `n_layer`."""
        raise NotImplementedError

    def absorb(self, site: str, worths: dict[str, Tensor]) -> None:
        """Multiply into own weights what a unit spike at `site` stands for: spikes may then replace real numbers.

        Args:
            worths: (channels,) by site, of `site` and of those that fire before it.
        """
        measure = self.measured_in.get(site)
        worth = worths[site] * worths[measure] if measure in worths else worths[site]
        for product in next(placed.products for placed in self.sites if placed.name == site):
            self.scale(product, worth)

    def own_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the own parameters, but those of neurons, that stand for `weights`, those of the dense twin's half."""
        return weights

    def scale(self, product: str, factor: float | Tensor) -> None:
        """Multiply the weights of `product` by `factor`: a number, or (in,)."""
        matrix = product_of(self, product)
        assert matrix is not None, product
        matrix.weight.mul_(factor)

    def product(self, name: str, x: Tensor) -> Tensor:
        """Return x (B, T, in) times own parameter `name` (in, out), or what a decoder's module in its place makes."""
        matrix = getattr(self, name)
        return matrix(x) if isinstance(matrix, nn.Module) else x @ matrix

    def place_neurons(self, sites: tuple[Site, ...], make_neuron: NeuronFactory) -> None:
        """Put the neurons of `sites` into this mixer."""
        self.sites = sites
        for site in sites:
            self.add_module(site.name, make_neuron(site))

    def become_first(self) -> None:
        """Be of the first block: what nothing reads there does not learn, and has no neurons."""
        for name in self.unread_in_first:
            self.get_parameter(name).requires_grad_(False)
        sites = []
        for site in self.sites:
            products = tuple(name for name in site.products if name not in self.unread_in_first)
            if products or not site.products:
                sites.append(replace(site, product=products or None))
            else:
                delattr(self, site.name)
        self.sites = tuple(sites)


def rate_scales(model: nn.Module) -> dict[str, float]:
    """Return parameter of `model` -> factor of the learning rate, for those that a mixer in it names."""
    found: dict[str, float] = {}
    for path, mixer in model.named_modules():
        if isinstance(mixer, Mixer):
            found |= {f"{path}.{name}": factor for name, factor in mixer.rate_scales.items()}
    return found


def undecayed(model: nn.Module) -> set[str]:
    """Return the parameters of `model` that a mixer in it excepts from weight decay."""
    mixers = ((path, mixer) for path, mixer in model.named_modules() if isinstance(mixer, Mixer))
    return {f"{path}.{name}" for path, mixer in mixers for name in mixer.undecayed}


def mix_tokens(x: Tensor, previous: Tensor | None, *shares: Tensor) -> list[Tensor]:
    """Return x (B, T, C) mixed with itself one token earlier, by each of `shares` (`kernels.token_shift`).

    In the precision that autocast gives products; neurons in front of them read that too, and compute in float32.
    """
    return token_shift(x, previous, shares, dtype=product_dtype(x))


def token_shift_cost(args: tuple, kwargs: dict, output: Any) -> dict[str, int]:
    """What a token shift of x = args[0] (B, T, C) carries: for every token the one before is read, itself kept."""
    elements = args[0].numel()
    return {"state_elements": args[0].shape[-1], "state_reads": elements, "state_writes": elements}
