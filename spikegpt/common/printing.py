"""What goes to a terminal: control characters made visible, commands quoted as a shell wants them."""

import re
import shlex
from pathlib import Path

# C0 and C1, halves of surrogate pairs (bytes of a file name that are no UTF-8), and what turns the direction of a line
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, keep: str = "\n\t") -> str:
    """Return `text` with control characters as Python writes them (\\x1b), but for those in `keep`.

    Names of files, and what a model writes, would else move the cursor or change the terminal.
    """
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else repr(found[0])[1:-1], text)


def one_line(text: object) -> str:
    """Return `text`, a name or a path, as `printable` does, newlines and tabs included."""
    return printable(str(text), keep="")


def command(*words: str | Path) -> str:
    """Return `spikegpt WORDS` as a user may paste it into a shell, each word quoted where it has to be.

    A Path that begins with a dash is written as ./-name, for it would be read as a flag.
    """
    return " ".join(map(_quoted, ("spikegpt", *words)))


def _quoted(word: str | Path) -> str:
    text = f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word)
    if one_line(text) == text:
        return shlex.quote(text)
    # what cannot be shown as it is, a shell reads from its escapes
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{one_line(escaped)}'"
