"""Canonical JSON with checksums, and the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from adapter_export.errors import FormatError, HashError

CACHE_VARIABLE = "ADAPTER_EXPORT_CACHE"
"""Environment variable of the cache folder; empty to disable caching."""

IDENTITY_FILE = "base_identity.json"
"""Record in an onnxruntime-genai folder of the trained model whose weights it contains."""


def cache_folder() -> Path | None:
    """Return the cache folder, which may be deleted at any time, or `None` if caching is off."""
    setting = os.environ.get(CACHE_VARIABLE)
    if setting is not None:
        return Path(setting) if setting else None
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "adapter-export"


def canonical_json(document: object) -> bytes:
    """Return the canonical encoding of a document: UTF-8, keys sorted by code point, indent of 2, final newline.

    Raises:
        FormatError: the document contains a value that JSON cannot represent, such as NaN.
    """
    try:
        text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(
            "a value has no JSON equivalent",
            found=error,
            expected="strings, finite numbers, lists and objects",
        ) from error


_NO_CHECKSUM = "0" * 64
"""Replaces the digest while the file that contains it is hashed."""


def checked_json(document: Mapping[str, object]) -> bytes:
    """Return the encoding of an object with a `checksum`: the SHA-256 of these bytes with zeros as its digits.

    Raises:
        FormatError: see `canonical_json`.
    """
    # a digest cannot depend on itself
    data = canonical_json({**document, "checksum": _NO_CHECKSUM})
    return canonical_json({**document, "checksum": hashlib.sha256(data).hexdigest()})


def check_checksum(data: bytes, checksum: str | None, where: object) -> None:
    """Raise HashError if a file does not match its own checksum.

    A flipped bit in a factor or label would cause wrong answers without an error.
    """
    if checksum is None:
        return
    digest = hashlib.sha256(data.replace(checksum.encode(), _NO_CHECKSUM.encode())).hexdigest()
    if digest != checksum:
        fix = "get the file from its source again; after an intentional change, delete its key `checksum`"
        raise HashError(where, found=digest, expected=checksum, fix=fix)


def printable_json(document: object, *, indent: int | None = None) -> str:
    """Return JSON with terminal controls and line separators escaped.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False, default=_plain)
    if not text.replace("\n", "").isprintable():
        text = "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)
    return text


def _plain(value: object) -> object:
    """Convert paths and NumPy scalars to JSON types."""
    item = getattr(value, "item", None)
    return item() if callable(item) else str(value)
