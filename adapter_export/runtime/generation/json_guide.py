"""Texts that follow a JSON schema: llguidance computes which tokens may come next."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from adapter_export.errors import RequestError
from adapter_export.extras import require
from adapter_export.safe_io import child_service
from adapter_export.safe_io.child import Limits
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.json_schema_trial import compiled, error_of
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_bytes

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from adapter_export.text import Tokenizer

_TRIAL = f"{child_service.__package__}.json_schema_trial:respond"

_LIMITS = Limits(seconds=2.0, bytes=512 * 2**20)
"""Limits of compiling a schema: common ones take milliseconds."""

_MOST_BYTES, _MOST_DEPTH = 2**16, 64
"""Maximum size of a schema as JSON, and its maximum nesting."""

_KEPT = 16
"""Compiled schemas to keep."""


class JsonGuide:
    """The state of a text that follows a schema.

    Args:
        matcher: of llguidance.
    """

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def copy(self) -> JsonGuide:
        """Return the same state for another text."""
        return JsonGuide(self._matcher.deep_copy())

    def allowed(self, words: int) -> np.ndarray:
        """Return whether each of `words` tokens may come next.

        Raises:
            RequestError: the schema needs too much time or memory here.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.unpackbits(bits, count=words if words <= 8 * bits.size else None, bitorder="little").view(bool)
        return np.pad(allowed, (0, words - allowed.size))  # logits may have more columns than the tokenizer has tokens

    def take(self, token: int) -> None:
        """Go on with a token that is allowed; errors as of `allowed`."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        error = error_of(self._matcher)
        if error is not None:
            raise _unusable(error)


class JsonSchemas:
    """Compiles JSON schemas for the tokenizer of a bundle. Thread-safe.

    Each schema is first compiled in a child process: one that takes too long or too much memory ends only that.

    Args:
        tokenizer: of the bundle.
        ends: tokens that end a text.
    """

    def __init__(self, tokenizer: Tokenizer, ends: Collection[int]) -> None:
        self._text_tokenizer, self._ends = tokenizer, sorted(ends)
        self._trial = child_service.ChildService(_TRIAL, _LIMITS, _unusable)
        self._lock = Lock()
        self._tokenizer: LLTokenizer | None = None
        self._guides: OrderedDict[str, JsonGuide] = OrderedDict()

    def guide(self, schema: object) -> JsonGuide:
        """Return the guide of a new text that follows a schema: an object, or a file with one.

        Raises:
            RequestError: the schema exceeds a limit or has keywords that cannot be followed, or the bundle's tokenizer
                cannot.
            FileError, FormatError: the file cannot be read.
            MissingExtraError: llguidance is not installed.
        """
        _library()
        text = _schema_text(schema)
        with self._lock:
            known = self._guides.pop(text, None)
            self._guides[text] = guide = known or self._compiled(text)
            while len(self._guides) > _KEPT:
                self._guides.popitem(last=False)
        return guide.copy()

    def _compiled(self, text: str) -> JsonGuide:
        refusal = self._trial({"schema": text})["refusal"]
        if refusal is not None:
            raise _unusable(refusal)
        matcher = compiled(self._loaded_tokenizer(), text)
        error = error_of(matcher)
        if error is not None:
            raise _unusable(error)
        return JsonGuide(matcher)

    def _loaded_tokenizer(self) -> LLTokenizer:
        if not self._ends:
            raise RequestError("the bundle names no token that ends a text, so that no document would end")
        if self._tokenizer is None:
            with parsing(lambda reason: RequestError("the tokenizer cannot follow a JSON schema", found=reason)):
                self._tokenizer = _library().LLTokenizer(self._text_tokenizer.to_json(), eos_token=self._ends)
        return self._tokenizer


def _library() -> Any:
    return require("llguidance", "guided", "answers that follow a JSON schema")


def _schema_text(schema: object) -> str:
    """Return a schema as JSON; RequestError if it is too large, or no object."""
    if isinstance(schema, str | Path):
        schema = parse_json(read_bytes(Path(schema), _MOST_BYTES), schema)
    if not isinstance(schema, Mapping):
        expected = 'an object, such as {"type": "object"}'
        raise RequestError("is not a JSON schema", found=f"`{type(schema).__name__}`", expected=expected)
    if _depth(schema) > _MOST_DEPTH:
        raise RequestError("the JSON schema is nested too deeply", expected=f"at most {_MOST_DEPTH} levels")
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError("is not a JSON schema", found=error, expected="JSON") from error
    size = len(text.encode(errors="replace"))
    if size > _MOST_BYTES:
        raise RequestError("the JSON schema is too large", found=f"{size:,} bytes", expected=f"at most {_MOST_BYTES:,}")
    return text


def _depth(document: object) -> int:
    """Return the nesting of a document, counted up to a level above the maximum."""
    level: list[Any] = [document]
    for depth in range(_MOST_DEPTH + 1):
        level = [part for each in level for part in _parts(each)]
        if not level:
            return depth
    return _MOST_DEPTH + 1


def _parts(document: object) -> Collection[Any]:
    if isinstance(document, Mapping):
        return document.values()
    return document if isinstance(document, list | tuple) else ()


def _unusable(reason: str) -> RequestError:
    return RequestError("the JSON schema cannot be followed", found=reason)
