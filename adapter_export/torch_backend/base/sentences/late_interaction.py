"""Settings of models with a vector for each token: markers of queries and documents, lengths, and the skip list."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_export.errors import BaseModelError
from adapter_export.safe_io.regular_files import read_text
from adapter_export.text import TOKENIZER_FILE, Tokenizer
from adapter_export.torch_backend.base.sentences.sentence_modules import Module, read_config
from adapter_export.words import quoted

MASK_MODULE = "MultiVectorMask"
"""Module that excludes tokens from the comparison."""

_PYLATE, _OWN = "ColBERT", "MultiVectorEncoder"
"""Types of models in the settings of PyLate and of sentence-transformers."""

_MARKERS = {"query": "query_prefix", "document": "document_prefix"}
"""Settings of PyLate with the texts that mark a side; they are also the names in `Task`."""

_MOST_TOKENS = 512
"""Limit of the tokenizer that looks up markers; it does not truncate them."""


@dataclass(frozen=True)
class LateInteraction:
    """Settings of a folder whose model is compared by late interaction.

    Attributes:
        settings: settings of the whole folder.
        model: settings of its transformer.
        mask: settings of its `MultiVectorMask`; `None` without one.
        folder: folder of the transformer.
    """

    settings: Mapping[str, Any]
    model: Mapping[str, Any]
    mask: Mapping[str, Any] | None
    folder: Path

    @classmethod
    def of(
        cls, settings: Mapping[str, Any], model: Mapping[str, Any], modules: Sequence[Module], folder: Path
    ) -> LateInteraction | None:
        """Return the settings; `None` for a model with one vector for each text."""
        masks = [read_config(place / "config.json") for name, place in modules if name == MASK_MODULE]
        if not masks and settings.get("model_type") not in (_PYLATE, _OWN):
            return None
        return cls(settings, model, masks[0] if masks else None, folder)

    @property
    def is_pylate(self) -> bool:
        """True for a folder of PyLate, which normalises, and skips punctuation, without modules for it."""
        return self.settings.get("model_type") == _PYLATE

    def check(self) -> None:
        """Reject settings that change the tokens or the vectors in a way that a task cannot state.

        Raises:
            BaseModelError: queries are expanded, vectors are truncated, or tokens are chosen by another rule.
        """
        expansion = self.model.get("query_expansion", self.settings.get("query_expansion"))
        if self.is_pylate and "query_expansion" not in self.settings:
            expansion = self.settings.get("do_query_expansion") is not False
        mask = self.mask or {}
        unsupported = {
            "query_expansion": expansion,
            "truncate_dim": self.settings.get("truncate_dim"),
            "keep_only_token_ids": mask.get("keep_only_token_ids"),
            "skiplist_tasks": mask.get("skiplist_tasks") not in (None, "document", ["document"]),
        }
        refused = [name for name, value in unsupported.items() if value]
        if "query_expansion" in refused:
            raise BaseModelError(
                "expands queries with mask tokens, which count although the mask hides them",
                found="`query_expansion`",
                fix="train and save the model without query expansion",
            )
        if refused:
            raise BaseModelError("has settings that a task cannot state", found=quoted(refused))

    def task_facts(self) -> Mapping[str, Any]:
        """Return the prefixes of queries and documents, the skip list and the maximum length.

        Raises:
            BaseModelError: the tokenizer splits a marker that the model reads as one token.
        """
        prompts = self.settings.get("prompts") or {}
        facts: dict[str, Any] = {}
        for side, key in _MARKERS.items():
            marker, prompt = self.settings.get(key) or "", prompts.get(side) or ""
            facts[key] = marker + prompt.removeprefix(marker)
        tokenizer = self._tokenizer()
        if tokenizer is not None:
            for key in _MARKERS.values():
                _check_marker(tokenizer, self.settings.get(key) or "")
            known = map(tokenizer.id_of, self._skipped)
            facts["skiplist"] = tuple(sorted({number for number in known if number is not None}))
        longest = [number for number in self._lengths if isinstance(number, int)]
        return facts | ({"max_tokens": max(longest)} if len(longest) == len(self._lengths) else {})

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on differences to the original model."""
        query, document = self._lengths
        if not isinstance(query, int) or query == document:
            return ()
        return (f"the model truncates queries to {query} tokens; here, they may be as long as documents",)

    @property
    def _lengths(self) -> tuple[Any, Any]:
        """Maximum tokens of queries and of documents, if recorded."""
        known = {**self.settings, **{name: value for name, value in self.model.items() if value is not None}}
        return known.get("query_length"), known.get("document_length")

    @property
    def _skipped(self) -> Sequence[str]:
        """Tokens of documents without a vector."""
        words = self.settings.get("skiplist_words") if self.mask is None else self.mask.get("skiplist_words")
        if words is None and self.is_pylate:
            return tuple(string.punctuation)
        return [word for word in words or () if isinstance(word, str)]

    def _tokenizer(self) -> Tokenizer | None:
        path = self.folder / TOKENIZER_FILE
        return Tokenizer.from_json(read_text(path), _MOST_TOKENS) if path.is_file() else None


def _check_marker(tokenizer: Tokenizer, marker: str) -> None:
    """Reject a marker that is one token of the vocabulary, which PyLate inserts, but that the tokenizer splits."""
    for text in dict.fromkeys((marker, marker.split()[0]) if marker.split() else ()):
        number = tokenizer.id_of(text)
        if number is None:
            continue
        (encoding,) = tokenizer.whole([text], special=False)
        if list(encoding.ids) != [number]:
            raise BaseModelError(
                "marks queries and documents with a token that its tokenizer splits",
                found=f"`{text}`",
                fix="save it again with `MultiVectorEncoder(folder).save(folder)` of sentence-transformers",
            )
        return
