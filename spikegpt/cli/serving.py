"""The verb `serve`: a live page and a server that many clients share."""

from pathlib import Path

from tyro.conf import OmitArgPrefixes

from ..common.errors import SpikegptError, in_words
from .beginning import check_runs, use_threads
from .options import Serve
from .parsing import UsageError, parse


def serve_verb(arguments: list[str]) -> int:
    options = parse(OmitArgPrefixes[Serve], "serve", arguments)
    runs = options.runs or _shipped_pair()
    if not runs:
        raise UsageError("no run given; spikegpt serve RUN [RUN ...]")
    key = _key(options.api_key)
    use_threads(options.threads)
    check_runs(runs)
    from ..serve.server import serve

    serve(
        runs,
        options.serving,
        host=options.host,
        port=options.port,
        key=key,
        more_hosts=options.allow_host,
        device=options.device,
    )
    return 0


def _shipped_pair() -> tuple[Path, ...]:
    """The models that come with spikegpt, if they do."""
    from ..checkpoint.shipped import PAIR, shipped_names

    return tuple(map(Path, PAIR)) if set(PAIR) <= set(shipped_names()) else ()


def _key(given: str | None) -> str | None:
    """The key itself, or the first line of the file that it names."""
    if given is None or not given.startswith("@"):
        return given if given is None else _sendable(given)
    try:
        lines = Path(given[1:]).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SpikegptError(f"cannot read the API key: {in_words(error)}") from None
    except UnicodeDecodeError:
        raise SpikegptError(f"the API key in {given[1:]} is not UTF-8; write it as text") from None
    if not lines or not lines[0].strip():
        raise SpikegptError(f"the first line of {given[1:]} is empty; write the API key there")
    return _sendable(lines[0].strip())


def _sendable(key: str) -> str:
    if not key.isascii() or not key.isprintable() or " " in key:
        raise SpikegptError("the API key holds what no header carries; take letters, digits and signs of ASCII")
    return key
