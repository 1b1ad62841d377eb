"""What every configuration can do: plain dictionaries there and back, ValueErrors that name the value."""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, ClassVar, Self


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every configuration can do: become a plain dictionary, and come back from one."""

    nested: ClassVar[dict[str, type["Config"]]] = {}
    """keys whose value is a configuration itself"""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the configuration that `values` describes; missing keys take their defaults.

        Raises:
            ValueError: a key is unknown, or a value is out of range.
        """
        fields = {item.name: item for item in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
                raise ValueError(f"{cls.__name__} has no key {key!r}; {hint}")
        return cls(
            **{
                key: cls.nested[key].from_dict(value) if key in cls.nested and value is not None else value
                for key, value in values.items()
            }
        )


def check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def is_number(text: str) -> bool:
    """Whether `text` is a finite number of at least 0."""
    try:
        return 0 <= float(text) < float("inf")
    except ValueError:
        return False
