"""Policies by their names: `full`, `recency:64,sinks=4`, `roco:64`, `rotate:2`, `fastkv:0.25,tsp=0.5+rotate:2`.

A name, behind a colon its number, then options; a plus joins what a policy may be made of: one that chooses of a
prompt, one that evicts while decoding, one that stores in few bits.
"""

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ...config.values import check
from .eviction import H2O, Eviction, Recency, Roco, Tova
from .policy import CachePolicy
from .prompts import DynamicKV, FastKV, PromptRule
from .storage import Exact, MiKV, Rotate


class _Kind(NamedTuple):
    make: Callable[..., Eviction | PromptRule | Exact]
    number: str
    """the field that the number behind the colon fills"""
    says: str
    options: tuple[str, ...] = ()


KINDS: dict[str, _Kind] = {
    "recency": _Kind(Recency, "budget", "tokens that are held, the newest", ("sinks",)),
    "h2o": _Kind(H2O, "budget", "tokens that are held", ("sinks",)),
    "tova": _Kind(Tova, "budget", "tokens that are held", ("sinks",)),
    "roco": _Kind(Roco, "budget", "tokens that are held", ("sinks", "spared", "protected", "stride", "recent")),
    "rotate": _Kind(Rotate, "code_bits", "bits of a number", ("heads", "clip", "outliers")),
    "mikv": _Kind(MiKV, "code_bits", "bits of a number that is not important", ("share", "newest")),
    "fastkv": _Kind(
        FastKV, "rate", "share of the prompt that is kept", ("tsp", "layer", "window", "kernel", "pooling")
    ),
    "dynamic": _Kind(
        DynamicKV,
        "capacity",
        "tokens a layer in the mean that are kept of a prompt",
        ("r_max", "every", "window", "kernel", "pooling"),
    ),
}
FULL = "full"


def parse_policy(spec: str, dtype: torch.dtype = torch.float16) -> CachePolicy:
    """Return the policy that `spec` names, whose exact rows are stored in `dtype`.

    Raises:
        ValueError: a name, a number or an option that is none, or parts that make no sense together.
    """
    parts = [_part(text.strip(), spec) for text in spec.split("+")]
    names = [name for name, _ in parts]
    if FULL in names:
        check(len(parts) == 1, f"policy {spec!r}: full keeps everything as it is; leave out what stands beside it")
        return CachePolicy(name=spec, storage=Exact(dtype=dtype))
    found: dict[str, Any] = {}
    for _, made in parts:
        role = next(
            role
            for role, kind in (("prompt", PromptRule), ("eviction", Eviction), ("storage", Exact))
            if isinstance(made, kind)
        )
        check(role not in found, f"policy {spec!r}: {' and '.join(names)} {_CLASHES[role]}; give one of them")
        found[role] = made
    storage, eviction, prompt = (found.get(role) for role in ("storage", "eviction", "prompt"))
    check(
        not (isinstance(storage, MiKV) and (eviction or prompt)),
        f"policy {spec!r}: mikv keeps all tokens, the less important ones in fewer bits, in the place of throwing them "
        "out; leave out the other, or take rotate",
    )
    check(
        not (isinstance(storage, Rotate) and (prompt or (eviction and not eviction.is_alike))),
        f"policy {spec!r}: rotate mixes the channels of neighbouring heads of a token, so all heads have to keep the "
        "same tokens; it goes with recency alone",
    )
    check(
        not (isinstance(prompt, DynamicKV | FastKV) and isinstance(eviction, Eviction) and eviction.sinks),
        f"policy {spec!r}: the first rows are those of the prompt, which stay; leave out sinks",
    )
    exact = Exact(dtype=dtype) if storage is None else dataclasses.replace(storage, dtype=dtype)
    return CachePolicy(name=spec, prompt=prompt, eviction=eviction, storage=exact)


_CLASHES = {
    "prompt": "both choose what is kept of a prompt",
    "eviction": "both evict",
    "storage": "both say how rows are stored",
}


def _part(text: str, spec: str) -> tuple[str, Eviction | PromptRule | Exact | None]:
    name, colon, rest = text.partition(":")
    if name == FULL:
        check(not colon, f"policy {spec!r}: full takes no number and no options")
        return FULL, None
    if name not in KINDS:
        near = difflib.get_close_matches(name, [*KINDS, FULL], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join((FULL, *KINDS))}"
        raise ValueError(f"policy {spec!r} has no {name!r}; {hint}")
    kind = KINDS[name]
    number, *options = rest.split(",")
    check(bool(number), f"policy {spec!r}: {name} wants a number, {kind.says}: {name}:N")
    values: dict[str, Any] = {kind.number: _value(kind, kind.number, number, spec)}
    for option in options:
        key, equals, value = option.partition("=")
        key = key.strip()
        known = f"it takes {', '.join(kind.options)}"
        check(bool(equals) and key in kind.options, f"policy {spec!r}: {name} has no option {option!r}; {known}")
        check(key not in values, f"policy {spec!r}: {key} is given twice")
        values[key] = _value(kind, key, value, spec)
    try:
        return name, kind.make(**values)
    except ValueError as error:
        raise ValueError(f"policy {spec!r}: {error}") from None


def _value(kind: _Kind, name: str, text: str, spec: str) -> int | float | str:
    """The value of a field of a policy as its class holds it."""
    if name == "pooling":
        return text.strip()
    is_real = name in ("rate", "tsp", "share", "newest", "spared", "recent", "clip")
    try:
        return float(text) if is_real else int(text)
    except ValueError:
        wanted = "a number" if is_real else "a whole number"
        raise ValueError(f"policy {spec!r}: {name} must be {wanted}, got {text!r}") from None
