"""What kind of numbers a tensor holds: decided exactly, vector by vector, from the values themselves.

A vector is one row of a matrix product's input, in a language model one token. Deciding by vector makes the counts
independent of how a text was cut into calls and batches.
"""

import numpy as np
import torch
from torch import Tensor

from .counts import ALPHABETS

ZERO, BINARY, TERNARY, INTEGER, REAL = range(len(ALPHABETS))

# spikes of up to 7 bits and a sign; a vector of larger whole numbers counts as real
LARGEST_LEVEL = 127

# most real vectors show a fraction among so many of their first elements
PROBE = 32


def classify_rows(rows: Tensor) -> Tensor:
    """Return the alphabet of every row of `rows` (N, K) as indices into ALPHABETS, (N,) int64.

    zero: only 0. binary: 0 and 1. ternary: -1, 0 and 1. integer: whole numbers up to LARGEST_LEVEL in magnitude.
    real: anything else, NaN and infinity included. A row gets the narrowest alphabet that holds it.
    """
    codes = torch.full((rows.shape[0],), REAL, dtype=torch.int64, device=rows.device)
    if rows.is_complex():
        return codes
    if rows.dtype == torch.bool:
        rows = rows.to(torch.uint8)
    unresolved = torch.arange(rows.shape[0], device=rows.device)
    if rows.is_floating_point():
        unresolved = unresolved[_is_whole(rows[:, :PROBE])]
        if not len(unresolved):
            return codes
        rows = rows if len(unresolved) == len(codes) else rows[unresolved]
        whole = _is_whole(rows)
        unresolved, rows = unresolved[whole], rows[whole]
    if not len(unresolved) or not rows.shape[1]:
        codes[unresolved] = ZERO
        return codes
    lowest, highest = rows.amin(dim=1), rows.amax(dim=1)
    narrow = torch.full_like(unresolved, REAL)
    narrow[(lowest >= -LARGEST_LEVEL) & (highest <= LARGEST_LEVEL)] = INTEGER
    narrow[(lowest >= -1) & (highest <= 1)] = TERNARY
    narrow[(lowest >= 0) & (highest <= 1)] = BINARY
    narrow[(lowest == 0) & (highest == 0)] = ZERO
    codes[unresolved] = narrow
    return codes


def classify_row(row: np.ndarray) -> int:
    """Return the alphabet of one row (K,), as `classify_rows` does, in a fraction of its time."""
    if row.dtype.kind == "f" and not ((row[:PROBE] == np.floor(row[:PROBE])).all() and (row == np.floor(row)).all()):
        return REAL
    lowest, highest = (row.min(), row.max()) if len(row) else (0, 0)
    if lowest == highest == 0:
        return ZERO
    if lowest >= -1 and highest <= 1:
        return BINARY if lowest >= 0 else TERNARY
    return INTEGER if lowest >= -LARGEST_LEVEL and highest <= LARGEST_LEVEL else REAL


def _is_whole(rows: Tensor) -> Tensor:
    """(N,) bool: every element of the row is a whole number; NaN is not."""
    return (rows == rows.floor()).all(dim=1)


def alphabet_of(tensor: Tensor) -> int:
    """Return the alphabet of a whole tensor, e.g. of a weight."""
    # the order does not matter, and a transposed matrix would be copied
    ordered = tensor.mT if tensor.dim() > 1 and tensor.mT.is_contiguous() else tensor
    return int(classify_rows(ordered.reshape(1, -1)).item())


def repeated_units(rows: Tensor) -> Tensor:
    """Return for each element of `rows` (..., K) the unit spikes beyond its first, |n| - 1, as (N, K).

    0 but in integer rows, for only they have levels.
    """
    rows = _as_rows(rows)
    levels = rows.abs().masked_fill((classify_rows(rows) != INTEGER).unsqueeze(1), 0).to(torch.int64)
    return (levels - 1).clamp(min=0)


def count_repeated_units(spikes: Tensor) -> int:
    """Return the sum of `repeated_units`, in a fraction of its time."""
    rows = _as_rows(spikes)
    if rows.device.type != "cpu" or not rows.is_floating_point():
        return int(repeated_units(rows).sum())
    values = (rows.float() if rows.dtype == torch.bfloat16 else rows).detach().numpy()
    if len(values) == 1:
        values = values if classify_row(values[0]) == INTEGER else values[:0]
    elif np.abs(values).max(initial=0) > 1:
        values = values[classify_rows(rows).numpy() == INTEGER]
    else:
        return 0
    return int(np.abs(values).sum(dtype=np.float64)) - int(np.count_nonzero(values != 0))


def count_nonzeros(tensor: Tensor) -> int:
    """Return how many numbers are not 0; on the CPU in a small part of the time that torch's count_nonzero takes."""
    if tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64):
        return int(np.count_nonzero(tensor.detach().numpy() != 0))
    return int(tensor.count_nonzero())


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor.flatten(0, -2) if tensor.dim() > 1 else tensor.reshape(1, -1)


def is_spikes(alphabet: int) -> bool:
    """True for the alphabets that need no multiplication: zero, binary and ternary."""
    return alphabet <= TERNARY
