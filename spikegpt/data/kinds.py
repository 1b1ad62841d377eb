"""What a file is that is no text, by what it begins with, and what its owner can do. Reading texts: reading.py."""

import re

_CONVERT, _NAME_TEXT = "convert it to plain text", "name a file of text"
_UNPACK = "unpack it, and name the file or folder that comes out"
_TABLE = "have its folder read: spikegpt data FOLDER --column NAME; or write its texts as JSONL"
# the name of an archive's first file is in its 31st byte
_ZIP = rb"PK\x03\x04.{26}"
# what a file begins with -> what it is, and what to do; the first that fits
_KINDS = {
    rb"%PDF-": ("a PDF", f"{_CONVERT}, for instance with pdftotext"),
    rb"%!PS": ("a PostScript document", f"{_CONVERT}, for instance with ps2ascii"),
    rb"AT&TFORM": ("a DjVu document", f"{_CONVERT}, for instance with djvutxt"),
    rb"\{\\rtf": ("an RTF document", _CONVERT),
    rb"\xd0\xcf\x11\xe0": ("an office document", _CONVERT),
    _ZIP + rb"(?:\[Content_Types\]|_rels/|docProps/|word/|xl/|ppt/|mimetypeapplication/vnd\.)": (
        "an office document",
        _CONVERT,
    ),
    _ZIP + rb"mimetypeapplication/epub": ("an e-book", f"{_CONVERT}, for instance with pandoc"),
    _ZIP + rb"[^\0]{1,200}\.npy": ("a file of NumPy's arrays", _NAME_TEXT),
    _ZIP + rb"[^\0]{1,200}/(?:data\.pkl|\.format_version)": ("a file of PyTorch", _NAME_TEXT),
    rb"PK\x05\x06": ("a zip archive without files", _NAME_TEXT),
    rb"PK\x03\x04": ("a zip archive", _UNPACK),
    rb"PK\x07\x08": ("a part of a zip archive", _UNPACK),
    rb"\x28\xb5\x2f\xfd": ("packed by zstd", "unpack it: zstd -d FILE"),
    rb"\x04\x22\x4d\x18": ("packed by lz4", "unpack it: lz4 -d FILE"),
    rb"LZIP\x01": ("packed by lzip", "unpack it: lzip -d FILE"),
    rb"\xff\x06\0\0sNaPpY": ("packed by snappy", _UNPACK),
    rb"\x1f\x9d": ("packed by compress", "unpack it: uncompress FILE"),
    rb"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    rb"Rar!\x1a": ("a RAR archive", _UNPACK),
    rb"MSCF\0": ("a cabinet archive", _UNPACK),
    rb"!<arch>\n|\xed\xab\xee\xdb": ("a package", _NAME_TEXT),
    rb".{257}ustar": ("a tar archive", _UNPACK),
    rb".{32769}CD001": ("an image of a disc", _UNPACK),
    rb"\x93NUMPY": ("an array of NumPy", _NAME_TEXT),
    rb"PAR[1E](?=.*\0)": ("a Parquet file", _TABLE),
    rb"ARROW1\0|FEA1(?=.*\0)|\xff{4}.{2}\0\0": ("an Arrow file", _TABLE),
    rb"ORC(?=.*\0)": ("an ORC file", "write its texts as JSONL"),
    rb"Obj\x01": ("an Avro file", "write its texts as JSONL"),
    rb"\x89HDF": ("an HDF5 file", "write its texts as JSONL"),
    rb"SQLite format 3\0": ("a database of SQLite", "write its texts as JSONL"),
    rb"\x7fELF|MZ.\0|\0asm|\xca\xfe\xba\xbe|[\xce\xcf]\xfa\xed\xfe": ("a program", _NAME_TEXT),
    rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF.{4}WEBP|II\*\0|MM\0\*|BM.{4}\0{4}|\0\0[\x01\x02]\0|8BPS\0|\0{3}\x0cjP  |"
    rb"\0.{3}ftyp(?:heic|heix|mif1|avif)": ("an image", _NAME_TEXT),
    rb"ID3[\x02-\x04]|\xff[\xe2\xe3\xf2\xf3\xfa\xfb](?=.*\0)|RIFF.{4}WAVE|OggS\0|fLaC\0|FORM.{4}AIF|MThd\0": (
        "sound",
        f"{_NAME_TEXT}, such as a transcript",
    ),
    rb"RIFF.{4}AVI |\x1a\x45\xdf\xa3|\0.{3}ftyp|\0\0\x01[\xb3\xba]|FLV\x01": (
        "a film or sound",
        f"{_NAME_TEXT}, such as a transcript",
    ),
    rb"wOF[F2]|OTTO\0|\0\x01\0\0": ("a font", _NAME_TEXT),
    rb"GGUF.\0|.{6}\0\0\{\"": ("weights of a model", _NAME_TEXT),
    rb"\x80[\x02-\x05]": ("a pickle of Python", _NAME_TEXT),
    rb"version https://git-lfs\.": ("a pointer of Git LFS to a text that is not here", "fetch it: git lfs pull"),
    rb"/annex/objects/": ("a pointer of git-annex to a text that is not here", "fetch it: git annex get"),
}
_PATTERNS = {re.compile(opening, re.DOTALL): told for opening, told in _KINDS.items()}


def foreign_kind(opening: bytes) -> str | None:
    """Return what a file is that begins so, and what to do, to follow "FILE is"; None for what may be text."""
    for pattern, (what, advice) in _PATTERNS.items():
        if pattern.match(opening):
            return f"{what}, not text; {advice}"
    # further on a text may have a stray one
    if b"\0" not in opening:
        return None
    even, odd = (opening[first::2].count(0) for first in (0, 1))
    if max(even, odd) > len(opening) / 8 and min(even, odd) < max(even, odd) / 16:
        return "UTF-16 without byte order mark, or an array of numbers; convert it to UTF-8"
    return f"no text: it holds NUL bytes; {_NAME_TEXT}"
