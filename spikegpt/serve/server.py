"""The server from its start to its end: a socket, models that have warmed up, and an address that is said."""

import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import SpikegptError, in_words, warn_on_stderr
from ..common.printing import one_line
from ..config import ServeConfig
from .app import Server
from .connections import protocol_with_patience
from .guard import Hosts, is_loopback
from .runs import load_runs

try:
    import uvicorn
except ModuleNotFoundError as error:
    raise SpikegptError(f"spikegpt serve needs {error.name}; pip install 'spikegpt[serve]'") from None

# connections at once, beyond which there is only a word; and how long answers may go on after the end was asked for
CONNECTIONS, ENDING_S = 1024, 3


def serve(
    runs: Sequence[Path],
    limits: ServeConfig,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str | None = None,
    more_hosts: Sequence[str] = (),
    device: str = "auto",
) -> None:
    """Answer for `runs` until a signal comes, which is then raised as any other.

    Raises:
        SpikegptError: nothing whole is in a run, or the address is taken or none of this machine's.
    """
    listener = _listen(host, port)
    with listener:
        server = Server(load_runs(runs, limits, device), limits, Hosts(host, more_hosts), key)
        for run in server.runs.values():
            run.scheduler.start()
        if key is None and not is_loopback(host):
            warn_on_stderr(f"whoever reaches {host} may use this server; --api-key asks for a word")
        print(f"{', '.join(map(one_line, server.runs))}: {_address(listener)}   (Ctrl-C ends)", flush=True)
        make_web(server).run(sockets=[listener])


class Web(uvicorn.Server):
    """uvicorn's server of ours, which first ends what is computed and then waits for answers to be sent."""

    def __init__(self, server: Server, config: uvicorn.Config):
        super().__init__(config)
        self._server = server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._server.close()
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            # of a client that has not read what it was sent: it would be kept open for it
            connection.transport.abort()
        await asyncio.sleep(0)


def make_web(server: Server) -> Web:
    """Return `server` behind uvicorn; to run on a socket that listens."""
    config = uvicorn.Config(
        server.app,
        http=protocol_with_patience(server.limits.client_s),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=ENDING_S,
    )
    return Web(server, config)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # others may take the port again as soon as we have ended
        return socket.create_server(address[:2], family=family, backlog=CONNECTIONS)
    except OSError as error:
        advice = "give another --port, or 0 for any that is free, or another --host"
        raise SpikegptError(f"cannot listen on {one_line(host)}, port {port}: {in_words(error)}; {advice}") from None


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
