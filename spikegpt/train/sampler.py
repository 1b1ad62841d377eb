"""From tokens to training batches: seeded samplers whose position is their only state, for one process or several."""

import numpy as np
import torch
from torch import Tensor

from ..common.errors import SpikegptError


class _Sampler:
    """What both samplers share. `position`, the samples consumed by all processes together, is the whole state."""

    def __init__(
        self, tokens: np.ndarray, ctx_len: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ):
        """
        Args:
            tokens: (N,) unsigned integers, memory-mapped or not.
            batch_size: samples per process and step.
            seed: in [0, 2**64); the order of samples depends on it and on `position` only.
            rank: of this process, in [0, world_size).

        Raises:
            SpikegptError: there are too few tokens, or an argument is out of range.
        """
        for name, value, lowest, highest in (
            ("ctx_len", ctx_len, 1, None),
            ("batch_size", batch_size, 1, None),
            ("world_size", world_size, 1, None),
            ("rank", rank, 0, world_size - 1),
            ("seed", seed, 0, 2**64 - 1),
        ):
            if value < lowest or (highest is not None and value > highest):
                raise SpikegptError(
                    f"{name} must be at least {lowest}{'' if highest is None else f' and at most {highest}'}, "
                    f"got {value}"
                )
        self.tokens, self.ctx_len, self.batch_size, self.seed = tokens, ctx_len, batch_size, seed
        self.rank, self.world_size, self.position = rank, world_size, 0

    @property
    def global_batch(self) -> int:
        """Samples per step of all processes together."""
        return self.batch_size * self.world_size

    def _random(self, epoch: int) -> np.random.Philox:
        # raw numbers of Philox never change between versions of numpy, those of Generator's methods may
        return np.random.Philox(key=np.array([self.seed, epoch], np.uint64))

    def _gather(self, starts: np.ndarray) -> tuple[Tensor, Tensor]:
        samples = torch.from_numpy(self.tokens[starts[:, None] + np.arange(self.ctx_len + 1)].astype(np.int64))
        return samples[:, :-1].contiguous(), samples[:, 1:].contiguous()


class WindowSampler(_Sampler):
    """Random windows of ctx_len tokens: per epoch, adjacent windows from a random phase, in random order, each once.

    Processes share the order that one process with world_size times the batch would draw; each takes its rows of every
    batch. An epoch is up to two windows short of the split, so that every phase is possible and all epochs are equally
    long.
    """

    def __init__(
        self, tokens: np.ndarray, ctx_len: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ):
        super().__init__(tokens, ctx_len, batch_size, seed, rank, world_size)
        if len(tokens) < ctx_len + 1:
            raise SpikegptError(
                f"the split has {len(tokens)} tokens, a window of ctx_len {ctx_len} needs {ctx_len + 1}; "
                "shorten ctx_len"
            )
        self.samples_per_epoch = max(1, len(tokens) // ctx_len - 1)
        self._epoch, self._starts = -1, np.empty(0, np.int64)

    def next(self) -> tuple[Tensor, Tensor]:
        """Return ids and targets, each (B, T) int64, and advance."""
        first = self.position + self.rank * self.batch_size
        epochs, index = np.divmod(np.arange(first, first + self.batch_size), self.samples_per_epoch)
        starts = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs).tolist():
            starts[epochs == epoch] = self._starts_of(epoch)[index[epochs == epoch]]
        self.position += self.global_batch
        return self._gather(starts)

    def _starts_of(self, epoch: int) -> np.ndarray:
        """First token of each window of an epoch, in the order of the epoch."""
        if epoch != self._epoch:
            random = self._random(epoch)
            slack = len(self.tokens) - 1 - self.samples_per_epoch * self.ctx_len
            phase = random.random_raw() % (slack + 1)
            order = np.argsort(random.random_raw(self.samples_per_epoch), kind="stable")
            self._epoch, self._starts = epoch, phase + order * self.ctx_len
        return self._starts


class StreamSampler(_Sampler):
    """Text in order, for a carried state: one lane per row of the global batch, ctx_len tokens per step.

    Lanes are equal, adjacent parts of the split; all end together and start again, from another random phase.
    """

    def __init__(
        self, tokens: np.ndarray, ctx_len: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1
    ):
        super().__init__(tokens, ctx_len, batch_size, seed, rank, world_size)
        self._lane_tokens = (len(tokens) - 1) // self.global_batch
        self._steps = self._lane_tokens // ctx_len
        if self._steps == 0:
            needed = self.global_batch * ctx_len + 1
            raise SpikegptError(
                f"the split has {len(tokens)} tokens, {self.global_batch} lanes of ctx_len {ctx_len} need {needed}; "
                "shorten ctx_len or use a smaller batch"
            )
        self.samples_per_epoch = self._steps * self.global_batch

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids and targets, each (B, T) int64, and starts (B,) bool, rows to be reset before; and advance.

        Raises:
            SpikegptError: `position` was set to something else than whole global batches.
        """
        step, rest = divmod(self.position, self.global_batch)
        if rest:
            advice = "resume with the same batch size times processes"
            raise SpikegptError(
                f"position {self.position} is not a multiple of the {self.global_batch} lanes; {advice}"
            )
        epoch, step = divmod(step, self._steps)
        phase = self._random(epoch).random_raw() % (self._lane_tokens - self._steps * self.ctx_len + 1)
        lanes = np.arange(self.batch_size) + self.rank * self.batch_size
        self.position += self.global_batch
        starts = torch.full((self.batch_size,), step == 0)
        return *self._gather(lanes * self._lane_tokens + phase + step * self.ctx_len), starts
