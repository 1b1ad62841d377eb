"""Whose turn it is: requests wait in a queue of bounded length, their texts join one batch per model and leave it.

One thread per model computes. Between two steps of the batch, in which every text gets one token, waiting prompts are
read for a moment and texts join; requests take turns, so that one with many texts holds up nobody. The server's event
loop submits, cancels, and is told what became of it.
"""

import threading
import time
from collections import deque
from contextlib import suppress

import numpy as np
import torch

from ..common.errors import SpikegptError
from ..config import SamplingConfig, ServeConfig
from ..data.tokenizers import Tokenizer
from ..generate.sample import Chooser
from ..generate.stream import has_token
from ..model.network import SpikeGPT
from .batch import make_batch
from .refusals import Refused
from .requests import Prompt, Request
from .spectator import Spectator
from .texts import Event, Job, PromptRead, Reading, Score, Spikes, Text

# texts with spikes at a time: each of their tokens is read once more, and alone
WATCHED = 8
# how long prompts are read while texts in the batch wait; the first piece is read whatever it takes
READING_S = 0.02
# tokens of a watched text that are read together, after its first: a pass over several takes hardly longer than one
WATCHED_TOGETHER = 4
BUSY = "the server is busy: {} texts wait already; try again in a moment"


class Scheduler:
    """Computes the texts of one model's requests, in a thread of its own, until it is closed."""

    def __init__(self, model: SpikeGPT, tokenizer: Tokenizer, limits: ServeConfig):
        self.model, self.tokenizer, self.limits = model, tokenizer, limits
        self._has_token = has_token(tokenizer, model.config.vocab_size)
        self._batch = make_batch(model, limits.texts)
        self._places: list[Text] = []
        self._waiting: deque[tuple[Job, deque[Text]]] = deque()
        self._watched: dict[Text, Spectator] = {}
        # requests of which something is still to be told
        self._open: set[Job] = set()
        self._change, self._is_closed = threading.Condition(), False
        self._news: list[tuple[Job, Event]] = []
        self._thread = threading.Thread(target=self._work, name="spikegpt-serve", daemon=True)
        self._is_ready = threading.Event()
        self.step_count, self.token_count, self.prompt_token_count = 0, 0, 0

    def start(self) -> None:
        """Begin to compute; returns when the first token would come as fast as any other."""
        self._thread.start()
        self._is_ready.wait()

    def _warm_up(self) -> None:
        """Read some tokens before anybody waits for them: the first ones of a thread compile kernels, take memory."""
        reading = Reading(self.model, Prompt("", np.zeros(16, np.int64)), scored=0, keeps_spikes=True)
        reading.read_on()
        spectator = Spectator(self.model, reading.state)
        spectator.note(Score(0, None))
        spectator.read()
        self._batch.put(0, reading.state)
        self._batch.step([0])
        nothing = torch.empty(0, dtype=torch.long)
        Chooser(SamplingConfig(), 0, self._has_token, nothing).choose(torch.zeros(len(self._has_token)))

    def close(self) -> None:
        """End: requests that are not done are told so. Returns when the thread has ended."""
        with self._change:
            self._is_closed = True
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, request: Request) -> Job:
        """Put a request into the queue and return it; its outbox then tells of it.

        Raises:
            Refused: 429, the queue is full, or too many texts are watched; 503, the server ends.
        """
        job = Job.of(request, self.tokenizer, self._has_token)
        with self._change:
            if not self.is_alive:
                raise Refused(503, "the server is closing")
            # a request that finds nothing waiting is taken whatever its size
            waiting = self.waiting
            if waiting and waiting + len(job.texts) > self.limits.queue:
                raise Refused(429, BUSY.format(waiting), code="queue_full")
            if request.watched and self.watched >= WATCHED:
                raise Refused(429, f"{WATCHED} texts are watched already; try again in a moment", code="queue_full")
            self._waiting.append((job, deque(job.texts)))
            self._open.add(job)
            self._change.notify()
        return job

    def cancel(self, job: Job) -> None:
        """Give up a request: its texts make room before the next step."""
        job.is_gone = True
        with self._change:
            self._change.notify()

    @property
    def is_alive(self) -> bool:
        return not self._is_closed and self._thread.is_alive()

    @property
    def running(self) -> int:
        return len(self._places)

    @property
    def waiting(self) -> int:
        return sum(len(texts) for _, texts in tuple(self._waiting))

    @property
    def watched(self) -> int:
        waiting = sum(job.request.watched for job, _ in tuple(self._waiting))
        return waiting + len(self._watched)

    # --- the thread ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _work(self) -> None:
        try:
            self._warm_up()
            self._is_ready.set()
            while self._wait():
                self._clear()
                self._admit()
                self._send()
                self._step()
                self._send()
        finally:
            # also where a fault of ours ends the thread: nobody waits for ever
            with self._change:
                self._is_closed = True
                self._news += [(job, Refused(503, "the server is closing")) for job in self._open if not job.is_done]
                self._waiting.clear()
            self._places, self._watched = [], {}
            self._send()
            self._is_ready.set()

    def _wait(self) -> bool:
        """Wait for work; False when there is to be none."""
        with self._change:
            self._open = {job for job in self._open if not job.is_done}
            while not self._is_closed and not self._places and not self._waiting:
                self._change.wait()
            return not self._is_closed

    def _clear(self) -> None:
        """Let texts go whose client went away or whose time is over."""
        now = time.monotonic()
        for text in list(self._places):
            if not text.job.is_gone and now - text.job.came > self.limits.answer_s:
                self._give_up(text.job, Refused(504, f"the text was not done after {self.limits.answer_s:g} s"))
            if text.job.is_gone:
                self._leave(text)
        self._expire(now)

    def _expire(self, now: float) -> None:
        """Let requests go that waited for too long, or for nobody."""
        with self._change:
            for job, texts in self._waiting:
                # of a request of which a text runs already the others wait until its time is over
                is_begun = len(texts) < len(job.texts)
                if not job.is_gone and not is_begun and now - job.came > self.limits.queue_s:
                    message = f"no text could begin within {self.limits.queue_s:g} s; try again later"
                    self._give_up(job, Refused(503, message, code="queue_timeout"))
            if any(job.is_gone for job, _ in self._waiting):
                self._waiting = deque(entry for entry in self._waiting if not entry[0].is_gone)

    def _give_up(self, job: Job, why: Refused) -> None:
        job.is_gone = True
        self._news.append((job, why))

    def _admit(self) -> None:
        """Read waiting prompts for a moment; texts whose prompt is read draw their first token and join the batch."""
        began = time.monotonic()
        while self._waiting and len(self._places) < self.limits.texts:
            job, texts = self._waiting[0]
            try:
                self._begin(job, texts)
            except (SpikegptError, RuntimeError) as error:
                self._give_up(job, Refused(500, str(error)))
                return
            if self._places and time.monotonic() - began > READING_S:
                return

    def _begin(self, job: Job, texts: deque[Text]) -> None:
        """Read a piece of the prompt of a request's next text; if that was all of it, let the text begin."""
        text = texts[0]
        reading = job.reading_of(text, self.model)
        if not reading.is_done:
            if not reading.read_on():
                return
            self.prompt_token_count += len(job.request.prompts[text.prompt].ids)
            self._news.append((job, PromptRead(text.prompt, tuple(reading.scores))))
            if job.request.watched:
                fired = {name: torch.cat(parts) for name, parts in reading.spikes.items()}
                macs = torch.cat(reading.macs)
                self._news.append((job, Spikes(tuple(reading.scores), fired, macs, is_prompt=True)))
        with self._change:
            texts.popleft()
            self._waiting.popleft()
            if texts:
                # the next request's turn
                self._waiting.append((job, texts))
        if job.is_last_of_prompt(text):
            del job.readings[text.prompt]
        if not job.request.max_tokens:
            self._news.append((job, text.end_at_once()))
            return
        self._draw(text, reading.logits[0].float().cpu())
        if not text.is_done:
            self._batch.put(len(self._places), reading.state)
            self._places.append(text)
        if job.request.watched:
            self._watched[text] = Spectator(self.model, reading.state)
            self._watch(text)

    def _draw(self, text: Text, logits: torch.Tensor) -> None:
        self._news.append((text.job, text.draw(logits)))
        self.token_count += 1

    def _step(self) -> None:
        """Read the last token of every text in the batch and draw the next."""
        if not self._places:
            return
        logits = self._batch.step([text.token for text in self._places]).float()
        self.step_count += 1
        for text, one in zip(list(self._places), logits, strict=True):
            try:
                self._draw(text, one)
                if text in self._watched:
                    self._watch(text)
            except (SpikegptError, RuntimeError) as error:
                self._give_up(text.job, Refused(500, str(error)))
        for text in list(self._places):
            if text.is_done or text.job.is_gone:
                self._leave(text)

    def _watch(self, text: Text) -> None:
        """Note the token that a watched text drew; now and then, and at its end, read what came together."""
        spectator = self._watched[text]
        spectator.note(text.last)
        if text.is_done or text.written == 1 or spectator.pending >= WATCHED_TOGETHER:
            self._news.append((text.job, spectator.read()))
        if text.is_done:
            del self._watched[text]

    def _leave(self, text: Text) -> None:
        """Give the place of a text to the last one of the batch."""
        place, last = self._places.index(text), len(self._places) - 1
        if place != last:
            self._batch.move(last, place)
            self._places[place] = self._places[last]
        self._places.pop()
        self._watched.pop(text, None)

    def _send(self) -> None:
        if self._news:
            news, self._news = self._news, []
            # a server that was stopped has no loop that could be told
            with suppress(RuntimeError):
                news[0][0].loop.call_soon_threadsafe(_deliver, news)


def _deliver(news: list[tuple[Job, Event]]) -> None:
    for job, event in news:
        job.outbox.put_nowait(event)
