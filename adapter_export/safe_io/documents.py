"""Strict JSON reader with size limits."""

from __future__ import annotations

import gc
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from adapter_export.errors import FormatError, within
from adapter_export.safe_io.regular_files import read_bytes

MOST_JSON_BYTES = 256 * 2**20
"""Maximum size of a document."""

MOST_VALUES = 2_000_000
"""Default maximum number of values in a document; each needs about 100 bytes of memory."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> object:
    """Read a JSON file.

    Raises:
        FileError: the file cannot be read.
        FormatError: see `parse_json`.
    """
    return parse_json(read_bytes(path, MOST_JSON_BYTES), path)


def parse_json(data: bytes, where: object, most_values: int = MOST_VALUES) -> object:
    """Parse a JSON document; `where` names it in messages.

    Raises:
        FormatError: the document is not JSON (RFC 8259), repeats a key in an object, or has too many values.
    """
    if data.startswith(_BYTE_ORDER_MARK):
        raise FormatError(
            "begins with a byte order mark", where=where, expected="plain UTF-8", fix="save it as UTF-8 without BOM"
        )
    if len(data) > MOST_JSON_BYTES:
        raise FormatError(
            "is too large", where=where, found=f"{len(data):,} bytes", expected=f"at most {MOST_JSON_BYTES:,}"
        )
    # upper bound: a value ends at a comma or bracket, and those in strings count too
    if len(data) > most_values and (count := sum(map(data.count, (b",", b"[", b"{")))) > most_values:
        raise FormatError(
            "has too many values",
            where=where,
            found=f"about {count:,}",
            expected=f"at most {most_values:,}",
            fix="check that this is the intended file",
        )
    try:
        with within(where), _without_collector():
            document = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
        if _SURROGATE.search(data):  # lone surrogate, which Python's parser accepts
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at line {error.lineno}, column {error.colno} of {len(data)} bytes"
        raise FormatError(
            "is not valid JSON",
            where=where,
            found=reason,
            expected="one JSON document (RFC 8259)",
            fix="get the file from its source again, or correct it",
        ) from error
    return document


@contextmanager
def _without_collector() -> Iterator[None]:
    """Pause garbage collection, which would rescan all values repeatedly: a document has no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) == len(pairs):
        return document
    twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
    raise FormatError(f"repeats the key `{twice}` in one object", expected="unique keys", fix="remove one of them")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"`{constant}`, which is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"`{text}`, which exceeds the range of float64")
    return number
