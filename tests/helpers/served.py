"""A server in a thread of this process, and clients that speak to it as HTTP allows, or does not."""

import asyncio
import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spikegpt.config import ServeConfig
from spikegpt.serve.app import Server
from spikegpt.serve.guard import Hosts
from spikegpt.serve.runs import load_runs
from spikegpt.serve.server import make_web

PATIENCE_S = 60


class Served:
    """The address of a running server, and plain requests to it."""

    def __init__(self, server: Server, port: int):
        self.server, self.port, self.url = server, port, f"http://127.0.0.1:{port}"

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, host=None):
        """Return (status, headers, body) of one request; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        named = {"Host": host or f"127.0.0.1:{self.port}"}
        kind = {} if content is None else {"Content-Type": "application/json"}
        try:
            connection.request(method, path, content, named | kind | (headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: Any = None, **how: Any) -> tuple[int, Any]:
        """Return (status, JSON) of one request."""
        status, _, content = self.ask(method, path, body, **how)
        return status, json.loads(content)

    def complete(self, **fields: Any) -> dict[str, Any]:
        """Return the answer to a completion, which must be one."""
        status, values = self.json("POST", "/v1/completions", fields)
        assert status == 200, values
        return values

    def events(self, path: str, fields: dict[str, Any]) -> list[Any]:
        """Return what a stream of events says, each as JSON or as the word that it is."""
        status, _, content = self.ask("POST", path, fields)
        assert status == 200, content
        words = [part.removeprefix("data: ") for part in content.decode().split("\n\n") if part]
        return [word if word.startswith("[") else json.loads(word) for word in words]

    def open(self, content: bytes) -> socket.socket:
        """Return a connection on which these bytes were sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        connection.sendall(content)
        return connection

    def post(self, path: str, fields: dict[str, Any]) -> bytes:
        """Return a whole request as the bytes that are sent."""
        body = json.dumps(fields).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextlib.contextmanager
def serving_runs(*runs: Path, key: str | None = None, **limits: Any) -> Iterator[Served]:
    """Serve `runs` on a free port; keyword arguments are limits."""
    config = ServeConfig(**limits)
    server = Server(load_runs(runs, config, "cpu"), config, Hosts("127.0.0.1"), key)
    for run in server.runs.values():
        run.scheduler.start()
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        # a client that does not read is soon noticed
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        web = make_web(server)
        thread = threading.Thread(target=asyncio.run, args=(web.serve([listener]),))
        thread.start()
        while not web.started:
            time.sleep(0.01)
        try:
            yield Served(server, listener.getsockname()[1])
        finally:
            web.should_exit = True
            thread.join()
