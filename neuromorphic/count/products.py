"""Exact counts of matrix products, convolutions and attention, from the values of both operands.

The number of products x[n, k] * w[k, m] with both sides nonzero is, summed over n and m, the inner product over k of
(nonzeros in column k of x) and (nonzeros in row k of w): no product is formed twice.
`tests/neuromorphic/test_counter.py` checks every function against loops over single products.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .counts import ALPHABETS, Counts
from .operands import BINARY, INTEGER, REAL, TERNARY, ZERO, alphabet_of, classify_rows, is_spikes

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
    """Return what `matrix_product` needs of w (G, K, M)."""
    return Weight((w != 0).sum(dim=2), alphabet_of(w), w.shape[2])


def matrix_product(x: Tensor, weight: Weight, live: Tensor | None = None) -> Product:
    """Return the counts of x (G, N, K) times a weight of (G, K, M); `live` (G, N) bool leaves padding out."""
    G, N, K = x.shape
    codes = classify_rows(x.reshape(G * N, K)).reshape(G, N)
    nonzero = x != 0
    if live is not None:
        nonzero = nonzero & live.unsqueeze(2)
        codes = codes.masked_fill(~live, -1)
    rows = torch.bincount(codes.flatten() + 1, minlength=REAL + 2)[1:].tolist()
    columns = nonzero.sum(dim=1)
    # rows of zeros belong to no alphabet and add nothing, so most calls have one alphabet and need no second pass
    present = [code for code in (BINARY, TERNARY, INTEGER, REAL) if rows[code]]
    effective = dict.fromkeys((BINARY, TERNARY, INTEGER, REAL), 0)
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
    _split(counts, effective, weight.alphabet)
    if rows[INTEGER]:
        levels = x.abs().masked_fill((codes != INTEGER).unsqueeze(2), 0)
        counts.largest_level = int(levels.max())
        if not is_spikes(weight.alphabet):
            counts.unit_acs = int((levels.to(torch.int64).sum(dim=1) * weight.nonzeros).sum())
    return Product(counts, columns > 0)


def _split(counts: Counts, effective: dict[int, int], weight_alphabet: int) -> None:
    """Write how the effective products divide into MACs and ACs."""
    spikes, numbers = effective[BINARY] + effective[TERNARY], effective[INTEGER] + effective[REAL]
    counts.effective_acs = spikes
    if is_spikes(weight_alphabet):
        counts.effective_acs += numbers
        counts.weight_side_acs = numbers
    else:
        counts.effective_macs = numbers
        counts.integer_macs = effective[INTEGER]


def activation_product(a: Tensor, b: Tensor) -> Counts:
    """Return the counts of a (G, N, K) times b (G, K, M), neither a weight; alphabets are decided for each matrix."""
    (G, N, K), M = a.shape, b.shape[2]
    a_codes, b_codes = classify_rows(a.reshape(G, N * K)), classify_rows(b.reshape(G, K * M))
    a_columns, b_rows = (a != 0).sum(dim=1), (b != 0).sum(dim=2)
    effective = (a_columns * b_rows).sum(dim=1)
    spiking = (a_codes <= TERNARY) | (b_codes <= TERNARY)
    integer = ~spiking & (a_codes == INTEGER)
    elements = torch.bincount(a_codes, minlength=REAL + 1) * (N * K) + torch.bincount(b_codes, minlength=REAL + 1) * (
        K * M
    )
    counts = Counts(
        calls=1,
        dense_ops=G * N * K * M,
        effective_acs=int(effective[spiking].sum()),
        effective_macs=int(effective[~spiking].sum()),
        integer_macs=int(effective[integer].sum()),
        nonzeros=int(a_columns.sum() + b_rows.sum()),
        events_in=int(a_columns[a_codes < REAL].sum() + b_rows[b_codes < REAL].sum()),
        fan_out=max(M, N),
        activation_reads=G * (N * K + K * M),
        activation_writes=G * N * M,
        **dict(zip(ELEMENTS, elements.tolist(), strict=True)),
    )
    if integer.any():
        counts.unit_acs = int((a[integer].abs().to(torch.int64).sum(dim=1) * b_rows[integer]).sum())
    for matrix, codes in ((a, a_codes), (b, b_codes)):
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
    counts.activation_writes = outputs
    return counts


def attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> Counts:
    """Return the counts of softmax(query key^T) value, all (B, H, T, D); a causal mask leaves out the pairs it hides.

    Alphabets are decided for each text of the batch.
    """
    if key.shape[1] != query.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    (B, H, T, D), S = query.shape, key.shape[2]
    visible = torch.ones(T, S, dtype=torch.float64, device=query.device)
    visible = visible.tril() if is_causal else visible
    pairs = B * H * int(visible.sum())
    # float64 sums of zeros and ones are exact, and torch multiplies no matrices of integers fast
    query_nonzero, key_nonzero, value_nonzero = ((part != 0).double() for part in (query, key, value))
    scores = (query_nonzero * (visible @ key_nonzero)).sum(dim=(1, 2, 3)).to(torch.int64)
    weighted = (visible @ value_nonzero).sum(dim=(1, 2, 3)).to(torch.int64)
    query_codes, key_codes, value_codes = (classify_rows(part.reshape(B, -1)) for part in (query, key, value))
    acs = int(scores[(query_codes <= TERNARY) | (key_codes <= TERNARY)].sum() + weighted[value_codes <= TERNARY].sum())
    counts = Counts(
        calls=1,
        dense_ops=pairs * (D + value.shape[3]),
        effective_acs=acs,
        effective_macs=int(scores.sum() + weighted.sum()) - acs,
        fan_out=S,
        # scale, then maximum, subtract, exp, sum and divide of the softmax
        mul=pairs,
        compare=pairs,
        add=2 * pairs,
        exp=pairs,
        div=pairs,
        activation_reads=query.numel() + key.numel() + value.numel(),
        activation_writes=B * H * T * value.shape[3],
    )
    for part, codes in ((query, query_codes), (key, key_codes), (value, value_codes)):
        nonzeros = (part != 0).sum(dim=(1, 2, 3))
        counts.nonzeros += int(nonzeros.sum())
        counts.events_in += int(nonzeros[codes < REAL].sum())
        for code, name in enumerate(ELEMENTS):
            setattr(counts, name, getattr(counts, name) + int((codes == code).sum()) * part[0].numel())
    return counts
