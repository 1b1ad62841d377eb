"""Measure runs and set them side by side: what they compute, how well they predict, how they fire, what it would cost.

The only wing that knows both packages: `neuromorphic` counts any torch model, and nothing of it knows ours.
"""

import dataclasses
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from neuromorphic import (
    Claims,
    FiringStatistics,
    Measurement,
    OpCounter,
    Profile,
    Wording,
    estimate,
    layer_ops,
    per_token,
    published_saving,
)
from neuromorphic.count.counts import SPIKES, Tally
from neuromorphic.count.every_product import every_product, level_bits
from neuromorphic.energy.published import AC_PJ, MAC_PJ
from neuromorphic.report.context import ContextPoint
from neuromorphic.report.measurement import QUANTISED

from ..checkpoint.run import locate, progress_of, results_folder, training_of
from ..checkpoint.weights import load_model
from ..common.devices import finish
from ..common.errors import SpikegptError
from ..common.files import to_path
from ..common.printing import one_line
from ..config import ModelConfig
from ..data.tokenizers import Tokenizer
from ..evaluate.perplexity import check_length, evaluate_stream, named_if_not_finite
from ..evaluate.runs import check_reading, read_text
from ..generate.engine import Engine
from ..model.network import ModelOutput, SpikeGPT
from ..model.state import State
from .context_folder import context_folder, read_context
from .rasters import encoded_text, neuron_places, text_rasters

# the published arithmetic has no row for the head
LEFT_OUT = ("head",)
BLOCKS = {"none": "dense", "output": "spikes added to the residual", "input": "spikes into every product"}
DECODED = 64
RASTER_TOKENS = 96
SPEED_ROUNDS = 5
LARGEST_LISTED_VOCABULARY = 4096


def measure_runs(
    runs: Sequence[Path],
    *,
    split: str = "test",
    file: Path | None = None,
    limit: int | None = None,
    prompt: str | None = None,
    profiles: Sequence[Profile] = (),
    cache: Path | None = None,
    device: str | torch.device = "auto",
    quantised_twin: bool = False,
) -> list[Measurement]:
    """Return the measurements of the models in `runs`, all on the same text, in the order given.

    Args:
        split, file, limit: the text, as in `evaluate.read_text`; at most `limit` tokens.
        prompt: text for the spike raster; the beginning of the measured text if None.
        profiles: price tables for the energy estimates.
        quantised_twin: behind them all, each spiking model once more as a quantised network (`as_quantised`).

    Raises:
        SpikegptError: no run is given, one is not whole, the device is not there, or the runs would be measured on
            different texts.
    """
    if isinstance(runs, str | Path) or not runs:
        raise SpikegptError(f"no run given but {runs!r}; give a list with the folder of at least one run")
    runs = [to_path("run", run) for run in runs]
    cache, file = cache and to_path("cache", cache), file and to_path("file", file)
    check_reading(split, limit)
    loaded = [(*load_model(run, device=device), run) for run in runs]
    contexts = [tuple(read_context(context_folder(run))) for run in runs]
    for _, tokenizer, _ in loaded:
        # what cannot be read is found before the long part
        if prompt is not None:
            encoded_text(tokenizer, prompt)
    texts = [
        read_text(run, tokenizer, split=split, file=file, limit=limit, cache=cache) for _, tokenizer, run in loaded
    ]
    contents = [tokenizer.decode(tokens) for (_, tokenizer, _), (tokens, _) in zip(loaded, texts, strict=True)]
    for run, content in zip(runs, contents, strict=True):
        # with another tokenizer so many tokens are more or less of the same text
        shorter = min(len(content), len(contents[0])) if limit is not None else None
        if content[:shorter] != contents[0][:shorter]:
            raise SpikegptError(
                f"{run} and {runs[0]} have different {split} texts, which cannot be compared; give one text with --file"
            )
    _say(f"measuring {', '.join(map(str, runs))} on {texts[0][1]}: {len(texts[0][0]):,} tokens")
    speeds = measure_speed([model for model, _, _ in loaded], [tokens for tokens, _ in texts])
    measurements: list[Measurement] = []
    tallies: list[Tally] = []
    for (model, tokenizer, run), (tokens, source), name, speed, context in zip(
        loaded, texts, _short_names(runs), speeds, contexts, strict=True
    ):
        with named_if_not_finite(run):
            measurement = measure_model(
                model,
                tokenizer,
                tokens,
                name=name,
                source=source,
                prompt=prompt,
                profiles=profiles,
                tokens_per_s=speed,
                notes=_training_notes(run),
                context=context,
                counted=tallies.append,
            )
        measurements.append(measurement)
    if not quantised_twin:
        return measurements
    pairs = zip(measurements, tallies, strict=True)
    return measurements + [as_quantised(*pair, profiles) for pair in pairs if pair[0].firing_rate is not None]


def _training_notes(run: Path) -> tuple[str, ...]:
    """How far the training of a run came and who taught it beside its text, as sentences; nothing that nobody knows."""
    checkpoint = locate(run, warn=lambda message: None).newest
    progress, training = progress_of(checkpoint), training_of(checkpoint)
    steps = () if progress is None else (f"trained for {progress[0]:,} of {progress[1]:,} steps",)
    if training.get("teacher") and (training.get("teacher_weight") or training.get("teacher_features")):
        return (*steps, f"taught by {Path(training['teacher']).name}")
    return (*steps, "taught by itself without its neurons") if training.get("self_teacher") else steps


def _short_names(runs: Sequence[Path]) -> list[str]:
    """The folders' names, or their whole paths where two are the same."""
    names = [run.resolve().name for run in runs]
    return [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]


def measure_models(
    models: Mapping[str, SpikeGPT],
    tokenizer: Tokenizer,
    text: str | bytes,
    *,
    prompt: str | None = None,
    profiles: Sequence[Profile] = (),
    with_speed: bool = False,
) -> list[Measurement]:
    """Return the measurements of `models`, by name, that share a tokenizer, on one text: they need be no runs.

    Args:
        prompt, profiles: as of `measure_runs`.
        with_speed: how fast each reads and writes too; takes six rounds.

    Raises:
        SpikegptError: no model is given, or the text has fewer than two tokens.
    """
    if not isinstance(models, Mapping) or not models:
        raise SpikegptError(f"models must be a dictionary of at least one, name -> model; got {models!r:.80}")
    tokens = tokenizer.encode(text)
    check_length(tokens)
    texts = [tokens] * len(models)
    speeds: list[dict[str, float]] = measure_speed(list(models.values()), texts) if with_speed else [{} for _ in models]
    return [
        measure_model(
            model,
            tokenizer,
            tokens,
            name=name,
            source=f"a text of {len(tokens):,} tokens",
            prompt=prompt,
            profiles=profiles,
            tokens_per_s=speed,
        )
        for (name, model), speed in zip(models.items(), speeds, strict=True)
    ]


@torch.inference_mode()
def measure_model(
    model: SpikeGPT,
    tokenizer: Tokenizer,
    tokens: np.ndarray,
    *,
    name: str,
    source: str,
    prompt: str | None = None,
    profiles: Sequence[Profile] = (),
    tokens_per_s: dict[str, float] | None = None,
    notes: tuple[str, ...] = (),
    context: tuple[ContextPoint, ...] = (),
    counted: Callable[[Tally], None] | None = None,
) -> Measurement:
    """Return the measurement of `model` on `tokens` (N,): read at once in chunks, then some of them one by one.

    Args:
        context: what `measure_context` found before.
        counted: is given the counts that the measurement is made of.
    """
    config = model.config
    # rates by token are for vocabularies that a person can look through
    has_small_vocabulary = config.vocab_size <= LARGEST_LISTED_VOCABULARY
    firing = FiringStatistics(
        vocab_size=config.vocab_size if has_small_vocabulary else None, n_positions=min(config.ctx_len, len(tokens))
    )

    def watch(ids: Tensor, output: ModelOutput) -> None:
        if output.spikes:
            firing.update(output.spikes, ids=ids, continued=True)

    with OpCounter(model) as counter:
        with counter.phase("prefill"):
            evaluation = evaluate_stream(model, tokens, tokenizer, watch=watch)
        with counter.phase("decode"):
            _decode(model, _ids(model, tokens[: DECODED + 1])[:, :-1])
    tally = counter.tally()
    is_spiking = evaluation.firing_rate is not None
    measurement = Measurement(
        name=name,
        block=config.spiking,
        text=source,
        protocol=evaluation.protocol,
        tokens=tally.token_count("prefill"),
        text_bytes=evaluation.bytes,
        parameters=model.count_parameters(),
        bits_per_byte=evaluation.bits_per_byte,
        firing_rate=evaluation.firing_rate,
        layers=layer_ops(tally, "prefill", evaluation.firing_rate, LEFT_OUT),
        **_counted(tally, profiles),
        firing=firing.to_dict(arrays=True) if is_spiking else None,
        rasters=text_rasters(model, tokenizer, _raster_text(tokenizer, tokens, prompt)) if is_spiking else (),
        state_elements=tally.footprint.state,
        family=f"{config.mixer} of {config.n_layer} layers of width {config.n_embd}",
        state_tokens=config.ctx_len if config.mixer == "attention" else None,
        key_value_elements_per_token=cached_per_token(config),
        parameter_bits=min(math.ceil(config.weight_bits), 8 * model.head.weight.element_size()),
        tokens_per_s=tokens_per_s or {},
        host=_host(model.device),
        uncounted=tuple(item._asdict() for item in tally.uncounted),
        context=context,
        notes=notes,
        wording=Wording(block=BLOCKS[config.spiking], places=neuron_places(model, evaluation.firing_rates)),
    )
    if counted is not None:
        counted(tally)
    return measurement


def _counted(tally: Tally, profiles: Sequence[Profile]) -> dict[str, Any]:
    """What of a measurement is counts and prices alone."""
    phases = tuple(tally.tokens)
    return {
        "per_token": {phase: per_token(tally.total(phase=phase), tally.token_count(phase)) for phase in phases},
        "by_kind": {
            kind: per_token(counts, tally.token_count("prefill")) for kind, counts in tally.by_kind("prefill").items()
        },
        "energy": {
            phase: {profile.name: estimate(tally, profile, phase).to_dict() for profile in profiles} for phase in phases
        },
    }


def as_quantised(measurement: Measurement, tally: Tally, profiles: Sequence[Profile] = ()) -> Measurement:
    """Return what a spiking model costs as a quantised network, which does every product: the same predictions."""
    every, bits = every_product(tally), level_bits(tally)
    layers = [
        dataclasses.replace(layer, alphabet=f"integers of {bits} bits" if layer.alphabet in SPIKES else layer.alphabet)
        for layer in layer_ops(every, "prefill", None)
    ]
    note = f"the numbers of {measurement.name}: every product done, its spikes as integers of at most {bits} bits"
    return dataclasses.replace(
        measurement,
        name=f"{measurement.name}, quantised",
        block=QUANTISED,
        firing_rate=None,
        layers=tuple(layers),
        **_counted(every, profiles),
        firing=None,
        rasters=(),
        tokens_per_s={},
        context=(),
        notes=(note,),
        wording=Wording(block="quantised: every product is done"),
    )


def cached_per_token(config: ModelConfig) -> int:
    """Return how many numbers an attention model of the same layers and width caches for a token of its context.

    Counted in the state of such a model, whose weights nobody needs.
    """
    # heads have an even number of channels
    width = config.n_embd + config.n_embd % 2
    twin = ModelConfig(n_layer=config.n_layer, n_embd=width, spiking="none", mixer="attention", n_head=1)
    with torch.no_grad(), torch.device("meta"):
        model = SpikeGPT(twin, init=False).eval()
        one, two = (model(torch.zeros(1, length, dtype=torch.long)).state for length in (1, 2))
    return _elements(two) - _elements(one)


def _elements(state: State) -> int:
    return sum(part.numel() for part in tree_leaves(state) if part is not None)


def _ids(model: SpikeGPT, tokens: np.ndarray) -> Tensor:
    """`tokens` (T,) as ids (1, T), where the model is."""
    return torch.from_numpy(tokens.astype(np.int64)).to(model.device)[None]


def _read(model: SpikeGPT, ids: Tensor) -> None:
    """Read ids (1, T) at once."""
    model(ids)


def _decode(model: SpikeGPT, ids: Tensor) -> None:
    """Read ids (1, T) token by token."""
    state = None
    for position in range(ids.shape[1]):
        state = model(ids[:, position : position + 1], state).state


def _decoder(model: SpikeGPT, ids: Tensor) -> Callable[[Tensor], None]:
    """Return a function that reads ids (1, T) one by one, as `generate` does, after the first of `ids`."""
    engine = Engine(model)
    engine.start(model(ids[:, :1]).state)

    def decode(rest: Tensor) -> None:
        for token in rest[0]:
            engine.step(token.view(1))

    return decode


@torch.inference_mode()
def measure_speed(models: Sequence[SpikeGPT], texts: Sequence[np.ndarray]) -> list[dict[str, float]]:
    """Return phase -> tokens per second of each model on this host: medians of rounds in which they take turns."""
    seconds: list[dict[str, list[float]]] = [{"prefill": [], "decode": []} for _ in models]
    sizes: list[dict[str, int]] = [{} for _ in models]
    # one round more, to warm up
    for is_counted in (False, *[True] * SPEED_ROUNDS):
        for index, (model, tokens) in enumerate(zip(models, texts, strict=True)):
            ids = _ids(model, tokens[:1025])[:, :-1]
            decode = _decoder(model, ids)
            for phase, read, part in (("prefill", partial(_read, model), ids), ("decode", decode, ids[:, :DECODED])):
                finish(model.device)
                start = time.perf_counter()
                read(part)
                finish(model.device)
                if is_counted:
                    seconds[index][phase].append(time.perf_counter() - start)
                sizes[index][phase] = part.shape[1]
    return [
        {phase: sizes[index][phase] / statistics.median(times[phase]) for phase in times}
        for index, times in enumerate(seconds)
    ]


def _host(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _raster_text(tokenizer: Tokenizer, tokens: np.ndarray, prompt: str | None) -> np.ndarray:
    """The tokens of `prompt`, or of the measured text, that a report shows spikes of."""
    return (tokens if prompt is None else encoded_text(tokenizer, prompt))[:RASTER_TOKENS]


def report_folder(run: Path) -> Path:
    """Return where the report of a run or of one of its checkpoints is kept: see `results_folder`."""
    return results_folder(run) / "report"


def claims_of(measurement: Measurement) -> Claims | None:
    """Return the published saving, the same recipe on this model, and its saving as built; None if it is dense."""
    if measurement.firing_rate is None:
        return None
    published = published_saving()
    covered = [layer for layer in measurement.layers if layer.idealised_acs is not None]
    dense = sum(layer.dense_ops for layer in covered)
    idealised = sum(layer.idealised_acs or 0.0 for layer in covered)
    driven = [layer for layer in covered if layer.is_spike_driven]
    acs = sum(layer.built_acs for layer in driven)
    still_dense = dense - sum(layer.dense_ops for layer in driven)
    readers = (
        f"{len(driven)} of the {len(covered)} matrix products of its blocks read"
        if driven
        else "no matrix product of its blocks reads"
    )
    return Claims(
        per_projection_ratio=published.projection_ratio,
        total_ratio=published.total_ratio,
        idealised_ratio=_ratio(MAC_PJ * dense, AC_PJ * idealised),
        as_built_ratio=_ratio(MAC_PJ * dense, MAC_PJ * still_dense + AC_PJ * acs),
        sentence=f"The published figures multiply every operation by a firing rate; in {measurement.name} as built, "
        f"{readers} spikes, "
        "and what reads real numbers multiplies as before.",
    )


def _ratio(above: float, below: float) -> float:
    """`above` / `below`; infinite for a model that never spikes."""
    return above / below if below else float("inf")


def _say(text: str) -> None:
    print(one_line(text), file=sys.stderr, flush=True)
