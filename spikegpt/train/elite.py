"""From trained attention to EliteKV: which pairs of channels keep their position, and what all else is made of.

Source: arXiv 2503.01586; github.com/CiaranZhou/EliteKV, RoPElite/ and convert/. Theirs begins with pair 0 measured in
the place of all; ours measures each.
"""

import math
from typing import cast

import torch
from torch import Tensor

from ..model.mixers.attention import Attention
from ..model.network import SpikeGPT, time_mix_inputs
from ..model.rope import BASE, frequencies

# tokens of a text that pairs are chosen by
TOKENS = 256


def chosen_pairs(
    queries: Tensor, keys: Tensor, count: int, base: float = BASE
) -> tuple[list[int], list[dict[int, float]]]:
    """Return (the `count` pairs of a head that matter most, what each left over errs in each round).

    In each round that pair is chosen which, turned beside those before it, leaves scores nearest to all turned.

    Args:
        queries, keys: (B, T, d), before they are turned.
    """
    T, d = queries.shape[1:]
    angles = torch.arange(T, dtype=torch.float64)[:, None] * frequencies(d, base)
    turn = torch.polar(torch.ones_like(angles), angles)
    complex_query, complex_key = (torch.complex(*part.to(torch.float64).chunk(2, dim=-1)) for part in (queries, keys))
    seen = torch.ones(T, T, dtype=torch.bool).tril()

    def score(query: Tensor, key: Tensor, pair: int) -> Tensor:
        return (query[..., pair, None].conj() * key[:, None, :, pair]).real[:, seen] / math.sqrt(d)

    # what a pair that is not turned adds to a score, less what it adds if it is
    turned = complex_query * turn, complex_key * turn
    errors = [score(complex_query, complex_key, pair) - score(*turned, pair) for pair in range(d // 2)]
    total, left = torch.stack(errors).sum(dim=0), set(range(d // 2))
    chosen, rounds = [], []
    for _ in range(count):
        rounds.append({pair: (total - errors[pair]).abs().mean().item() for pair in sorted(left)})
        best = min(rounds[-1], key=rounds[-1].__getitem__)
        total = total - errors[best]
        left.remove(best)
        chosen.append(best)
    return sorted(chosen), rounds


def channels_of(pairs: list[int], head_size: int) -> tuple[list[int], list[int]]:
    """Return (channels of a head that are turned, the others): first halves of pairs, then second halves."""
    half = head_size // 2
    others = [pair for pair in range(half) if pair not in pairs]
    return [*pairs, *(pair + half for pair in pairs)], [*others, *(pair + half for pair in others)]


def joint_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return (down (C, rank), up (rank, N)), whose product is nearest to `matrix` (C, N)."""
    left, sizes, right = torch.linalg.svd(matrix.to(torch.float64), full_matrices=False)
    missing = max(rank - len(sizes), 0)
    # a rank beyond the matrix's own adds nothing
    down, up = left[:, :rank], (sizes[:, None] * right)[:rank]
    if missing:
        down = torch.cat([down, down.new_zeros(len(down), missing)], dim=1)
        up = torch.cat([up, up.new_zeros(missing, up.shape[1])])
    return down, up


@torch.no_grad()
def elite_weights(model: SpikeGPT, ids: Tensor, elite_pairs: int, kv_dim: int) -> dict[str, Tensor]:
    """Return the weights of a model with `elite_pairs` and `kv_dim` that stands for `model`, by texts ids (B, T)."""
    found = dict(model.state_dict())
    for layer, x in enumerate(time_mix_inputs(model, ids[:, :TOKENS])):
        attention, prefix = cast(Attention, model.blocks[layer].att), f"blocks.{layer}.att."
        queries, keys, _ = attention.project(x)
        heads = [chosen_pairs(queries[:, head], keys[:, head], elite_pairs)[0] for head in range(attention.n_head)]
        found |= {prefix + name: tensor for name, tensor in _converted(attention, heads, kv_dim).items()}
    return found


def _converted(attention: Attention, pairs: list[list[int]], kv_dim: int) -> dict[str, Tensor]:
    """Own parameter -> tensor, of the chosen pairs of each head."""
    H, d = attention.n_head, attention.query.in_features // attention.n_head
    query, key, value = (part.weight.unflatten(0, (H, d)) for part in (attention.query, attention.key, attention.value))
    queries, turned, joint = [], [], []
    for head, chosen in enumerate(pairs):
        own, others = channels_of(chosen, d)
        queries.append(query[head, own + others])
        turned.append(key[head, own])
        joint += [key[head, others], value[head]]
    down, up = joint_factors(torch.cat(joint).T, kv_dim)
    dtype = attention.key.weight.dtype
    return {
        "query.weight": torch.cat(queries),
        "key.weight": torch.cat(turned),
        "value.weight": down.T.to(dtype),
        "expand.weight": up.T.to(dtype),
        "pairs": torch.tensor(pairs, dtype=dtype),
    }
