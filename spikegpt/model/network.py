"""The whole network, Block and SpikeGPT: one class for spike-driven, published and dense models.

What a half of a block is, mixers/ say. Parameter names and shapes are those of the official checkpoints. One neuron
step is one token.
Sources: github.com/BlinkDL/RWKV-LM, RWKV-v4neo/src/model.py; github.com/ridgerchu/SpikeGPT, src/model.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..common.memory import check_fits
from ..config import ModelConfig
from ..kernels import dropout
from ..kernels.surrogates import heaviside
from ..neuron.lif import LIF
from ..neuron.proof import check_neuron
from .initial import initialise
from .mixers import MIXERS, Mixer, NeuronFactory, Rows, Site, product_of, weights_of
from .perspectives import Perspectives, as_rows, as_texts, spikes_of_texts
from .published import rescale_stream
from .state import BlockState, State, fault_of, form_of

# elements, 40 MB of float32
LITTLE = 10**7
# the binary embedding among the spikes, by the name of its module: it is no layer of neurons
EMBEDDING = "emb"


class ModelOutput(NamedTuple):
    logits: Tensor
    state: State
    spikes: dict[str, Tensor]


class PlacedSite(NamedTuple):
    """A site of a model: whose it is, its neurons, and the matrix products that read their spikes."""

    block: int | None
    """None at the head"""
    half: str
    """att, ffn, or nothing at the head"""
    site: Site
    owner: nn.Module
    neuron: nn.Module
    products: tuple[nn.Linear | Rows, ...]


class BlockOutput(NamedTuple):
    """x (B, T, C); the state; block-relative site -> spikes; `Mixed.first` for the blocks above."""

    x: Tensor
    state: BlockState
    spikes: dict[str, Tensor]
    first: Tensor | None


class Block(nn.Module):
    """x + time_mix(ln1(x)), then x + channel_mix(ln2(x)).

    The spike-driven block (`input`) has neurons inside both halves, before every matrix product; the published block
    (`output`) has one layer of them after each half; the dense twin (`none`) has none.
    """

    att: Mixer
    ffn: Mixer

    def __init__(self, config: ModelConfig, layer: int, make_neuron: NeuronFactory):
        super().__init__()
        time_mix, channel_mix = MIXERS[config.mixer]
        if layer == 0:
            self.ln0 = nn.LayerNorm(config.n_embd)
        self.ln1 = nn.LayerNorm(config.n_embd)
        self.att = time_mix(config, make_neuron)
        self.ln2 = nn.LayerNorm(config.n_embd)
        self.ffn = channel_mix(config, make_neuron)
        if layer == 0:
            # processes that train together wait for the gradient of whatever learns
            self.att.become_first()
        self.sites: tuple[Site, ...] = ()
        if config.spiking == "output":
            names = "time_mix_neuron", "channel_mix_neuron"
            self.sites = tuple(Site(name, None, config.n_embd, config.neuron) for name in names)
            for site in self.sites:
                self.add_module(site.name, make_neuron(site))

    def forward(self, x: Tensor, state: BlockState | None, first: Tensor | None = None) -> BlockOutput:
        before = state or BlockState(None, None, None, None)
        given = (first,) if self.att.takes_first else ()
        mixed, time_mix, inner, first = self.att(self.ln1(x), before.time_mix, *given)
        spikes = {f"att.{site}": spike for site, spike in inner.items()}
        mixed, time_mix_neuron = self._fire("time_mix_neuron", mixed, before.time_mix_neuron, spikes)
        x = x + mixed
        mixed, channel_mix, inner, _ = self.ffn(self.ln2(x), before.channel_mix)
        spikes |= {f"ffn.{site}": spike for site, spike in inner.items()}
        mixed, channel_mix_neuron = self._fire("channel_mix_neuron", mixed, before.channel_mix_neuron, spikes)
        after = BlockState(time_mix, time_mix_neuron, channel_mix, channel_mix_neuron)
        return BlockOutput(x + mixed, after, spikes, first)

    def _fire(self, site: str, current: Tensor, before: Any, spikes: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """(what is added to the stream, neuron state): spikes of the neurons behind a half, noted, or the current."""
        neuron = self._modules.get(site)
        if neuron is None:
            return current, None
        spikes[site], after = neuron(current, before)
        return spikes[site], after


def our_neuron(site: Site) -> LIF:
    """Return our LIF with the neuron that is meant at `site`."""
    return LIF(site.channels, site.neuron)


def _proven(factory: NeuronFactory, site: Site) -> nn.Module:
    """Return what the caller's factory makes for a site, once it has shown that it is a neuron."""
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ValueError(
            f"neuron is {factory!r:.80}; want a function that makes a new module for every site: "
            "lambda site: LIF(site.channels, site.neuron)"
        )
    neuron = factory(site)
    if not isinstance(neuron, LIF):
        check_neuron(neuron, site.channels)
    return neuron


def parameters_of(config: ModelConfig) -> int:
    """Return how many parameters a model of this configuration has, without making it."""
    C, V = config.n_embd, config.vocab_size
    with torch.device("meta"):
        first, other = (_size(Block(config, layer, our_neuron)) for layer in (0, 1))
    joining = config.perspectives * C if config.perspectives > 1 else 0
    return first + (config.n_layer - 1) * other + 2 * V * C + 2 * C + joining + (C if config.spiking_head else 0)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def check_sizes(config: ModelConfig, copies: int = 1, tokens: int = 0) -> None:
    """Raise ValueError unless `copies` of a model's parameters fit into the free memory, and what `tokens` leave there.

    The latter is a lower bound: the logits and their gradient, and what the products of every block read.
    """
    C, V = config.n_embd, config.vocab_size
    elements = tokens * (2 * V + config.perspectives * config.n_layer * (7 * C + config.n_ffn))
    # what no machine lacks is not worth counting
    if config.n_layer * C * C + V * C > LITTLE:
        elements += copies * parameters_of(config)
    if elements > LITTLE and torch.get_default_device().type != "meta":
        sizes = f"n_layer {config.n_layer}, n_embd {C}, vocab_size {V}" + (
            f", {tokens:,} tokens at once" if tokens else ""
        )
        check_fits(elements * torch.get_default_dtype().itemsize, f"a model of {sizes}", "take less of them")


class SpikeGPT(nn.Module):
    """A language model of RWKV blocks whose products read spikes, whose outputs are spikes, or its dense twin.

    Args:
        config: sizes and `spiking`; the configuration of our own neurons.
        neuron: makes the neurons of every `Site` (its channels, the neuron meant there) in the place of our LIF, e.g.
            `lambda site: SpikingJellyNeuron(...)`.
        init: fill every parameter with RWKV's initialisation; False leaves them for a checkpoint to fill.

    Raises:
        ValueError: no ModelConfig, an unknown mixer, a factory that makes no neurons (see `neuron.proof`), or a model
            larger than the memory that is there.
    """

    head_neuron: nn.Module

    def __init__(self, config: ModelConfig, neuron: NeuronFactory | None = None, init: bool = True):
        super().__init__()
        if not isinstance(config, ModelConfig):
            raise ValueError(
                f"config is a {type(config).__name__}, want a ModelConfig; ModelConfig.from_dict makes one"
            )
        if config.mixer not in MIXERS:
            raise ValueError(f"mixer is {config.mixer!r}; known: {', '.join(MIXERS)}")
        check_sizes(config)
        self.config = config
        # False for a run that began when torch drew for every number: it goes on with the same draws
        self.seeded_dropout = True
        # of weights of a few bits: matrix -> its steps (out,), see quantised.py
        self.weight_steps: dict[str, Tensor] = {}
        # of the first block and the last, known after the first forward pass
        self._state_forms: tuple[Any, Any] | None = None
        make_neuron = partial(_proven, neuron) if neuron is not None else our_neuron
        self.emb = nn.Embedding(config.vocab_size, config.n_embd)
        blocks = nn.ModuleList(Block(config, layer, make_neuron) for layer in range(config.n_layer))
        # a module list that says what is in it
        self.blocks = cast(Sequence[Block], blocks)
        self.ln_out = nn.LayerNorm(config.n_embd)
        if config.perspectives > 1:
            self.convert3 = Perspectives(config.n_embd, config.perspectives)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.head_site: Site | None = None
        if config.spiking == "input" and config.spiking_head:
            self.head_site = Site("head_neuron", "head", config.n_embd, config.head_neuron)
            self.head_neuron = make_neuron(self.head_site)
        if config.rescale_every:
            rescale_stream(self.blocks, config.rescale_every)
        if init:
            initialise(self)

    def forward(self, ids: Tensor, state: State | None = None, *, last_only: bool = False) -> ModelOutput:
        """Return the logits of the next token at every position, the state after the last, and the spikes.

        Args:
            ids: (B, T) whole numbers in [0, vocab_size).
            state: carried in from the tokens before; None at the start of a text.
            last_only: compute the logits of the last position only, (B, 1, vocab_size).

        Returns:
            logits (B, T, vocab_size); state; spikes: name of the emitting module -> (B, T, C), of all perspectives
            beside each other, in order, empty if dense.

        Raises:
            ValueError: ids are not (B, T) whole numbers or lie outside the vocabulary; the state is another model's, or
                of another number of texts.
        """
        x, new_state, spikes = self.hidden(ids, state)
        return ModelOutput(self.read_out(x[:, -1:] if last_only else x, spikes), new_state, spikes)

    def read_out(self, x: Tensor, spikes: dict[str, Tensor]) -> Tensor:
        """Return logits (B, T, vocab_size) of x (B, T, n_embd) from `hidden`; adds the head's spikes to `spikes`.

        Raises:
            ValueError: the head's neurons, which a factory made, carry a state.
        """
        if self.head_site is not None:
            x, carried = self.head_neuron(x)
            if carried is not None:
                raise ValueError(
                    f"the neurons of the head ({type(self.head_neuron).__name__}) carry a state, which belongs to the "
                    "blocks: let the factory return memoryless ones where site.name is 'head_neuron'"
                )
            spikes[self.head_site.name] = x
        return self.head(x)

    def hidden(self, ids: Tensor, state: State | None = None) -> tuple[Tensor, State, dict[str, Tensor]]:
        """Return (what the head or its neurons read (B, T, n_embd); state; spikes), as `forward` would."""
        return self.hidden_of(self.embed(ids), state)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the rows (B, T, n_embd) of the embedding; ValueError as in `forward`."""
        return self.emb(self._checked_ids(ids))

    def hidden_of(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State, dict[str, Tensor]]:
        """Return what `hidden` does, of embeddings (B, T, n_embd)."""
        self.check_state(state, len(x))
        spikes = {}
        if self.has_binary_embedding:
            x = spikes[EMBEDDING] = heaviside(x, "atan", 2.0)
        x = self.blocks[0].ln0(x)
        P = self.config.perspectives
        if P > 1:
            x = x.repeat(P, 1, 1)
        new_state, first = [], None
        for layer, block in enumerate(self.blocks):
            before = as_rows(state[layer], P) if state is not None else None
            x, layer_state, emitted, first = block(x, before, first)
            if self.training:
                x = dropout(x, self.config.dropout, "auto" if self.seeded_dropout else "reference")
            new_state.append(as_texts(layer_state, P))
            spikes |= {f"blocks.{layer}.{name}": spikes_of_texts(spike, P) for name, spike in emitted.items()}
        if self._state_forms is None:
            self._state_forms = form_of(new_state[0]), form_of(new_state[-1])
        x, after = self.ln_out(x), tuple(new_state)
        return self.convert3(x, after) if P > 1 else x, after, spikes

    def check_state(self, state: State | None, texts: int) -> None:
        """Raise ValueError unless `state` is one of this model, of so many texts."""
        if state is None or torch.compiler.is_compiling():
            return
        if self._state_forms is None:
            # the first forward pass of all says what a state of this model is
            with torch.no_grad(), evaluating(self):
                self.hidden(torch.zeros(1, 1, dtype=torch.long, device=self.device))
        if not isinstance(state, tuple | list):
            raise ValueError(f"the state does not fit: it holds a {type(state).__name__}, want what a model returned")
        if len(state) != len(self.blocks):
            fault: str | None = f"it has {len(state)} layers, the model {len(self.blocks)}"
        else:
            # all blocks but the first are alike
            assert self._state_forms is not None
            first, last = self._state_forms
            fault = fault_of(state[0], first, texts) or fault_of(state[-1], last, texts)
        if fault is not None:
            raise ValueError(f"the state does not fit: {fault}; carry on with what this model returned for these texts")

    def _checked_ids(self, ids: Tensor) -> Tensor:
        if not isinstance(ids, Tensor):
            raise ValueError(f"ids must be a tensor (B, T) of whole numbers, got a {type(ids).__name__}")
        is_whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
        if ids.dim() != 2 or 0 in ids.shape or not is_whole:
            raise ValueError(f"ids must be (B, T) whole numbers with no empty side, got {ids.dtype} {tuple(ids.shape)}")
        if ids.dtype not in (torch.int32, torch.int64):
            # the embedding takes no smaller ones
            ids = ids.long()
        if ids.is_cuda or ids.is_meta or torch.compiler.is_compiling():
            # looking at the values would make the GPU wait; the embedding's own check reports there
            return ids
        lowest, highest = (int(value) for value in ids.aminmax())
        if lowest < 0 or highest >= self.config.vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(
                f"token id {wrong} is outside the vocabulary [0, {self.config.vocab_size}); "
                "is this the model's own tokenizer?"
            )
        return ids

    @property
    def has_binary_embedding(self) -> bool:
        """Whether the embedding passes through a step, as in the published training."""
        return self.config.spiking == "output" and self.config.binary_embedding

    def sites(self) -> dict[str, PlacedSite]:
        """Return every layer of neurons by the name of its module, in the order in which they fire."""
        found = {}

        def place(path: str, block: int | None, half: str, owner: nn.Module, site: Site) -> None:
            readers = (product_of(owner, name) for name in site.products)
            products = tuple(reader for reader in readers if reader is not None)
            found[path + site.name] = PlacedSite(block, half, site, owner, getattr(owner, site.name), products)

        for layer, block in enumerate(self.blocks):
            path = f"blocks.{layer}."
            for half, mixer in (("att", block.att), ("ffn", block.ffn)):
                for site in mixer.sites:
                    place(f"{path}{half}.", layer, half, mixer, site)
            for half, site in zip(("att", "ffn"), block.sites, strict=False):
                place(path, layer, half, block, site)
        if self.head_site is not None:
            place("", None, "", self, self.head_site)
        return found

    def synapses(self) -> dict[str, int]:
        """Return layer whose spikes matrix products read -> number of their weights; empty unless `input`.

        A spike costs as many synaptic operations as it has synapses, so these are the weights of a mean firing rate.
        Those in blocks count once for each perspective that reads them.
        """
        return {
            name: sum(map(weights_of, placed.products)) * (1 if placed.block is None else self.config.perspectives)
            for name, placed in self.sites().items()
            if placed.products
        }

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the head may be another's, the embedding is always here."""
        return self.emb.weight.device

    def count_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within this block the model is in evaluation mode; afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def time_mix_inputs(model: SpikeGPT, ids: Tensor) -> list[Tensor]:
    """Return what the first half of each block is given, (B, T, C), when `model` reads ids (B, T)."""
    found: list[Tensor] = []
    hooks = [block.att.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])) for block in model.blocks]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found
