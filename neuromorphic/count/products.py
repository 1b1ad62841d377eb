"""Exact counts of matrix products, convolutions and attention, from the values of both operands.

The number of products x[n, k] * w[k, m] with both sides nonzero is, summed over n and m, the inner product over k of
(nonzeros in column k of x) and (nonzeros in row k of w): no product is formed twice.
`tests/neuromorphic/test_counter.py` checks every function against loops over single products. Complex matrices are
written as real ones, so that a complex product counts as the four real products that it is.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .counts import ALPHABETS, Counts
from .marks import Marks
from .operands import (
    BINARY,
    INTEGER,
    REAL,
    TERNARY,
    ZERO,
    alphabet_of,
    classify_rows,
    is_spikes,
    repeated_units,
)

# alphabets whose products can have an effect
EFFECTIVE = (BINARY, TERNARY, INTEGER, REAL)
ELEMENTS = tuple(f"{name}_elements" for name in ALPHABETS)


class Weight(NamedTuple):
    """What is known of the right side of a product: it does not change while it is counted."""

    nonzeros: Tensor
    """(G, K) int64: weights other than 0 that input element k meets"""
    alphabet: int
    fan_out: int
    """weights that an input element meets, zeros included"""


class Product(NamedTuple):
    counts: Counts
    touched: Tensor
    """(G, K) bool: input elements that were nonzero at least once"""


def describe_weight(w: Tensor) -> Weight:
    """Return what `matrix_product` needs of w (G, K, M), or of its real form (G, 2K, 2M)."""
    w = real_weight(w)
    is_on_host = w.device.type == "cpu" and w.dtype in (torch.float32, torch.float64)
    if w.shape[0] == 1 and w.mT.is_contiguous() and is_on_host:
        # as linear layers keep it: a row for each result
        marks = Marks(w.shape[1])
        marks.add_rows(w[0].mT.detach().numpy())
        # the alphabet of a matrix is the widest of its rows
        alphabet = int(marks.rows.nonzero()[0].max(initial=ZERO))
        return Weight(torch.from_numpy(marks.fired.sum(axis=0)).unsqueeze(0), alphabet, w.shape[2])
    return Weight((w != 0).sum(dim=2), alphabet_of(w), w.shape[2])


def real_input(x: Tensor) -> Tensor:
    """Return x (G, N, K) as it is, or complex as (G, N, 2K): real parts, then imaginary parts."""
    return torch.cat([x.real, x.imag], dim=2) if x.is_complex() else x


def real_weight(w: Tensor) -> Tensor:
    """Return w (G, K, M) as it is, or complex as the (G, 2K, 2M) that multiplies a `real_input`."""
    if not w.is_complex():
        return w
    real, imaginary = w.real, w.imag
    return torch.cat([torch.cat([real, imaginary], dim=2), torch.cat([-imaginary, real], dim=2)], dim=1)


def matrix_product(x: Tensor, weight: Weight, live: Tensor | None = None) -> Product:
    """Return the counts of x (G, N, K) times a weight of (G, K, M); `live` (G, N) bool leaves padding out."""
    x = real_input(x)
    G, N, K = x.shape
    codes = classify_rows(x.reshape(G * N, K)).reshape(G, N)
    nonzero = x != 0
    if live is not None:
        nonzero = nonzero & live.unsqueeze(2)
        codes = codes.masked_fill(~live, -1)
    rows = torch.bincount(codes.flatten() + 1, minlength=REAL + 2)[1:].tolist()
    columns = nonzero.sum(dim=1)
    # rows of zeros belong to no alphabet and add nothing, so most calls have one alphabet and need no second pass
    present = [code for code in EFFECTIVE if rows[code]]
    effective = dict.fromkeys(EFFECTIVE, 0)
    for code in present:
        part = columns if len(present) == 1 else (nonzero & (codes == code).unsqueeze(2)).sum(dim=1)
        effective[code] = int((part * weight.nonzeros).sum())
    nonzeros = int(columns.sum())
    real_nonzeros = nonzeros
    if REAL not in present:
        real_nonzeros = 0
    elif len(present) > 1:
        real_nonzeros = int((nonzero & (codes == REAL).unsqueeze(2)).sum())
    counts = Counts(
        calls=1,
        dense_ops=sum(rows) * K * weight.fan_out,
        zero_elements=rows[ZERO] * K,
        binary_elements=rows[BINARY] * K,
        ternary_elements=rows[TERNARY] * K,
        integer_elements=rows[INTEGER] * K,
        real_elements=rows[REAL] * K,
        nonzeros=nonzeros,
        events_in=nonzeros - real_nonzeros,
        fan_out=weight.fan_out,
        weights_per_event=nonzeros * weight.fan_out,
        weights_dense=sum(rows) * K * weight.fan_out,
        activation_reads=sum(rows) * K,
        activation_writes=sum(rows) * weight.fan_out,
    )
    split(counts, effective, weight.alphabet)
    if rows[INTEGER]:
        levels = x.abs().masked_fill((codes != INTEGER).unsqueeze(2), 0)
        counts.largest_level = int(levels.max())
        units, events = levels.to(torch.int64).sum(dim=1), (levels != 0).sum(dim=1)
        send_units(counts, units, units - events, weight.nonzeros, weight)
    return Product(counts, columns > 0)


def split(counts: Counts, effective: dict[int, int], weight_alphabet: int) -> None:
    """Write how the effective products divide into MACs and ACs."""
    spikes, numbers = effective[BINARY] + effective[TERNARY], effective[INTEGER] + effective[REAL]
    counts.effective_acs = spikes
    if is_spikes(weight_alphabet):
        counts.effective_acs += numbers
        counts.weight_side_acs = numbers
    else:
        counts.effective_macs = numbers
        counts.integer_macs = effective[INTEGER]


def send_units(counts: Counts, units: Any, repeats: Any, met: Any, weight: Weight) -> None:
    """Write what it takes to send integer spikes as unit spikes: `units` of each input element, `repeats` all but the
    first of each spike, `met` its nonzero weights, arrays of one shape."""
    counts.repeated_weights = int(repeats.sum()) * weight.fan_out
    if is_spikes(weight.alphabet):
        counts.repeated_acs = int((repeats * met).sum())
    else:
        counts.unit_acs = int((units * met).sum())


def activation_product(a: Tensor, b: Tensor) -> Counts:
    """Return the counts of a (G, N, K) times b (G, K, M), neither a weight; alphabets are decided for each matrix."""
    # what is read of b are its numbers, which the real form of a complex one holds twice
    read, a, b = real_input(b), real_input(a), real_weight(b)
    (G, N, K), M = a.shape, b.shape[2]
    a_codes, b_codes = classify_rows(a.reshape(G, N * K)), classify_rows(read.reshape(G, -1))
    a_columns, b_rows = (a != 0).sum(dim=1), (b != 0).sum(dim=2)
    b_nonzeros = (read != 0).sum(dim=(1, 2))
    effective = (a_columns * b_rows).sum(dim=1)
    spiking = (a_codes <= TERNARY) | (b_codes <= TERNARY)
    integer = ~spiking & (a_codes == INTEGER)
    elements = torch.bincount(a_codes, minlength=REAL + 1) * (N * K)
    elements += torch.bincount(b_codes, minlength=REAL + 1) * read[0].numel()
    counts = Counts(
        calls=1,
        dense_ops=G * N * K * M,
        effective_acs=int(effective[spiking].sum()),
        effective_macs=int(effective[~spiking].sum()),
        integer_macs=int(effective[integer].sum()),
        nonzeros=int(a_columns.sum() + b_nonzeros.sum()),
        events_in=int(a_columns[a_codes < REAL].sum() + b_nonzeros[b_codes < REAL].sum()),
        fan_out=max(M, N),
        activation_reads=a.numel() + read.numel(),
        activation_writes=G * N * M,
        **dict(zip(ELEMENTS, elements.tolist(), strict=True)),
    )
    if integer.any():
        counts.unit_acs = int((a[integer].abs().to(torch.int64).sum(dim=1) * b_rows[integer]).sum())
    for matrix, codes in ((a, a_codes), (read, b_codes)):
        if (codes == INTEGER).any():
            counts.largest_level = max(counts.largest_level, int(matrix[codes == INTEGER].abs().max()))
    return counts


def describe_convolution(w: Tensor, geometry: list, sample_shape: torch.Size) -> tuple[Weight, Tensor]:
    """Return (weight, reach) of a convolution whose `geometry` is aten.convolution's arguments from `stride` on.

    weight.nonzeros (1, K) says how many nonzero weights each of the K input positions meets inside the output; `reach`
    (K,) the same with zeros included, which is less at the borders.
    """
    stride, padding, dilation, transposed, output_padding, groups = geometry
    sample = torch.zeros(1, *sample_shape, dtype=torch.float64, device=w.device)

    def met(weights: Tensor) -> Tensor:
        output = torch.ops.aten.convolution(
            sample, weights, None, stride, padding, dilation, transposed, output_padding, groups
        )
        # the derivative of the sum of all outputs by an input is the sum of the weights that it meets
        back = torch.ops.aten.convolution_backward(
            torch.ones_like(output),
            *(sample, weights, None, stride, padding, dilation, transposed, output_padding, groups),
            [True, False, False],
        )
        return back[0].round().to(torch.int64).flatten()

    nonzero = (w != 0).double()
    reach = met(torch.ones_like(nonzero))
    return Weight(met(nonzero).unsqueeze(0), alphabet_of(w), int(reach.max())), reach


def convolution(x: Tensor, weight: Weight, reach: Tensor, outputs: int) -> Counts:
    """Return the counts of a convolution over x (N, ...) with `outputs` result elements; one sample is one vector."""
    rows = x.reshape(1, x.shape[0], -1)
    counts = matrix_product(rows, weight).counts
    columns = (rows != 0).sum(dim=1).flatten()
    counts.dense_ops = x.shape[0] * int(reach.sum())
    counts.weights_per_event = int((columns * reach).sum())
    counts.weights_dense = counts.dense_ops
    if counts.integer_elements:
        repeats = repeated_units(rows[0]).sum(dim=0)
        counts.repeated_weights = int((repeats * reach).sum())
    counts.activation_writes = outputs
    return counts
