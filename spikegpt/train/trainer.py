"""Training into a run folder: one program for one or several processes, GPUs and nodes (`accelerate launch`).

A run that is killed at any moment and resumed ends with the weights of the unbroken run, byte for byte, on the same
machine with the same number of threads and processes: weights, optimizer, random generators, sampler position and
carried state are all in the checkpoint, and nothing else decides what a step does.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..checkpoint import run as ckpt
from ..common.devices import find_device
from ..common.errors import SpikegptError
from ..common.threads import Pace, fastest_threads, use_threads
from ..config import ModelConfig, SamplingConfig, TrainConfig
from ..data.prepare import prepare
from ..data.tokenizers.stored import load_tokenizer
from ..data.tokens.token_file import TokenData
from ..evaluate.perplexity import Evaluation, mean_firing_rate
from ..generate.stream import generate
from ..model.mixers import NeuronFactory
from ..model.network import SpikeGPT
from ..neuron.lif import verified_spikes
from .convert import read_model_config, spread_windows, start_from
from .language_modelling import LanguageModelling
from .loop import Loop, StepDone
from .losses import firing_rate
from .optimizer import make_optimizer
from .resuming import load_training, save_training
from .runlog import RunLog

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: the folder, steps done, the last evaluation, and whether a signal stopped it.

    And whether this process is the one that speaks (with several processes, only the main one evaluates and
    reports).
    """

    run: Path
    step: int
    valid: Evaluation | None
    interrupted: bool
    is_main: bool


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
) -> TrainResult:
    """Train a new model into the folder `run`. The vocabulary size is the tokenizer's.

    Args:
        start: folder of a run, of a checkpoint or of an imported model whose weights the model begins with, and whose
            vocabulary size it takes. Dense ones may go into a spiking model: see `convert.py`, and
                `TrainConfig.anneal`.
        device: auto, cpu, cuda or cuda:N; not part of the run, which may go on elsewhere.

    Raises:
        SpikegptError: the folder holds a run already or cannot be written, the text is too short, the weights in
            `start` do not fit, the device is not there, the loss is not finite.
    """
    run = Path(run)
    if (run / "config.json").exists():
        raise SpikegptError(
            f"{run} holds a run already; continue it with: spikegpt train --resume {run}, or give another --out"
        )
    return _Trainer(model_config, train_config, run, start, neuron, cache, quiet, device, is_new=True).train()


def resume(
    run: str | Path,
    *,
    neuron: NeuronFactory | None = None,
    cache: Path | None = None,
    quiet: bool = False,
    device: str = "auto",
) -> TrainResult:
    """Continue the run in the folder `run` from its newest whole checkpoint, or from the start if it has none yet.

    Raises:
        SpikegptError: there is no run, or it cannot go on (see `train`).
    """
    run = Path(run)
    values = ckpt.read_run_config(run)
    try:
        model_config, train_config = ModelConfig.from_dict(values["model"]), TrainConfig.from_dict(values["train"])
    except (KeyError, TypeError, ValueError) as error:
        raise SpikegptError(f"{run / 'config.json'} does not describe a run: {error}") from None
    start = Path(values["started_from"]) if values.get("started_from") else None
    return _Trainer(model_config, train_config, run, start, neuron, cache, quiet, device, is_new=False).train()


class _Trainer(Loop):
    """The loop of language modelling with a run folder: it logs, evaluates, samples, and keeps checkpoints."""

    objective: LanguageModelling

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainConfig,
        run: Path,
        start: Path | None,
        neuron: NeuronFactory | None,
        cache: Path | None,
        quiet: bool,
        device: str,
        is_new: bool,
    ):
        use_threads(config.threads)
        accelerator = _make_accelerator(config, device)
        # one process prepares the token file, the others find it done
        with accelerator.main_process_first():
            data = _prepare_data(config, run, is_new, cache)
        newest = ckpt.latest_checkpoint(run)
        self.run, self.begins_trained = run, start is not None and newest is None
        made = _make_model(model_config, config, data, start, neuron, self.begins_trained)
        model, optimizer = accelerator.prepare(made, make_optimizer(made, config))
        objective = LanguageModelling(model, accelerator.unwrap_model(model), data, config, accelerator)
        super().__init__(objective, model, optimizer, config, accelerator)
        # dropout must differ between processes, and be the same when the run is repeated
        torch.manual_seed(config.seed + 1 + accelerator.process_index)
        self.valid: Evaluation | None = None
        # of several processes one would choose what all wait for
        is_alone = accelerator.device.type == "cpu" and accelerator.num_processes == 1
        self.most_threads, self.pace = torch.get_num_threads(), Pace()
        self.chooses_threads = config.threads == 0 and is_alone and self.most_threads > 1
        self._open_run(newest, start, is_new, quiet)

    def _open_run(self, newest: Path | None, start: Path | None, is_new: bool, quiet: bool) -> None:
        """Create the run folder, or go on from its newest checkpoint."""
        data = self.objective.data
        if is_new and self.is_main:
            corpus = {key: data.header[key] for key in ("corpus", "metadata", "text_sha256", "splits")}
            facts = {"corpus": corpus, "started_from": start and str(start)}
            ckpt.create_run(self.run, self.objective.bare_model.config, self.config, data.tokenizer, facts)
        self.accelerator.wait_for_everyone()
        if newest is not None:
            self.step = load_training(newest, self.objective, self.optimizer, self.accelerator)
        elif not is_new and self.is_main and not quiet:
            print(f"{self.run} has no checkpoint yet: starting from step 0")
        if self.is_main:
            self.log = RunLog(self.run, self.step, self.config.steps, self.config.tensorboard, quiet)
            ckpt.prune_checkpoints(self.run, self.config.keep, self.objective.best.get("step"))

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def train(self) -> TrainResult:
        try:
            with self.guarded(), verified_spikes(self.config.verify_spikes):
                if self.is_main:
                    self.log.introduce(self.objective, self.step)
                if self.step == self.config.steps:
                    # a run that was complete already is only evaluated
                    self.valid = self._evaluate()
                elif self.begins_trained:
                    self._evaluate()
                if self.chooses_threads and self.step < self.config.steps:
                    self._choose_threads()
                self.train_steps()
        finally:
            if self.is_main:
                self.log.close()
            self.accelerator.end_training()
        return TrainResult(self.run, self.step, self.valid, self.step < self.config.steps, self.is_main)

    def after_step(self, done: StepDone) -> None:
        if self.is_main:
            self.log.step_done(self.step)
            # the third is the first with an estimate of the time
            if self.step % self.config.log_every == 0 or self.step in (1, 3, self.config.steps):
                self._log(done)
        if self.evaluation_is_due(done):
            self.valid = self._evaluate()
        elif done.stopping or self.step % self.config.save_every == 0:
            self._save()
        if self.config.sample_every and self.step % self.config.sample_every == 0 and not done.stopping:
            self._sample()
        if self.chooses_threads and self.pace.changes(done.seconds) and not done.stopping:
            self._choose_threads()

    def _choose_threads(self) -> None:
        """Go on with as many threads as are fastest at present, say so, and write down where the number changes."""
        before = torch.get_num_threads()
        chosen = fastest_threads(self.objective.rehearse, self.most_threads)
        self.log.say(f"threads {chosen} of {self.most_threads} are fastest at present; --threads {chosen} pins them")
        if chosen != before:
            self.log.record(self.step, kind="threads", threads=chosen)

    def _log(self, done: StepDone) -> None:
        rates = {name: firing_rate(spike.detach()).item() for name, spike in done.spikes.items()}
        firing = mean_firing_rate(rates, self.objective.synapses)
        tokens = self.objective.tokens_per_step
        bits = done.cross_entropy / math.log(2) * self.objective.tokens_per_byte("train")
        self.log.progress(self.step, done.cross_entropy, bits, tokens / done.seconds, firing)
        self.log.record(
            self.step,
            kind="train",
            loss=done.cross_entropy,
            losses=done.losses,
            bits_per_byte=bits,
            learning_rate=done.learning_rate,
            gradient_norm=done.gradient_norm,
            tokens_per_s=round(tokens / done.seconds),
            tokens=self.step * tokens,
            threads=torch.get_num_threads(),
            firing_rate=firing,
            firing_rates=rates,
        )

    def _evaluate(self) -> Evaluation | None:
        """Evaluate on the valid split, which only the main process does, and save a checkpoint."""
        valid = None
        if self.is_main:
            valid = self.objective.evaluate(self.step)
            self.log.record(
                self.step,
                kind="valid",
                bits_per_byte=valid.bits_per_byte,
                perplexity=valid.perplexity,
                firing_rate=valid.firing_rate,
                firing_rates=valid.firing_rates,
            )
            firing = "" if valid.firing_rate is None else f", firing {valid.firing_rate:.2%}"
            self.log.say(f"valid at step {self.step}: {valid.bits_per_byte:.4f} bits/byte{firing}")
            self.log.watch_firing(self.step, valid.firing_rates)
        self._save()
        return valid

    def _save(self) -> None:
        save_training(self.run, self.step, self.objective, self.optimizer, self.accelerator)
        if self.is_main:
            ckpt.prune_checkpoints(self.run, self.config.keep, self.objective.best.get("step"))
        self.accelerator.wait_for_everyone()

    def _sample(self) -> None:
        if self.is_main:
            model, data = self.objective.bare_model, self.objective.data
            # the first line of the valid split: a prompt of the same kind as the text, not seen in training
            valid = data.tokenizer.decode(data.split("valid")[:64]).decode("utf-8", "ignore")
            prompt = next((line for line in valid.splitlines() if line.strip()), "\n")[:40]
            options = SamplingConfig(max_tokens=120, seed=self.config.seed)
            self.log.sample(self.step, prompt + generate(model, data.tokenizer, [prompt], options)[0])

    def what_is_left(self) -> str:
        newest = ckpt.latest_checkpoint(self.run)
        return f"last good checkpoint: {newest}" if newest else "no checkpoint was written yet"


def _make_accelerator(config: TrainConfig, device: str) -> "Accelerator":
    from accelerate import Accelerator

    place = find_device(device)
    if config.precision == "fp16" and place.type != "cuda":
        raise SpikegptError("precision fp16 needs a GPU; use bf16 or no")
    if place.index is not None:
        torch.cuda.set_device(place)
    # without this word accelerate runs several processes on a machine without a GPU as strangers to each other
    cpu = device == "cpu" or not torch.accelerator.is_available()
    steps = config.grad_accumulation
    accelerator = Accelerator(cpu=cpu, mixed_precision=config.precision, gradient_accumulation_steps=steps)
    if place.index is not None and accelerator.num_processes > 1:
        raise SpikegptError(f"{device} is one GPU for {accelerator.num_processes} processes; leave --device out")
    return accelerator


def _prepare_data(config: TrainConfig, run: Path, is_new: bool, cache: Path | None) -> TokenData:
    stored = run / "tokenizer.json"
    # a run owns its tokenizer: a resumed one never builds it anew
    tokenizer = config.tokenizer if is_new or not stored.exists() else load_tokenizer(stored)
    return prepare(list(config.data), tokenizer, cache, config.bpe_vocab_size, text_column=config.text_column)


def _make_model(
    model_config: ModelConfig,
    config: TrainConfig,
    data: TokenData,
    start: Path | None,
    neuron: NeuronFactory | None,
    begins_trained: bool,
) -> SpikeGPT:
    """A new model of the tokenizer's vocabulary, with the weights in `start` where training begins with them."""
    torch.manual_seed(config.seed)
    model_config = dataclasses.replace(model_config, vocab_size=_vocab_size(data, start))
    model = SpikeGPT(model_config, neuron, init=not begins_trained)
    if begins_trained and start is not None:
        start_from(model, start, spread_windows(data.split("train"), model_config.ctx_len))
    return model


def _vocab_size(data: TokenData, start: Path | None) -> int:
    tokens = data.tokenizer.vocab_size
    if start is None:
        return tokens
    # released models have a few rows more than tokens
    rows = read_model_config(start).vocab_size
    if tokens > rows:
        raise SpikegptError(
            f"the tokenizer has {tokens} tokens, the model in {start} {rows}; use its own: leave out --tokenizer"
        )
    return rows
