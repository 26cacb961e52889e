"""Bounds of a `tokenizer.json` that the tokenizers library does not have: its vocabulary, and growth of texts."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping

MOST_VOCABULARY = 2**20
"""Maximum entries of a vocabulary; the largest in common use has 901,629."""

_MOST_GROWTH = 64
"""Maximum characters that replace one; the largest in common use is 18, of Unicode's compatible form."""

_LIBRARY_GROWTH: Mapping[str, int] = {"NFKC": 18, "NFKD": 18, "BertNormalizer": 3, "Lowercase": 3}
"""Most characters that the library's own tables make of one. They change the same character only once."""


def unbounded_part(text: str) -> str | None:
    """Return why a `tokenizer.json` needs far more memory than its size shows, or `None`.

    Raises:
        ValueError, RecursionError: the text is not JSON.
    """
    document = json.loads(text)
    if not isinstance(document, Mapping):
        return None
    model = document.get("model")
    words = model.get("vocab") if isinstance(model, Mapping) else None
    count = len(words) if isinstance(words, Mapping | list) else 0
    added = document.get("added_tokens")
    count += len(added) if isinstance(added, list) else 0
    if count > MOST_VOCABULARY:
        return f"a vocabulary of {count:,} entries, more than {MOST_VOCABULARY:,}"
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        growth, by_library = 1, 1
        for step in _steps(document.get(part)):
            library_growth = _LIBRARY_GROWTH.get(str(step.get("type")))
            by_library = max(by_library, library_growth or 1)
            growth *= _growth(step) if library_growth is None else 1
            if growth * by_library > _MOST_GROWTH:
                return f"a `{part}` that makes more than {_MOST_GROWTH} characters of one"
    return None


def _steps(part: object) -> Iterator[Mapping[str, object]]:
    """Yield the steps of a part in order, those of sequences instead of them."""
    pending = [part]
    while pending:
        step = pending.pop()
        if isinstance(step, list):
            pending += reversed(step)
        elif isinstance(step, Mapping):
            nested = [step[key] for key in ("normalizers", "pretokenizers", "decoders") if key in step]
            if nested:
                pending += reversed(nested)
            else:
                yield step


def _growth(step: Mapping[str, object]) -> int:
    """Return the most characters that a step makes of one."""
    charsmap = step.get("precompiled_charsmap")
    if isinstance(charsmap, str):
        return _longest_of(charsmap)
    content, pattern = step.get("content"), step.get("pattern")
    if not isinstance(content, str):
        return 1
    if not isinstance(pattern, Mapping):
        return max(1, len(content))
    replaced, expression = pattern.get("String"), pattern.get("Regex")
    if isinstance(replaced, str):
        return max(1, len(content) // max(1, len(replaced)))
    return max(1, len(content) * (2 if _may_be_empty(expression) else 1))


def _may_be_empty(expression: object) -> bool:
    """Return whether an expression matches between characters, too; true for those that Python does not read."""
    try:
        return re.fullmatch(str(expression), "") is not None
    except (re.error, RecursionError, OverflowError):
        return True


def _longest_of(charsmap: str) -> int:
    """Return the characters of the longest text in a map of sentencepiece: 4 bytes of a size, a trie, and the texts."""
    data = base64.b64decode(charsmap)
    texts = data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")
    return max(len(text.decode(errors="replace")) for text in texts)
