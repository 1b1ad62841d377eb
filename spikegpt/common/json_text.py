"""JSON of others, read so that every fault is one kind of error."""

import json
from typing import Any

# how a file begins that is often found in the place of JSON; what it is, and what to do
NO_JSON = {
    "version https://git-lfs": "a pointer of Git LFS, not the file it stands for; fetch that with: git lfs pull",
    "<": "HTML or XML, perhaps a server's word about the file; download the file itself",
}


def parse_json(text: str | bytes) -> Any:
    """Return the value that `text` spells; bytes may be in UTF-8, UTF-16 or UTF-32, with a byte order mark.

    Raises:
        ValueError: it is not JSON, nested too deeply to be read, or an object has two values of one name.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None
    except json.JSONDecodeError as error:
        # what was decoded, and not the bytes
        for beginning, what in NO_JSON.items():
            if error.doc.lstrip().startswith(beginning):
                raise ValueError(what) from None
        raise


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    # json takes the last in silence
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has two values of the name {twice!r}")
    return values
