"""What a run says while it trains: the progress line, metrics.jsonl, samples.txt, trackers, and its warnings."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..common.printing import printable
from ..evaluate.perplexity import Evaluation, mean_firing_rate
from ..model.network import EMBEDDING
from ..neuron import firing_rate
from .journal import metrics_journal, samples_journal
from .language_modelling import LanguageModelling
from .loop import StepDone
from .precision import HALVES

DEAD, SATURATED = 0.001, 0.95


class RunLog:
    """Writes the records of one run. After a resume, records newer than the checkpoint are dropped, so none is double.

    Args:
        run: the run folder.
        step: optimizer steps already done.
        steps: optimizer steps in all.
        marks: what `marks` was when the checkpoint of `step` was written; empty without one.
        track: hands (name -> number, step) to the trackers; None where there are none.
    """

    def __init__(
        self,
        run: Path,
        step: int,
        steps: int,
        marks: dict[str, Any],
        track: Callable[[dict[str, float], int], None] | None = None,
        quiet: bool = False,
    ):
        self.run, self.steps, self.first_step, self.quiet = run, steps, step, quiet
        self.metrics = metrics_journal(run, step, marks.get("metrics"))
        self.samples = samples_journal(run, step, marks.get("samples"))
        self.started = time.monotonic()
        self.on_terminal, self.is_mid_line = sys.stdout.isatty(), False
        self.track = track
        self.warned: set[tuple[str, str]] = set()

    def record(self, step: int, *, kind: str, **values: Any) -> None:
        """Add one line to metrics.jsonl, and its numbers, as KIND/NAME, to the trackers."""
        self.metrics.add(json.dumps({"step": step, "kind": kind, **values}, allow_nan=False) + "\n")
        if self.track is not None:
            self.track(dict(_flat(values, f"{kind}/")), step)

    def introduce(self, objective: LanguageModelling, step: int) -> None:
        """Say what is trained on what, where, and into which folder."""
        config, data, place = objective.bare_model.config, objective.data, objective.accelerator.device
        text_bytes = sum(part["bytes"] for part in data.header["splits"].values())
        parameters = sum(parameter.numel() for parameter in objective.bare_model.parameters())
        threads, half = torch.get_num_threads(), HALVES.get(objective.config.precision)
        products = "float32" if half is None else str(half).removeprefix("torch.")
        self.say(
            f"text    {data.header['corpus']}, {text_bytes:,} bytes; {len(data.split('train')):,} tokens to train on\n"
            f"model   {parameters:,} parameters in {config.n_layer} layers of {config.n_embd}, "
            f"mixer {config.mixer}, spiking {config.spiking}\n"
            f"device  {place}, {threads} thread{'' if threads == 1 else 's'}, products in {products}\n"
            f"run     {self.run}, {self.steps:,} steps of {objective.tokens_per_step:,} tokens, {step:,} of them done"
        )

    def step_done(self, step: int) -> None:
        """Begin to measure the time per step where the first one ends, which may have compiled."""
        if step == self.first_step + 1:
            self.started = time.monotonic()

    def trained(self, step: int, done: StepDone, objective: LanguageModelling) -> None:
        """Write down and say what the step that was just done came to."""
        rates = {name: firing_rate(spike.detach()).item() for name, spike in done.spikes.items()}
        firing, tokens = mean_firing_rate(rates, objective.synapses), objective.tokens_per_step
        bits, latent = objective.bits_per_byte(done.cross_entropy), objective.latent
        self.progress(step, done.cross_entropy, bits, tokens / done.seconds, firing)
        self.record(
            step,
            kind="train",
            **({} if latent is None else {"codes_changed": latent.changed}),
            loss=done.cross_entropy,
            losses=done.losses,
            bits_per_byte=bits,
            learning_rate=done.learning_rate,
            # with a loss scaler it may be infinite, which JSON cannot say
            gradient_norm=done.gradient_norm if math.isfinite(done.gradient_norm) else None,
            tokens_per_s=round(tokens / done.seconds),
            tokens=step * tokens,
            threads=torch.get_num_threads(),
            firing_rate=firing,
            firing_rates=rates,
        )

    def evaluated(self, step: int, valid: Evaluation) -> None:
        """Write down and say what was found on the valid split; warn of neurons."""
        self.record(
            step,
            kind="valid",
            bits_per_byte=valid.bits_per_byte,
            perplexity=valid.perplexity,
            firing_rate=valid.firing_rate,
            firing_rates=valid.firing_rates,
        )
        firing = "" if valid.firing_rate is None else f", firing {valid.firing_rate:.2%}"
        self.say(f"valid at step {step}: {valid.bits_per_byte:.4f} bits/byte{firing}")
        self.watch_firing(step, valid.firing_rates)

    def progress(self, step: int, loss: float, bits: float, tokens_per_s: float, firing_rate: float | None) -> None:
        firing = "dense" if firing_rate is None else f"firing {firing_rate:6.2%}"
        line = (
            f"step {step:>{len(str(self.steps))}}/{self.steps}  loss {loss:.4f}  {bits:.3f} bits/byte  "
            f"{tokens_per_s:,.0f} tokens/s  {firing}{self._left(step)}"
        )
        if not self.quiet:
            print(f"\r{line}\033[K" if self.on_terminal else line, end="" if self.on_terminal else "\n", flush=True)
            self.is_mid_line = self.on_terminal

    def _left(self, step: int) -> str:
        """The time that the other steps will take, if two that were measured say so."""
        measured = step - self.first_step - 1
        if measured < 2:
            return ""
        left = int((time.monotonic() - self.started) / measured * (self.steps - step))
        return f"  left {left // 60}:{left % 60:02d}"

    def say(self, text: str) -> None:
        if not self.quiet:
            print(("\n" if self.is_mid_line else "") + printable(text), flush=True)
            self.is_mid_line = False

    def sample(self, step: int, text: str) -> None:
        self.samples.add(f"--- step {step} ---\n{text}\n")
        self.say(f"sample at step {step}: {text!r}")

    def watch_firing(self, step: int, rates: dict[str, float]) -> None:
        """Warn, once per layer and fault, of neurons that never or always fire."""
        for name, rate in rates.items():
            fault = "dead" if rate < DEAD else "saturated" if rate > SATURATED else None
            if name != EMBEDDING and fault and (name, fault) not in self.warned:
                self.warned.add((name, fault))
                advice = "lower the threshold or raise firing_rate_target" if fault == "dead" else "raise the threshold"
                print(
                    f"warning: step {step}: {name} is {fault} (mean firing {rate:.2%}); {advice}",
                    file=sys.stderr,
                    flush=True,
                )

    @property
    def marks(self) -> dict[str, Any]:
        """How far the files of this log are written: what a checkpoint remembers."""
        return {"metrics": self.metrics.mark, "samples": self.samples.mark}

    def close(self) -> None:
        if self.is_mid_line:
            print()


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value
