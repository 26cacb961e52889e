"""Compilation of JSON schemas in the child process of a `ChildService`.

A few bytes of a schema, such as three `multipleOf` that must hold together, can take minutes and much memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

_BYTES, _END = 256, 256
"""Tokens of single bytes, and the token behind them that ends a text."""

_LONGEST = 300
"""Maximum characters of a reason."""

OPTIONS: JsonCompileOptions = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,20}",  # a model could write spaces without end
    "coerce_one_of": False,
    "lenient": False,
}
"""Options of grammars. They override those in a schema, which could let keywords be ignored."""


class _ByteTokens:
    """A vocabulary of all bytes, in the form that llguidance reads."""

    eos_token_id = _END
    bos_token_id = None
    tokens: Sequence[bytes] = (*(bytes([number]) for number in range(_BYTES)), b"<end>")
    special_token_ids = (_END,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@lru_cache(maxsize=1)
def _tokenizer() -> LLTokenizer:
    library = importlib.import_module("llguidance")
    tokenizer: LLTokenizer = library.LLTokenizer(library.TokenizerWrapper(_ByteTokens()))
    return tokenizer


def respond(call: Mapping[str, Any]) -> dict[str, Any]:
    """Compile a schema, and compute the first bytes of its documents.

    Args:
        call: `schema`, its JSON.

    Returns:
        `refusal`: the reason why it cannot be followed; null if it can.
    """
    try:
        matcher = compiled(_tokenizer(), call["schema"])
        if not matcher.is_error():
            matcher.compute_bitmask()
        return {"refusal": error_of(matcher)}
    except (ValueError, TypeError, RuntimeError) as error:  # those of llguidance; another one ends the process
        return {"refusal": _line(str(error)) or type(error).__name__}


def compiled(tokenizer: LLTokenizer, schema: str) -> LLMatcher:
    """Return the matcher of a schema, which may be in an error state."""
    matcher_type: type[LLMatcher] = importlib.import_module("llguidance").LLMatcher
    return matcher_type(tokenizer, matcher_type.grammar_from_json_schema(schema, overrides=OPTIONS), log_level=0)


def error_of(matcher: LLMatcher) -> str | None:
    """Return the error of a matcher in a line; `None` if it has none."""
    return (_line(matcher.get_error()) or "an unknown error") if matcher.is_error() else None


def _line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST]
