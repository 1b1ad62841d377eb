"""Files that survive a crash: written under a temporary name, flushed to disk, renamed.

Readers see the old file or the new one.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Make `data` (str as UTF-8) the content of `path`.

    Raises:
        OSError: it could not be written; what was there before is untouched and no temporary file stays.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, to be written in the block; it becomes `path` when the block ends well."""
    path = Path(path)
    # a name of its own: two processes may write the same file at once.
    # Not tempfile: its files are readable by their owner only
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        # for writing: Windows flushes only what it may write
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: str | Path) -> None:
    """Flush a folder to disk, so that a rename in it survives a power failure."""
    # Windows cannot open folders
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: str | Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
