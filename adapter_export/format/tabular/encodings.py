"""Decoding of tables: UTF-8, encodings of spreadsheets, or an encoding chosen by the user."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from adapter_export.errors import DataError, UsageError
from adapter_export.words import argument

_BINARY = {
    b"PAR1": "a Parquet file without the suffix `.parquet`",
    b"PK\x03\x04": "a zip file, as spreadsheets are (`.xlsx`)",
    b"\x1f\x8b": "a gzip file",
}
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"} | dict.fromkeys(
    (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "utf-16"
)
"""Byte order marks; UTF-32 first, because its marks start with those of UTF-16."""

_UTF8_CHARACTER = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_NOT_IN_CP1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_WORD = re.compile(r"\w*[^\x00-\x7f]\w*")
_NAMES = {"utf-16": "UTF-16", "utf-32": "UTF-32", "cp1252": "Windows-1252 (`cp1252`)"}


def decoded(data: bytes, path: Path, encoding: str | None = None, first: int = 1) -> tuple[str, str | None]:
    """Return the text of a file without a byte order mark, and a note on an encoding that was detected.

    Without an encoding, a byte order mark decides, or else UTF-8 is assumed. A file that is not UTF-8 is read as
    Windows-1252 if its bytes look like single accented letters.

    Args:
        data: the file, or a part of it that starts at a line.
        path: the path, for messages.
        encoding: an encoding known to Python.
        first: the number of the first line.

    Raises:
        DataError: the bytes are not valid in this or any detected encoding; the message names the line.
        UsageError: the encoding is unknown.
    """
    other = next((name for mark, name in _BINARY.items() if first == 1 and data.startswith(mark)), None)
    if other is not None:
        expected = "csv, tsv or JSON lines"
        raise DataError("is not a text", where=path, found=other, expected=expected, fix="save it as one of these")
    if encoding is not None:
        return _strict(data, path, known_encoding(encoding), first), None
    marked = next((name for mark, name in _MARKS.items() if first == 1 and data.startswith(mark)), None)
    if marked is not None:
        return _strict(data, path, marked, first), _note(path, marked, "according to its byte order mark")
    try:
        return data.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        if not _is_western(data):
            raise _not_decoded(error, path, "utf-8", first) from error
    text = data.decode("cp1252")
    word = next(match for match in _WORD.finditer(text) if match[0])
    line = text.count("\n", 0, word.start()) + first
    return text, _note(path, "cp1252", f"as it is not UTF-8; `{word[0]}` is in line {line}")


def known_encoding(name: str) -> str:
    """Return the name of a text encoding, for UTF-8 the variant without byte order mark; UsageError if unknown."""
    try:
        codec = codecs.lookup(name)
        "".encode(codec.name)  # `base64` and others are not text encodings
    except LookupError as error:
        raise UsageError(
            "unknown encoding",
            where=argument("encoding"),
            found=f"`{name}`",
            expected="a name such as `utf-8`, `cp1252`, `utf-16`, `shift_jis` or `gb18030`",
        ) from error
    return "utf-8-sig" if codec.name == "utf-8" else codec.name


def _strict(data: bytes, path: Path, encoding: str, first: int) -> str:
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise _not_decoded(error, path, encoding.removesuffix("-sig"), first) from error


def _not_decoded(error: UnicodeDecodeError, path: Path, encoding: str, first: int) -> DataError:
    line = error.object[: error.start].count(b"\n") + first
    return DataError(
        f"is not {encoding.upper()}",
        where=f"{path}, line {line}",
        found=f"the bytes `{error.object[error.start : error.start + 4].hex(' ')}` ({error.reason})",
        fix="save the file as UTF-8, or name its encoding: " + argument("encoding", words="cp1252"),
    )


def _is_western(data: bytes) -> bool:
    """Return whether bytes that are not UTF-8 look like Windows-1252.

    Accented letters are single bytes between ASCII letters. Cyrillic, Greek and East Asian encodings have runs of such
    bytes, and a damaged UTF-8 file contains some valid characters.
    """
    if _UTF8_CHARACTER.search(data) or _NOT_IN_CP1252.search(data):
        return False
    runs = _HIGH_BYTES.findall(data)
    return 2 * sum(len(run) == 1 for run in runs) > len(runs)


def _note(path: Path, encoding: str, reason: str) -> str:
    return f"{path.name} was read as {_NAMES[encoding]}, {reason}; " + argument("encoding") + " names another encoding"
