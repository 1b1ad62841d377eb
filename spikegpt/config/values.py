"""What every configuration can do: check itself, become a plain dictionary and come back.

One policy for odd values: a field holds its type and no other (a bool is no number, a string no list of strings),
numbers are finite and lie in the range that `ranges` gives, and the error says which range and why.
"""

import dataclasses
import difflib
import math
import numbers
import os
import types
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

# nearly everything is computed in float32
LARGEST = 3.4e38


class Range(NamedTuple):
    """The numbers that a field may hold: whole ones if the bounds are."""

    low: float
    high: float
    why: str = ""
    """what is wrong with others, as an addition to the error"""

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError unless `value` is of their kind and lies within."""
        is_whole = isinstance(self.low, int)
        is_kind = isinstance(value, numbers.Integral if is_whole else numbers.Real) and not isinstance(value, bool)
        if is_kind and self.low <= value <= self.high:
            return
        kind = "a whole number" if is_whole else "a number"
        bounds = (
            f"from {_short(self.low)} to {_short(self.high)}" if self.high < math.inf else f"of at least {self.low:g}"
        )
        raise ValueError(f"{name} must be {kind} {bounds}, got {_shown(value)}{f': {self.why}' if self.why else ''}")


SEEDS = Range(0, 2**64 - 1, "torch's random generators take 64 bits, and no seed stands for a random one")
# of a text that is read, of a window
TOKENS = Range(1, 10**12)
WINDOW = Range(1, 2**24)
THREADS = Range(0, 1024, "more threads than CPUs only wait for each other; 0 leaves the choice to spikegpt")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every configuration can do: check its values, become a plain dictionary, and come back from one."""

    nested: ClassVar[dict[str, type["Config"]]] = {}
    """keys whose value is a configuration itself"""
    ranges: ClassVar[dict[str, Range]] = {}
    """field -> what its number may be; others are finite only"""

    def __post_init__(self):
        for name, kind in _kinds(type(self)).items():
            value = _of_kind(name, getattr(self, name), kind)
            object.__setattr__(self, name, value)
            for part in value if isinstance(value, tuple) else (value,):
                if name in self.ranges and part is not None:
                    self.ranges[name].check(name, part)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the configuration that `values` describes; missing keys take their defaults.

        Raises:
            ValueError: `values` is no dictionary, a key is unknown, or a value is of another type or out of range.
        """
        check(isinstance(values, dict), f"{cls.__name__} wants a dictionary, got {_shown(values)}")
        known_keys(cls.__name__, values, [item.name for item in dataclasses.fields(cls)])
        return cls(
            **{
                key: cls.nested[key].from_dict(value) if key in cls.nested and value is not None else value
                for key, value in values.items()
            }
        )


def known_keys(where: str, values: Iterable[Any], known: Sequence[str]) -> None:
    """Raise ValueError if `values` of `where` have a key that is not known, with the nearest that is."""
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{where} has no key {key!r}; {hint}")


def _kinds(cls: type[Config]) -> dict[str, Any]:
    """Field -> its type."""
    kinds = typing.get_type_hints(cls)
    return {item.name: kinds[item.name] for item in dataclasses.fields(cls)}


def _of_kind(name: str, value: Any, kind: Any) -> Any:
    """Return `value` as `kind` holds it: numbers of numpy become Python's, lists tuples, paths strings.

    Raises:
        ValueError: it is of another type, or not finite.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        (kind,) = (part for part in inner if part is not type(None))
        return None if value is None else _of_kind(name, value, kind)
    if origin is Literal:
        check(value in inner, f"{name} must be one of {', '.join(map(str, inner))}, got {_shown(value)}")
        return value
    if origin is tuple:
        return _tuple_of(name, value, inner)
    if kind is bool:
        check(type(value).__name__ in ("bool", "bool_"), f"{name} must be True or False, got {_shown(value)}")
        return bool(value)
    if kind is int:
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        check(is_whole, f"{name} must be a whole number, got {_shown(value)}")
        return int(value)
    if kind is float:
        return _finite(name, value)
    if kind is str:
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
    check(isinstance(value, kind), f"{name} must be a {kind.__name__}, got {_shown(value)}")
    return value


def _finite(name: str, value: Any) -> float:
    is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    check(is_real, f"{name} must be a number, got {_shown(value)}")
    check(abs(value) <= LARGEST, f"{name} must be a finite number, as float32 holds it, got {_shown(value)}")
    return value if isinstance(value, int | float) else float(value)


def _tuple_of(name: str, value: Any, inner: tuple[Any, ...]) -> tuple[Any, ...]:
    is_alone = isinstance(value, str) or not isinstance(value, list | tuple)
    if is_alone:
        advice = f"; for one alone write {name}=({value!r},)" if len(inner) == 2 and inner[1] is ... else ""
        raise ValueError(f"{name} must be a tuple or a list, got {_shown(value)}{advice}")
    kinds = (inner[0],) * len(value) if inner[-1] is ... else inner
    check(len(value) == len(kinds), f"{name} must hold {len(kinds)} values, got {_shown(value)}")
    return tuple(_of_kind(f"{name}[{place}]", part, kinds[place]) for place, part in enumerate(value))


def _shown(value: Any) -> str:
    """`value` as Python writes it, cut where it is long; a number of a thousand digits is told by their count."""
    if isinstance(value, int) and abs(value) >= 10**40:
        # Python refuses to write very long ones
        return f"a number of about {int(math.log10(2) * value.bit_length())} digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


def _short(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def is_number(text: str) -> bool:
    """Whether `text` is a number of at least 0 that float32 holds."""
    try:
        return 0 <= float(text) <= LARGEST
    except ValueError:
        return False
