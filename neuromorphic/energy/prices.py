"""Prices of single operations, read from cited tables; what they are multiplied with is in `estimate.py`.

A table is a TOML file: where its figures come from, how good they are, what they include, and a price in picojoule for
every term that its source prices. A term without a price is unpriced, which is not the same as free. The bundled tables
are in `price_tables/`; they are also the examples to copy for a table of one's own.
"""

import difflib
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ..count.counts import ELEMENTWISE

UNITS, GRADED = "units", "graded"
SENDING = {
    UNITS: "a spike of n is n events, n fetches of its weights, n additions",
    GRADED: "a spike of n is one event and one fetch, then n additions or a product",
}
"""how a machine sends integer spikes -> what is charged"""

GRADES = ("unstated", "projected", "derived", "simulated", "measured", "metered", "convention")
SCOPES = ("per_term", "all_in")

# term -> its units. An accumulation in pJ/event is one spike through one synapse:
# additions of numbers have no such price
TERM_UNITS = {
    "mac": ("pJ/op",),
    "ac": ("pJ/op", "pJ/event"),
    **dict.fromkeys(ELEMENTWISE, ("pJ/op",)),
    "neuron_update": ("pJ/update",),
    "event": ("pJ/event",),
}
MEMORY_UNITS = {"pJ/bit": 1, "pJ/byte": 8, "pJ/16bit": 16, "pJ/32bit": 32, "pJ/64bit": 64}

# a joule per operation, and far below what the smallest switch dissipates
LARGEST, SMALLEST, LARGEST_COUNT = 1e12, 1e-12, 2**63 - 1
# what no table needs, and on which the parser of TOML takes a second
LONGEST_TABLE, MOST_DOTS = 1_000_000, 200

_TABLES = Path(__file__).parent / "price_tables"


class PriceError(ValueError):
    """A price table cannot be used; the message says where and what to do."""


@dataclass(frozen=True, kw_only=True)
class Price:
    """Energy of one operation, event or update, or of one bit of memory traffic."""

    low_pj: float
    high_pj: float
    unit: str
    note: str = ""
    source: str = ""
    """table, figure or page of what the profile cites"""

    @property
    def central_pj(self) -> float:
        """The middle of the interval."""
        return (self.low_pj + self.high_pj) / 2


@dataclass(frozen=True, kw_only=True)
class Memory:
    """One memory level; prices are in pJ/bit, whatever unit the table uses."""

    name: str
    capacity_bytes: int | None
    """None: as large as needed"""
    read: Price
    write: Price


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A price table: see the module."""

    name: str
    title: str
    citation: str
    grade: str
    """how the figures were obtained: one of GRADES"""
    scope: str
    """per_term: prices add up. all_in: one price contains everything, and nothing is added to it"""
    includes: tuple[str, ...]
    excludes: tuple[str, ...]
    weight_bits: int
    activation_bits: int
    state_bits: int
    node_nm: float | None = None
    volts: float | None = None
    notes: str = ""
    integer_spikes: str = UNITS
    """how the machine sends a spike of n: one of SENDING"""
    prices: Mapping[str, Price]
    """a key of TERM_UNITS -> its price; a term that is not here is unpriced"""
    memories: tuple[Memory, ...]
    """from small to large"""

    def memory_for(self, total_bytes: int) -> Memory | None:
        """Return the smallest level that holds `total_bytes`, or None if there is none."""
        fitting = (
            memory for memory in self.memories if memory.capacity_bytes is None or memory.capacity_bytes >= total_bytes
        )
        return next(fitting, None)


def bundled_profiles() -> tuple[str, ...]:
    """Return the names of the tables that come with this package, sorted."""
    return tuple(sorted(path.stem for path in _TABLES.glob("*.toml")))


def load_profile(name_or_path: str | Path) -> Profile:
    """Return a bundled profile by its name, or one's own by the path of its .toml file.

    Raises:
        PriceError: no such profile or file, or something in the file is wrong; see the message.
    """
    if not isinstance(name_or_path, str | Path):
        raise PriceError(f"want the name of a price profile or the path of a .toml file, got {name_or_path!r:.80}")
    path = Path(name_or_path)
    if isinstance(name_or_path, str) and path.suffix != ".toml":
        path = _TABLES / f"{name_or_path}.toml"
        if name_or_path not in bundled_profiles():
            near = difflib.get_close_matches(name_or_path, bundled_profiles(), n=1)
            raise PriceError(
                f"there is no price profile {name_or_path!r}; {f'did you mean {near[0]!r}? ' if near else ''}"
                f"known: {', '.join(bundled_profiles())}; for your own give the path of a file that ends in .toml"
            )
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise PriceError(f"{path} is no file; give the path of a file that ends in .toml")
        if path.stat().st_size > LONGEST_TABLE:
            raise PriceError(f"{path} has {path.stat().st_size:,} bytes; a price table has at most {LONGEST_TABLE:,}")
        text = path.read_text(encoding="utf-8")
        if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
            raise PriceError(
                f"{path} has a line of more than {MOST_DOTS} dots; a price table nests two deep, as [prices.mac]"
            )
        values = tomllib.loads(text)
    except OSError as error:
        raise PriceError(
            f"{path} cannot be read ({error.strerror}); known profiles: {', '.join(bundled_profiles())}"
        ) from None
    except RecursionError:
        raise PriceError(f"{path} is nested too deeply; a price table nests two deep, as [prices.mac]") from None
    except PriceError:
        raise
    # no TOML, no UTF-8, or a number of more digits than Python reads
    except ValueError as error:
        raise PriceError(f"{path} is not TOML: {error}") from None
    return _profile(values, str(path))


def as_profile(profile: Any) -> Profile:
    """Return a profile itself, or the one that `load_profile` finds; PriceError if it is neither."""
    return profile if isinstance(profile, Profile) else load_profile(profile)


def _is_number(value: Any) -> bool:
    """Whether it is a number within what an operation can cost, or a node, or a voltage be; 0 and negative ones too."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (value == 0 or SMALLEST <= abs(value) <= LARGEST)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_COUNT


class _Kind(NamedTuple):
    """What a field may hold, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


_TEXT = _Kind("a text that is not empty", lambda value: isinstance(value, str) and bool(value.strip()))
_TEXTS = _Kind(
    "a list of texts", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value)
)
_COUNT = _Kind("a whole number from 1 to 2**63 - 1", _is_count)
_BITS = _Kind("a whole number of bits from 1 to 1024", lambda value: _is_count(value) and value <= 1024)
_NUMBER = _Kind("a positive number, at most 1e12", lambda value: _is_number(value) and value > 0)
_PICOJOULE = _Kind(
    "a number of picojoule or an interval [low, high], each 0 or from 1e-12 to 1e12",
    lambda value: _is_number(value) or (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))),
)
_TABLE = _Kind("written as tables [prices.TERM]", lambda value: isinstance(value, dict))
_ARRAY = _Kind("written as tables [[memories]]", lambda value: isinstance(value, list))

_PROFILE_FIELDS = {
    **dict.fromkeys(("name", "title", "citation", "grade", "scope"), _TEXT),
    **dict.fromkeys(("includes", "excludes"), _TEXTS),
    **dict.fromkeys(("weight_bits", "activation_bits", "state_bits"), _BITS),
}
_PROFILE_OPTIONS = {
    **dict.fromkeys(("node_nm", "volts"), _NUMBER),
    **dict.fromkeys(("notes", "integer_spikes"), _TEXT),
    **{"prices": _TABLE, "memories": _ARRAY},
}
_PRICE_FIELDS, _PRICE_OPTIONS = {"pj": _PICOJOULE, "unit": _TEXT}, {"note": _TEXT, "source": _TEXT}
_MEMORY_FIELDS = {"name": _TEXT, "pj": _PICOJOULE, "unit": _TEXT}
_MEMORY_OPTIONS = {"capacity_bytes": _COUNT, "write_pj": _PICOJOULE, "note": _TEXT, "source": _TEXT}


def _profile(values: dict[str, Any], where: str) -> Profile:
    _check_fields(values, _PROFILE_FIELDS, _PROFILE_OPTIONS, where)
    for field, known in (("grade", GRADES), ("scope", SCOPES)):
        if values[field] not in known:
            raise PriceError(f"{where}: {field} is {values[field]!r}; it must be one of {', '.join(known)}")
    prices = {
        term: _term_price(term, table, f"{where}, prices.{term}") for term, table in values.get("prices", {}).items()
    }
    memories = tuple(_memory(table, f"{where}, memories[{i}]") for i, table in enumerate(values.get("memories", [])))
    _check_ascending(memories, where)
    if values["scope"] == "all_in" and (set(prices) != {"ac"} or memories):
        found = ", ".join([*prices, *(memory.name for memory in memories)]) or "nothing"
        raise PriceError(
            f"{where}: an all_in profile prices ac and nothing else, because its price contains the rest; "
            f"this one prices {found}"
        )
    texts = {field: tuple(values[field]) for field in ("includes", "excludes")}
    profile = Profile(**values | texts | {"prices": prices, "memories": memories})
    check_sending(profile, where)
    return profile


def check_sending(profile: Profile, where: str) -> None:
    """Raise PriceError unless the machine can send integer spikes as the profile says."""
    if profile.integer_spikes not in (UNITS, GRADED):
        raise PriceError(
            f"{where}: integer_spikes is {profile.integer_spikes!r:.80}; it must be one of {', '.join(SENDING)}"
        )
    ac = profile.prices.get("ac")
    if profile.integer_spikes == GRADED and ac is not None and ac.unit == "pJ/event":
        raise PriceError(
            f"{where}: it prices an accumulation in pJ/event, one unit spike through one synapse, which carries no "
            f"number; integer_spikes must be {UNITS!r}, or the price of ac be in pJ/op"
        )


def _term_price(term: str, table: Any, where: str) -> Price:
    if term not in TERM_UNITS:
        raise PriceError(f"{where}: unknown term; known: {', '.join(TERM_UNITS)}; memory is priced in [[memories]]")
    _check_fields(table, _PRICE_FIELDS, _PRICE_OPTIONS, where)
    _check_unit(table["unit"], TERM_UNITS[term], where)
    low, high = _interval(table["pj"], "pj", where)
    return Price(low_pj=low, high_pj=high, unit=table["unit"], **_said(table))


def _said(table: dict[str, Any]) -> dict[str, str]:
    return {field: table.get(field, "") for field in ("note", "source")}


def _memory(table: Any, where: str) -> Memory:
    _check_fields(table, _MEMORY_FIELDS, _MEMORY_OPTIONS, where)
    _check_unit(table["unit"], MEMORY_UNITS, where)

    def per_bit(field: str) -> Price:
        low, high = (bound / MEMORY_UNITS[table["unit"]] for bound in _interval(table[field], field, where))
        return Price(low_pj=low, high_pj=high, unit="pJ/bit", **_said(table))

    write = per_bit("write_pj" if "write_pj" in table else "pj")
    return Memory(name=table["name"], capacity_bytes=table.get("capacity_bytes"), read=per_bit("pj"), write=write)


def _check_ascending(memories: tuple[Memory, ...], where: str) -> None:
    for smaller, larger in pairwise(memories):
        sizes = [math.inf if memory.capacity_bytes is None else memory.capacity_bytes for memory in (smaller, larger)]
        if sizes[0] >= sizes[1]:
            raise PriceError(
                f"{where}: memories must be in ascending capacity, but {larger.name!r} ({sizes[1]} bytes) follows "
                f"{smaller.name!r} ({sizes[0]} bytes); without capacity_bytes a memory is unlimited and comes last"
            )


def _check_unit(unit: str, known: Iterable[str], where: str) -> None:
    if unit not in known:
        raise PriceError(f"{where}: unknown unit {unit!r}; it must be one of {', '.join(known)}")


def _interval(value: float | list[float], field: str, where: str) -> tuple[float, float]:
    low, high = value if isinstance(value, list) else (value, value)
    if low < 0:
        raise PriceError(f"{where}: {field} is {value!r:.80}; a price cannot be negative")
    if low > high:
        raise PriceError(f"{where}: {field} is {value!r:.80}; the first number of an interval is the lower one")
    return float(low), float(high)


def _check_fields(table: Any, required: Mapping[str, _Kind], optional: Mapping[str, _Kind], where: str) -> None:
    """Raise PriceError unless `table` has every required field, no unknown one, and in each what it may hold."""
    if not isinstance(table, dict):
        raise PriceError(f"{where}: must be a table with {', '.join(required)}, got {table!r}")
    for field in required:
        if field not in table:
            raise PriceError(f"{where}: {field} is missing; required: {', '.join(required)}")
    for field, value in table.items():
        kind = required.get(field) or optional.get(field)
        if kind is None:
            raise PriceError(f"{where}: unknown field {field!r}; known: {', '.join([*required, *optional])}")
        if not kind.holds(value):
            raise PriceError(f"{where}: {field} must be {kind.words}, got {value!r:.80}")
