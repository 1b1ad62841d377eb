"""The one training loop: optimizer steps of an objective, evaluations at their times, signals, and errors in words.

What is trained for is the objective's business: `language_modelling.py`, `classify.py`. What a run writes to disk is
the trainer's; this loop writes nothing.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..common.errors import SpikegptError
from ..common.memory import pages_kept
from ..config import TrainConfig
from ..evaluate.perplexity import NotFinite
from .losses import add_up
from .optimizer import set_learning_rate
from .schedules import learning_rate
from .stop_signals import StopSignals

if TYPE_CHECKING:
    from accelerate import Accelerator


class Forward(NamedTuple):
    """What the model made of one batch."""

    cross_entropy: Tensor
    """scalar, nats"""
    terms: dict[str, Tensor]
    """name -> scalar; their sum, in this order, is minimised"""
    spikes: dict[str, Tensor]
    """emitting module -> (B, T, C)"""


class Advice(NamedTuple):
    """The words with which an error ends."""

    batch: str
    """how large a batch is, in the user's words"""
    too_large: str
    """what to do when that does not fit into the GPU's memory"""
    diverged: str
    """what to do when the loss is no longer finite"""


class Objective(Protocol):
    """What is trained for: batches, forward pass and loss terms, and how valid is measured and what is best there."""

    @property
    def advice(self) -> Advice: ...

    def forward(self, step: int) -> Forward:
        """Return what the model makes of the next batch, `step` optimizer steps having been done."""
        ...

    def evaluate(self, step: int) -> Any:
        """Measure the model on valid after `step` steps, remember what is best there; return what was measured.

        Raises:
            NotFinite: the model computes no finite numbers any more.
        """
        ...


class StepDone(NamedTuple):
    """Facts of one optimizer step, means over its micro steps and all processes.

    But for the spikes, which are those of this process's last batch.
    """

    cross_entropy: float
    losses: dict[str, float]
    """name of a term -> what it added to the loss"""
    gradient_norm: float
    learning_rate: float
    spikes: dict[str, Tensor]
    seconds: float
    stopping: bool
    """whether some process was asked to stop"""


class Loop:
    """Trains `model` for an objective, by the schedule of `config`.

    Args:
        accelerator: what precision, processes and accumulation ask of a step. Whether model and optimizer were
            prepared with it is the caller's decision.
    """

    def __init__(
        self,
        objective: Objective,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        accelerator: "Accelerator",
    ):
        self.objective, self.model, self.optimizer = objective, model, optimizer
        self.config, self.accelerator = config, accelerator
        self.signals, self.step = StopSignals(), 0

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Within this block a signal only asks to stop, freed memory is kept, and a full GPU is said to be full."""
        try:
            with self.signals, pages_kept():
                yield
        except torch.OutOfMemoryError as error:
            advice = self.objective.advice
            raise SpikegptError(
                f"step {self.step + 1}: the GPU's memory is full at {advice.batch}: {advice.too_large}. "
                f"torch says: {error}"
            ) from error

    def train_steps(self) -> None:
        """Train until the last step, or until some process is asked to stop or `after_step` says that it is over."""
        while self.step < self.config.steps:
            done = self.train_step()
            if self.after_step(done) or done.stopping:
                return
            # the spikes of this step: their memory is the next one's
            del done

    def after_step(self, done: StepDone) -> bool:
        """Evaluate if that is due; return whether the training is over before its last step."""
        is_last = self.step == self.config.steps
        if self.evaluation_is_due() and (is_last or not done.stopping):
            with self.says_if_it_diverged():
                self.objective.evaluate(self.step)
        return False

    def evaluation_is_due(self) -> bool:
        every = self.config.eval_every
        return self.step == self.config.steps or (every > 0 and self.step % every == 0)

    @contextmanager
    def says_if_it_diverged(self) -> Iterator[None]:
        """Within this block numbers that are not finite end the training in words."""
        try:
            yield
        except NotFinite as error:
            raise self._diverged(self.step, str(error)) from None

    def train_step(self) -> StepDone:
        """Do one optimizer step."""
        started = time.perf_counter()
        rate = learning_rate(self.step, self.config)
        set_learning_rate(self.optimizer, rate)
        self.model.train()
        means = torch.zeros(())
        for _ in range(self.config.grad_accumulation):
            with self.accelerator.accumulate(self.model):
                found = self.objective.forward(self.step)
                self.accelerator.backward(add_up(found.terms))
                values = torch.stack([found.cross_entropy, *found.terms.values()]).detach()
                means = means.to(values.device) + values / self.config.grad_accumulation
                norm = self._clip()
                # every process must come to the same decision, so the facts are added up before anyone acts on them
                facts = torch.cat([means, means.new_tensor([float(self.signals.asked)])])
                if self.accelerator.sync_gradients:
                    cross_entropy, *losses, stopping = self.accelerator.reduce(facts, "mean").tolist()
                    self._check_finite([cross_entropy, *losses], norm, rate)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.step += 1
        return StepDone(
            cross_entropy=cross_entropy,
            losses=dict(zip(found.terms, losses, strict=True)),
            gradient_norm=norm,
            learning_rate=rate,
            spikes=found.spikes,
            seconds=time.perf_counter() - started,
            stopping=stopping > 0,
        )

    def _clip(self) -> float:
        if not self.accelerator.sync_gradients:
            return 0.0
        # an endless limit measures the norm and changes nothing
        return float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf))

    def _check_finite(self, losses: list[float], norm: float, rate: float) -> None:
        # with a loss scaler an infinite gradient is ordinary: the scaler skips the step and lowers the scale
        if all(map(math.isfinite, losses)) and (math.isfinite(norm) or self.accelerator.scaler is not None):
            return
        found = f"loss is {sum(losses[1:])}, gradient norm {norm}, learning rate {rate:.3g}"
        raise self._diverged(self.step + 1, found)

    def _diverged(self, step: int, found: str) -> SpikegptError:
        return SpikegptError(f"step {step}: {found}; {self.what_is_left()}. {self.objective.advice.diverged}")

    def what_is_left(self) -> str:
        """Return what can be gone on with after a failure, in words."""
        return "nothing of this training was kept"
