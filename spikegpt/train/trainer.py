"""Training into a run folder: one program for one or several processes, GPUs and nodes (`accelerate launch`).

A run that is killed at any moment and resumed ends with the weights of the unbroken run, byte for byte, on the same
machine with the same number of threads and processes: weights, optimizer, random generators, sampler position and
carried state are all in the checkpoint, and nothing else decides what a step does.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..checkpoint import run as ckpt
from ..checkpoint.shipped import from_everywhere, shipped_folder
from ..checkpoint.weights import open_model
from ..common.errors import SpikegptError, warn_on_stderr
from ..common.files import locked, to_path
from ..common.printing import command
from ..common.threads import Pace, fastest_threads, use_threads
from ..config import ModelConfig, SamplingConfig, TrainConfig
from ..config.effects import doubts
from ..evaluate.perplexity import Evaluation
from ..generate.stream import generate
from ..model.mixers import NeuronFactory
from ..model.network import SpikeGPT
from ..model.quantised import FULL
from ..neuron import verified_spikes
from .basis import check_facts, facts_of, keep_places, prepare_data, with_absolute_paths, with_places
from .beginning import make_accelerator, make_model
from .callbacks import Audience, Callback, checked_callbacks
from .language_modelling import LanguageModelling
from .latent import latent_of, start_latent
from .loop import Loop, StepDone
from .optimizer import make_optimizer
from .precision import Choice, agree_on_precision
from .resuming import load_training, save_training
from .runlog import RunLog
from .sharding import wants_shards
from .trackers import begin_tracking

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: the folder, steps done, the last evaluation, whether it stopped before its last step.

    And whether this process is the one that speaks (with several processes, only the main one evaluates and
    reports). `signal` is the one that stopped it, None where a callback did, or where it reached another process.
    """

    run: Path
    step: int
    valid: Evaluation | None
    interrupted: bool
    is_main: bool
    signal: int | None = None


def train(
    model_config: ModelConfig,
    train_config: TrainConfig,
    run: str | Path,
    *,
    start: Path | None = None,
    neuron: NeuronFactory | None = None,
    cache: Path | None = None,
    quiet: bool = False,
    device: str = "auto",
    shard: bool = False,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train a new model into the folder `run`. The vocabulary size is the tokenizer's.

    Args:
        start: folder of a run, of a checkpoint or of an imported model whose weights the model begins with, and whose
            vocabulary size it takes. Dense ones may go into a spiking model: see `convert.py`, and
                `TrainConfig.anneal`.
        device: auto, cpu, cuda or cuda:N; not part of the run, which may go on elsewhere.
        shard: each of several processes holds a share of the model only, see `sharding.py`; not part of the run either.
        callbacks: told of every step and every evaluation, and may end the training, see `callbacks.py`; no part of the
            run. Of several processes all are given the same.

    Raises:
        SpikegptError: the folder holds a run already, is in use or cannot be written, the text is too short, the
            weights in `start` do not fit, the device is not there, the loss is not finite.
    """
    if str(run) in ("", "."):
        raise SpikegptError(f"run is {str(run)!r}, the current folder; give a folder of its own")
    if not isinstance(model_config, ModelConfig) or not isinstance(train_config, TrainConfig):
        raise SpikegptError(
            "train wants a ModelConfig and then a TrainConfig, got "
            f"{type(model_config).__name__} and {type(train_config).__name__}"
        )
    run = to_path("run", run)
    for doubt in doubts(train_config):
        warn_on_stderr(doubt)
    train_config, start = with_absolute_paths(train_config), start and from_everywhere(to_path("start", start))
    cache = cache and to_path("cache", cache)
    told = checked_callbacks(callbacks)
    return _train_alone(_Order(model_config, train_config, run, start, neuron, cache, quiet, shard, told), device, None)


def resume(
    run: str | Path,
    *,
    data: str | Path | Sequence[str | Path] | None = None,
    teacher: str | Path | None = None,
    neuron: NeuronFactory | None = None,
    cache: Path | None = None,
    quiet: bool = False,
    device: str = "auto",
    shard: bool = False,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Continue the run in the folder `run` from its newest whole checkpoint, or from the start if it has none yet.

    Args:
        data, teacher: where the text and the teacher lie that the run began with, if no longer where they were; the run
            writes it down.
        callbacks: as of `train`.

    Raises:
        SpikegptError: there is no run, it cannot go on (see `train`), or what lies there is not what it began with.
    """
    run = to_path("run", run)
    if (shipped := shipped_folder(run)) is not None:
        anew = f"begin a run with its weights: {command('train', '--from', shipped.name)}"
        raise SpikegptError(f"{shipped.name} comes with spikegpt and stays as it is; {anew}")
    values = ckpt.read_run_config(run)
    if "train" not in values:
        inside = ckpt.run_of(run)
        advice = f"; continue the run that it is of: {command('train', '--resume', inside)}" if inside else ""
        raise SpikegptError(f"{run} is the folder of a model, not of a run{advice}")
    texts = None if data is None else tuple(map(str, [data] if isinstance(data, str | Path) else data))
    values = with_places(run, values, texts, None if teacher is None else str(teacher))
    model_config, train_config = ckpt.configs_of(run, values)
    start = Path(values["started_from"]) if values.get("started_from") else None
    order = _Order(model_config, train_config, run, start, neuron, cache, quiet, shard, checked_callbacks(callbacks))
    return _train_alone(order, device, values)


class _Order(NamedTuple):
    """What is to be trained, and where to: the arguments of `train`."""

    model_config: ModelConfig
    config: TrainConfig
    run: Path
    start: Path | None
    neuron: NeuronFactory | None
    cache: Path | None
    quiet: bool
    shard: bool
    callbacks: tuple[Callback, ...]


def _train_alone(order: _Order, device: str, begun: dict[str, Any] | None) -> TrainResult:
    """Train while no other process writes into the run; `begun` is its configuration if it goes on, None if new."""
    run = order.run
    accelerator = make_accelerator(order.config, device, run)
    with locked(run) if accelerator.is_main_process else nullcontext():
        if begun is None:
            ckpt.make_room(run)
        return _Trainer(order, accelerator, begun).train()


class _Trainer(Loop):
    """The loop of language modelling with a run folder: it logs, evaluates, samples, and keeps checkpoints."""

    objective: LanguageModelling

    def __init__(self, order: _Order, accelerator: "Accelerator", begun: dict[str, Any] | None):
        model_config, config, run, start, neuron, cache, quiet, shard, callbacks = order
        self.is_sharded = wants_shards(accelerator, shard)
        if self.is_sharded and model_config.weight_bits < FULL:
            raise SpikegptError(
                f"weight_bits {model_config.weight_bits:g} needs whole matrices, which --shard divides; leave out one"
            )
        use_threads(config.threads)
        newest = None if begun is None else ckpt.latest_checkpoint(run)
        # one process prepares the token file, the others find it done
        with accelerator.main_process_first():
            data = prepare_data(config, run, newest, begun, cache)
        self.run, self.begins_trained = run, start is not None and newest is None

        def begin() -> tuple[dict[str, Any], SpikeGPT]:
            # one and the same checkpoint, whose run may go on meanwhile
            weights = open_model(start)[0] if start is not None and self.begins_trained else None
            facts = facts_of(config, data, weights)
            if begun is not None:
                check_facts(run, begun, facts, data.header)
            shards = accelerator if self.is_sharded else None
            model = make_model(model_config, config, data, weights, neuron, start is not None, shards)
            if weights is not None and model.config.weight_bits < FULL:
                start_latent(model, weights, config.confident)
            return facts, model

        facts, made = ckpt.read_steadily(start or run, begin)
        made.seeded_dropout = begun is None or begun.get("seeded_dropout", False)
        if begun is not None and accelerator.is_main_process:
            keep_places(run, begun)
        self.precision: Choice | None = None
        if begun is None and config.precision == "auto":
            self.precision = agree_on_precision(made, config.batch_size, accelerator, self.is_sharded)
            config = dataclasses.replace(config, precision=self.precision.precision)
        latent = latent_of(made, config.confident)
        if self.is_sharded:
            model, optimizer = made, accelerator.prepare_optimizer(make_optimizer(made, config))
        else:
            model, optimizer = accelerator.prepare(made, make_optimizer(made, config, latent))
        # without accelerate's own autocast: what is evaluated are the float32 weights
        bare_model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        objective = LanguageModelling(model, bare_model, data, config, accelerator, latent)
        super().__init__(objective, model, optimizer, config, accelerator)
        self.audience = Audience(callbacks, run, objective, config.steps)
        # dropout must differ between processes, and be the same when the run is repeated
        torch.manual_seed((config.seed + 1 + accelerator.process_index) % 2**64)
        self.valid: Evaluation | None = None
        # of several processes one would choose what all wait for
        is_alone = accelerator.device.type == "cpu" and accelerator.num_processes == 1
        self.most_threads, self.pace = torch.get_num_threads(), Pace()
        self.chooses_threads = config.threads == 0 and is_alone and self.most_threads > 1
        if begun is None and self.is_main:
            facts = {"started_from": start and str(start), "seeded_dropout": True, **facts}
            ckpt.create_run(self.run, self.objective.bare_model.config, self.config, data.tokenizer, facts)
        self.accelerator.wait_for_everyone()
        self.run_config = begun or ckpt.read_run_config(run)
        self._go_on_from(newest, begun is None, quiet)

    def _go_on_from(self, newest: Path | None, is_new: bool, quiet: bool) -> None:
        """Put back what the newest checkpoint holds, and open the log where it was then."""
        kept: dict[str, Any] = {}
        if newest is not None:
            kept = load_training(newest, self.objective, self.optimizer, self.accelerator)
            self.step = kept["step"]
            if self.is_main and "run" not in kept:
                warn_on_stderr(f"{self.run} is of an older spikegpt; its configuration and log are taken as they are")
        elif ckpt.has_checkpoints(self.run):
            raise SpikegptError(
                f"none of the checkpoints of {self.run} is whole, so nothing is left to go on from; put one back, or "
                "begin anew with another --out"
            )
        elif not is_new and self.is_main and not quiet:
            print(f"{self.run} has no whole checkpoint yet: starting from step 0")
        # whether a signal came when an evaluation or a sample was due
        self.is_put_off = kept.get("put_off", False)
        track = begin_tracking(self.accelerator, self.config, self.run, self.run_config, self.step)
        if self.is_main:
            marks = kept.get("marks", {})
            self.log = RunLog(self.run, self.step, self.config.steps, marks, track, quiet)
            ckpt.prune_checkpoints(self.run, self.config.keep, self.objective.best.get("step"), self.step)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def computes(self) -> bool:
        """Whether this process takes part in evaluations and samples: where each has a share of the model, all do."""
        return self.is_main or self.is_sharded

    def train(self) -> TrainResult:
        try:
            with self.guarded(), verified_spikes(self.config.verify_spikes):
                if self.is_main:
                    self.log.introduce(self.objective, self.step)
                    if self.precision is not None:
                        self.log.record(self.step, kind="precision", asked="auto", **self.precision._asdict())
                is_over = False
                if self.is_put_off:
                    is_over = self._conclude_step()
                elif self.step == self.config.steps:
                    # a run that was complete already is only evaluated, and written down is nothing
                    self.valid = self._measure()
                elif self.begins_trained:
                    is_over = self._evaluate()
                    self._save()
                if self.chooses_threads and self.step < self.config.steps:
                    self._choose_threads()
                if not is_over:
                    self.train_steps()
                # nobody takes the connections down while the main process still evaluates
                self.accelerator.wait_for_everyone()
        finally:
            if self.is_main:
                self.log.close()
            self.accelerator.end_training()
        is_unfinished = self.step < self.config.steps
        return TrainResult(self.run, self.step, self.valid, is_unfinished, self.is_main, self.signals.number)

    def after_step(self, done: StepDone) -> bool:
        if self.is_main:
            self.log.step_done(self.step)
            # the third is the first with an estimate of the time
            if self.step % self.config.log_every == 0 or self.step in (1, 3, self.config.steps):
                self.log.trained(self.step, done, self.objective)
        stopping = done.stopping and self.step < self.config.steps
        is_over = self._conclude_step(stopping, self.audience.hear_step(self.step, done))
        if self.chooses_threads and not done.stopping and self.pace.changes(done.seconds):
            self._choose_threads()
        return is_over

    def _conclude_step(self, stopping: bool = False, is_over: bool = False) -> bool:
        """Evaluate, sample and save, as is due; who is asked to stop only saves, and does the rest when resumed.

        Return whether a callback ends the training here; `is_over`: one has, when it was told of the step.
        """
        evaluates = self.evaluation_is_due()
        samples = self.config.sample_every > 0 and self.step % self.config.sample_every == 0
        saves = evaluates or stopping or is_over or self.step % self.config.save_every == 0
        if self.computes and (saves or samples):
            # a model that computes nothing finite is not worth a checkpoint
            with self.says_if_it_diverged():
                self.objective.check_finite()
        if evaluates and not stopping:
            is_over = self._evaluate() or is_over
        if samples and not stopping:
            self._sample()
        if saves:
            self._save(put_off=stopping and (evaluates or samples))
        return is_over

    def _choose_threads(self) -> None:
        """Go on with as many threads as are fastest at present, and write down and say how many."""
        chosen = fastest_threads(self.objective.rehearse, self.most_threads)
        self.log.say(f"threads {chosen} of {self.most_threads} are fastest at present; --threads {chosen} pins them")
        self.log.record(self.step, kind="threads", threads=chosen)

    def _measure(self) -> Evaluation | None:
        """Measure the valid split, where this process takes part in it."""
        if not self.computes:
            return None
        with self.says_if_it_diverged():
            return self.objective.evaluate(self.step)

    def _evaluate(self) -> bool:
        """Measure the valid split, write down and say what was found; return whether a callback ends the training."""
        self.valid = self._measure()
        if self.valid is not None and self.is_main:
            self.log.evaluated(self.step, self.valid)
        return self.audience.hear_evaluation(self.step, self.valid)

    def _save(self, put_off: bool = False) -> None:
        more: dict[str, Any] = {}
        if self.is_main:
            more = {"run": self.run_config, "marks": self.log.marks, "put_off": put_off}
        save_training(self.run, self.step, self.objective, self.optimizer, self.accelerator, more)
        if self.is_main:
            ckpt.prune_checkpoints(self.run, self.config.keep, self.objective.best.get("step"), self.step)
        self.accelerator.wait_for_everyone()

    def _sample(self) -> None:
        if self.computes:
            model, data = self.objective.bare_model, self.objective.data
            # the first line of the valid split: a prompt of the same kind as the text, not seen in training
            valid = data.tokenizer.decode(data.split("valid")[:64]).decode("utf-8", "ignore")
            prompt = next((line for line in valid.splitlines() if line.strip()), "\n")[:40]
            options = SamplingConfig(max_tokens=120, seed=self.config.seed)
            text = prompt + generate(model, data.tokenizer, [prompt], options)[0]
            if self.is_main:
                self.log.sample(self.step, text)

    def what_is_left(self) -> str:
        newest = ckpt.latest_checkpoint(self.run)
        return f"last good checkpoint: {newest}" if newest else "no checkpoint was written yet"
