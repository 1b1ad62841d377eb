"""Reads texts with an attention model whose layers cache by a policy.

The model's own forward pass keeps the last ctx_len tokens as they are; here every layer keeps what the policy says, and
a token sees what is kept. Tokens are read one by one, but for a prompt that the policy has to see whole.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...config.values import check
from ..mixers.attention import Attention
from ..mixers.elite import EliteAttention
from ..network import SpikeGPT, time_mix_inputs
from ..rope import frequencies, rotate, turns
from .contract import Cache, New, by_kv_head
from .eviction import Roco
from .policy import CachePolicy
from .prompts import DynamicKV, FastKV
from .storage import Rotate


class ReaderState(NamedTuple):
    """A cache per layer, and how many tokens were read."""

    caches: tuple[Cache, ...]
    read: int


class CachedReader(nn.Module):
    """`model` with the caches of `policy`: logits of the next token, and what is kept.

    Args:
        orders: of a policy that rotates keys, the order of each layer's channels, from `orders_of`.
        longest: texts have at most so many tokens.

    Raises:
        ValueError: the model has no cache.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        model: SpikeGPT,
        policy: CachePolicy,
        longest: int,
        orders: Sequence[tuple[int, ...]] | None = None,
    ):
        super().__init__()
        check(
            isinstance(model.blocks[0].att, Attention),
            f"policy {policy.name!r} is of a key-value cache, and mixer {model.config.mixer!r} has none: what it "
            "carries does not grow with the text",
        )
        self.model, self.policy = model, policy
        layers = range(len(model.blocks))
        storages = [
            dataclasses.replace(policy.storage, order=orders[layer])
            if orders is not None and isinstance(policy.storage, Rotate)
            else policy.storage
            for layer in layers
        ]
        self.policies = [dataclasses.replace(policy, storage=storage) for storage in storages]
        # all angles, made once as in a deployment
        thetas = frequencies(model.config.n_embd // model.config.n_head)
        cos, sin = turns(torch.arange(longest), thetas, torch.float64)
        dtype = torch.promote_types(model.emb.weight.dtype, torch.float32)
        self.register_buffer("cos", cos.to(model.device, dtype), persistent=False)
        self.register_buffer("sin", sin.to(model.device, dtype), persistent=False)
        # rotations of channels are prepared in the weights
        self.keys, self.values, self.outputs, self.others, self.expands = (nn.ParameterList() for _ in range(5))
        for layer in layers:
            self._fuse(self._attention(layer), self.policies[layer].storage)

    @torch.no_grad()
    def _fuse(self, attention: Attention, storage: object) -> None:
        key, value, output = (part.weight for part in (attention.key, attention.value, attention.output))
        is_elite = isinstance(attention, EliteAttention)
        G, H, C = 1 if is_elite else attention.n_kv_head, attention.n_head, output.shape[0]
        if isinstance(storage, Rotate):
            # columns of a projection as tokens: (1, G, C, d)
            key = storage.turned(_as_rows(key, G)).transpose(2, 3).reshape(-1, C)
            value = storage.turned_values(_as_rows(value, G)).transpose(2, 3).reshape(-1, C)
        parts = [(self.keys, key), (self.values, value)]
        if isinstance(attention, EliteAttention):
            other, expand = attention.parts_of_expand()
            if isinstance(storage, Rotate):
                other, expand = storage.turned_values(other), storage.turned_values(expand)
            parts += [(self.others, other), (self.expands, expand)]
        elif isinstance(storage, Rotate):
            output = storage.turned_values(output.unflatten(1, (H, -1))).flatten(1)
        for kept, part in (*parts, (self.outputs, output)):
            kept.append(nn.Parameter(part.detach(), requires_grad=False))

    def _attention(self, layer: int) -> Attention:
        return cast(Attention, self.model.blocks[layer].att)

    @torch.no_grad()
    def forward(self, ids: Tensor, state: ReaderState | None = None) -> tuple[Tensor, ReaderState]:
        """Return (logits (B, 1, vocab_size) after the last token, state after it) of ids (B, T).

        At the beginning of a text several tokens are its prompt, read in one go where the policy wants that.

        Raises:
            ValueError: the text is longer than `longest`, or the prompt too short for the policy.
        """
        read = state.read if state else 0
        longest = len(self.cos)
        check(read + ids.shape[1] <= longest, f"the text has {read + ids.shape[1]} tokens, room is for {longest}")
        if state is None and ids.shape[1] > 1 and self.policy.reads_prompt:
            return self._read_prompt(ids)
        caches: list[Cache | None] = list(state.caches) if state else [None] * len(self.model.blocks)
        policies, sizes = self.policies, [1] * ids.shape[1]
        eviction = self.policy.eviction
        if state is None and isinstance(eviction, Roco) and eviction.stride:
            of_prompt = eviction.of_prompt(ids.shape[1])
            policies = [dataclasses.replace(policy, eviction=of_prompt) for policy in policies]
            first = min(of_prompt.limit - of_prompt.stride, ids.shape[1])
            sizes = [first, *[of_prompt.stride] * ((ids.shape[1] - first) // of_prompt.stride)]
        for piece in ids.split(sizes, dim=1):
            logits = self._step(piece, caches, read, policies)
            read += piece.shape[1]
        return logits, ReaderState(tuple(cast(list[Cache], caches)), read)

    def bits(self, state: ReaderState) -> dict[str, int]:
        """Return part -> bits that the caches of one text take."""
        found: dict[str, int] = {}
        for policy, cache in zip(self.policies, state.caches, strict=True):
            for part, bits in policy.bits(cache).items():
                found[part] = found.get(part, 0) + bits
        return {part: bits for part, bits in found.items() if bits}

    def _step(self, ids: Tensor, caches: list[Cache | None], read: int, policies: Sequence[CachePolicy]) -> Tensor:
        """Logits after the last of a few tokens (B, T), behind `read` others; puts the new caches into `caches`."""
        T = ids.shape[1]
        positions = torch.arange(read, read + T, device=ids.device).expand_as(ids)
        x = self._embedded(ids)
        for layer, policy in enumerate(policies):
            queries, new = self._project(layer, x, positions)
            cache = policy.append(caches[layer], new)
            keys, values = (part.to(x.dtype) for part in policy.read(cache))
            if policy.storage.stores_unrotated:
                keys = self._turned(layer, keys, cache.positions)
            attention = self._paid(layer, queries, keys, values)
            caches[layer] = policy.observe(cache, attention) if policy.observes else cache
            x = self._after_attention(layer, x, self._means(layer, attention, values))
        return self.model.head(self.model.ln_out(x[:, -1:]))

    def _read_prompt(self, ids: Tensor) -> tuple[Tensor, ReaderState]:
        """As `forward`, all tokens at once; of FastKV's some layers read fewer."""
        rule, read = self.policy.prompt, ids.shape[1]
        positions = torch.arange(read, device=ids.device).expand_as(ids)
        x = self._embedded(ids)
        caches: list[Cache] = []
        ranked: list[tuple[Tensor, Tensor]] = []
        scores: list[Tensor] = []
        for layer in range(len(self.model.blocks)):
            policy, (queries, new) = self.policies[layer], self._project(layer, x, positions)
            keys, values = new.keys, new.values
            if isinstance(policy.storage, Rotate):
                keys = self._turned(layer, policy.storage.turned_back(keys), positions.unsqueeze(1))
            G, T = keys.shape[1], keys.shape[2]
            if policy.observes or isinstance(self._attention(layer), EliteAttention):
                attention = self._paid(layer, queries, keys, values)
                y = self._means(layer, attention, values)
            else:
                is_grouped = queries.shape[1] > G
                y = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=is_grouped)
            cache = policy.append(None, new)
            x = self._after_attention(layer, x, y)
            if rule is None:
                caches.append(policy.observe(cache, attention) if policy.observes else cache)
                continue
            pooled = None
            if rule.window < T:
                pooled = rule.pooled(self._paid(layer, queries[:, :, T - rule.window :], keys, values))
            if isinstance(rule, FastKV) and pooled is not None:
                chooses = rule.layer_of(len(self.model.blocks))
                cache = cache.take(rule.rows(pooled, G, rule.capacity(T, is_behind=layer > chooses)))
                if layer == chooses and rule.tsp < 1:
                    tokens = rule.tokens(pooled, rule.propagated(T))
                    x = x.gather(1, tokens.unsqueeze(-1).expand(-1, -1, x.shape[2]))
                    positions = positions.gather(1, tokens)
            caches.append(cache._replace(prompt=cache.rows))
            if isinstance(rule, DynamicKV) and pooled is not None and rule.capacity < T:
                check(len(ids) == 1, "dynamic gives texts caches of different lengths; read one text at a time")
                ranked.append(rule.ranked(pooled, G))
                scores.append(pooled.unflatten(1, (G, -1)).mean(dim=2)[0])
                if (layer + 1) % rule.every == 0 or layer + 1 == len(self.model.blocks):
                    ranked = _cut(ranked, rule.shares(scores, len(self.model.blocks)))
        if ranked:
            caches = [
                _held(cache, tokens, cast(DynamicKV, rule).window)
                for cache, (_, tokens) in zip(caches, ranked, strict=True)
            ]
        logits = self.model.head(self.model.ln_out(x[:, -1:]))
        return logits, ReaderState(tuple(caches), read)

    def _paid(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention (B, H, T, n) of queries (B, H, T, d) of the last T of n rows."""
        attention, T, n = self._attention(layer), queries.shape[2], keys.shape[2]
        queries = queries / math.sqrt(queries.shape[3])
        if isinstance(attention, EliteAttention):
            turned, other = queries.tensor_split([attention.turned_channels], dim=-1)
            heads = keys.squeeze(1).unflatten(-1, (attention.n_head, -1)).transpose(1, 2)
            # what expands the cached numbers is multiplied with the query in the place of each of them
            scores = turned @ heads.mT + (other @ self.others[layer]) @ values.mT
        else:
            scores = by_kv_head(queries, keys.shape[1]).flatten(2, 3) @ keys.mT
            scores = scores.unflatten(2, (-1, T)).flatten(1, 2)
        if T > 1:
            later = torch.ones(T, n, dtype=torch.bool, device=keys.device).triu(n - T + 1)
            scores = scores.masked_fill(later, -math.inf)
        return scores.softmax(dim=-1)

    def _means(self, layer: int, attention: Tensor, values: Tensor) -> Tensor:
        """Mean values (B, H, T, d) by attention (B, H, T, n)."""
        T = attention.shape[2]
        if isinstance(self._attention(layer), EliteAttention):
            return (attention @ values) @ self.expands[layer].mT
        means = by_kv_head(attention, values.shape[1]).flatten(2, 3) @ values
        return means.unflatten(2, (-1, T)).flatten(1, 2)

    def _turned(self, layer: int, keys: Tensor, positions: Tensor) -> Tensor:
        """Keys (B, G, n, d), as they are cached, turned by positions (B, G, n)."""
        attention, cos, sin = self._attention(layer), self.cos[positions], self.sin[positions]
        if not isinstance(attention, EliteAttention):
            return rotate(keys, cos, sin)
        # each head its own pairs
        pairs = attention.pairs.round().long()
        return rotate(keys.unflatten(-1, (attention.n_head, -1)), cos[..., pairs], sin[..., pairs]).flatten(-2)

    def _embedded(self, ids: Tensor) -> Tensor:
        return self.model.blocks[0].ln0(self.model.embed(ids))

    def _project(self, layer: int, x: Tensor, positions: Tensor) -> tuple[Tensor, New]:
        """(queries (B, H, T, d), what a block makes of x (B, T, C)); keys are turned unless the policy will."""
        attention = self._attention(layer)
        stream = self.model.blocks[layer].ln1(x)
        queries = attention.query(stream).unflatten(-1, (attention.n_head, -1)).transpose(1, 2)
        G = 1 if isinstance(attention, EliteAttention) else attention.n_kv_head
        keys, values = (
            F.linear(stream, parts[layer]).unflatten(-1, (G, -1)).transpose(1, 2) for parts in (self.keys, self.values)
        )
        if isinstance(attention, EliteAttention):
            turned, other = queries.tensor_split([attention.turned_channels], dim=-1)
            asked = self._turned(layer, _side_by_side(turned), positions.unsqueeze(1))
            heads = asked.squeeze(1).unflatten(-1, (attention.n_head, -1)).transpose(1, 2)
            queries = torch.cat([heads, other], dim=-1)
        else:
            queries = asked = self._turned(layer, queries, positions.unsqueeze(1))
        if not self.policies[layer].storage.stores_unrotated:
            keys = self._turned(layer, keys, positions.unsqueeze(1))
        return queries, New(keys, values, asked, positions, x)

    def _after_attention(self, layer: int, x: Tensor, y: Tensor) -> Tensor:
        """The block's output, of its input x (B, T, C) and mean values y (B, H, T, d)."""
        block = self.model.blocks[layer]
        x = x + F.linear(y.transpose(1, 2).flatten(2), self.outputs[layer])
        return x + block.ffn(block.ln2(x), None).y


def _as_rows(weight: Tensor, kv_heads: int) -> Tensor:
    """A projection's weight (G d, C) as keys (1, G, C, d) of C tokens."""
    return weight.unflatten(0, (kv_heads, -1)).transpose(1, 2).unsqueeze(0)


def _side_by_side(heads: Tensor) -> Tensor:
    """Heads (B, H, T, width) as one of all their channels, (B, 1, T, H width)."""
    return heads.transpose(1, 2).flatten(2).unsqueeze(1)


def _cut(ranked: list[tuple[Tensor, Tensor]], shares: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Each layer's best, as many as its share or as it still holds."""
    return [(score[..., :share], tokens[..., :share]) for (score, tokens), share in zip(ranked, shares, strict=True)]


def _held(cache: Cache, tokens: Tensor, window: int) -> Cache:
    """The rows `tokens` (B, G, m) of a prompt, and those of the last `window` tokens."""
    last = torch.arange(cache.rows - window, cache.rows, device=tokens.device).expand(*tokens.shape[:2], window)
    held = cache.take(torch.cat([tokens.sort(dim=-1).values, last], dim=-1))
    return held._replace(prompt=held.rows)


@torch.no_grad()
def orders_of(model: SpikeGPT, storage: Rotate, ids: Tensor) -> list[tuple[int, ...]]:
    """Return for each layer the channels of its rotated keys by their sums over the tokens of ids (B, T), ascending.

    Source: RotateKV, channel reordering: signed sums, over all tokens of a text for calibration.
    """
    check(storage.order is None, "this storage has an order already")
    orders = []
    for block, x in zip(model.blocks, time_mix_inputs(model, ids), strict=True):
        keys = cast(Attention, block.att).project(x)[1]
        keys = _side_by_side(keys) if isinstance(block.att, EliteAttention) else keys
        orders.append(tuple(storage.turned(keys).sum(dim=(0, 2)).flatten().argsort().tolist()))
    return orders
