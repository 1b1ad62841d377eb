"""What policies compute, in plain torch: every layer keeps all keys and values, and a mask says what a token sees.

One text, one head after the other, one token after the other; written to be read. `reader.py` gathers the rows that are
left in the place of masking the others.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor

from ..mixers.attention import Attention
from ..network import SpikeGPT
from ..rope import frequencies, rotate, turns
from .eviction import H2O, PROTECTED, SPARED, Eviction, Recency, Roco, Tova
from .policy import CachePolicy
from .prompts import DynamicKV, FastKV, PromptRule
from .quantise import by_minimum, by_zero
from .storage import GROUP, MiKV, Rotate, balancer


class Head:
    """What one head of keys still holds, and the attention that its tokens received."""

    def __init__(self, tokens: int):
        self.held: list[int] = []
        self.sums, self.squares = torch.zeros(tokens), torch.zeros(tokens)
        self.queries, self.last = torch.zeros(tokens), torch.zeros(tokens)

    def observe(self, received: Tensor) -> None:
        """Note attention (tokens,) of one token, 0 where nothing is seen."""
        seen = torch.zeros(len(received))
        seen[self.held] = 1
        self.sums, self.squares, self.queries = (
            self.sums + received,
            self.squares + received**2,
            self.queries + seen,
        )
        self.last = received


def evicted_token(head: Head, rule: Eviction, first: int) -> int:
    """Return which token a head throws out; the `first` tokens that it holds stay."""
    free = head.held[first:]
    if isinstance(rule, Recency):
        return free[0]
    if isinstance(rule, Tova):
        return min(free, key=lambda token: head.last[token])
    if isinstance(rule, H2O):
        old = head.held[first : len(head.held) - max(math.floor(SPARED * rule.budget), 1)]
        return min(old, key=lambda token: head.sums[token])
    assert isinstance(rule, Roco)
    protected = max(min(PROTECTED, rule.budget // 4), 1) if rule.protected is None else rule.protected

    def mean(token: int) -> float:
        return float(head.sums[token] / head.queries[token])

    def spread(token: int) -> float:
        if token in head.held[len(head.held) - protected :]:
            return math.inf
        return max(float(head.squares[token] / head.queries[token]) - mean(token) ** 2, 0.0)

    candidates = sorted(free, key=spread)[: rule.budget - math.floor(rule.spared * rule.budget)]
    return min(candidates, key=mean)


# layer, scores (H, T - W) of a prompt's tokens by its window, those tokens -> (what each head holds, what goes on)
Choice = Callable[[int, Tensor, list[int]], tuple[list[list[int]], list[int]]]


def read_by_mask(model: SpikeGPT, ids: Tensor, policy: CachePolicy, prompt: int = 0) -> Tensor:
    """Return logits (T, vocab_size) of one text ids (T,), its first `prompt` tokens read at once.

    Those before the last one of the prompt mean nothing where the policy lets fewer tokens go on.
    """
    rule, G, L = policy.prompt, model.config.kv_heads, len(model.blocks)

    def all_of_it(layer: int, scores: Tensor, tokens: list[int]) -> tuple[list[list[int]], list[int]]:
        return [tokens] * G, tokens

    if isinstance(rule, FastKV):
        return _layers(model, ids, policy, prompt, partial(_of_fastkv, rule, G, L))
    if not isinstance(rule, DynamicKV):
        return _layers(model, ids, policy, prompt, all_of_it)
    found: list[Tensor] = []

    def note(layer: int, scores: Tensor, tokens: list[int]) -> tuple[list[list[int]], list[int]]:
        found.append(scores)
        return all_of_it(layer, scores, tokens)

    _layers(model, ids[:prompt], policy, prompt, note)
    kept = _of_dynamic(rule, [scores.unflatten(0, (G, -1)).mean(dim=1) for scores in found], prompt)
    return _layers(model, ids, policy, prompt, lambda layer, scores, tokens: (kept[layer], tokens))


def _of_fastkv(
    rule: FastKV, kv_heads: int, n_layer: int, layer: int, scores: Tensor, tokens: list[int]
) -> tuple[list[list[int]], list[int]]:
    chooses, window = rule.layer_of(n_layer), tokens[len(tokens) - rule.window :]
    capacity = rule.capacity(len(tokens), is_behind=layer > chooses)
    groups = scores.unflatten(0, (kv_heads, -1)).sum(dim=1)
    kept = [[tokens[j] for j in _best(head, capacity - rule.window)] + window for head in groups]
    if layer != chooses or rule.tsp == 1:
        return kept, tokens
    chosen = _best(scores.sum(dim=0), rule.propagated(len(tokens)) - rule.window)
    return kept, [tokens[j] for j in chosen] + window


def _of_dynamic(rule: DynamicKV, scores: list[Tensor], prompt: int) -> list[list[list[int]]]:
    """Of each layer and head what it holds, from scores (G, T - W) of every layer."""
    L, (G, before) = len(scores), scores[0].shape
    window = list(range(before, prompt))
    ranked = [[head.argsort(descending=True).tolist()[: rule.r_max * rule.base] for head in layer] for layer in scores]
    for read in sorted({*range(rule.every, L, rule.every), L}):
        pool = [(float(score), layer) for layer in range(read) for score in scores[layer].flatten()]
        best = sorted(pool, reverse=True)[: rule.base * G * read]
        counts = [sum(layer == place for _, place in best) for layer in range(read)]
        shares = [math.floor(count / len(best) * rule.base * L + 1e-9) for count in counts]
        shares[-1] += rule.base * L - sum(shares)
        for layer, share in enumerate(shares):
            ranked[layer] = [head[:share] for head in ranked[layer]]
    return [[sorted(head) + window for head in layer] for layer in ranked]


def _best(scores: Tensor, count: int) -> list[int]:
    """Places of the `count` largest of scores (n,), ascending."""
    return sorted(sorted(range(len(scores)), key=lambda j: -scores[j])[:count])


def _layers(model: SpikeGPT, ids: Tensor, policy: CachePolicy, prompt: int, choose: Choice) -> Tensor:
    x, tokens = model.blocks[0].ln0(model.emb(ids)), list(range(prompt))
    for layer, block in enumerate(model.blocks):
        attention = cast(Attention, block.att)
        stream = block.ln1(x)
        kept, going = [tokens] * attention.n_kv_head, tokens
        if policy.prompt is not None and prompt > policy.prompt.window:
            kept, going = choose(layer, _scores(attention, stream[tokens], tokens, policy.prompt), tokens)
        x = x + attention.output(_attend(attention, policy, stream, x, prompt, kept, tokens))
        x = x + block.ffn(block.ln2(x).unsqueeze(0), None).y[0]
        tokens = going
    return model.head(model.ln_out(x))


def _scores(attention: Attention, stream: Tensor, tokens: list[int], rule: PromptRule) -> Tensor:
    """(H, n - W): what the last W of n tokens pay in sum to each before them, pooled over its neighbours."""
    queries, keys, _ = (part[0] for part in attention.project(stream.unsqueeze(0)))
    n, W, half = len(tokens), rule.window, rule.kernel // 2
    cos, sin = turns(torch.tensor(tokens), frequencies(keys.shape[2]), stream.dtype)
    queries, keys = rotate(queries, cos, sin), rotate(keys, cos, sin)
    out = torch.zeros(len(queries), n - W, dtype=stream.dtype)
    for h, query in enumerate(queries):
        key = keys[h * len(keys) // len(queries)]
        sums = torch.zeros(n, dtype=stream.dtype)
        for t in range(n - W, n):
            sums[: t + 1] += (query[t] @ key[: t + 1].T / keys.shape[2] ** 0.5).softmax(dim=0)
        for j in range(n - W):
            near = sums[max(j - half, 0) : min(j + half + 1, n - W)]
            out[h, j] = near.sum() / rule.kernel if rule.pooling == "avg" else near.max()
    return out


def _attend(
    attention: Attention,
    policy: CachePolicy,
    stream: Tensor,
    x: Tensor,
    prompt: int,
    kept: list[list[int]],
    tokens: list[int],
) -> Tensor:
    """Mean values (T, C) of one layer.

    `tokens`: those of the prompt that have come here; `kept`: of each head, what it holds of them.
    """
    queries, keys, values = (part[0] for part in attention.project(stream.unsqueeze(0)))
    T, rep = len(stream), attention.n_head // attention.n_kv_head
    cos, sin = turns(torch.arange(T), frequencies(keys.shape[2]), x.dtype)
    queries, plain = rotate(queries, cos, sin), rotate(keys, cos, sin)
    coded_keys, coded_values = _coded(policy, queries, keys, plain, values, prompt, cos, sin)
    never_low = _outliers(policy, x, prompt)
    is_low = torch.zeros(len(keys), T, dtype=torch.bool)
    if isinstance(policy.storage, Rotate):
        is_low[:] = ~never_low
    heads = [Head(T) for _ in keys]
    out = []
    for t in range(T):
        rows = []
        for g, head in enumerate(heads):
            own = range(g * rep, (g + 1) * rep)
            if t < prompt:
                head.held = [token for token in tokens if token <= t] or [t]
            else:
                if t == prompt and policy.prompt is not None:
                    head.held = list(kept[g])
                head.held.append(t)
            mask = torch.full((T,), -math.inf)
            mask[head.held] = 0
            # the prompt sees numbers before they become codes
            use_codes = t >= prompt
            low = is_low[g, :, None] if use_codes else torch.zeros(T, 1, dtype=torch.bool)
            seen_keys = torch.where(low, coded_keys[g], plain[g])
            seen_values = torch.where(low, coded_values[g], values[g])
            paid = torch.stack([(queries[h, t] @ seen_keys.T / keys.shape[2] ** 0.5 + mask).softmax(0) for h in own])
            rows += list(paid @ seen_values)
            if t < prompt and policy.prompt is not None:
                continue
            head.observe(paid.mean(dim=0))
            if isinstance(policy.storage, MiKV) and t >= prompt - 1:
                _demote(policy.storage, head, is_low[g])
            first = len(kept[g]) if policy.prompt else 0
            rule = policy.eviction
            while rule and t >= prompt - 1 and len(head.held) - first > rule.budget:
                head.held.remove(evicted_token(head, rule, max(first, rule.sinks)))
        out.append(torch.cat(rows))
    return torch.stack(out)


def _demote(storage: MiKV, head: Head, is_low: Tensor) -> None:
    """Set `is_low` (T,) of all but the most important of the tokens that are not so already."""
    exact = math.floor(storage.share * len(head.held))
    newest = math.floor(storage.newest * exact)
    old = [token for token in head.held[: len(head.held) - newest] if not is_low[token]]
    for token in sorted(old, key=lambda token: -head.sums[token])[exact - newest :]:
        is_low[token] = True


def _coded(
    policy: CachePolicy,
    queries: Tensor,
    keys: Tensor,
    plain: Tensor,
    values: Tensor,
    prompt: int,
    cos: Tensor,
    sin: Tensor,
) -> tuple[Tensor, Tensor]:
    """Keys, turned by their position, and values (G, T, d) as their codes say."""
    storage = policy.storage
    if isinstance(storage, Rotate):
        turned, turned_values = storage.turned(keys.unsqueeze(0)), storage.turned_values(values)
        numbers = (
            by_zero(part, storage.code_bits, GROUP, storage.clipped)[0].numbers() for part in (turned, turned_values)
        )
        coded_keys, coded_values = numbers
        return rotate(storage.turned_back(coded_keys)[0], cos, sin), storage.turned_values(coded_values)
    if isinstance(storage, MiKV):
        balance = balancer(queries[None, :, :prompt], plain[None, :, :prompt])[0].unsqueeze(1)
        coded_keys = by_minimum(plain * balance, storage.code_bits, GROUP).numbers() / balance
        return coded_keys, by_minimum(values, storage.code_bits, GROUP).numbers()
    return plain, values


def _outliers(policy: CachePolicy, x: Tensor, prompt: int) -> Tensor:
    """(T,) bool: the tokens that stay exact, by the largest numbers of the prompt's stream x (T, C)."""
    found = torch.zeros(len(x), dtype=torch.bool)
    if isinstance(policy.storage, Rotate) and prompt:
        numbers = x[:prompt].abs().flatten()
        for place in numbers.argsort(descending=True)[: policy.storage.outliers].tolist():
            found[place // x.shape[1]] = True
    return found
