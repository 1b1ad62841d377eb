"""Exact counts of fused attention: softmax(query key^T / sqrt(D) + mask) value, as if its parts were operators.

A product with a probability that is exactly 0 is not effective, and alphabets are decided for each text and head, as
they are where a model multiplies the matrices itself.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .counts import Counts
from .operands import BINARY, INTEGER, REAL, TERNARY, classify_rows
from .products import ELEMENTS

# float32: scores that differ by less leave every probability above 0, and no probability of two scores at 1
SPREAD = 16.0
# elements of scores that are looked at together
BLOCK = 1 << 18


def attention(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, mask: Tensor | None = None, scale: float | None = None
) -> Counts:
    """Return the counts of query (B, H, T, D), key and value (B, H or fewer, S, D); a causal one hides later pairs.

    `mask` is added to the scores, all of which are computed then; a bool one hides where it is False.
    """
    if key.shape[1] != query.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    (B, H, T, D), S, E = query.shape, key.shape[2], value.shape[3]
    pairs = B * H * (_visible_pairs(T, S) if is_causal else T * S)
    counts = Counts(
        calls=1,
        dense_ops=pairs * (D + E),
        fan_out=S,
        # scale, then maximum, subtract, exp, sum and divide of the softmax
        mul=pairs,
        compare=pairs,
        add=(2 + (mask is not None)) * pairs,
        exp=pairs,
        div=pairs,
        activation_reads=query.numel() + key.numel() + value.numel() + (0 if mask is None else mask.numel()),
        activation_writes=B * H * T * E,
    )
    query, key, value = (part.reshape(B * H, *part.shape[2:]) for part in (query, key, value))
    codes = [classify_rows(part.flatten(1)) for part in (query, key, value)]
    scores = _score_products(query != 0, key != 0, is_causal)
    if mask is None and S > 0 and _spread(query, key, scale) < SPREAD:
        weighted = _visible_products(value != 0, T, is_causal)
        # one score has a probability of 1
        has_choice = S > 1 and not (is_causal and T == 1)
        probability_codes = torch.full_like(codes[0], REAL if has_choice else BINARY)
    else:
        blocks = _probabilities(query, key, is_causal, None if mask is None else mask.expand(B, H, T, S), scale)
        weighted, probability_codes = _weighted_products(blocks, value != 0)
    accumulates = (
        (codes[0] <= TERNARY) | (codes[1] <= TERNARY),
        (probability_codes <= TERNARY) | (codes[2] <= TERNARY),
    )
    counts.effective_acs = sum(int(part[by].sum()) for part, by in zip((scores, weighted), accumulates, strict=True))
    counts.effective_macs = int(scores.sum() + weighted.sum()) - counts.effective_acs
    graded = ~accumulates[0] & (codes[0] == INTEGER)
    if graded.any():
        counts.integer_macs = int(scores[graded].sum())
        levels = query[graded].abs().to(torch.int64)
        counts.unit_acs = int(_score_products(levels, key[graded] != 0, is_causal).sum())
    for part, code in zip((query, key, value), codes, strict=True):
        if (code == INTEGER).any():
            counts.largest_level = max(counts.largest_level, int(part[code == INTEGER].abs().max()))
        nonzeros = _sums(part != 0, 1, 2)
        counts.nonzeros += int(nonzeros.sum())
        counts.events_in += int(nonzeros[code < REAL].sum())
        heads = torch.bincount(code, minlength=REAL + 1).tolist()
        for name, number in zip(ELEMENTS, heads, strict=True):
            setattr(counts, name, getattr(counts, name) + number * part[0].numel())
    return counts


def _visible_pairs(T: int, S: int) -> int:
    """Query t sees the keys up to t."""
    return sum(min(t + 1, S) for t in range(T))


def _score_products(query: Tensor, key: Tensor, is_causal: bool) -> Tensor:
    """Return (G,) how many products of query and key have both sides nonzero; both are (G, length, D) bool.

    Levels in place of the query's flags count as unit spikes.
    """
    if not is_causal:
        return (_sums(query, 1) * _sums(key, 1)).sum(dim=1)
    T, S = query.shape[1], key.shape[1]
    later = (_sums(query[:, S:], 1) * _sums(key, 1)).sum(dim=1)
    seen = [(own[:S] * keys.cumsum(dim=0, dtype=torch.int32)[:T]).sum() for own, keys in zip(query, key, strict=True)]
    return later + torch.stack(seen) if seen else later


def _visible_products(value: Tensor, T: int, is_causal: bool) -> Tensor:
    """Return (G,) how many nonzero values (G, S, E) the queries see: all, or value s by the queries from s on."""
    S = value.shape[1]
    seen_by = torch.full((S,), T, device=value.device)
    if is_causal:
        seen_by = (T - torch.arange(S, device=value.device)).clamp(min=0)
    return (_sums(value, 2) * seen_by).sum(dim=1)


def _sums(flags: Tensor, *dims: int) -> Tensor:
    """Return flags.sum(dims) of flags (G, length, D) of bool, or of levels.

    Head by head, for torch makes integers of eight bytes of all flags before it adds them up.
    """
    return torch.cat([head.sum(dims) for head in flags.split(1)])


def _spread(query: Tensor, key: Tensor, scale: float | None) -> float:
    """Return a bound on the difference of two scores of one query."""
    scale = query.shape[2] ** -0.5 if scale is None else abs(scale)
    longest = [part.float().norm(dim=2).amax().item() if part.numel() else 0.0 for part in (query, key)]
    bound = 2 * scale * longest[0] * longest[1]
    # NaN is no bound
    return bound if bound == bound else float("inf")


def _probabilities(
    query: Tensor, key: Tensor, is_causal: bool, mask: Tensor | None, scale: float | None
) -> Iterator[tuple[int, Tensor]]:
    """Return blocks (head, (rows, S)) of the probabilities of query and key (G, length, D), mask (B, H, T, S)."""
    (G, T, D), S = query.shape, key.shape[1]
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    rows = max(BLOCK // max(S, 1), 1)
    for head in range(G):
        keys = key[head].to(dtype).mT * (D**-0.5 if scale is None else scale)
        for start in range(0, T, rows):
            scores = query[head, start : start + rows].to(dtype) @ keys
            if is_causal:
                hidden = torch.ones_like(scores, dtype=torch.bool).triu(start + 1)
                scores = scores.masked_fill(hidden, float("-inf"))
            if mask is not None:
                part = mask[divmod(head, mask.shape[1])][start : start + rows]
                scores = scores.masked_fill(~part, float("-inf")) if part.dtype == torch.bool else scores + part
            # a row that sees nothing has no probabilities
            yield head, scores.softmax(dim=1).nan_to_num(0.0)


def _weighted_products(blocks: Iterator[tuple[int, Tensor]], value: Tensor) -> tuple[Tensor, Tensor]:
    """Return (G,) products of a probability and a value (G, S, E) bool, neither 0, and (G,) alphabets of the former."""
    met = _sums(value, 2)
    weighted = torch.zeros(len(value), dtype=torch.int64, device=value.device)
    codes = torch.zeros_like(weighted)
    for head, probabilities in blocks:
        weighted[head] += ((probabilities != 0).sum(dim=0, dtype=torch.int32) * met[head]).sum()
        if codes[head] < REAL:
            codes[head] = torch.maximum(codes[head], classify_rows(probabilities.reshape(1, -1))[0])
    return weighted, codes
