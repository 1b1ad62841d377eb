"""A model's numbers as the token steps read them: stacked over layers, weights stored input first, neurons as rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...model.network import SpikeGPT
from ...neuron.lif import LIF

WEIGHTS = ("float32", "bfloat16", "int8")


class Norm(NamedTuple):
    """weight and bias (L, C)."""

    weight: np.ndarray
    bias: np.ndarray


class Product(NamedTuple):
    """A matrix product: weights (L, in, out) in float32 or float64, or uint16 with the bits of bfloat16, or int8.

    scales (L, out) multiply the outcome of int8 weights, None else. inputs_read (L,) counts the inputs that were not
    0.
    """

    weights: np.ndarray
    scales: np.ndarray | None
    inputs_read: np.ndarray


class Memory(NamedTuple):
    """What neurons that carry their potential need: rows (L, channels), potential (texts, L, channels)."""

    decay: np.ndarray
    gain: np.ndarray
    pull: np.ndarray
    potential: np.ndarray


class Neurons(NamedTuple):
    """A layer of neurons: `neuron.lif.NeuronRows`, threshold (L, channels); memory is None where there is none."""

    threshold: np.ndarray
    levels: int
    signed: bool
    resets_to_rest: bool
    rest: np.floating
    memory: Memory | None

    def with_potentials(self, potentials: Sequence[Tensor | None], texts: int) -> "Neurons":
        """Return these neurons with one potential (texts, channels) for each layer; 0 where it is None."""
        if self.memory is None:
            return self
        found = np.zeros((texts, *self.threshold.shape), self.threshold.dtype)
        for layer, potential in enumerate(potentials):
            if potential is not None:
                found[:, layer] = potential.detach().numpy()
        return self._replace(memory=self.memory._replace(potential=found))

    def potential(self, layer: int) -> Tensor | None:
        """Return a copy of the potential (texts, channels) of a layer; None where nothing is carried."""
        return None if self.memory is None else torch.from_numpy(self.memory.potential[:, layer].copy())


class Network(NamedTuple):
    """What every generation has around its blocks; layers of one. embedding (vocab_size, C)."""

    embedding: np.ndarray
    ln0: Norm
    ln_out: Norm
    head: Product
    head_neuron: Neurons | None


class Scratch(NamedTuple):
    """Working memory of one thread: y, z (C,); indices and values of the inputs of a product that are not 0."""

    y: np.ndarray
    z: np.ndarray
    active: np.ndarray
    amount: np.ndarray


class Packer:
    """Packs the parts of `model` in its precision, the weights of its products as `weights` says."""

    def __init__(self, model: SpikeGPT, weights: str):
        self.model, self.weights = model, weights
        self.real = torch.float64 if model.emb.weight.dtype == torch.float64 else torch.float32

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float64 if self.real == torch.float64 else np.float32)

    def array(self, tensor: Tensor) -> np.ndarray:
        return tensor.detach().to(self.real).contiguous().numpy()

    def rows(self, tensors: Sequence[Tensor]) -> np.ndarray:
        """(L, C) of one vector per layer."""
        return self.array(torch.stack([tensor.flatten() for tensor in tensors]))

    def norm(self, norms: Sequence[nn.LayerNorm]) -> Norm:
        return Norm(self.rows([norm.weight for norm in norms]), self.rows([norm.bias for norm in norms]))

    def product(self, matrices: Sequence[nn.Linear]) -> Product:
        stack = torch.stack([matrix.weight.detach().T for matrix in matrices]).contiguous()
        inputs_read = np.zeros(len(matrices), np.int64)
        if self.weights == "bfloat16":
            return Product(stack.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16), None, inputs_read)
        if self.weights == "int8":
            scales = (stack.abs().amax(dim=1) / 127).clamp(min=1e-30)
            return Product((stack / scales.unsqueeze(1)).round().to(torch.int8).numpy(), scales.numpy(), inputs_read)
        return Product(stack.numpy(), None, inputs_read)

    def neurons(self, owners: Sequence[nn.Module], site: str) -> Neurons | None:
        """The neurons at `site` of the same half of every layer; None where the model has none."""
        layers = [owner.get_submodule(site) for owner in owners if hasattr(owner, site)]
        if not layers:
            return None
        rows = [neuron.rows(self.real) for neuron in layers if isinstance(neuron, LIF)]
        decay, gain = self.rows([row.decay for row in rows]), self.rows([row.gain for row in rows])
        pull, threshold = self.rows([row.pull for row in rows]), self.rows([row.threshold for row in rows])
        first = rows[0]
        memory = Memory(decay, gain, pull, np.zeros((1, *decay.shape), decay.dtype)) if first.remembers else None
        rest = decay.dtype.type(first.rest)
        return Neurons(threshold, first.levels, first.signed, first.resets_to_rest, rest, memory)

    def network(self) -> Network:
        model = self.model
        embedding = model.emb.weight.detach()
        if model.has_binary_embedding:
            embedding = embedding >= 0
        head_neuron = None if model.head_site is None else self.neurons([model], model.head_site.name)
        ln0, ln_out = self.norm([model.blocks[0].ln0]), self.norm([model.ln_out])
        return Network(self.array(embedding), ln0, ln_out, self.product([model.head]), head_neuron)


def scratch_of(channels: int, widest: int, dtype: np.dtype) -> Scratch:
    """Return working memory for vectors of `channels` numbers and products of at most `widest` inputs."""
    y, z = np.empty(channels, dtype), np.empty(channels, dtype)
    return Scratch(y, z, np.empty(widest + 1, np.int64), np.empty(widest + 1, dtype))


def differing_neurons(model: SpikeGPT) -> str:
    """Return why the neurons of `model` cannot be stacked over its layers, or an empty string if they can."""
    kinds: dict[tuple[type, str], LIF] = {}
    for name, placed in model.sites().items():
        neuron = placed.neuron
        if not isinstance(neuron, LIF):
            return f"its neurons are {type(neuron).__name__}, not our LIF"
        if neuron.config != kinds.setdefault((type(placed.owner), placed.site.name), neuron).config:
            return f"the neurons of {name} are others than those of the layers before: {neuron.config}"
    return ""
