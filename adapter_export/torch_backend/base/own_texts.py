"""The ids that transformers makes of golden texts, from a folder that says how it is to make them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers

from adapter_export.errors import BaseModelError, InputError, Note
from adapter_export.format.golden_texts import GOLDEN_TEXTS_VERSION, GoldenText, GoldenTexts, GoldenTextSet
from adapter_export.numerics.sample_texts import different, sample_texts
from adapter_export.reading.documents import read_json
from adapter_export.reading.files import read_text
from adapter_export.reading.parsers import parsing
from adapter_export.text import TOKENIZER_FILE, Pair, Tokenizer, try_tokenizer

CONFIG = "tokenizer_config.json"

_LIMIT = 512
"""The longest text for a model that names no limit."""

_SHOWN = 3


def own_texts(folder: Path, max_tokens: int | None) -> tuple[GoldenTexts | None, tuple[str, ...]]:
    """Return golden texts with the ids that transformers makes, and notes: on which texts `tokenizer.json` differs.

    None where the folder has no `tokenizer.json`, or no `tokenizer_config.json` that names the class of the tokenizer:
    then transformers guesses one, and `tokenizer.json` alone says what ids are.
    """
    file = folder / TOKENIZER_FILE
    if not file.is_file() or not _names_a_class(folder / CONFIG):
        return None, ()
    try:
        text = read_text(file)
        try_tokenizer(text)
        ours = Tokenizer.from_json(text, max_tokens or _LIMIT)
    except InputError:  # whoever needs it says so
        return None, ()
    try:
        with parsing(BaseModelError):
            own: Any = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, truncation_side=ours.side
            )
            texts = tuple(_texts(own, ours.max_tokens))
    except BaseModelError as error:
        note = f"transformers cannot use the tokenizer ({error.what}): ids are those of `{TOKENIZER_FILE}` alone"
        return None, (Note(note),)
    made_by = f"transformers {transformers.__version__} {type(own).__name__}"
    found = GoldenTexts(GOLDEN_TEXTS_VERSION, str(ours.digest), made_by, (GoldenTextSet(None, None, 0.0, None, texts),))
    wrong = different(ours, found)
    if not wrong:
        return found, ()
    named = ", ".join(f"`{name}`" for name in wrong[:_SHOWN]) + (" …" if len(wrong) > _SHOWN else "")
    differs = f"`{TOKENIZER_FILE}` gives other ids than transformers for {len(wrong)} of {len(texts)} texts ({named})"
    fix = (
        "save both again with `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`, or nothing can be built"
    )
    return found, (Note(f"{differs}; {fix}"),)


def _names_a_class(config: Path) -> bool:
    if not config.is_file():
        return False
    try:
        document = read_json(config)
    except InputError:
        return False
    return isinstance(document, dict) and isinstance(document.get("tokenizer_class"), str)


def _texts(own: Any, limit: int) -> Sequence[GoldenText]:
    found = []
    for name, text in sample_texts(limit):
        first, second = text if isinstance(text, Pair) else (text, None)
        parts = (first,) if second is None else (first, second)
        made = own(*parts, truncation=True, max_length=limit, return_token_type_ids=True)
        ids, types = made["input_ids"], made["token_type_ids"]
        if ids:
            found.append(GoldenText(name, first, second, tuple(ids), tuple(types)))
    return found
