"""Files that survive a crash: written under a temporary name, flushed to disk, renamed. Folders that one process holds.

Readers see the old file or the new one.
"""

import errno
import hashlib
import os
import platform
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import SpikegptError, warn_on_stderr

LOCK = ".lock"


def to_path(what: str, path: Any) -> Path:
    """Return `path` as a Path; SpikegptError if it is None, bytes, or else no path: `what` says what it should be."""
    if not isinstance(path, str | os.PathLike):
        raise SpikegptError(f"{what} is {path!r:.80}; give a path")
    return Path(path)


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
    except OSError as error:
        name_path(error, path, temporary)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def name_path(error: OSError, path: Path, written: Path | None = None) -> None:
    """Let `error` name `path`: if it names no file, as when a disk is full, or the one `written` in its place."""
    names = (error.filename, error.filename2)
    if error.filename is None or (written is not None and os.fspath(written) in names):
        error.filename = os.fspath(path)
        if error.filename2 is not None:
            error.filename2 = error.filename


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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder`, made if it is not there, for this process alone: until the block ends, or the process dies.

    Raises:
        SpikegptError: another process holds it, or it cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _open_locked(folder)
    except OSError as error:
        raise SpikegptError(f"cannot write the folder {folder}: {error}; give another") from error
    try:
        yield
    finally:
        # before it is let go, so that nobody has locked it yet; Windows removes nothing that is open
        with suppress(OSError):
            (folder / LOCK).unlink()
        file.close()
        # if nothing was written
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _open_locked(folder: Path) -> IO[str]:
    path = folder / LOCK
    while True:
        file = path.open("a+", encoding="utf-8")
        if not _lock(file, folder):
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise SpikegptError(f"{folder} is in use by {holder}; wait until it has ended, or give another folder")
        # who held it before may have removed the file after we had opened it
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}")
                file.flush()
                return file
        file.close()


def _lock(file: IO[str], folder: Path) -> bool:
    """Lock an open file unless another process has; the system lets it go when this process ends, however it does."""
    try:
        if sys.platform == "win32":
            import msvcrt

            # a byte that nobody reads: others could not read a locked one
            os.lseek(file.fileno(), 1 << 20, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            return False
        # some network file systems
        warn_on_stderr(f"{folder} lies where nothing can be locked ({error}); let only one process write it")
    return True
