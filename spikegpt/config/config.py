"""The configuration of a model, of its neurons and of a training run, and the presets. Imports nothing heavy.

Every class is frozen, keyword-only and checked when made; `from_dict` refuses unknown keys.
Names are RWKV's (`n_layer, n_embd, ctx_len, vocab_size`).
"""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal, Self

SPIKING = ("none", "output", "input")


class _Config:
    """What every configuration can do: become a plain dictionary, and come back from one."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the configuration that `values` describes; missing keys take their defaults.

        Raises:
            ValueError: a key is unknown, or a value is out of range.
        """
        fields = {item.name: item for item in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
                raise ValueError(f"{cls.__name__} has no key {key!r}; {hint}")
        nested = {"neuron": NeuronConfig}
        return cls(
            **{
                key: nested[key].from_dict(value) if key in nested and value is not None else value
                for key, value in values.items()
            }
        )


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _is_number(text: str) -> bool:
    """Whether `text` is a finite number of at least 0."""
    try:
        return 0 <= float(text) < float("inf")
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class NeuronConfig(_Config):
    """One leaky integrate-and-fire neuron; the defaults are the published SpikeGPT's. Equations:
    `kernels/lif/reference.py`, `kernels/integer_lif/reference.py`.

    With `levels` above 1 or `signed` it is an integer neuron: it may fire several unit spikes within one token, and
    negative ones (ON/OFF pairs). Its alphabet is -levels..levels or 0..levels, its surrogate straight-through
    ("rectangular", slope 1), and no gradient flows through its reset.
    """

    membrane_decay: float = 0.5
    """fraction of the potential kept per step = 1 - 1/tau"""
    threshold: float = 1.0
    """a neuron fires when its potential is >= this"""
    reset: Literal["zero", "subtract"] = "zero"
    """after a spike: back to reset_potential, or minus the threshold"""
    reset_potential: float = 0.0
    """resting potential; must be 0 for reset "subtract" """
    decay_input: bool = True
    """multiply the input current by 1 - membrane_decay"""
    detach_reset: bool = False
    """keep gradients from flowing through the reset"""
    surrogate: Literal["atan", "sigmoid", "fast_sigmoid", "rectangular"] = "atan"
    """derivative used for the step in the backward pass"""
    slope: float = 2.0
    """steepness of the surrogate (alpha of atan)"""
    learnable_decay: bool = False
    """one trained membrane_decay per channel, starting at the one above"""
    learnable_threshold: bool = False
    """one trained threshold per channel, starting at the one above"""
    levels: int = 1
    """most unit spikes per token"""
    signed: bool = False
    """negative spikes too: ON/OFF pairs, where a spike adds or subtracts"""

    def __post_init__(self):
        lowest, highest = (
            ("above 0", "below 1")
            if self.learnable_decay
            else ("at least 0", "below 1" if self.decay_input else "at most 1")
        )
        decay = self.membrane_decay
        fits = 0 < decay < 1 if self.learnable_decay else 0 <= decay < 1 or (decay == 1 and not self.decay_input)
        _check(
            fits, f"membrane_decay must be {lowest} and {highest}, got {decay}; tau = 2 steps is membrane_decay = 0.5"
        )
        _check(self.reset in ("zero", "subtract"), f"reset must be 'zero' or 'subtract', got {self.reset!r}")
        _check(
            self.threshold > self.reset_potential,
            f"threshold ({self.threshold}) must exceed reset_potential ({self.reset_potential})",
        )
        _check(
            self.reset == "zero" or self.reset_potential == 0, "reset 'subtract' rests at 0: reset_potential must be 0"
        )
        surrogates = ("atan", "sigmoid", "fast_sigmoid", "rectangular")
        _check(
            self.surrogate in surrogates, f"surrogate must be one of {', '.join(surrogates)}, got {self.surrogate!r}"
        )
        _check(self.slope > 0, f"slope must be positive, got {self.slope}")
        _check(
            isinstance(self.levels, int) and 1 <= self.levels <= 127,
            f"levels must be a whole number from 1 to 127, got {self.levels!r}",
        )
        if self.is_integer:
            kind = f"an integer neuron (levels={self.levels}, signed={self.signed})"
            _check(
                self.reset_potential == 0, f"{kind} rests at 0: reset_potential must be 0, got {self.reset_potential}"
            )
            straight = self.surrogate == "rectangular" and self.slope == 1 and self.detach_reset
            _check(
                straight,
                f"{kind} is trained straight through: it needs surrogate='rectangular', slope=1, detach_reset=True",
            )
        _check(
            not self.learnable_threshold or self.reset_potential == 0, "a learnable threshold needs reset_potential 0"
        )

    @property
    def is_integer(self) -> bool:
        return self.levels > 1 or self.signed

    @property
    def alphabet(self) -> tuple[int, int]:
        """Lowest and highest spike: (0, 1) is binary, (-1, 1) ternary."""
        return (-self.levels if self.signed else 0), self.levels

    @property
    def tau(self) -> float:
        """Membrane time constant in steps."""
        return 1 / (1 - self.membrane_decay) if self.membrane_decay < 1 else float("inf")

    @classmethod
    def from_tau(cls, tau: float, **options) -> Self:
        """Return the neuron whose time constant is `tau` steps: membrane_decay = 1 - 1/tau."""
        _check(tau >= 1, f"tau must be at least 1 step, got {tau}")
        return cls(membrane_decay=1 - 1 / tau, **options)


# the neuron of the spike-driven block: ON/OFF, up to four spikes a token, memoryless; what measured best in
# benchmarks/tradeoff.py
INPUT_NEURON = NeuronConfig(
    membrane_decay=0.0,
    reset="subtract",
    detach_reset=True,
    surrogate="rectangular",
    slope=1.0,
    learnable_threshold=True,
    levels=4,
    signed=True,
)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Config):
    """The shape of a network. The dense twin of a model is the same configuration with `spiking="none"`."""

    n_layer: int = 4
    n_embd: int = 128
    ctx_len: int = 128
    """tokens per training window; the model itself has no longest text"""
    vocab_size: int = 256
    """training replaces it by the tokenizer's"""
    mixer: str = "rwkv4"
    """generation of both halves of a block"""
    spiking: Literal["none", "output", "input"] = "input"
    """none: dense RWKV-4; output: published SpikeGPT, neurons on the output of each half block; input: spike-driven,
    neurons before every matrix product of a block"""
    dropout: float = 0.03
    """on the residual stream after each block, as published"""
    hidden_levels: int = 8
    """input only: most unit spikes per token of a hidden neuron of the channel mix, which is never negative"""
    spiking_head: bool = False
    """input only: the head reads spikes too. It costs a little quality, and pays where the vocabulary is large"""
    binary_embedding: bool = True
    """output only: the embedding passes through a step, as in the published training. The published inference of the
    216M model leaves it out; False does so too"""
    rescale_every: int = 0
    """none and output: as in published inference, halve the residual stream after every so many layers, and divide what
    layer l adds to it by 2^(l // rescale_every). Exact for dense RWKV-4; before a neuron it weakens the current. 0:
    never"""
    neuron: NeuronConfig = None
    """the neuron; left out, it is the published one for output, INPUT_NEURON for input"""

    def __post_init__(self):
        if self.neuron is None:
            object.__setattr__(self, "neuron", default_neuron(self.spiking))
        for name in ("n_layer", "n_embd", "ctx_len", "vocab_size"):
            value = getattr(self, name)
            _check(isinstance(value, int) and value >= 1, f"{name} must be a whole number of at least 1, got {value!r}")
        _check(self.spiking in SPIKING, f"spiking must be one of {', '.join(SPIKING)}, got {self.spiking!r}")
        rescale = self.rescale_every
        _check(
            isinstance(rescale, int) and rescale >= 0,
            f"rescale_every must be a whole number of at least 0, got {rescale!r}",
        )
        _check(
            not rescale or self.spiking != "input",
            "rescale_every is of published inference; the spike-driven block has none",
        )
        _check(0 <= self.dropout < 1, f"dropout must lie in [0, 1), got {self.dropout}")
        levels = self.hidden_levels
        _check(
            isinstance(levels, int) and 1 <= levels <= 127,
            f"hidden_levels must be a whole number from 1 to 127, got {levels!r}",
        )

    @property
    def n_ffn(self) -> int:
        """Width of the channel mix: four times n_embd, as in every released RWKV-4."""
        return 4 * self.n_embd

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


def default_neuron(spiking: str) -> NeuronConfig:
    """Return the neuron that a block has if none is given."""
    return INPUT_NEURON if spiking == "input" else NeuronConfig()


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Config):
    """How a run trains. The optimiser's defaults are the published ones (Adam, RWKV's learning-rate groups)."""

    data: tuple[str, ...] = ("python-docs",)
    """python-docs (built in), or text or JSONL files, or a folder, or tokens: PREFIX.bin with its PREFIX.idx"""
    text_column: str = "text"
    """of JSONL files: the key that holds a document's text"""
    tokenizer: str = "byte"
    """byte, char, bpe, or the path of a `tokenizers` JSON file"""
    bpe_vocab_size: int = 4096
    """size of the vocabulary that "bpe" trains"""
    steps: int = 1000
    """optimizer steps"""
    batch_size: int = 16
    """windows per process and micro step"""
    grad_accumulation: int = 1
    """micro steps per optimizer step"""
    lr: float = 3e-3
    lr_final: float = 1e-4
    """end of the cosine"""
    warmup_steps: int = 50
    betas: tuple[float, float] = (0.9, 0.99)
    adam_eps: float = 1e-8
    weight_decay: float = 0.0
    """decoupled, on matrices only"""
    grad_clip: float = 1.0
    """largest global gradient norm; 0 turns it off"""
    l2wrap: float = 0.0
    """RWKV's L2Wrap, 1e-4 in the published code: pulls the largest logit towards 0"""
    carry_state: bool = False
    """truncated backpropagation: read the text in order and carry the state from window to window"""
    firing_rate_target: float | None = None
    """adds firing_rate_weight * mean over neuron layers of (rate - target)^2 to the loss"""
    firing_rate_weight: float = 1.0
    synop_budget: float = 0.2
    """largest share of the dense matrix products that spikes may cost: adds synop_weight * (share - budget) to the loss
    while the firing rate, weighted by synapses, is above it. Acts on the input block only; 0 turns it off"""
    synop_weight: float = 5.0
    """at a budget of 0.2 or more; below, it grows as the budget shrinks, so that an excess counts in proportion"""
    synop_warmup: float = 0.5
    """share of the steps over which the budget shrinks from 1 to synop_budget"""
    teacher: str | None = None
    """folder of a trained run, the dense twin for instance, whose predictions are learned beside the text
    (distillation)"""
    teacher_weight: float = 0.5
    """share of the teacher in the loss: (1 - weight) * cross-entropy + weight * KL(teacher || model)"""
    freeze: tuple[str, ...] = ()
    """parameters that stay as they are, by name patterns: "emb.*", "blocks.[0-3].*", "*.att.*" """
    lr_scales: tuple[str, ...] = ()
    """PATTERN=FACTOR multiplies the learning rate of the parameters of these names, on top of RWKV's groups; the last
    that fits counts"""
    anneal: float = 0.0
    """share of the steps over which neurons begin to spike: the probability that one does grows from 0 to 1, until then
    it passes on the real number that its spikes stand for. For dense weights in a spiking model"""
    verify_spikes: bool = False
    """check at every step that each neuron emits its declared alphabet only"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """mixed precision, where the device has it"""
    seed: int = 0
    threads: int = 0
    """CPU threads; 0 leaves torch's choice. Bit-for-bit resuming needs the same number"""
    eval_every: int = 250
    """steps between evaluations on the valid split; 0 only at the end"""
    eval_tokens: int = 65_536
    """at most so many tokens of the valid split each time"""
    sample_every: int = 500
    """steps between samples of text; 0 never"""
    save_every: int = 250
    keep: int = 2
    """newest checkpoints kept, besides the best"""
    log_every: int = 10
    tensorboard: bool = False

    def __post_init__(self):
        # a configuration read from JSON brings lists
        for name in ("data", "betas", "freeze", "lr_scales"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check(len(self.data) > 0, "data names no text; give python-docs, files or a folder")
        for name in ("steps", "batch_size", "grad_accumulation", "keep", "log_every", "save_every"):
            _check(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "warmup_steps",
            "weight_decay",
            "grad_clip",
            "l2wrap",
            "firing_rate_weight",
            "threads",
            "eval_every",
            "sample_every",
        ):
            _check(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        _check(0 <= self.lr_final <= self.lr, f"want 0 <= lr_final <= lr, got lr_final {self.lr_final}, lr {self.lr}")
        _check(self.eval_tokens >= 2, f"eval_tokens must be at least 2, got {self.eval_tokens}")
        _check(self.bpe_vocab_size >= 257, f"bpe_vocab_size must be at least 257, got {self.bpe_vocab_size}")
        rate = self.firing_rate_target
        _check(rate is None or 0 < rate < 1, f"firing_rate_target must lie between 0 and 1, got {rate}")
        _check(0 <= self.synop_budget < 1, f"synop_budget must lie in [0, 1), got {self.synop_budget}")
        _check(self.synop_weight >= 0, f"synop_weight must not be negative, got {self.synop_weight}")
        _check(0 <= self.teacher_weight <= 1, f"teacher_weight must lie in [0, 1], got {self.teacher_weight}")
        _check(
            self.teacher is None or not self.carry_state,
            "a teacher reads each window from an empty state: leave out carry_state",
        )
        _check(0 <= self.synop_warmup <= 1, f"synop_warmup must lie in [0, 1], got {self.synop_warmup}")
        _check(0 <= self.anneal <= 1, f"anneal must lie in [0, 1], got {self.anneal}")
        for entry in self.lr_scales:
            pattern, _, factor = entry.rpartition("=")
            _check(
                bool(pattern) and _is_number(factor),
                f"lr_scales wants PATTERN=FACTOR with a factor of at least 0, got {entry!r}",
            )
        _check(self.precision in ("no", "bf16", "fp16"), f"precision must be no, bf16 or fp16, got {self.precision!r}")


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(_Config):
    """How a classifier is fine-tuned."""

    epochs: int = 5
    lr: float = 5e-4
    batch_size: int = 32
    max_tokens: int = 512
    """longer texts lose their beginning, for the end is what the last token remembers best"""
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self):
        for name in ("epochs", "batch_size", "max_tokens"):
            _check(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        _check(self.lr >= 0, f"lr must not be negative, got {self.lr}")
        _check(len(self.seeds) > 0, "seeds names none; give at least one")


# the published optimiser settings: github.com/ridgerchu/SpikeGPT, src/train.py; the paper's 500 warm-up steps
_PUBLISHED = {"batch_size": 12, "lr": 6e-4, "lr_final": 1e-5, "warmup_steps": 500, "adam_eps": 4e-9, "l2wrap": 1e-4}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # about 1M parameters with bytes: the demo
    "tiny": {"model": {"n_layer": 4, "n_embd": 128, "ctx_len": 128, "vocab_size": 256}, "train": {}},
    # about 5M
    "small": {
        "model": {"n_layer": 6, "n_embd": 256, "ctx_len": 256, "vocab_size": 256},
        "train": {"steps": 2000, "batch_size": 8, "lr": 3e-3, "warmup_steps": 100},
    },
    # the paper's enwik8 model; its 46.1M parameters imply a vocabulary of about 5458 characters
    "spikegpt-46m": {
        "model": {"n_layer": 12, "n_embd": 512, "ctx_len": 1024, "vocab_size": 5458, "spiking_head": True},
        "train": {"steps": 100_000, **_PUBLISHED},
    },
    # the released OpenWebText model, with the GPT-NeoX 20B vocabulary
    "spikegpt-216m": {
        "model": {"n_layer": 18, "n_embd": 768, "ctx_len": 1024, "vocab_size": 50277, "spiking_head": True},
        "train": {"steps": 400_000, **_PUBLISHED},
    },
}


def model_preset(name: str, **changes) -> ModelConfig:
    """Return the ModelConfig of a preset, with `changes` applied; ValueError if no preset has this name."""
    return ModelConfig(**{**_preset(name)["model"], **changes})


def train_preset(name: str, **changes) -> TrainConfig:
    """Return the TrainConfig of a preset, with `changes` applied; ValueError if no preset has this name."""
    return TrainConfig(**{**_preset(name)["train"], **changes})


def _preset(name: str) -> dict[str, dict[str, Any]]:
    _check(name in PRESETS, f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
