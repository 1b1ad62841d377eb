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
from ..network import SpikeGPT
from ..rope import frequencies, rotate, turns
from .contract import Cache, New, by_kv_head
from .eviction import Roco
from .policy import CachePolicy
from .prompts import DynamicKV, FastKV, window_attention
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
        head_size = self._attention(0).value.out_features // self._attention(0).n_kv_head
        # all angles, made once as in a deployment
        cos, sin = turns(torch.arange(longest), frequencies(head_size), torch.float64)
        dtype = torch.promote_types(model.emb.weight.dtype, torch.float32)
        self.register_buffer("cos", cos.to(model.device, dtype), persistent=False)
        self.register_buffer("sin", sin.to(model.device, dtype), persistent=False)
        # rotations of channels are prepared in the weights
        self.keys, self.values, self.outputs = (nn.ParameterList() for _ in range(3))
        for layer in layers:
            self._fuse(self._attention(layer), self.policies[layer].storage)

    @torch.no_grad()
    def _fuse(self, attention: Attention, storage: object) -> None:
        key, value, output = (part.weight for part in (attention.key, attention.value, attention.output))
        if isinstance(storage, Rotate):
            G, H, C = attention.n_kv_head, attention.n_head, output.shape[0]
            # columns of a projection as tokens: (1, G, C, d)
            key = storage.turned(_as_rows(key, G)).transpose(2, 3).reshape(-1, C)
            value = storage.turned_values(_as_rows(value, G)).transpose(2, 3).reshape(-1, C)
            output = storage.turned_values(output.unflatten(1, (H, -1))).flatten(1)
        for parts, part in ((self.keys, key), (self.values, value), (self.outputs, output)):
            parts.append(nn.Parameter(part.detach(), requires_grad=False))

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
            new = self._project(layer, x, positions)
            cache = policy.append(caches[layer], new)
            keys, values = (part.to(x.dtype) for part in policy.read(cache))
            if policy.storage.stores_unrotated:
                keys = rotate(keys, self.cos[cache.positions], self.sin[cache.positions])
            G, n = keys.shape[1:3]
            queries = by_kv_head(new.queries, G) / math.sqrt(keys.shape[3])
            scores = (queries.flatten(2, 3) @ keys.mT).unflatten(2, (-1, T))
            if T > 1:
                later = torch.ones(T, n, dtype=torch.bool, device=x.device).triu(n - T + 1)
                scores = scores.masked_fill(later, -math.inf)
            attention = scores.softmax(dim=-1)
            y = (attention.flatten(2, 3) @ values).unflatten(2, (-1, T)).flatten(1, 2)
            caches[layer] = policy.observe(cache, attention.flatten(1, 2)) if policy.observes else cache
            x = self._after_attention(layer, x, y)
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
            policy, new = self.policies[layer], self._project(layer, x, positions)
            keys = new.keys
            if policy.storage.stores_unrotated:
                keys = policy.storage.turned_back(keys) if isinstance(policy.storage, Rotate) else keys
                keys = rotate(keys, self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1))
            G, T = keys.shape[1], keys.shape[2]
            if policy.observes:
                attention = window_attention(new.queries, keys, T)
                y = (attention.unflatten(1, (G, -1)) @ new.values.unsqueeze(2)).flatten(1, 2)
            else:
                is_grouped = new.queries.shape[1] > G
                y = F.scaled_dot_product_attention(new.queries, keys, new.values, is_causal=True, enable_gqa=is_grouped)
            cache = policy.append(None, new)
            x = self._after_attention(layer, x, y)
            if rule is None:
                caches.append(policy.observe(cache, attention) if policy.observes else cache)
                continue
            pooled = self._pooled(new.queries, keys) if rule.window < T else None
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

    def _pooled(self, queries: Tensor, keys: Tensor) -> Tensor:
        rule = self.policy.prompt
        assert rule is not None
        return rule.pooled(window_attention(queries, keys, rule.window))

    def _embedded(self, ids: Tensor) -> Tensor:
        return self.model.blocks[0].ln0(self.model.embed(ids))

    def _project(self, layer: int, x: Tensor, positions: Tensor) -> New:
        """What the block of a layer makes of its input x (B, T, C); keys are rotated unless the policy will."""
        attention, storage = self._attention(layer), self.policies[layer].storage
        stream = self.model.blocks[layer].ln1(x)
        G = attention.n_kv_head
        queries = attention.query(stream).unflatten(-1, (attention.n_head, -1)).transpose(1, 2)
        keys, values = (
            F.linear(stream, parts[layer]).unflatten(-1, (G, -1)).transpose(1, 2) for parts in (self.keys, self.values)
        )
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        queries = rotate(queries, cos, sin)
        keys = keys if storage.stores_unrotated else rotate(keys, cos, sin)
        return New(keys, values, queries, positions, x)

    def _after_attention(self, layer: int, x: Tensor, y: Tensor) -> Tensor:
        """The block's output, of its input x (B, T, C) and mean values y (B, H, T, d)."""
        block = self.model.blocks[layer]
        x = x + F.linear(y.transpose(1, 2).flatten(2), self.outputs[layer])
        return x + block.ffn(block.ln2(x), None).y


def _as_rows(weight: Tensor, kv_heads: int) -> Tensor:
    """A projection's weight (G d, C) as keys (1, G, C, d) of C tokens."""
    return weight.unflatten(0, (kv_heads, -1)).transpose(1, 2).unsqueeze(0)


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
    sums: list[Tensor] = []

    def watch(half: nn.Module, inputs: tuple) -> None:
        keys = cast(Attention, half).project(inputs[0])[1]
        sums.append(storage.turned(keys).sum(dim=(0, 2)).flatten())

    hooks = [block.att.register_forward_pre_hook(watch) for block in model.blocks]
    try:
        model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return [tuple(layer.argsort().tolist()) for layer in sums]
