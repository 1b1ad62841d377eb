"""The server as an ASGI application: OpenAI's completions, what the page asks for, and the page itself.

GET  /  /page/FILE                              the page
GET  /v1/models  /v1/models/NAME                POST /v1/completions
GET  /health  /metrics
GET  /runs  /runs/NAME/curve  /runs/NAME/report  POST /watch   POST /session
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from ..common.errors import SpikegptError
from ..common.memory import resident_bytes
from ..common.version import __version__
from ..config import ServeConfig
from .answers import Completion
from .guard import Guard, Hosts, body_of, session_cookie
from .refusals import Refused
from .requests import completion_request, read_body, watch_request
from .runs import ServedRun
from .tallies import Labels, Tally
from .texts import Event, Job, Piece, PromptRead, Spikes
from .watching import Watching

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route
except ModuleNotFoundError as error:
    raise SpikegptError(f"spikegpt serve needs {error.name}; pip install 'spikegpt[serve]'") from None

KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# refusals of a body that was not read to its end
UNREAD = 408, 413, 415
PAGE = Path(__file__).parent / "page"
# of a report: its own styles and figures, and no script
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


class Server:
    """Answers for `runs`; `app` is the application.

    Args:
        runs: name -> run.
        hosts: names by which it is reached.
        key: what clients must send, if anything.
    """

    def __init__(self, runs: dict[str, ServedRun], limits: ServeConfig, hosts: Hosts, key: str | None = None):
        self.runs, self.limits, self.tally, self._began = runs, limits, Tally(), int(time.time())
        # all there is: no path of a request ever becomes one of the disk
        self._files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.is_file()}
        routes = [
            Route("/", self._page),
            Route("/page/{file}", self._page),
            Route("/v1/models", self._models),
            Route("/v1/models/{name}", self._model),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/runs", self._show_runs),
            Route("/runs/{name}/curve", self._curve),
            Route("/runs/{name}/report", self._report),
            Route("/watch", self._watch, methods=["POST"]),
            Route("/session", self._session, methods=["POST"]),
        ]
        handlers: dict[Any, Callable] = {Refused: _refuse, HTTPException: _refuse_plainly}
        inner = Starlette(routes=routes, exception_handlers=handlers)
        self.app = Guard(inner, hosts, key, self.tally)

    async def close(self) -> None:
        """End what is computed; whoever waits for it is told."""
        for run in self.runs.values():
            await asyncio.to_thread(run.scheduler.close)

    # --- texts -----------------------------------------------------------------------------------------------------

    async def _complete(self, request: Request) -> Response:
        values = read_body(await body_of(request, self.limits.client_s))
        run = self._named(values.get("model"))
        asked = completion_request(values, run.tokenizer, run.model.config.vocab_size, self.limits)
        job, answer = run.scheduler.submit(asked), Completion(run.name, asked, run.tokenizer)
        if asked.stream:
            return _event_stream(self._streamed(run, job, answer))
        collecting = asyncio.create_task(self._collected(run, job, answer))
        gone = asyncio.create_task(_gone(request))
        await asyncio.wait({collecting, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not collecting.done():
            collecting.cancel()
            run.scheduler.cancel(job)
            # nobody reads it
            return Response(status_code=408)
        return JSONResponse(collecting.result())

    async def _collected(self, run: ServedRun, job: Job, answer: Completion) -> dict[str, Any]:
        async for event in self._events(run, job):
            if isinstance(event, PromptRead):
                answer.note_prompt(event)
            elif isinstance(event, Piece):
                answer.keep(event)
            elif isinstance(event, Refused):
                raise event
        return answer.whole()

    async def _streamed(self, run: ServedRun, job: Job, answer: Completion) -> AsyncIterator[str]:
        async for event in self._events(run, job):
            if isinstance(event, PromptRead):
                answer.note_prompt(event)
            elif isinstance(event, Refused):
                yield _sse(event.to_dict())
                return
            elif isinstance(event, Piece) and (chunk := answer.chunk(event)) is not None:
                yield _sse(chunk)
        if job.request.include_usage:
            yield _sse(answer.last_chunk())
        yield "data: [DONE]\n\n"

    async def _watch(self, request: Request) -> Response:
        values = read_body(await body_of(request, self.limits.client_s))
        run = self._named(values.get("model"))
        asked = watch_request(values, run.tokenizer, run.model.config.vocab_size, self.limits)
        return _event_stream(self._watched(run, run.scheduler.submit(asked)))

    async def _watched(self, run: ServedRun, job: Job) -> AsyncIterator[str]:
        watching = Watching(run)
        yield _sse({"type": "begin", "seed": job.request.sampling.seed})
        async for event in self._events(run, job):
            if isinstance(event, Spikes):
                yield _sse(watching.tokens(event))
            elif isinstance(event, Refused):
                yield _sse({"type": "error", **event.to_dict()})
                return
        yield _sse({"type": "end"})

    async def _events(self, run: ServedRun, job: Job) -> AsyncIterator[Event]:
        """Yield what becomes of a request, to its end; whoever stops listening gives it up."""
        left, is_first = len(job.texts), True
        # a watched text's last spikes come after its last piece
        is_shown = not job.request.watched
        try:
            while left or not is_shown:
                event = await job.outbox.get()
                if isinstance(event, Piece):
                    left -= event.finish is not None
                    if is_first:
                        self.tally.first_token(time.monotonic() - job.came)
                    is_first = False
                is_shown |= isinstance(event, Spikes) and not left
                yield event
                if isinstance(event, Refused):
                    return
        finally:
            run.scheduler.cancel(job)

    def _named(self, name: Any) -> ServedRun:
        """The run of this name; the only one, if none is named."""
        if name is None and len(self.runs) == 1:
            return next(iter(self.runs.values()))
        if not isinstance(name, str) or name not in self.runs:
            known = ", ".join(self.runs)
            raise Refused(404 if isinstance(name, str) else 400, f"no model is called {name!r:.80}; known: {known}",
                          "model", "model_not_found")  # fmt: skip
        return self.runs[name]

    # --- what is known ---------------------------------------------------------------------------------------------

    async def _models(self, _request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._as_model(name) for name in self.runs]})

    async def _model(self, request: Request) -> Response:
        return JSONResponse(self._as_model(self._named(request.path_params["name"]).name))

    def _as_model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._began, "owned_by": "spikegpt"}

    async def _health(self, _request: Request) -> Response:
        alive = all(run.scheduler.is_alive for run in self.runs.values())
        return JSONResponse({"status": "ok" if alive else "failed", "version": __version__}, 200 if alive else 503)

    async def _metrics(self, _request: Request) -> Response:
        def of_runs(read: Callable[[Any], float]) -> dict[Labels, float]:
            return {(("model", name),): read(run.scheduler) for name, run in self.runs.items()}

        gauges: dict[str, dict[Labels, float]] = {
            "spikegpt_texts_running": of_runs(lambda scheduler: scheduler.running),
            "spikegpt_texts_waiting": of_runs(lambda scheduler: scheduler.waiting),
            "process_resident_memory_bytes": {(): resident_bytes()},
        }
        counters = {
            "spikegpt_tokens_total": of_runs(lambda scheduler: scheduler.token_count),
            "spikegpt_prompt_tokens_total": of_runs(lambda scheduler: scheduler.prompt_token_count),
            "spikegpt_steps_total": of_runs(lambda scheduler: scheduler.step_count),
        }
        return Response(self.tally.text(gauges, counters), media_type="text/plain; version=0.0.4")

    # --- the page --------------------------------------------------------------------------------------------------

    async def _page(self, request: Request) -> Response:
        file = request.path_params.get("file", "index.html")
        if file not in self._files:
            raise Refused(404, "no such file")
        return Response(self._files[file], media_type=KINDS[Path(file).suffix], headers={"cache-control": "no-cache"})

    async def _show_runs(self, _request: Request) -> Response:
        return JSONResponse({"runs": [run.facts() for run in self.runs.values()]})

    async def _curve(self, request: Request) -> Response:
        after = request.query_params.get("after", "0")
        if not after.isascii() or not after.isdecimal() or len(after) > 15:
            raise Refused(400, "after must be a number of bytes", "after")
        run = self._named(request.path_params["name"])
        return JSONResponse(await asyncio.to_thread(run.curve, int(after)))

    async def _report(self, request: Request) -> Response:
        content = await asyncio.to_thread(self._named(request.path_params["name"]).report)
        return Response(content, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})

    async def _session(self, _request: Request) -> Response:
        return Response(status_code=204, headers=session_cookie(self.app.session))


def _event_stream(content: AsyncIterator[str]) -> Response:
    # proxies are not to wait for more
    return StreamingResponse(content, media_type="text/event-stream", headers={"x-accel-buffering": "no"})


def _sse(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values)}\n\n"


async def _gone(request: Request) -> None:
    """Return when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refuse(_request: Request, why: Refused) -> Response:
    headers = {"retry-after": "1"} if why.status in (429, 503) else {}
    if why.status in UNREAD:
        # what is left of the body is not waited for
        headers["connection"] = "close"
    return JSONResponse(why.to_dict(), why.status, headers)


async def _refuse_plainly(request: Request, why: HTTPException) -> Response:
    return await _refuse(request, Refused(why.status_code, f"{request.method} {request.url.path:.80}: {why.detail}"))
