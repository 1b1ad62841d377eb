"""Long texts to tokens in several processes: pieces cut where no token changes, in order, in constant memory.

The workers are plain child processes that read pieces from a pipe. Those of the module multiprocessing would run the
user's script once more, unless it is guarded against that, or inherit the threads and locks of torch.
"""

import json
import math
import os
import queue
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from itertools import accumulate, chain, pairwise
from typing import IO

import numpy as np

from ...common.errors import SpikegptError
from ...common.progress import Progress
from ..cutting import cut_pieces
from ..text import Text
from .contract import PAIR_PIECE_BYTES, Tokenizer
from .stored import tokenizer_of

# a worker takes about half a second to start: for less text than this per process it is not worth it
BYTES_PER_PROCESS = 4 << 20
_OPENING = struct.Struct("<?Q")
Batch = list[bytes]
# takes a batch, and returns what waits for the ids of each of its pieces
Begin = Callable[[Batch], Callable[[], list[np.ndarray]]]


def encode_text(
    tokenizer: Tokenizer, text: Text, processes: int | None = None, title: str = "tokenising"
) -> Generator[tuple[bytes, np.ndarray], None, None]:
    """Yield (piece, its ids (N,)) through the whole text: the pieces add up to it, the ids to its ids in one go.

    A tokenizer of the library that is not byte-level can be cut nowhere: such a text is one piece.

    Args:
        processes: default all CPUs; fewer for a short text or a fast tokenizer.

    Raises:
        SpikegptError: the text cannot be read, or does not fit the tokenizer.
    """
    with Progress(title, len(text)) as progress:
        pieces = cut_pieces(text.blocks(), PAIR_PIECE_BYTES, tokenizer.next_cut)
        for piece, ids in encode_pieces(tokenizer, pieces, useful_processes(tokenizer, len(text), processes)):
            progress.advance(len(piece))
            yield piece, ids


def encode_first(tokenizer: Tokenizer, text: Text, limit: int | None) -> np.ndarray:
    """Return the first `limit` ids (N,) of `text`, all if None; no more of it is read than that takes."""
    encoded, left = [np.empty(0, tokenizer.dtype)], math.inf if limit is None else limit
    # a limit is for short looks, which are over before a worker has started
    with closing(encode_text(tokenizer, text, None if limit is None else 1)) as pieces:
        for _, ids in pieces:
            encoded.append(ids)
            left -= len(ids)
            if left <= 0:
                break
    return np.concatenate(encoded)[:limit]


def useful_processes(tokenizer: Tokenizer, size: int, processes: int | None = None) -> int:
    """Return how many processes a text of `size` bytes is worth, at most `processes` (default all CPUs).

    Raises:
        SpikegptError: `processes` is less than 1.
    """
    if processes is not None and processes < 1:
        raise SpikegptError(f"processes must be at least 1, got {processes}")
    if not tokenizer.encodes_slowly or not sys.executable:
        return 1
    # the CPUs that this process may use, where the system tells
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(processes or available, size // BYTES_PER_PROCESS))


def encode_pieces(tokenizer: Tokenizer, pieces: Iterable[bytes], processes: int) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yield (piece, its ids) in order, each encoded by itself, with so many worker processes; 1 is this process.

    Raises:
        SpikegptError: a piece does not fit the tokenizer, or a worker died.
    """
    start = 0
    with ExitStack() as stack:
        begin = _in_turn(tokenizer) if processes == 1 else _in_workers(tokenizer, processes, stack)
        # batches that are under way: enough that no worker waits for the first to be fetched
        waiting: deque[tuple[Batch, Callable[[], list[np.ndarray]]]] = deque()
        for batch in chain(_batches(pieces), [None] * (4 * processes)):
            if batch is not None:
                waiting.append((batch, begin(batch)))
            if waiting and (batch is None or len(waiting) == 4 * processes):
                done, result = waiting.popleft()
                try:
                    encoded = result()
                except SpikegptError as error:
                    place = f"in the text from byte {start} on: " if start else ""
                    raise SpikegptError(f"{place}{error}") from None
                yield from zip(done, encoded, strict=True)
                start += sum(map(len, done))


def _batches(pieces: Iterable[bytes]) -> Iterator[Batch]:
    """Yield short pieces together: a message to a worker costs as much as some hundred words."""
    batch: Batch = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece)
        if size >= PAIR_PIECE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _in_turn(tokenizer: Tokenizer) -> Begin:
    return lambda batch: lambda: list(map(tokenizer.encode, batch))


def _in_workers(tokenizer: Tokenizer, processes: int, stack: ExitStack) -> Begin:
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for _ in range(processes):
        idle.put(stack.enter_context(_Worker(tokenizer)))

    def encode(batch: Batch) -> list[np.ndarray]:
        worker = idle.get()
        try:
            return worker.encode(batch)
        finally:
            idle.put(worker)

    # the threads only wait for the pipes
    threads = ThreadPoolExecutor(processes)
    # leaving early drops what nobody waits for any more
    stack.callback(threads.shutdown, cancel_futures=True)
    return lambda batch: threads.submit(encode, batch).result


class _Worker:
    """A child process that encodes one batch after the other.

    Messages: one byte (1 if it went well), eight bytes length, content.
    """

    def __init__(self, tokenizer: Tokenizer):
        code = f"import sys; sys.path[:] = {sys.path!r}; from spikegpt.data.tokenizers.encoding import serve; serve()"
        self._dtype = tokenizer.dtype
        self._process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._tokenizer = json.dumps(tokenizer.to_json()).encode()

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_) -> None:
        # the end of its input ends the worker; one that is dead already cannot be told
        with suppress(OSError):
            self._input.close()
        self._output.close()
        self._process.wait()

    def encode(self, batch: Batch) -> list[np.ndarray]:
        try:
            if self._tokenizer:
                _send(self._input, True, self._tokenizer)
                self._tokenizer = b""
            _send(self._input, True, _pack(batch))
            message = _receive(self._output)
        except OSError:
            message = None
        if message is None:
            advice = "if the memory is full, use a machine with more, or shorter lines"
            raise SpikegptError(f"a tokenising process ended unexpectedly (status {self._process.wait()}); {advice}")
        went_well, content = message
        if not went_well:
            raise SpikegptError(content.decode())
        return [np.frombuffer(ids, self._dtype) for ids in _unpack(content)]


def serve() -> None:
    """Be a worker: read a tokenizer and batches from standard input, write their ids to standard output."""
    # Ctrl-C reaches this process too, but the parent ends it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # one CPU each: the library would otherwise start as many threads as there are CPUs, in every worker
    os.putenv("TOKENIZERS_PARALLELISM", "false")
    source, target = sys.stdin.buffer, sys.stdout.buffer
    message = _receive(source)
    if message is None:
        return
    tokenizer = tokenizer_of(json.loads(message[1]), "the tokenizer")
    while (message := _receive(source)) is not None:
        try:
            _send(target, True, _pack([tokenizer.encode(piece).tobytes() for piece in _unpack(message[1])]))
        except SpikegptError as error:
            _send(target, False, str(error).encode())


def _pack(parts: Batch) -> bytes:
    """The number of parts, their lengths, and the parts."""
    return struct.pack(f"<Q{len(parts)}Q", len(parts), *map(len, parts)) + b"".join(parts)


def _unpack(content: bytes) -> Batch:
    (count,) = struct.unpack_from("<Q", content)
    bounds = accumulate(struct.unpack_from(f"<{count}Q", content, 8), initial=8 + 8 * count)
    return [content[start:stop] for start, stop in pairwise(bounds)]


def _send(pipe: IO[bytes], went_well: bool, content: bytes) -> None:
    pipe.write(_OPENING.pack(went_well, len(content)))
    pipe.write(content)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[bool, bytes] | None:
    """The next message; None at the end."""
    opening = pipe.read(_OPENING.size)
    if len(opening) < _OPENING.size:
        return None
    went_well, size = _OPENING.unpack(opening)
    content = pipe.read(size)
    return (went_well, content) if len(content) == size else None
