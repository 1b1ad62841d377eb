"""The shape of a network and which of its parts spike. Names are RWKV's (`n_layer, n_embd, ctx_len, vocab_size`)."""

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast

from .neuron import INPUT_NEURON, NeuronConfig
from .values import Config, Range, check

Spiking = Literal["none", "output", "input"]
SPIKING: tuple[Spiking, ...] = ("none", "output", "input")
# of weights: float32 numbers, and the formats of `model.quantised`
WEIGHT_BITS = 32, 8, 4, 3, 2, 1.58
# mixers with a matrix in every head
HEADED = "rwkv5", "rwkv6", "rwkv7"
# mixer -> what its pairs of matrices of few inner channels are for
LORA_PAIRS = {"rwkv6": ("token mixes", "decay"), "rwkv7": ("w", "a", "v", "g")}


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """The shape of a network. The dense twin of a model is the same configuration with `spiking="none"`."""

    nested: ClassVar[dict[str, type[Config]]] = {"neuron": NeuronConfig}
    ranges: ClassVar[dict[str, Range]] = {
        "n_layer": Range(1, 1024),
        "n_embd": Range(1, 65_536),
        "ctx_len": Range(1, 2**24),
        "vocab_size": Range(1, 2**24),
        "dropout": Range(0.0, 1.0),
        "head_size": Range(1, 1024),
        "lora_ranks": Range(1, 65_536),
        "n_head": Range(1, 1024),
        "n_kv_head": Range(0, 1024),
        "elite_pairs": Range(0, 512),
        "kv_dim": Range(0, 65_536),
        "hidden_levels": Range(1, 127),
        "perspectives": Range(1, 64),
        "rescale_every": Range(0, 1024),
    }

    n_layer: int = 4
    n_embd: int = 128
    ctx_len: int = 128
    """tokens per training window; the model itself has no longest text"""
    vocab_size: int = 256
    """training replaces it by the tokenizer's"""
    mixer: str = "rwkv4"
    """what both halves of a block are: a generation of RWKV, or attention, the dense baseline"""
    head_size: int = 64
    """rwkv5, rwkv6 and rwkv7: channels of a head, whose state is a matrix of them; divides n_embd"""
    lora_ranks: tuple[int, ...] = ()
    """rwkv7 and rwkv6: inner channels of the four pairs of matrices w, a, v and g, or of the two of token mixes and
    decay; left out, as published for n_embd"""
    n_head: int = 4
    """attention only: heads; divides n_embd into an even number of channels each"""
    n_kv_head: int = 0
    """attention only: heads of keys and values, each read by n_head / n_kv_head heads; divides n_head. 0: as many"""
    elite_pairs: int = 0
    """attention only: pairs of channels of a head that its position turns (EliteKV), chosen with --from; 0: all"""
    kv_dim: int = 0
    """attention only, with elite_pairs: numbers per token that all other keys and all values are made of"""
    perspectives: int = 1
    """rwkv4 only: streams that read each text with token mixes of their own and share all else; what they predict is
    weighed token by token (Multiple Temporal Perspectives). Begin with a trained model: --from"""
    spiking: Spiking = "input"
    """none: dense; output: published SpikeGPT, neurons on the output of each half block; input: spike-driven,
    neurons before every matrix product of a block"""
    dropout: float = 0.03
    """on the residual stream after each block, as published"""
    hidden_levels: int = 16
    """input only: most unit spikes per token of a hidden neuron of the channel mix, which is never negative"""
    spiking_head: bool = False
    """input only: the head reads spikes too. It costs a little quality, and pays where the vocabulary is large"""
    shared_neurons: bool = False
    """rwkv4, input only: key, value and receptance of a half block read the same neurons, not each its own"""
    state_neurons: bool = False
    """rwkv7, input only: receptance and key are spikes too; the state is read and edited at their events alone"""
    binary_embedding: bool = True
    """output only: the embedding passes through a step, as in the published training. The published inference of the
    216M model leaves it out; False does so too"""
    weight_bits: float = 32
    """of the matrices in the blocks: 8, 4, 3, 2, 1.58 (ternary), or 32, which are float32 numbers; the embedding and
    the head have 8 then. They are learned as they will be used, each as a whole number of steps of its output"""
    rescale_every: int = 0
    """none and output: as in published inference, halve the residual stream after every so many layers, and divide what
    layer l adds to it by 2^(l // rescale_every). Exact for dense RWKV-4; before a neuron it weakens the current. 0:
    never"""
    # None until __post_init__ has looked at `spiking`; whoever reads it finds a neuron
    neuron: NeuronConfig = field(default=cast(NeuronConfig, None))
    """the neuron; left out, it is the published one for output, INPUT_NEURON for input"""

    def __post_init__(self):
        if vars(self)["neuron"] is None and self.spiking in SPIKING:
            object.__setattr__(self, "neuron", default_neuron(self.spiking))
        super().__post_init__()
        check(
            not self.rescale_every or self.spiking != "input",
            "rescale_every is of published inference; the spike-driven block has none",
        )
        check(
            self.weight_bits in WEIGHT_BITS,
            f"weight_bits must be one of {', '.join(f'{bits:g}' for bits in WEIGHT_BITS)}, got {self.weight_bits:g}",
        )
        check(
            not self.shared_neurons or self.mixer == "rwkv4",
            f"shared_neurons is of the mixer rwkv4, not of {self.mixer}; leave it out",
        )
        check(
            self.perspectives == 1 or self.mixer == "rwkv4",
            f"perspectives is of the mixer rwkv4, not of {self.mixer}; leave it out",
        )
        # of another mixer they are idle
        pairs = LORA_PAIRS.get(self.mixer, LORA_PAIRS["rwkv7"])
        check(
            len(self.lora_ranks) in (0, len(pairs)),
            f"lora_ranks are {len(pairs)}, of the pairs {', '.join(pairs[:-1])} and {pairs[-1]}, or none; "
            f"got {len(self.lora_ranks)}",
        )
        check(
            not self.state_neurons or self.mixer == "rwkv7",
            f"state_neurons is of the mixer rwkv7, not of {self.mixer}; leave it out",
        )
        check(
            self.mixer not in HEADED or self.n_embd % self.head_size == 0,
            f"n_embd is {self.n_embd}, no multiple of head_size {self.head_size}; give a --head-size that divides it",
        )
        if self.mixer == "attention":
            self._check_attention()
        check(self.dropout < 1, f"dropout must lie in [0, 1), got {self.dropout}")

    def _check_attention(self) -> None:
        check(
            self.spiking == "none",
            f"mixer attention is the dense baseline, got spiking {self.spiking!r}: its products are of real queries, "
            "keys and probabilities, which no neuron makes sparse; give --spiking none",
        )
        check(
            self.n_embd % self.n_head == 0 and self.n_embd // self.n_head % 2 == 0,
            f"n_embd {self.n_embd} is not cut by n_head {self.n_head} into heads of an even number of channels, whose "
            "pairs turn with the position; give another --n-head",
        )
        check(
            self.n_head % self.kv_heads == 0,
            f"n_head is {self.n_head}, no multiple of n_kv_head {self.n_kv_head}; give a --n-kv-head that divides it",
        )
        check(not self.rescale_every, "rescale_every is of the published inference of RWKV; mixer attention has none")
        pairs = self.n_embd // self.n_head // 2
        check(
            (self.elite_pairs == 0) == (self.kv_dim == 0),
            f"elite_pairs {self.elite_pairs} and kv_dim {self.kv_dim}: one is nothing without the other; give both",
        )
        check(self.elite_pairs <= pairs, f"elite_pairs is {self.elite_pairs}, a head has {pairs} pairs; give fewer")
        check(
            not self.elite_pairs or self.kv_heads == self.n_head,
            f"elite_pairs is of heads with keys of their own; n_kv_head {self.n_kv_head} shares them, leave it out",
        )
        check(
            self.kv_dim <= self.n_embd,
            f"kv_dim is {self.kv_dim}, more than the {self.n_embd} numbers that it is made of; give at most n_embd",
        )

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, of the mixer attention."""
        return self.n_kv_head or self.n_head

    @property
    def n_ffn(self) -> int:
        """Width of the hidden layer of a block's second half."""
        return ffn_width(self.mixer, self.n_embd)

    def twin(self) -> "ModelConfig":
        """Return the dense twin's configuration."""
        return dataclasses.replace(self, spiking="none")

    @property
    def hidden_neuron(self) -> NeuronConfig:
        """The neuron of the channel mix's hidden layer in the `input` block: as the others, but never negative."""
        hidden = dataclasses.replace(self.neuron, levels=1, signed=False)
        if self.hidden_levels == 1:
            return hidden
        return dataclasses.replace(
            hidden, levels=self.hidden_levels, surrogate="rectangular", slope=1.0, detach_reset=True
        )

    @property
    def head_neuron(self) -> NeuronConfig:
        """The neuron before a spiking head: as the others, but memoryless, for the state belongs to the blocks."""
        return dataclasses.replace(self.neuron, membrane_decay=0.0, learnable_decay=False)


def ffn_width(mixer: str, n_embd: int) -> int:
    """Return the width of the hidden layer of a block's second half.

    4 n_embd, of RWKV-5 and -6 3.5 n_embd in whole 32s, as in released models; 4.5 n_embd behind attention, whose layer
    has as many weights then as RWKV-4's.
    """
    if mixer == "attention":
        return 9 * n_embd // 2
    return max(7 * n_embd // 64, 1) * 32 if mixer in ("rwkv5", "rwkv6") else 4 * n_embd


def default_neuron(spiking: str) -> NeuronConfig:
    """Return the neuron that a block has if none is given."""
    return INPUT_NEURON if spiking == "input" else NeuronConfig()
