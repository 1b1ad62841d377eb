"""How a run is trained, and how a classifier is fine-tuned. Nothing here says on which machine or device."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from .values import SEEDS, THREADS, Config, Range, check, is_number

Precision = Literal["auto", "no", "bf16", "fp16"]
Tracker = Literal["tensorboard", "wandb"]
# setting -> what it was before it was one: for the configurations of older runs, which lack it
BEFORE = {"optimizer": "adamw", "schedule": "cosine", "learn_in": "spikes"}


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """How a run trains. The optimiser's defaults are the published ones (Adam, RWKV's learning-rate groups)."""

    ranges: ClassVar[dict[str, Range]] = {
        **dict.fromkeys(("steps", "save_every", "log_every"), Range(1, 10**9)),
        **dict.fromkeys(("warmup_steps", "eval_every", "sample_every"), Range(0, 10**9)),
        "batch_size": Range(1, 2**20),
        "grad_accumulation": Range(1, 2**20),
        "keep": Range(1, 2**20),
        "eval_tokens": Range(2, 10**12),
        "bpe_vocab_size": Range(257, 2**20, "256 bytes and at least one pair; a vocabulary that large fits no text"),
        "threads": THREADS,
        "seed": SEEDS,
        **dict.fromkeys(("lr", "lr_final", "muon_lr", "weight_decay", "grad_clip", "l2wrap"), Range(0.0, math.inf)),
        **dict.fromkeys(
            ("firing_rate_weight", "synop_weight", "commitment", "teacher_features", "self_teacher"),
            Range(0.0, math.inf),
        ),
        **dict.fromkeys(
            ("betas", "muon_momentum", "adam_eps", "teacher_weight", "synop_warmup", "anneal", "decay_share"),
            Range(0.0, 1.0),
        ),
    }

    data: tuple[str, ...] = ("python-docs",)
    """python-docs (built in), or files of text, JSONL, CSV or TSV, or a folder, or tokens: PREFIX.bin with its
    PREFIX.idx"""
    text_column: str = "text"
    """of JSONL, CSV and TSV files: the key or column that holds a document's text"""
    tokenizer: str = "byte"
    """byte, char, bpe, or the path of a `tokenizers` JSON file or of RWKV World's vocabulary"""
    bpe_vocab_size: int = 4096
    """size of the vocabulary that "bpe" trains"""
    steps: int = 1000
    """optimizer steps"""
    batch_size: int = 16
    """windows per process and micro step"""
    grad_accumulation: int = 1
    """micro steps per optimizer step"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonalised updates (Muon) of the blocks' matrices, and AdamW of all else"""
    lr: float = 3e-3
    """of AdamW, after the warm-up"""
    lr_final: float = 1e-4
    """end of the schedule"""
    muon_lr: float = 0.02
    """of Muon, after the warm-up; it falls by the same schedule as lr"""
    muon_momentum: float = 0.95
    """of Muon (Nesterov's)"""
    learn_in: Literal["currents", "spikes"] = "currents"
    """units of the weights behind neurons while they learn. currents: a threshold that changes takes the weights with
    it, so that spikes resolve a current more or less finely and stand for as much; spikes: as weights are stored"""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """from lr to lr_final: half a cosine, or (warm-up, stable, decay) lr until the last decay_share of the steps, and a
    straight line from there"""
    decay_share: float = 0.4
    """of wsd"""
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
    commitment: float = 0.0
    """weight of the commitment loss: how far the currents of neurons lie from what their spikes stand for, as a share
    of their energy, mean over neuron layers. Acts on memoryless neurons of whole spikes, as the input block has"""
    teacher: str | None = None
    """folder of a trained run, the dense twin for instance, whose predictions are learned beside the text
    (distillation)"""
    teacher_weight: float = 0.5
    """share of the teacher in the loss: (1 - weight) * cross-entropy + weight * teacher_loss"""
    teacher_loss: Literal["kl", "reverse", "akl", "both"] = "kl"
    """what is learned of the teacher's predictions: KL(teacher || model), or reverse KL(model || teacher), or both in
    fixed shares, or the two weighed anew for every token (adaptive, akl)"""
    teacher_features: float = 0.0
    """weight of the squared distance from the teacher's stream after each block, both layer-normed; the teacher has as
    many blocks of the same width"""
    self_teacher: float = 0.0
    """weight of the cross-entropy of the model with its neurons left out. Above 0 that is the teacher: it reads each
    batch too and learns from the text, the model with its neurons from it (in-place distillation). No token more is
    read than without, in twice the time"""
    confident: float = 0.0
    """with weight_bits: only weights within so many levels of a boundary between two codes change, all others stay as
    they are; 0: all change. For the end of a training, --from a run of as many bits; 0.005 as published"""
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
    precision: Precision = "auto"
    """of the matrix products: no (float32), bf16, fp16 (on GPUs only), or auto: bf16 where the device has instructions
    for it and, on a CPU, is measured to be faster by a twentieth, else float32. A run chooses when it is new, and keeps
    to it"""
    seed: int = 0
    threads: int = 0
    """CPU threads, with which resuming is bit for bit; 0: torch's number, or fewer where those are measured to be
    faster, at the start and whenever the pace changes"""
    eval_every: int = 250
    """steps between evaluations on the valid split; 0 only at the end"""
    eval_tokens: int = 65_536
    """at most so many tokens of the valid split each time"""
    sample_every: int = 500
    """steps between samples of text; 0 never"""
    save_every: int = 250
    """steps between checkpoints; an evaluation writes one too"""
    keep: int = 2
    """newest checkpoints kept, besides the best"""
    log_every: int = 10
    log_with: tuple[Tracker, ...] = ()
    """besides metrics.jsonl: tensorboard, into the run's folder, or wandb, Weights & Biases"""
    tensorboard: bool = False
    """the same as log_with tensorboard"""

    @property
    def trackers(self) -> tuple[Tracker, ...]:
        """What is logged with, each once."""
        asked: tuple[Tracker, ...] = (*self.log_with, "tensorboard") if self.tensorboard else self.log_with
        return tuple(dict.fromkeys(asked))

    @property
    def has_budget(self) -> bool:
        """Whether an excess over synop_budget costs something."""
        return self.synop_budget > 0 and self.synop_weight > 0

    def __post_init__(self):
        super().__post_init__()
        check(len(self.data) > 0, "data names no text; give python-docs, files or a folder")
        for name in ("data", "text_column", "tokenizer", "teacher", "freeze"):
            value = getattr(self, name)
            parts = value if isinstance(value, tuple) else (value,)
            check("" not in parts, f"{name} is an empty string; give a name or a path")
        check(all(beta < 1 for beta in self.betas), f"betas must lie in [0, 1), got {self.betas}")
        check(self.muon_momentum < 1, f"muon_momentum must lie in [0, 1), got {self.muon_momentum}")
        check(0 <= self.lr_final <= self.lr, f"want 0 <= lr_final <= lr, got lr_final {self.lr_final}, lr {self.lr}")
        rate = self.firing_rate_target
        check(rate is None or 0 < rate < 1, f"firing_rate_target must lie between 0 and 1, got {rate}")
        check(0 <= self.synop_budget < 1, f"synop_budget must lie in [0, 1), got {self.synop_budget}")
        check(
            self.teacher is None or not self.carry_state,
            "a teacher reads each window from an empty state: leave out carry_state",
        )
        if self.self_teacher:
            check(self.teacher is None, "self_teacher and teacher are two teachers; leave out one")
            check(not self.carry_state, "self_teacher reads each window from an empty state: leave out carry_state")
            check(
                self.teacher_features == 0,
                "teacher_features pull the stream of self_teacher, which has the same weights, to nothing; leave it 0",
            )
            check(self.anneal == 0, "self_teacher leaves out all neurons in a pass of its own; leave anneal 0")
        for entry in self.lr_scales:
            pattern, _, factor = entry.rpartition("=")
            check(
                bool(pattern) and is_number(factor),
                f"lr_scales wants PATTERN=FACTOR with a factor of at least 0, got {entry!r}",
            )


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(Config):
    """How a classifier is fine-tuned."""

    ranges: ClassVar[dict[str, Range]] = {
        "epochs": Range(1, 10**6),
        "lr": Range(0.0, math.inf),
        "batch_size": Range(1, 2**20),
        "max_tokens": Range(1, 2**24),
        "seeds": SEEDS,
    }

    epochs: int = 5
    lr: float = 5e-4
    batch_size: int = 32
    max_tokens: int = 512
    """longer texts lose their beginning, for the end is what the last token remembers best"""
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self):
        super().__post_init__()
        check(len(self.seeds) > 0, "seeds names none; give at least one")
        check(len(set(self.seeds)) == len(self.seeds), f"seeds names one twice: {self.seeds}")
