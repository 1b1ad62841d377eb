"""What stands before every request: whose it is, from where it comes, and how large it may be.

The server's pages may do what its user may; so no page of another origin may speak to it, nor one that reached it by
another name (DNS rebinding), and nothing of elsewhere runs on its own.
"""

import asyncio
import ipaddress
import secrets
import socket
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from ..common.errors import SpikegptError
from .refusals import Refused
from .tallies import Tally

try:
    from starlette.datastructures import Headers, MutableHeaders
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ModuleNotFoundError as error:
    raise SpikegptError(f"spikegpt serve needs {error.name}; pip install 'spikegpt[serve]'") from None

MOST_BODY = 1 << 20
# of a larger one so much is read and thrown away: who still sends when the connection closes does not hear why
MOST_THROWN_AWAY = 8 * MOST_BODY
COOKIE = "spikegpt"
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": PAGE_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Refuses what is not ours, and puts on every answer what a browser may do with it.

    Args:
        app: what answers.
        hosts: names by which the server is reached; None: also any address in numbers, and this machine's name.
        key: what clients must send as `Authorization: Bearer KEY`, if anything.
    """

    def __init__(self, app: ASGIApp, hosts: "Hosts", key: str | None, tally: Tally):
        self._app, self._hosts, self._key, self._tally = app, hosts, key, tally
        # what a browser keeps in the place of the key, as long as the server lives
        self.session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                self._tally.answered(_route_of(scope), message["status"])
            await send(message)

        try:
            self._check(scope, Headers(scope=scope))
        except Refused as why:
            await JSONResponse(why.to_dict(), why.status, {"connection": "close"})(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    def _check(self, scope: Scope, headers: Headers) -> None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._hosts.knows(hosts[0]):
            raise Refused(421, "the Host header is not this server's; its names: --allow-host", code="unknown_host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != hosts[0].lower():
            raise Refused(403, "requests from pages of another origin are refused", code="cross_origin")
        is_visit = headers.get("sec-fetch-mode") == "navigate" and scope["method"] in ("GET", "HEAD")
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and not is_visit:
            raise Refused(403, "requests from pages of another origin are refused", code="cross_origin")
        if self._key is not None and not _is_open(scope["path"]) and not self._has_key(headers):
            raise Refused(
                401, "the API key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key"
            )

    def _has_key(self, headers: Headers) -> bool:
        assert self._key is not None
        scheme, _, word = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and secrets.compare_digest(word.strip().encode(), self._key.encode()):
            return True
        try:
            cookie: SimpleCookie = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        found = cookie.get(COOKIE)
        return found is not None and secrets.compare_digest(found.value.encode(), self.session.encode())


def _is_open(path: str) -> bool:
    return path in ("/", "/health", "/favicon.ico") or path.startswith("/page/")


def _route_of(scope: Scope) -> str:
    # the pattern, not the path: names that clients make up would be kept for ever
    route = scope.get("route")
    return getattr(route, "path", "none")


class Hosts:
    """Names by which the server may be reached; the port does not matter, it may be forwarded.

    Where it listens on an address of the network, it is known by every address too: only names can be turned to it by
    others.
    """

    def __init__(self, host: str, more: Iterable[str] = ()):
        self._names = {"localhost", "127.0.0.1", "::1", host.lower(), *(name.lower() for name in more)}
        self._takes_addresses = not is_loopback(host)
        if self._takes_addresses:
            self._names.add(socket.gethostname().lower())

    def knows(self, header: str) -> bool:
        """Whether a Host header names this server."""
        try:
            name = urlsplit(f"//{header}").hostname or ""
        except ValueError:
            return False
        if any(sign in header for sign in "/?#@\\ "):
            return False
        return name in self._names or (self._takes_addresses and _is_address(name))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def body_of(request: Request, seconds: float) -> bytes:
    """Return the body of a request, JSON by its content type.

    Raises:
        Refused: it is of another type, too large, or does not come within so many seconds.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, f"the body is {kind[:80] or 'of no type'}; send Content-Type: application/json")
    too_large = Refused(413, f"the body is larger than {MOST_BODY:,} bytes")
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced[:20]) > MOST_THROWN_AWAY:
        raise too_large
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > MOST_THROWN_AWAY:
                    raise too_large
                if size <= MOST_BODY:
                    body += part
    except TimeoutError:
        raise Refused(408, f"the body did not come within {seconds:g} s") from None
    except ClientDisconnect:
        raise Refused(400, "the body ended early") from None
    if size > MOST_BODY:
        raise too_large
    return bytes(body)


def session_cookie(session: str) -> dict[str, Any]:
    """Return the header that lets a browser keep `session`: no script sees it, no other site can send it."""
    return {"set-cookie": f"{COOKIE}={session}; Path=/; HttpOnly; SameSite=Strict"}
