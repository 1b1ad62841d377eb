"""JSON of others, read so that every fault is one kind of error."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Return the value that `text` spells.

    Raises:
        ValueError: it is not JSON, nested too deeply to be read, or an object has two values of one name.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    # json takes the last in silence
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has two values of the name {twice!r}")
    return values
