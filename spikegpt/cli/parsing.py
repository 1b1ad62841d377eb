"""From words to options: tyro parses, here is what it says to the user: plain help, and errors of one line."""

import io
import re
import types
import typing
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ..common.devices import check_name
from ..common.errors import SpikegptError
from ..config.values import check
from .options import MAY_BE_EMPTY, RANGES


class _Utf8Text(io.StringIO):
    """What tyro prints; it draws other boxes where the encoding is not known."""

    encoding = "utf-8"


HELP, HELP_ALL = ("--help", "-h"), "--help-all"


class UsageError(SpikegptError):
    """The words on the command line are not what the verb takes."""


def parse(options: Any, verb: str, arguments: list[str], everyday: Sequence[str] = (), **how) -> Any:
    """Return what `arguments` say, as an instance of the class `options`; `how` goes to tyro.

    With --help, print it and leave by SystemExit; `everyday` are the flags that it shows, all others need --help-all.

    Raises:
        UsageError: a flag is unknown, a value is missing or not of its kind.
    """
    shows_all = HELP_ALL in arguments
    words = [HELP[0] if word == HELP_ALL else word for word in arguments]
    printed, said = _Utf8Text(), _Utf8Text()
    try:
        with redirect_stdout(printed), redirect_stderr(said):
            found = tyro.cli(options, prog=f"spikegpt {verb}", args=words, registry=_REGISTRY, **how)
    except SystemExit as ended:
        if ended.code:
            raise UsageError(f"{_one_line(said.getvalue())}; see: spikegpt {verb} --help") from None
        text = _plain(printed.getvalue())
        print(text if shows_all or not everyday else _short(text, everyday))
        raise
    try:
        _check(found[0] if how.get("return_unknown_args") else found)
    except (ValueError, SpikegptError) as error:
        raise UsageError(f"{error}; see: spikegpt {verb} --help") from None
    return found


def _check(options: Any) -> None:
    """Raise ValueError or SpikegptError where an option is empty, beyond its range in RANGES, or no device's name."""
    for name, value in vars(options).items():
        is_empty = value == "" or (isinstance(value, tuple) and "" in value)
        name = name.strip("_").replace("_", "-")
        wanted = "some text" if name == "prompt" else "a name or a path"
        check(not is_empty or name in MAY_BE_EMPTY, f"{name} is an empty string; give {wanted}")
        if name == "device":
            check_name(value)
        if name in RANGES and value is not None:
            RANGES[name].check(f"--{name}", value)


def _plain(text: str) -> str:
    """tyro's help without boxes, and without the None that an option has if it is not given."""
    lines = []
    for line in text.splitlines():
        if line.startswith("╭"):
            lines += ["", f"{line.strip('╭╮─ ')}:"]
        elif line.startswith("│"):
            lines += [f"  {line[2:-2].rstrip()}"] if "────" not in line else []
        elif not line.startswith("╰"):
            lines.append(line)
    unset = r"\s*\((?:default: *\n? *''|default: |repeatable)\)"
    text = re.sub(unset, "", "\n".join(lines)).replace("[[STR [STR ...]]]", "[STR ...]")
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _short(text: str, everyday: Sequence[str]) -> str:
    """The head of a plain help, and of its flags those in `everyday`, in that order."""
    head = text.partition("\n\noptions:")[0]
    entries = {
        entry.split()[0].rstrip(","): entry.rstrip() for entry in re.findall(r"^  -.*\n(?:^   .*\n)*", text, re.M)
    }
    shown = "\n".join(entries[flag] for flag in everyday)
    return f"{head}\n\nwhat matters first; {HELP_ALL} shows all {len(entries)} flags:\n{shown}"


def _one_line(text: str) -> str:
    """What tyro's box of an error says before its first rule, and the flag that may have been meant."""
    body = [line.strip("│ ") for line in text.splitlines() if line.startswith("│")]
    end = next((place for place, line in enumerate(body) if line.startswith("──")), len(body))
    # a long number may be broken at its commas
    said = re.sub(r"(?<=\d,) (?=\d{3}\b)", "", " ".join(" ".join(body[:end]).split()))
    said = re.sub(r"^Error parsing (?:(?!-)[\w-]+: )?", "", said)
    said = re.sub(r"^Missing from [\w -]+: (\S+) (.*) \(required\)$", r"\1 is missing: \2", said)
    said = re.sub(r"Missing value for argument '(\S+)'.*", r"\1 wants a value", said)
    said = said.replace("Unrecognized options", "unknown").rstrip(".")
    if re.match(r"unknown: -(?!-)", said):
        said += "; a text that begins with a dash comes last, after --"
    meant = next((line for line in body[end:] if line.startswith("--")), "")
    return f"{said}; did you mean {meant.split()[0].rstrip(',')}?" if "Perhaps you meant:" in body else said


def _whole(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(f"want a whole number, got {word!r}") from None


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"want a number, got {word!r}") from None


def _path(word: str) -> Path | str:
    # pathlib makes the current folder of an empty string; `_check` refuses it
    return Path(word) if word else word


_READERS: dict[type, tuple[str, Callable[[str], Any]]] = {
    int: ("INT", _whole),
    float: ("FLOAT", _number),
    Path: ("PATH", _path),
    str: ("STR", str),
}


def _rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """How a number, a path, or one that may be left out is read; all else as tyro does."""
    kind: Any = info.type
    choices = None
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(kind) if part is not type(None)]
        kind = parts[0] if len(parts) == 1 else None
        choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else None
    if kind not in _READERS and not choices:
        return None
    metavar, read = _READERS.get(kind, (f"{{{','.join(choices or ())}}}", str))
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: ["" if value is None else str(value)],
        choices=choices,
    )


_REGISTRY = ConstructorRegistry()
_REGISTRY.primitive_rule(_rule)
