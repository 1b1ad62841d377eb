"""Compiles functions for the CPU with numba, and keeps what was compiled beside the sources."""

import hashlib
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numba
from numba import types
from numba.core.caching import FunctionCache, IndexDataCacheFile


def compiled(**options: Any) -> Callable[[Callable], Any]:
    """Return a decorator: numba.njit with these options, without the lock of the interpreter, kept on disk.

    Numba's own cache looks at a function's own file alone: it goes on calling what a changed function of another file
    was, and fails on types that are no more. This one is of the sources of the whole wing, and of the kernels', which
    the others call.
    """

    def compile(function: Callable) -> Any:
        dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(function)
        dispatcher._cache = _Cache(function)
        dispatcher.get_call_template = partial(_template_of, dispatcher.get_call_template)
        return dispatcher

    return compile


def _template_of(find: Callable, args: Any, kws: Any) -> Any:
    """Find what serves a call in compiled code, for an int where a number is written: numba compiles for each anew."""
    return find(tuple(map(types.unliteral, args)), {name: types.unliteral(kind) for name, kind in kws.items()})


class _Cache(FunctionCache):
    def __init__(self, function: Callable):
        super().__init__(function)
        wings = {_wing_of(Path(function.__code__.co_filename)), Path(__file__).parent}
        name = "-".join([self._impl.filename_base, *map(_digest, sorted(wings))])
        self._cache_file = IndexDataCacheFile(self._cache_path, name, self._impl.locator.get_source_stamp())

    def load_overload(self, signature, target_context):
        found = super().load_overload(signature, target_context)
        if found is None:
            _announce()
        return found


@cache
def _announce() -> None:
    """Say, once, why nothing is heard for a while."""
    print("compiling kernels, once per machine: about 10 s", file=sys.stderr, flush=True)


def _wing_of(source: Path) -> Path:
    """The outermost folder below the package, or the file's own where it is not of the package."""
    package = Path(__file__).parents[1]
    inside = package in source.parents
    return package / source.relative_to(package).parts[0] if inside else source.parent


@cache
def _digest(folder: Path) -> str:
    """A few digits for the names and texts of all Python files in `folder`."""
    found = hashlib.sha256()
    for source in sorted(folder.rglob("*.py")):
        text = source.read_bytes()
        found.update(f"{source.relative_to(folder)} {len(text)}\n".encode() + text)
    return found.hexdigest()[:12]
