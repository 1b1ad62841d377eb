"""RWKV World's vocabulary file, such as rwkv_vocab_v20230424.txt: a token per line, as id, Python literal, bytes.

    261 '\\n\\n' 2
    5001 b'\\xe6\\x80' 2

Source: BlinkDL/ChatRWKV, rwkv_pip_package/src/rwkv/rwkv_tokenizer.py, which evaluates the literals; here they are only
read.
"""

import ast
import codecs
import re

from ...common.errors import SpikegptError

# no more are named: ids of two bytes, as those of the models are
MOST_IDS = 1 << 16
_BEGINNING = re.compile(rb"[0-9]+ [bB]?['\"]")
_LINE = re.compile(r"([0-9]{1,9}) ([bB]?(['\"]).*\3) ([0-9]{1,9})")


def is_vocabulary(content: bytes) -> bool:
    """Whether a file begins as a vocabulary does; no JSON does."""
    return _BEGINNING.match(content.removeprefix(codecs.BOM_UTF8)) is not None


def read_vocabulary(content: bytes, source: str) -> dict[bytes, int]:
    """Return token -> id of a vocabulary file.

    Raises:
        SpikegptError: a line is not as it should be, or the id or the token of another one; the line is named.
    """
    try:
        lines = content.decode("utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        place = content.count(b"\n", 0, error.start) + 1
        raise SpikegptError(f"{source}, line {place}: is not UTF-8; get the file again") from None
    vocabulary: dict[bytes, int] = {}
    line_of: dict[int, int] = {}
    for number, line in enumerate(lines, 1):
        try:
            id, token = _token(line.removesuffix("\r"))
            if id in line_of:
                raise ValueError(f"id {id} is that of line {line_of[id]} too")
            if token in vocabulary:
                raise ValueError(f"the token is that of line {line_of[vocabulary[token]]} too")
        except ValueError as error:
            raise SpikegptError(f"{source}, line {number}: {error}; get the file again") from None
        vocabulary[token], line_of[id] = id, number
    return vocabulary


def _token(line: str) -> tuple[int, bytes]:
    """Return (id, token) of a line; ValueError says what is wrong with it."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise ValueError(f"want an id, a token in quotes and its bytes, found {line[:80]!r}")
    id, size = int(found[1]), int(found[4])
    if not 0 < id < MOST_IDS:
        raise ValueError(f"id {id} is outside 1 to {MOST_IDS - 1}; 0 is the end of a text")
    try:
        token = ast.literal_eval(found[2])
    # whatever may stand between the quotes; a tower of brackets takes the parser's memory
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        token = None
    if not isinstance(token, str | bytes):
        raise ValueError(f"{found[2][:80]} is no string and no bytes")
    if isinstance(token, str):
        try:
            token = token.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{found[2][:80]} holds half a character") from None
    if not token or len(token) != size:
        raise ValueError(f"the token has {len(token)} bytes, its line says {size}")
    return id, token
