"""JSON of others, read so that every fault is one kind of error."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Return the value that `text` spells.

    Raises:
        ValueError: it is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None
