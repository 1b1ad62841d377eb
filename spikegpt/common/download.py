"""Fetch a file over HTTP so that it arrives whole: resumed, retried, checked, renamed. Standard library only.

What has arrived lies in PATH.part, and beside it in PATH.part.json what tells whether the server still has the same
file.
"""

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from .errors import SpikegptError, Warn, warn_on_stderr
from .files import sha256_of, sync_folder, write_atomically
from .json_text import parse_json
from .progress import Progress
from .version import __version__

BLOCK_BYTES = 1 << 18
# statuses that pass: time-out, too early, too many requests; and all from 500 on
_PASSING = (408, 425, 429)


class _BrokenOffError(Exception):
    """This attempt failed in a way that another may not."""


def fetch(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    attempts: int = 5,
    timeout_s: float = 30.0,
    wait_s: float = 1.0,
    warn: Warn = warn_on_stderr,
) -> Path:
    """Return `path`, holding the file at `url`; at once if it is there already and has the right content.

    Args:
        sha256, size: of the whole file, if known; size in bytes.
        attempts: tries in a row that bring nothing new before giving up; between them wait_s, then twice as long each
            time.

    Raises:
        SpikegptError: no network, refused by the server, not the right content, or the disk is full. What has arrived
            stays for the next call, unless it is wrong.
    """
    if path.exists():
        fault = _fault(path, sha256, size)
        if fault is None:
            return path
        warn(f"{path} {fault}; fetching it anew")
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _fetch_part(url, part, sha256, size, attempts, timeout_s, wait_s)
        fault = _fault(part, sha256, size)
        if fault is not None:
            _discard(part)
            raise SpikegptError(
                f"{url} {fault}: it is not the file it was, or was changed on the way; "
                f"run again, or fetch it yourself to {path}"
            )
        with part.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        _notes(part).unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise SpikegptError(
            f"cannot write {part}: {error.strerror or error}; free space and run again: what has arrived is kept"
        ) from error
    return path


def _fault(path: Path, sha256: str | None, size: int | None) -> str | None:
    """What is wrong with the file, as the end of a sentence about it."""
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found:,} bytes, expected are {size:,}"
    if sha256 is not None and (digest := sha256_of(path)) != sha256:
        return f"has the sha256 {digest}, expected is {sha256}"
    return None


def _fetch_part(
    url: str, part: Path, sha256: str | None, size: int | None, attempts: int, timeout_s: float, wait_s: float
) -> None:
    """Bring the file into `part`, over as many attempts as it takes."""
    most, failures = 0, 0
    with Progress(f"fetching {part.stem}", size) as progress:
        # what is whole already is not asked for again, whatever the server believes the length to be
        while sha256 is None or not part.exists() or _fault(part, sha256, size) is not None:
            try:
                _attempt(url, part, timeout_s, sha256 is not None, size, progress)
                return
            except _BrokenOffError as error:
                arrived = part.stat().st_size if part.exists() else 0
                # a server that always breaks off at the same place must not keep us for ever
                failures = 0 if arrived > most else failures + 1
                most = max(most, arrived)
                if failures == attempts:
                    kept = f"; the {arrived:,} bytes that arrived are kept" if arrived else ""
                    raise SpikegptError(
                        f"cannot fetch {url}: {error}. "
                        f"Is this machine online? Run again later, or fetch it yourself to {part.with_suffix('')}{kept}"
                    ) from None
                time.sleep(wait_s * 2 ** max(failures - 1, 0))


def _attempt(url: str, part: Path, timeout_s: float, can_check: bool, size: int | None, progress: Progress) -> None:
    headers, start = {"User-Agent": f"spikegpt/{__version__}"}, 0
    validator = _read_validator(part, url)
    # without a validator or a checksum, two halves of different files could be joined unnoticed
    if part.exists() and (validator or can_check):
        start = part.stat().st_size
    if start:
        headers |= {"Range": f"bytes={start}-"} | ({"If-Range": validator} if validator else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            # asked for what lies beyond the end: what we have is not a beginning of this file
            _discard(part)
            raise _BrokenOffError(f"the server has nothing from byte {start} on") from None
        if error.code in _PASSING or error.code >= 500:
            raise _BrokenOffError(f"the server answers {error.code} {error.reason}") from None
        raise SpikegptError(
            f"cannot fetch {url}: the server answers {error.code} {error.reason}; look whether the address has changed"
        ) from None
    except (http.client.HTTPException, OSError) as error:
        raise _BrokenOffError(str(getattr(error, "reason", None) or error or type(error).__name__)) from None
    with response:
        end = _announced_end(response, start) or size
        if response.status != 206:
            start = 0
        _write_validator(part, url, response)
        _receive(response, part, start, end, progress)


def _announced_end(response: http.client.HTTPResponse, start: int) -> int | None:
    """Size of the whole file, as the server says; None if it does not."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            raise _BrokenOffError(
                f"the server was asked for the bytes from {start} on and sent {response.headers.get('Content-Range')!r}"
            )
        return int(match[2]) + 1
    return int(length) if (length := response.headers.get("Content-Length", "")).isdecimal() else None


def _receive(response: http.client.HTTPResponse, part: Path, start: int, end: int | None, progress: Progress) -> None:
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        progress.restart(start, end)
        while True:
            try:
                block = response.read(BLOCK_BYTES)
            except (http.client.HTTPException, OSError) as error:
                raise _BrokenOffError(
                    f"the connection broke after {start:,} bytes: {error or type(error).__name__}"
                ) from None
            if not block:
                break
            file.write(block)
            start += len(block)
            progress.advance(len(block))
    if end is not None and start < end:
        raise _BrokenOffError(f"the connection ended after {start:,} of {end:,} bytes")


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _notes(part).unlink(missing_ok=True)


def _read_validator(part: Path, url: str) -> str | None:
    """What the server called the version of the file that `part` is the beginning of."""
    try:
        notes = parse_json(_notes(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return notes["validator"] if notes.get("url") == url else None


def _write_validator(part: Path, url: str, response: http.client.HTTPResponse) -> None:
    tag = response.headers.get("ETag", "")
    # a weak tag promises the same meaning, not the same bytes
    validator = tag if tag.startswith('"') else response.headers.get("Last-Modified")
    write_atomically(_notes(part), json.dumps({"url": url, "validator": validator}))
