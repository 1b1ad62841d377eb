"""A connection whose client may not take for ever: to send the head of a request, or to read what it was sent."""

import asyncio
from typing import Any

from ..common.errors import SpikegptError

try:
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ModuleNotFoundError as error:
    raise SpikegptError(f"spikegpt serve needs {error.name}; pip install 'spikegpt[serve]'") from None


def protocol_with_patience(seconds: float) -> type[H11Protocol]:
    """Return uvicorn's protocol, which ends a connection that stands still for so long while it is the client's turn.

    uvicorn limits how long a connection is kept between two requests only.
    """

    class PatientProtocol(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._head = self.loop.call_later(seconds, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                _cancel(self._head)
            elif self._head is None or self._head.cancelled():
                # the first bytes of another request
                self._head = self.loop.call_later(seconds, self.transport.abort)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            _cancel(self._unread)

        def connection_lost(self, exc: Exception | None) -> None:
            _cancel(self._head)
            _cancel(self._unread)
            super().connection_lost(exc)

    return PatientProtocol


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
