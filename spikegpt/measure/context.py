"""What a text's memory costs and what it buys: bits per byte, bytes, operations and pace by length of the context.

A window of each length is read; its first half is the prompt, the tokens of its second half are predicted one by one:
of a text, or of keys and values that were told in the first half (`recall`).
A model with a key-value cache is read once per policy, one with a constant state once. Bytes are those of what one text
carries after the whole window, by what they are; operations are those that its last token costs, counted.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from neuromorphic import OpCounter
from neuromorphic.report.context import CONSTANT, ContextPoint

from ..checkpoint.weights import load_model
from ..common.devices import finish
from ..common.errors import SpikegptError, warn_on_stderr
from ..common.files import to_path
from ..common.printing import one_line
from ..common.progress import Progress
from ..common.tables import columns
from ..config.values import Range
from ..evaluate.runs import check_reading, read_text
from ..generate.engine import Engine
from ..model.cache import CachedReader, CachePolicy, parse_policy
from ..model.cache.prompts import DynamicKV, FastKV
from ..model.cache.reader import ReaderState, orders_of
from ..model.cache.storage import Rotate
from ..model.mixers.attention import Attention
from ..model.network import SpikeGPT, evaluating
from ..model.state import State, select_texts
from .context_windows import Score, Windows, bits_per_byte, recall_windows, text_windows

LENGTHS = Range(2, 2**24, "half of a window is read, half of it predicted")
TEXTS = Range(1, 4096)
# tokens that a constant state reads at once, and that name an order of channels
CHUNK, CALIBRATION = 1024, 4096
PACE_ROUNDS = 9


class ConstantState:
    """A model whose state does not grow."""

    policy, budget, reads_one_by_one = CONSTANT, None, False

    def __init__(self, model: SpikeGPT):
        self.module: nn.Module = model
        self._model = model

    def predict(self, ids: Tensor, first: int, score: Score) -> State:
        """Read texts (B, L) up to their last tokens, score those from `first` on; return the first text's state."""
        state: State | None = None
        read = ids.shape[1] - 1
        for start in range(0, read, CHUNK):
            end = min(start + CHUNK, read)
            output = self._model(ids[:, start:end], state)
            state = output.state
            skipped = max(first - 1 - start, 0)
            if skipped < end - start:
                score.add(output.logits[:, skipped:], start + 1 + skipped)
        assert state is not None
        return select_texts(state, [0])

    def bytes_by_part(self, ids: Tensor, before: State) -> dict[str, float]:
        """Return part -> bytes after one more token, of all layers: the parts are those that the mixers name."""
        found: dict[str, float] = {}
        for block in self._model(ids, before).state:
            for half in block:
                for name in getattr(half, "_fields", ()):
                    sizes: list[int] = []
                    tree_map(lambda part, sizes=sizes: sizes.append(_bytes_of(part)), getattr(half, name))
                    found[name] = found.get(name, 0) + sum(sizes)
        return {name: size for name, size in found.items() if size}

    def pace(self, ids: Tensor, state: State) -> Callable[[], object]:
        engine = Engine(self._model)
        engine.start(state)
        return lambda: engine.step(ids[0])


class Cached:
    """A model that reads through a policy of its cache."""

    def __init__(self, reader: CachedReader, spec: str):
        self.module: nn.Module = reader
        self._reader, self.policy = reader, spec
        number = spec.partition("+")[0].partition(":")[2].partition(",")[0]
        self.budget = float(number) if number else None

    @property
    def reads_one_by_one(self) -> bool:
        """Whether texts get caches of different lengths."""
        return isinstance(self._reader.policy.prompt, DynamicKV)

    def predict(self, ids: Tensor, first: int, score: Score) -> ReaderState:
        """Read texts (B, L) up to their last tokens, score those from `first` on; return the first text's state."""
        logits, state = self._reader(ids[:, :first])
        score.add(logits, first)
        for token in range(first, ids.shape[1] - 1):
            logits, state = self._reader(ids[:, token : token + 1], state)
            score.add(logits, token + 1)
        caches = tuple(
            tree_map(lambda part: part[:1] if isinstance(part, Tensor) else part, cache) for cache in state.caches
        )
        return ReaderState(caches, state.read)

    def bytes_by_part(self, ids: Tensor, before: ReaderState) -> dict[str, float]:
        """Return part -> bytes after one more token, of all layers."""
        return {part: bits / 8 for part, bits in self._reader.bits(self._reader(ids, before)[1]).items()}

    def pace(self, ids: Tensor, state: ReaderState) -> Callable[[], object]:
        return lambda: self._reader(ids, state)


def measure_context(
    runs: Sequence[Path],
    policies: Sequence[str] = (),
    lengths: Sequence[int] = (128, 512, 2048),
    *,
    texts: int = 8,
    split: str = "test",
    file: Path | None = None,
    cache: Path | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float16,
    recall: int | None = None,
    seed: int = 0,
) -> list[ContextPoint]:
    """Return the points of all runs, in the order given, at all lengths: one per policy, or one for a constant state.

    Args:
        policies: as `model.cache.specs` names them; the full cache if none is given.
        texts: windows of each length that are read, as far as the text has so many.
        split, file: the text, as in `evaluate.read_text`.
        dtype: of rows that are cached as they are.
        recall: in place of a text read keys and values of so many letters (`data.recall`), drawn by `seed`.

    Raises:
        SpikegptError: no run is given, or a run has no cache and policies are given for it alone, or a length is beyond
            the text of a model with a cache, or a policy does not fit a length.
            With `recall` also if a length has no room for a pair, or a run's tokens are no letters.
        ValueError: a policy or a number is none.
    """
    if isinstance(runs, str | Path) or not runs:
        raise SpikegptError(f"no run given but {runs!r}; give a list with the folder of at least one run")
    check_reading(split, None)
    TEXTS.check("texts", texts)
    for length in lengths:
        LENGTHS.check("lengths", length)
    parsed = [parse_policy(spec, dtype) for spec in policies or ("full",)]
    runs, wanted = [to_path("run", run) for run in runs], sorted(set(lengths))
    loaded = [(run, *load_model(run, device=device)) for run in runs]
    if policies and not any(_has_cache(model) for _, model, _ in loaded):
        raise SpikegptError(
            f"{', '.join(map(str, runs))} carry a constant state, no key-value cache, which policies are of; "
            "leave out --policy, or add a run with --mixer attention"
        )
    for policy in parsed:
        for length in lengths:
            _check_prompt(policy, length)
    points = []
    for run, model, tokenizer in loaded:
        if recall is None:
            tokens, source = read_text(run, tokenizer, split=split, file=file, cache=cache)
            windows = [text_windows(tokens, length, texts, tokenizer) for length in wanted]
        else:
            source = f"keys and values of {recall} letters"
            # others, for whoever looks at a text before
            tokens = recall_windows(wanted[-1], texts, recall, seed + 1, tokenizer).ids.ravel()
            windows = [recall_windows(length, texts, recall, seed, tokenizer) for length in wanted]
        print(one_line(f"reading {source} with {run}"), file=sys.stderr, flush=True)
        if not _has_cache(model):
            carriers: list[ConstantState | Cached] = [ConstantState(model)]
        else:
            _check_lengths(run, model, wanted, len(tokens) if recall is None else None)
            known = tokens
            if any(isinstance(policy.storage, Rotate) for policy in parsed) and file is None and recall is None:
                known = read_text(run, tokenizer, split="train", limit=CALIBRATION, cache=cache)[0]
            carriers = [_cached(model, policy, wanted[-1], known) for policy in parsed]
        with (
            torch.inference_mode(),
            evaluating(model),
            Progress(run.name, len(carriers) * len(windows), "points") as progress,
        ):
            for carrier in carriers:
                for some in windows:
                    points.append(_measured(run, model, carrier, some, len(tokens)))
                    progress.advance(1)
    return points


def _has_cache(model: SpikeGPT) -> bool:
    return isinstance(model.blocks[0].att, Attention)


def _check_prompt(policy: CachePolicy, length: int) -> None:
    """Raise SpikegptError where half a window is too short a prompt for what the policy keeps of it."""
    if not isinstance(policy.prompt, FastKV) or length // 2 <= policy.prompt.window:
        return
    try:
        policy.prompt.capacity(length // 2, is_behind=False)
        policy.prompt.capacity(policy.prompt.propagated(length // 2), is_behind=True)
    except ValueError as error:
        raise SpikegptError(
            f"policy {policy.name!r} at a length of {length}, half of which is its prompt: {error}"
        ) from None


def _check_lengths(run: Path, model: SpikeGPT, lengths: Sequence[int], tokens: int | None) -> None:
    longest, trained = max(lengths), model.config.ctx_len
    if tokens is not None and longest > tokens:
        raise SpikegptError(
            f"a length of {longest:,} is beyond the text, which has {tokens:,} tokens for {run}; "
            "give shorter --lengths or a longer text with --file"
        )
    if longest > trained:
        warn_on_stderr(
            f"{run} was trained on texts of {trained} tokens: at {longest:,} what is cached lies farther back than "
            "any distance that it has learned, and its bits may rise with the context"
        )


def _cached(model: SpikeGPT, policy: CachePolicy, longest: int, tokens: np.ndarray) -> Cached:
    orders = None
    if isinstance(policy.storage, Rotate):
        window = min(model.config.ctx_len, len(tokens))
        count = max(min(CALIBRATION, len(tokens)) // window, 1)
        with torch.inference_mode():
            orders = orders_of(model, policy.storage, _ids(model, tokens[: count * window]).view(count, window))
    return Cached(CachedReader(model, policy, longest, orders), policy.name)


def _measured(
    run: Path, model: SpikeGPT, carrier: ConstantState | Cached, windows: Windows, text_tokens: int
) -> ContextPoint:
    ids, length = torch.from_numpy(windows.ids.astype(np.int64)).to(model.device), windows.ids.shape[1]
    nats, right, answers = 0.0, 0, 0
    states: list[Any] = []
    parts = range(len(ids)) if carrier.reads_one_by_one else [slice(None)]
    for texts in (slice(part, part + 1) if isinstance(part, int) else part for part in parts):
        score = Score(ids[texts], windows.asked[texts])
        states.append(carrier.predict(ids[texts], windows.first, score))
        nats += score.nats()
        if windows.answer is not None:
            found, of_all = score.answers(windows.answer)
            right, answers = right + found, answers + of_all
    state, last = states[0], ids[:1, -1:]
    with OpCounter(carrier.module) as counter:
        carrier.module(last, state)
    counts = counter.tally().total(phase="decode")
    operations = {"macs": counts.effective_macs, "acs": counts.effective_acs, **counts.elementwise}
    is_read = bool(windows.predicted_bytes)
    return ContextPoint(
        model=run.resolve().name,
        mixer=model.config.mixer,
        spiking=model.config.spiking,
        policy=carrier.policy,
        budget=carrier.budget,
        context=length,
        bytes_by_part=carrier.bytes_by_part(last, state),
        operations={name: number for name, number in operations.items() if number},
        bits_per_byte=bits_per_byte(nats, windows.predicted_bytes),
        predicted_tokens=int(windows.asked.sum()),
        texts=len(ids) if is_read else 0,
        tokens_per_s=_pace(carrier.pace(last, state), model.device),
        recalled=right / answers if answers else None,
        notes=() if is_read else (f"the text has {text_tokens:,} tokens and is repeated; nothing is predicted",),
    )


def _pace(step: Callable[[], object], device: torch.device) -> float:
    """Tokens per second: the median of a few, after two to warm up."""
    seconds = []
    for _ in range(2 + PACE_ROUNDS):
        finish(device)
        start = time.perf_counter()
        step()
        finish(device)
        seconds.append(time.perf_counter() - start)
    return 1 / statistics.median(seconds[2:])


def _ids(model: SpikeGPT, tokens: np.ndarray) -> Tensor:
    return torch.from_numpy(tokens.astype(np.int64)).to(model.device)


def _bytes_of(part: Any) -> int:
    return part.numel() * part.element_size() if isinstance(part, Tensor) else 0


def table(points: Sequence[ContextPoint]) -> str:
    """Return the points as text, a line each."""
    return columns(cells(points))


def cells(points: Sequence[ContextPoint]) -> list[list[str]]:
    """Return the rows of the same table."""
    is_recall = any(point.recalled is not None for point in points)
    first = ["run", "keeps", "context", *(["recalled"] if is_recall else []), "bits/byte"]
    rows = [[*first, "bytes/text", "of which", "operations/token", "tokens/s"]]
    for point in points:
        parts = ", ".join(f"{name} {size:,.0f}" for name, size in point.bytes_by_part.items())
        rows.append(
            [
                point.model,
                point.policy,
                f"{point.context:,}",
                *([f"{point.recalled:.1%}"] if point.recalled is not None else []),
                "-" if point.bits_per_byte is None else f"{point.bits_per_byte:.4f}",
                f"{point.bytes_per_text:,.0f}",
                parts,
                f"{point.operations_per_token:,}",
                f"{point.tokens_per_s:,.0f}",
            ]
        )
    return rows
