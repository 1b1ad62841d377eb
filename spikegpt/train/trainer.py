"""Training: one program for one process, several processes, several GPUs and several nodes (`accelerate launch`).

A run that is killed at any moment and resumed ends with the weights of the unbroken run, byte for byte, on the same
machine with the same number of threads and processes: weights, optimizer, random generators, sampler position and
carried state are all in the checkpoint, and nothing else decides what a step does.
"""

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..checkpoint import run as ckpt
from ..checkpoint.weights import TensorFile, load_model, load_training, load_weights
from ..common.devices import find_device
from ..common.errors import SpikegptError
from ..config import ModelConfig, SamplingConfig, TrainConfig
from ..data.prepare import TokenData, prepare
from ..data.tokenizers import load_tokenizer
from ..evaluate.perplexity import Evaluation, evaluate_stream, mean_firing_rate
from ..generate.stream import generate
from ..model.network import NeuronFactory, SpikeGPT, State, detach_state
from ..neuron.lif import verified_spikes
from .convert import anneal, read_model_config, spread_windows, start_from
from .losses import firing_rate, spike_share, synop_budget, training_loss
from .optimizer import learning_rate, load_optimizer_tensors, make_optimizer, optimizer_tensors, set_learning_rate
from .runlog import RunLog
from .sampler import StreamSampler, WindowSampler
from .stop_signals import StopSignals


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: the folder, steps done, the last evaluation, whether a signal stopped it, and whether this
    process is the one that speaks (with several processes, only the main one evaluates and reports)."""

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


class _Trainer:
    """Everything one run needs, and the loop."""

    def __init__(
        self, model_config, config: TrainConfig, run: Path, start, neuron, cache, quiet: bool, device: str, is_new: bool
    ):
        self.config, self.run, self.step, self.best = config, run, 0, {}
        if config.threads:
            torch.set_num_threads(config.threads)
        self.accelerator = _make_accelerator(config, device)
        # one process prepares the token file, the others find it done
        with self.accelerator.main_process_first():
            self.data = self._prepare_data(is_new, cache)
        torch.manual_seed(config.seed)
        self.model_config = dataclasses.replace(model_config, vocab_size=self._vocab_size(start))
        newest = ckpt.latest_checkpoint(run)
        self.begins_trained = start is not None and newest is None
        model = SpikeGPT(self.model_config, neuron, init=not self.begins_trained)
        if self.begins_trained:
            start_from(model, start, spread_windows(self.data.split("train"), self.model_config.ctx_len))
        self.model, self.optimizer = self.accelerator.prepare(model, make_optimizer(model, config))
        self.bare_model: SpikeGPT = self.accelerator.unwrap_model(self.model)
        self.sampler = self._make_sampler()
        self.synapses = self.bare_model.synapses()
        self.teacher = self._load_teacher()
        self.state: State | None = None
        # dropout must differ between processes, and be the same when the run is repeated
        torch.manual_seed(config.seed + 1 + self.accelerator.process_index)
        if is_new and self.is_main:
            corpus = {key: self.data.header[key] for key in ("corpus", "metadata", "text_sha256", "splits")}
            ckpt.create_run(
                run,
                self.model_config,
                config,
                self.data.tokenizer,
                {"corpus": corpus, "started_from": start and str(start)},
            )
        self.accelerator.wait_for_everyone()
        if newest is not None:
            self._load(newest)
        elif not is_new and self.is_main and not quiet:
            print(f"{run} has no checkpoint yet: starting from step 0")
        if self.is_main:
            self.log = RunLog(run, self.step, config.steps, config.tensorboard, quiet)
            ckpt.prune_checkpoints(run, config.keep, self.best.get("step"))

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def _prepare_data(self, is_new: bool, cache: Path | None) -> TokenData:
        stored = self.run / "tokenizer.json"
        # a run owns its tokenizer: a resumed one never builds it anew
        tokenizer = self.config.tokenizer if is_new or not stored.exists() else load_tokenizer(stored)
        return prepare(
            list(self.config.data), tokenizer, cache, self.config.bpe_vocab_size, text_column=self.config.text_column
        )

    def _vocab_size(self, start: Path | None) -> int:
        tokens = self.data.tokenizer.vocab_size
        if start is None:
            return tokens
        # released models have a few rows more than tokens
        rows = read_model_config(start).vocab_size
        if tokens > rows:
            raise SpikegptError(
                f"the tokenizer has {tokens} tokens, the model in {start} {rows}; use its own: leave out --tokenizer"
            )
        return rows

    def _make_sampler(self) -> WindowSampler | StreamSampler:
        kind = StreamSampler if self.config.carry_state else WindowSampler
        return kind(
            self.data.split("train"),
            self.model_config.ctx_len,
            self.config.batch_size,
            seed=self.config.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )

    def train(self) -> TrainResult:
        signals = StopSignals()
        valid, is_evaluated = None, False
        try:
            with signals, verified_spikes(self.config.verify_spikes):
                if self.begins_trained:
                    self._evaluate()
                while self.step < self.config.steps:
                    stopping = self._train_step(signals)
                    is_last = self.step == self.config.steps
                    every = self.config.eval_every
                    if is_last or (every and self.step % every == 0 and not stopping):
                        valid, is_evaluated = self._evaluate(), is_last
                    elif stopping or self.step % self.config.save_every == 0:
                        self._save()
                    if self.config.sample_every and self.step % self.config.sample_every == 0 and not stopping:
                        self._sample()
                    if stopping:
                        break
                # a run that was complete already is only evaluated
                if self.step == self.config.steps and not is_evaluated:
                    valid = self._evaluate()
        except torch.OutOfMemoryError as error:
            size = f"batch_size {self.config.batch_size} x ctx_len {self.model_config.ctx_len}"
            advice = "lower --batch-size and raise --grad-accumulation as much, or lower --ctx-len"
            raise SpikegptError(
                f"step {self.step + 1}: the GPU's memory is full at {size}: {advice}. torch says: {error}"
            ) from error
        finally:
            if self.is_main:
                self.log.close()
            self.accelerator.end_training()
        return TrainResult(self.run, self.step, valid, self.step < self.config.steps, self.is_main)

    def _train_step(self, signals: StopSignals) -> bool:
        """Do one optimizer step; return whether some process was asked to stop."""
        started = time.perf_counter()
        rate = learning_rate(self.step, self.config)
        set_learning_rate(self.optimizer, rate)
        self.model.train()
        anneal(self.bare_model, spike_share(self.step, self.config))
        total = torch.zeros((), device=self.accelerator.device)
        for _ in range(self.config.grad_accumulation):
            with self.accelerator.accumulate(self.model):
                loss, cross_entropy, spikes = self._forward()
                self.accelerator.backward(loss)
                total += cross_entropy.detach() / self.config.grad_accumulation
                norm = self._clip()
                # every process must come to the same decision, so the facts are added up before anyone acts on them
                facts = torch.stack([total, total.new_tensor(float(signals.asked))])
                if self.accelerator.sync_gradients:
                    mean_loss, stopping = self.accelerator.reduce(facts, "mean").tolist()
                    self._check_finite(mean_loss, norm, rate)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.step += 1
        if self.is_main and (self.step % self.config.log_every == 0 or self.step in (1, self.config.steps)):
            self._log(mean_loss, norm, rate, spikes, time.perf_counter() - started)
        return stopping > 0

    def _forward(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(loss to minimise, its cross-entropy part, spikes) of the sampler's next batch."""
        ids, targets, *starts = self.sampler.next()
        if starts and bool(starts[0].any()):
            # every lane ends at the same step, so all of them start anew together
            self.state = None
        device = self.accelerator.device
        with self.accelerator.autocast():
            logits, state, spikes = self.model(ids.to(device), self.state)
            cross_entropy = F.cross_entropy(logits.float().flatten(0, 1), targets.to(device).flatten())
        self.state = detach_state(state) if self.config.carry_state else None
        taught = None if self.teacher is None else self._predictions(ids.to(device))
        loss = training_loss(
            cross_entropy, logits, spikes, taught=taught, synapses=self.synapses, step=self.step, config=self.config
        )
        return loss, cross_entropy, spikes

    def _load_teacher(self) -> SpikeGPT | None:
        if self.config.teacher is None:
            return None
        model, tokenizer = load_model(self.config.teacher)
        if tokenizer.fingerprint != self.data.tokenizer.fingerprint:
            raise SpikegptError(
                f"the teacher {self.config.teacher} has another tokenizer; its tokens are not this run's"
            )
        return model.to(self.accelerator.device).eval()

    @torch.no_grad()
    def _predictions(self, ids: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return self.teacher(ids).logits

    def _clip(self) -> float:
        if not self.accelerator.sync_gradients:
            return 0.0
        # an endless limit measures the norm and changes nothing
        return float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf))

    def _check_finite(self, loss: float, norm: float, rate: float) -> None:
        scaler = self.accelerator.scaler
        # with a loss scaler an infinite gradient is ordinary: the scaler skips the step and lowers the scale
        if math.isfinite(loss) and (math.isfinite(norm) or scaler is not None):
            return
        newest = ckpt.latest_checkpoint(self.run)
        rest = f"last good checkpoint: {newest}" if newest else "no checkpoint was written yet"
        raise SpikegptError(
            f"step {self.step + 1}: loss is {loss}, gradient norm {norm}, learning rate {rate:.3g}; {rest}. Lower "
            f"--lr or raise --warmup-steps"
        )

    def _log(self, loss: float, norm: float, rate: float, spikes: dict[str, Tensor], seconds: float) -> None:
        rates = {name: firing_rate(spike.detach()).item() for name, spike in spikes.items()}
        firing = mean_firing_rate(rates, self.synapses)
        tokens = self.sampler.global_batch * self.model_config.ctx_len * self.config.grad_accumulation
        bits = loss / math.log(2) * self._tokens_per_byte("train")
        self.log.progress(self.step, loss, bits, tokens / seconds, firing)
        self.log.record(
            self.step,
            kind="train",
            loss=loss,
            bits_per_byte=bits,
            learning_rate=rate,
            gradient_norm=norm,
            tokens_per_s=round(tokens / seconds),
            tokens=self.step * tokens,
            firing_rate=firing,
            firing_rates=rates,
        )

    def _tokens_per_byte(self, split: str) -> float:
        facts = self.data.header["splits"][split]
        return facts["tokens"] / facts["bytes"]

    def _evaluate(self) -> Evaluation | None:
        """Evaluate on the valid split, remember the best, save a checkpoint."""
        valid = None
        if self.is_main:
            valid = evaluate_stream(
                self.bare_model, self.data.split("valid")[: self.config.eval_tokens], self.data.tokenizer
            )
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
            if self._is_settled and (not self.best or valid.bits_per_byte < self.best["bits_per_byte"]):
                self.best = {"step": self.step, "bits_per_byte": valid.bits_per_byte}
        self._save()
        return valid

    @property
    def _is_settled(self) -> bool:
        """Whether all neurons spike and the whole budget is in force: a model from before is not what the run is
        for."""
        has_budget = self.synapses and self.config.synop_budget
        return spike_share(self.step, self.config) == 1 and (
            not has_budget or synop_budget(self.step, self.config) == self.config.synop_budget
        )

    def _sample(self) -> None:
        if self.is_main:
            # the first line of the valid split: a prompt of the same kind as the text, not seen in training
            valid = self.data.tokenizer.decode(self.data.split("valid")[:64]).decode("utf-8", "ignore")
            prompt = next((line for line in valid.splitlines() if line.strip()), "\n")[:40]
            text = generate(
                self.bare_model, self.data.tokenizer, [prompt], SamplingConfig(max_tokens=120, seed=self.config.seed)
            )[0]
            self.log.sample(self.step, prompt + text)

    # --- checkpoints ---

    def _save(self) -> None:
        tensors = {"rng.cpu": self._of_all_processes(torch.get_rng_state())}
        if torch.cuda.is_available():
            tensors["rng.cuda"] = self._of_all_processes(torch.cuda.get_rng_state())
        leaves, _ = tree_flatten(self.state)
        carried = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        tensors |= {f"state.{index}": self._of_all_processes(leaf) for index, leaf in enumerate(carried)}
        if self.is_main:
            tensors |= optimizer_tensors(self.optimizer)
            scaler = self.accelerator.scaler
            state = {
                "sampler_position": self.sampler.position,
                "processes": self.accelerator.num_processes,
                "threads": torch.get_num_threads(),
                "best": self.best,
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            ckpt.save_checkpoint(self.run, self.step, self.bare_model, self.data.tokenizer, tensors, state)
            ckpt.prune_checkpoints(self.run, self.config.keep, self.best.get("step"))
        self.accelerator.wait_for_everyone()

    def _of_all_processes(self, tensor: Tensor) -> Tensor:
        """(processes, ...) with one row from each."""
        return self.accelerator.gather(tensor.to(self.accelerator.device).unsqueeze(0)).cpu()

    def _load(self, checkpoint: Path) -> None:
        tensors, state = load_training(checkpoint)
        load_weights(self.bare_model, TensorFile(checkpoint / "model.safetensors"), checkpoint)
        load_optimizer_tensors(self.optimizer, tensors)
        self.step, self.best = state["step"], state["best"]
        self.sampler.position = state["sampler_position"]
        if state["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        same = state["processes"] == self.accelerator.num_processes
        if self.is_main and not (same and state["threads"] == torch.get_num_threads()):
            print(
                f"note: the run had {state['processes']} process(es) with {state['threads']} thread(s), now "
                f"{self.accelerator.num_processes} "
                f"with {torch.get_num_threads()}: it goes on, but not bit for bit as it would have"
            )
        if not same:
            return
        rank = self.accelerator.process_index
        if "state.0" in tensors:
            self.state = self._carried_state(
                [tensors[f"state.{i}"][rank] for i in range(sum(key.startswith("state.") for key in tensors))]
            )
        # last, for reading a token above may have drawn a dropout
        # cloned: torch 2.13 reads a generator's state from the front of the storage, which for a row is another
        # process's
        torch.set_rng_state(tensors["rng.cpu"][rank].clone())
        if "rng.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng.cuda"][rank].clone())

    def _carried_state(self, carried: list[Tensor]) -> State:
        """The state that `_save` took apart; its shape comes from reading one token."""
        device = self.accelerator.device
        with torch.no_grad():
            example = self.bare_model(torch.zeros(1, 1, dtype=torch.long, device=device)).state
        leaves, shape = tree_flatten(example)
        parts = iter(carried)
        return tree_unflatten([next(parts).to(device) if isinstance(leaf, Tensor) else leaf for leaf in leaves], shape)


def _make_accelerator(config: TrainConfig, device: str):
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
