"""JSON, strict to read and with one way to write each document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

from adapter_export.errors import FormatError
from adapter_export.format.files import read_bytes

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def canonical_json(document: object) -> bytes:
    """Return the one encoding of a document: UTF-8, keys sorted by code point, indent of 2, a newline at the end.

    Raises:
        FormatError: it holds something that JSON cannot say, such as NaN.
    """
    try:
        text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(
            "holds a value that JSON cannot say", found=error, expected="strings, finite numbers, lists and objects"
        ) from error


def read_json(path: Path) -> object:
    """Read a JSON file.

    Raises:
        FileError: it cannot be read.
        FormatError: it is not JSON (RFC 8259), or a key occurs twice in one object.
    """
    return parse_json(read_bytes(path), path)


def parse_json(data: bytes, where: object) -> object:
    """Read a JSON document from bytes; `where` names it in messages.

    Raises:
        FormatError: it is not JSON (RFC 8259), or a key occurs twice in one object.
    """
    if data.startswith(_BYTE_ORDER_MARK):
        raise FormatError(
            "begins with a byte order mark", where=where, expected="plain UTF-8", fix="save it as UTF-8 without BOM"
        )
    try:
        document = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
        # refuse what Python's reader accepts and no writer may write: `1e999`, half of a surrogate pair
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        found = str(error)
        if isinstance(error, json.JSONDecodeError):
            found = f"{error.msg} at line {error.lineno}, column {error.colno} of {len(data)} bytes"
        raise FormatError(
            "is not valid JSON",
            where=where,
            found=found,
            expected="one JSON document (RFC 8259)",
            fix="take the file from its source again, or correct it there",
        ) from error
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document: dict[str, object] = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"the key `{key}` twice in one object")
        document[key] = value
    return document


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"`{constant}`, which is no JSON number")
