"""Token files of Megatron-LM and RWKV-LM ("binidx"): PREFIX.bin is the tokens, PREFIX.idx where documents begin.

The index, all little-endian: 9 bytes magic, u64 version, u8 code of the token type, u64 number of sequences S, u64
number of document bounds D, then S x i32 lengths in tokens, S x i64 offsets in bytes, D x i64 bounds (numbers of
sequences, from 0 to S). Source: megatron/core/datasets/indexed_dataset.py of NVIDIA/Megatron-LM; RWKV-LM reads the
same.
"""

import os
import struct
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...common.errors import SpikegptError
from ...common.files import atomic_path
from ..reading import check_is_file

SUFFIXES = (".bin", ".idx")
MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
# codes 6 and 7 are floating point, which no token is
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}
# the tokens of one document are counted in 32 bits with a sign
LONGEST_SEQUENCE = 2**31 - 1


@dataclass(frozen=True)
class Binidx:
    """A pair of files, memory-mapped and checked: `tokens` (N,) read-only, `starts` (S,) int64 of each sequence."""

    path: Path
    tokens: np.ndarray
    starts: np.ndarray


def is_binidx(path: Path) -> bool:
    """Return whether `path` names a pair of token files: by a suffix, or as the prefix of an index that is there."""
    # not path.exists: it raises for a name that is too long and for a folder that is closed
    return path.suffix in SUFFIXES or (not os.path.exists(path) and os.path.exists(_pair_of(path)[1]))


def _pair_of(path: Path) -> tuple[Path, Path]:
    """(PREFIX.bin, PREFIX.idx) of a path that is one of them or PREFIX, which may hold dots."""
    prefix = path.stem if path.suffix in SUFFIXES else path.name
    return path.with_name(prefix + ".bin"), path.with_name(prefix + ".idx")


def read_binidx(path: Path) -> Binidx:
    """Return the token files that `path` names: PREFIX.bin, PREFIX.idx or PREFIX.

    Raises:
        SpikegptError: one of the two is missing, the index is corrupt, or it does not fit the tokens.
    """
    tokens_path, index_path = _pair_of(path)
    for half in (index_path, tokens_path):
        if os.path.exists(half):
            check_is_file(half)
    try:
        # far smaller than the tokens, and read in whole to be checked anyway
        index, bin_bytes = np.fromfile(index_path, np.uint8), tokens_path.stat().st_size
    except OSError as error:
        raise SpikegptError(
            f"cannot read {error.filename}: {error.strerror}; a PREFIX.bin needs its PREFIX.idx beside it"
        ) from None
    try:
        kind, sizes = _check_index(index.tobytes()[: _HEADER.size], index)
        dtype = np.dtype(kind)
        ends = np.cumsum(sizes, dtype=np.int64)
        if ends[-1] * dtype.itemsize != bin_bytes:
            raise SpikegptError(
                f"counts {ends[-1]:,} tokens of {dtype.itemsize} byte(s), "
                f"but {tokens_path.name} has {bin_bytes:,} bytes"
            )
        starts = ends - sizes
        pointers = index[_HEADER.size + 4 * len(sizes) :][: 8 * len(sizes)].view("<i8")
        wrong = np.flatnonzero(pointers != starts * dtype.itemsize)
        if len(wrong):
            first = wrong[0]
            raise SpikegptError(
                f"places sequence {first} at byte {pointers[first]}, "
                f"but it begins at byte {starts[first] * dtype.itemsize}"
            )
    except SpikegptError as error:
        raise SpikegptError(
            f"{index_path} is corrupt or not of this {tokens_path.name}: it {error}; fetch or write both files anew"
        ) from None
    return Binidx(tokens_path, np.memmap(tokens_path, dtype, mode="r"), starts)


def _check_index(opening: bytes, index: np.ndarray) -> tuple[str, np.ndarray]:
    """(token type, lengths of the sequences) of an index whose parts fit each other.

    The messages continue a sentence about the file.
    """
    if len(opening) < _HEADER.size:
        raise SpikegptError(f"has {len(opening)} bytes, an index has at least {_HEADER.size}")
    magic, version, code, sequences, bounds = _HEADER.unpack(opening)
    if magic != MAGIC:
        raise SpikegptError(f"begins with {magic!r} instead of {MAGIC!r}")
    if version != VERSION:
        raise SpikegptError(f"has version {version}, known is {VERSION}")
    if code not in _DTYPES:
        raise SpikegptError(f"has the token type {code}, known are {', '.join(map(str, _DTYPES))}")
    expected = _HEADER.size + 12 * sequences + 8 * bounds
    if len(index) != expected:
        raise SpikegptError(
            f"has {len(index):,} bytes, but {sequences:,} sequences and {bounds:,} document bounds take {expected:,}"
        )
    if not sequences:
        raise SpikegptError("counts no sequences")
    sizes = index[_HEADER.size :][: 4 * sequences].view("<i4")
    if sizes.min() < 0:
        raise SpikegptError(f"gives sequence {int(np.argmin(sizes))} a negative length, {sizes.min()}")
    documents = index[_HEADER.size + 12 * sequences :].view("<i8")
    if bounds and (documents[0] != 0 or documents[-1] != sequences or (np.diff(documents) < 0).any()):
        raise SpikegptError(f"has document bounds that do not run from 0 to {sequences}")
    return _DTYPES[code], sizes


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the type that both Megatron-LM and RWKV-LM read ids of this vocabulary from."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<i4")


def write_binidx(prefix: Path, pieces: Iterable[tuple[np.ndarray, bool]], vocab_size: int) -> Binidx:
    """Write PREFIX.bin and PREFIX.idx, atomically each, and return them read back.

    Args:
        prefix: PREFIX, PREFIX.bin or PREFIX.idx.
        pieces: ids (N,), and whether a document ends with them.

    Raises:
        SpikegptError: one of the files is there already, or a folder of the name; there is no document, or one has 2^31
            tokens or more.
        OSError: the files cannot be written.
    """
    dtype = token_dtype(vocab_size)
    sizes: list[int] = []
    if os.path.isdir(prefix):
        raise SpikegptError(f"{prefix} is a folder; give a name in it, such as {prefix / 'tokens'}")
    tokens_path, index_path = _pair_of(prefix)
    for path in (tokens_path, index_path):
        if os.path.lexists(path):
            raise SpikegptError(f"{path} exists; give another name, or remove it")
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # entered first, so renamed last: an index never stands beside tokens that are not its own for longer than the
        # two renames take
        index_temporary = stack.enter_context(atomic_path(index_path))
        tokens_temporary = stack.enter_context(atomic_path(tokens_path))
        with tokens_temporary.open("wb") as file:
            size = 0
            for ids, ends_document in pieces:
                file.write(ids.astype(dtype, copy=False).tobytes())
                size += len(ids)
                if size > LONGEST_SEQUENCE:
                    raise SpikegptError(
                        f"document {len(sizes)} has more than the {LONGEST_SEQUENCE:,} tokens that the format holds; "
                        "cut the text"
                    )
                if ends_document:
                    sizes.append(size)
                    size = 0
        if not sizes:
            raise SpikegptError(f"there is no text to write into {tokens_path}")
        lengths = np.array(sizes, "<i4")
        pointers = (np.cumsum(lengths, dtype=np.int64) - lengths) * dtype.itemsize
        with index_temporary.open("wb") as file:
            file.write(_HEADER.pack(MAGIC, VERSION, _CODES[dtype], len(sizes), len(sizes) + 1))
            for part in (lengths, pointers.astype("<i8"), np.arange(len(sizes) + 1, dtype="<i8")):
                file.write(part.tobytes())
    return read_binidx(tokens_path)
