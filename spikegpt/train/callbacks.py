"""What a training tells code of one's own while it runs, and how that code ends it.

Every step and every evaluation is told to each callback, on the main process alone where there are several. What a
callback changes, the model or the random generators, a run that is resumed will not know.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import SpikegptError
from ..evaluate.perplexity import Evaluation
from ..model.network import SpikeGPT
from .language_modelling import LanguageModelling
from .loop import StepDone


@dataclass(frozen=True, kw_only=True)
class StepFacts:
    """Facts of an optimizer step that was just done: means over its micro steps and all processes, but for `spikes`."""

    run: Path
    model: SpikeGPT
    """with the weights after the step"""
    step: int
    """optimizer steps done"""
    steps: int
    """optimizer steps in all"""
    tokens: int
    """tokens learned from so far"""
    loss: float
    """cross-entropy, nats per token"""
    losses: Mapping[str, float]
    """term of the loss -> what it added"""
    bits_per_byte: float
    learning_rate: float
    gradient_norm: float
    """before it was clipped"""
    seconds: float
    """that the step took"""
    spikes: Mapping[str, Tensor]
    """site -> spikes (B, T, C) of the last batch of this process; empty for a dense model. Their memory is the next
    step's: keep what you make of them, not them"""


@dataclass(frozen=True, kw_only=True)
class EvaluationFacts:
    """Facts of an evaluation on the valid split."""

    run: Path
    model: SpikeGPT
    step: int
    steps: int
    valid: Evaluation
    best_step: int | None
    """step of the best evaluation so far; None before the first that counts"""
    best_bits_per_byte: float | None


class Callback:
    """Something to be told of a training: override what you want to hear, and return True to end the training.

    A training that ends so has done its step, writes a checkpoint, and may be resumed. An exception ends it too, at the
    last checkpoint that was written.
    """

    def on_step(self, facts: StepFacts) -> bool | None:
        """Hear of every optimizer step; return True to end the training."""
        return None

    def on_evaluation(self, facts: EvaluationFacts) -> bool | None:
        """Hear of every evaluation of the training; return True to end it."""
        return None


class EarlyStopping(Callback):
    """Ends a training whose bits per byte on valid have not become better for `steps` optimizer steps.

    It remembers nothing: the best evaluation is part of the run, and a resumed one goes on from it.
    """

    def __init__(self, steps: int):
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.steps = steps

    def on_evaluation(self, facts: EvaluationFacts) -> bool | None:
        return facts.best_step is not None and facts.step - facts.best_step >= self.steps


def checked_callbacks(callbacks: Sequence[Any]) -> tuple[Callback, ...]:
    """Return `callbacks` as a tuple.

    Raises:
        SpikegptError: they are no list of callbacks.
    """
    if not isinstance(callbacks, list | tuple):
        raise SpikegptError(f"callbacks must be a list of Callback objects, got {callbacks!r}")
    for callback in callbacks:
        if not isinstance(callback, Callback):
            given = f"the class {callback.__name__}" if isinstance(callback, type) else repr(callback)
            raise SpikegptError(
                f"a callback is an object of a class derived from spikegpt.train.Callback, got {given}; "
                "override on_step or on_evaluation there"
            )
    return tuple(callbacks)


class Audience:
    """The callbacks of a training of `steps` steps. The main process asks them; all learn alike whether one ends it."""

    def __init__(self, callbacks: tuple[Callback, ...], run: Path, objective: LanguageModelling, steps: int):
        self._callbacks, self._run, self._objective, self._steps = callbacks, run, objective, steps

    def hear_step(self, step: int, done: StepDone) -> bool:
        """Tell of the optimizer step that was just done; return whether the training ends."""
        if not self._callbacks:
            return False
        facts = StepFacts(
            run=self._run,
            model=self._objective.bare_model,
            step=step,
            steps=self._steps,
            tokens=step * self._objective.tokens_per_step,
            loss=done.cross_entropy,
            losses=done.losses,
            bits_per_byte=self._objective.bits_per_byte(done.cross_entropy),
            learning_rate=done.learning_rate,
            gradient_norm=done.gradient_norm,
            seconds=done.seconds,
            spikes=done.spikes,
        )
        return self._ask(lambda callback: callback.on_step(facts))

    def hear_evaluation(self, step: int, valid: Evaluation | None) -> bool:
        """Tell of an evaluation, which the main process has; return whether the training ends."""

        def hear(callback: Callback) -> bool | None:
            assert valid is not None
            best = self._objective.best
            facts = EvaluationFacts(
                run=self._run,
                model=self._objective.bare_model,
                step=step,
                steps=self._steps,
                valid=valid,
                best_step=best.get("step"),
                best_bits_per_byte=best.get("bits_per_byte"),
            )
            return callback.on_evaluation(facts)

        return self._ask(hear)

    def _ask(self, hear: Callable[[Callback], bool | None]) -> bool:
        accelerator = self._objective.accelerator
        said = [bool(hear(callback)) for callback in self._callbacks] if accelerator.is_main_process else []
        if not self._callbacks or accelerator.num_processes == 1:
            return any(said)
        ended = torch.tensor(float(any(said)), device=accelerator.device)
        return bool(accelerator.reduce(ended, "sum") > 0)
