"""A model's numbers as the token steps read them: stacked over layers, weights stored input first, neurons as rows."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...model.mixers import Mixer, Rows
from ...model.network import SpikeGPT
from ...model.quantised import Quantised, codes_of, low_bit_matrices, quantise
from ...neuron.lif import LIF
from .pages import in_huge_pages
from .team import Team

WEIGHTS = ("float32", "bfloat16", "int8")
# of the inputs of a product, at once: of those that read the stream in one half of a block
LISTS = 6


class Norm(NamedTuple):
    """weight and bias (L, C)."""

    weight: np.ndarray
    bias: np.ndarray


class Product(NamedTuple):
    """A matrix product: weights (L, in, out) in float32 or float64, or uint16 with the bits of bfloat16, or int8.

    scales (L, out) multiply the outcome of int8 weights, None else. `place` is where its inputs are counted that were
    not 0, in `inputs_read` (products, L) of a thread's work. If it `reads_spikes`, its inputs are whole numbers of
    at most 127: so many levels a neuron may have.
    """

    weights: np.ndarray
    scales: np.ndarray | None
    place: int
    reads_spikes: bool


# of one layer of neurons in `Neurons.rows`, see `neuron.lif.NeuronRows`
DECAY, GAIN, PULL, THRESHOLD, TAKEN = range(5)


class Neurons(NamedTuple):
    """The neurons at a site: rows (L, 5, channels), potential (texts, L, channels), and what `neuron.lif.NeuronRows`
    says.

    One type for all, so that one compilation serves every block: where there are no neurons they do not `exist`. If
    they are `plain`, their potential is the current: they remember nothing, all gains are 1, and nothing pulls.
    """

    rows: np.ndarray
    potential: np.ndarray
    levels: int
    signed: bool
    resets_to_rest: bool
    rest: np.floating
    remembers: bool
    exist: bool
    plain: bool

    def with_potentials(self, potentials: Sequence[Tensor | None], texts: int) -> "Neurons":
        """Return these neurons with one potential (texts, channels) for each layer; 0 where it is None."""
        L, _, channels = self.rows.shape
        found = np.zeros((texts, L, channels), self.rows.dtype)
        for layer, potential in enumerate(potentials):
            if potential is not None:
                found[:, layer] = potential.detach().numpy()
        return self._replace(potential=found)

    def potential_of(self, layer: int) -> Tensor | None:
        """Return a copy of the potential (texts, channels) of a layer; None where nothing is carried."""
        return torch.from_numpy(self.potential[:, layer].copy()) if self.remembers else None


class Screen(NamedTuple):
    """How the `wanted` likeliest tokens are found, see head.py.

    codes of the head's weights (blocks, C, columns of a block) with scales (1, V); doubt (V,), by how much a logit
    differs from what they say, at most, per length of the input.
    """

    codes: Product
    doubt: np.ndarray
    wanted: int


class Network(NamedTuple):
    """What every generation has around its blocks; layers of one. embedding (vocab_size, C).

    With a `screen` logits are -inf that are surely not among the largest.
    """

    embedding: np.ndarray
    ln0: Norm
    ln_out: Norm
    head: Product
    head_neuron: Neurons
    screen: Screen | None


class Scratch(NamedTuple):
    """Working memory of one thread: y (texts, C), z (C,); active and amount (texts, LISTS, widest + 1), the indices and
    the values of the inputs of products that are not 0, and listed (texts, LISTS), how many these are."""

    y: np.ndarray
    z: np.ndarray
    active: np.ndarray
    amount: np.ndarray
    listed: np.ndarray


class Work(NamedTuple):
    """What a thread works with: its part in the team, its own memory, and the memory that the team shares.

    The shared memory is the generation's; it has the residual `stream` (texts, C). inputs_read (products, L) counts.
    """

    team: Team
    scratch: Scratch
    shared: Any
    inputs_read: np.ndarray
    clock: np.ndarray | None


class Packer:
    """Packs the parts of `model` in its precision, the weights of its products as `weights` says."""

    def __init__(self, model: SpikeGPT, weights: str):
        self.model, self.weights, self.places = model, weights, 0
        self.real = torch.float64 if model.emb.weight.dtype == torch.float64 else torch.float32
        low_bit = low_bit_matrices(model, model.config.weight_bits) if model.weight_steps else {}
        # a view of other rows is a new tensor each time, and lives as long as it is looked up
        self._low_bit = {id(matrix): (name, bits) for name, (matrix, bits) in low_bit.items()}
        self._spiked = {id(_parameter_of(read)) for placed in model.sites().values() for read in placed.products}

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

    def product(self, *products: Sequence[nn.Linear | Rows]) -> Product:
        """The same product of every layer, or several of the same inputs, side by side; it has a place of its own."""
        place = self.new_place()
        reads_spikes = all(id(_parameter_of(matrix)) in self._spiked for part in products for matrix in part)
        # of a model of a few bits what has no codes stays as it is
        is_coded = not self._low_bit or all(id(matrix.weight) in self._low_bit for part in products for matrix in part)
        if self.weights == "int8" and is_coded:
            found = [[self._codes(matrix) for matrix in matrices] for matrices in products]
            codes = torch.cat([torch.stack([layer.codes.T for layer in part]) for part in found], dim=2).contiguous()
            steps = torch.cat([torch.stack([layer.step for layer in part]) for part in found], dim=1)
            return Product(in_huge_pages(codes.numpy()), steps.numpy(), place, reads_spikes)
        stacks = [torch.stack([matrix.weight.detach().T for matrix in matrices]) for matrices in products]
        stack = stacks[0].contiguous() if len(stacks) == 1 else torch.cat(stacks, dim=2)
        if self.weights == "bfloat16":
            words = stack.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
            return Product(in_huge_pages(words), None, place, reads_spikes)
        return Product(in_huge_pages(stack.numpy()), None, place, reads_spikes)

    def new_place(self) -> int:
        """Return where the inputs of one more product are counted."""
        self.places += 1
        return self.places - 1

    def _codes(self, matrix: nn.Linear | Rows) -> Quantised:
        """Those that a matrix of a few bits was made of, or eight bits for the engine alone."""
        weight = matrix.weight
        if id(weight) not in self._low_bit:
            return quantise(weight.detach(), 8)
        name, bits = self._low_bit[id(weight)]
        step = self.model.weight_steps[name].to(weight.device)
        return Quantised(codes_of(name, weight, step, bits), step)

    def neurons(self, owners: Sequence[nn.Module], site: str) -> Neurons:
        """The neurons at `site` of the same half of every layer."""
        some = next((getattr(owner, site) for owner in owners if hasattr(owner, site)), None)
        # where one layer has none nothing fires them
        layers = [getattr(owner, site, some) for owner in owners]
        found = [neuron.rows(self.real) for neuron in layers if isinstance(neuron, LIF)]
        if not found:
            nothing = np.zeros((len(owners), 5, 0), self.dtype)
            return Neurons(nothing, nothing[None, :, 0], 1, False, False, self.dtype.type(0), False, False, False)
        rows = torch.stack([torch.stack([row.decay, row.gain, row.pull, row.threshold, row.taken]) for row in found])
        L, _, channels = rows.shape
        one = found[0]
        return Neurons(
            rows=self.array(rows),
            potential=np.zeros((1, L, channels), self.dtype),
            levels=one.levels,
            signed=one.signed,
            resets_to_rest=one.resets_to_rest,
            rest=self.dtype.type(one.rest),
            remembers=one.remembers,
            exist=True,
            plain=not one.remembers and bool((rows[:, GAIN] == 1).all() and (rows[:, PULL] == 0).all()),
        )

    def network(self) -> Network:
        model = self.model
        embedding = model.emb.weight.detach()
        if model.has_binary_embedding:
            embedding = embedding >= 0
        head_neuron = self.neurons([model], "head_neuron")
        ln0, ln_out = self.norm([model.blocks[0].ln0]), self.norm([model.ln_out])
        return Network(self.array(embedding), ln0, ln_out, self.product([model.head]), head_neuron, None)


def _parameter_of(matrix: nn.Linear | Rows) -> Tensor:
    return matrix.parameter if isinstance(matrix, Rows) else matrix.weight


def scratch_of(texts: int, channels: int, widest: int, dtype: np.dtype) -> Scratch:
    """Return working memory for vectors of `channels` numbers and products of at most `widest` inputs."""
    y, z, room = np.empty((texts, channels), dtype), np.empty(channels, dtype), (texts, LISTS, widest + 1)
    return Scratch(y, z, np.empty(room, np.int32), np.empty(room, dtype), np.zeros((texts, LISTS), np.int64))


def memory_of_texts(rows: Any, names: Sequence[str], texts: slice) -> Any:
    """Return a NamedTuple with the memory of some of the texts, not copied: the arrays of these names, and neurons'."""
    neurons = {name: part for name, part in rows._asdict().items() if isinstance(part, Neurons)}
    return rows._replace(
        **{name: getattr(rows, name)[texts] for name in names},
        **{name: part._replace(potential=part.potential[texts]) for name, part in neurons.items()},
    )


def products_of(halves: Any, left_out: Sequence[str] = ()) -> dict[str, Product]:
    """Return the matrix products of a NamedTuple of halves by their names in a block, but for those `left_out`."""
    return {
        f"{half}.{name}": part
        for half, rows in halves._asdict().items()
        for name, part in rows._asdict().items()
        if isinstance(part, Product) and name not in left_out
    }


def neurons_of(packer: Packer, halves: Sequence[Mixer], sites: Sequence[str]) -> dict[str, Any]:
    """Return the neurons at these sites of the same half of every layer."""
    return {site: packer.neurons(halves, site) for site in sites}


def _with_potentials(rows: Any, sites: Sequence[str], halves: Sequence[Any], texts: int) -> dict[str, Any]:
    """Return the neurons at these sites of `rows` with what they carry in the states of the half of every layer."""
    return {
        site: getattr(rows, site).with_potentials([(half.neurons or {}).get(site) for half in halves], texts)
        for site in sites
    }


def remembering(rows: Any, sites: Sequence[str], halves: Sequence[Any], behind: Sequence[Tensor | None]) -> Any:
    """Return `rows`, of the same half of every layer, with its tokens before and with what neurons carry, copied.

    Args:
        halves: the states of that half.
        behind: what the neurons behind it carry.
    """
    texts = len(halves[0].shift)
    return rows._replace(
        shift=memory_of([half.shift for half in halves], rows.shift.dtype),
        **_with_potentials(rows, sites, halves, texts),
        neuron_behind=rows.neuron_behind.with_potentials(behind, texts),
    )


def potentials(rows: Any, sites: Sequence[str], layer: int) -> dict[str, Tensor | None] | None:
    """Return what the neurons at these sites carry in a layer, as the state of a half says it."""
    neurons: dict[str, Neurons] = {site: getattr(rows, site) for site in sites}
    return {site: found.potential_of(layer) for site, found in neurons.items() if found.exist} or None


def memory_of(tensors: Sequence[Tensor | None], dtype: np.dtype) -> np.ndarray:
    """Return a copy of parts of the state (texts, ...) of every layer, (texts, L, ...)."""
    return torch.stack(cast(list[Tensor], tensors), dim=1).detach().numpy().astype(dtype, order="C")


def copied(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())


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
