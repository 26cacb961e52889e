"""Rows to run on, of texts or of arrays: what a call of some of them is fed, and what stands for each in results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from adapter_export.cli.results import Token, array_tokens, text_tokens
from adapter_export.cli.sources import read_tokenizer, require
from adapter_export.cli.texts import Text
from adapter_export.errors import UsageError, within
from adapter_export.runtime import Bundle
from adapter_export.runtime.request import check_inputs

if TYPE_CHECKING:
    from adapter_export.text import Tokenizer

Arrays = dict[str, np.ndarray]


class Rows(Protocol):
    """Rows that a call can have some of."""

    def __len__(self) -> int:
        """How many there are."""

    def name(self, row: int) -> str:
        """A row's text, or what stands for it."""

    def inputs(self, start: int, end: int) -> Arrays:
        """What a call of these rows is fed."""

    def tokens(self, start: int, end: int) -> list[list[Token]]:
        """The tokens of these rows, as `inputs` encodes them together."""


class TextRows:
    """Texts, encoded when a call needs them.

    Raises:
        UsageError: the bundle has no tokenizer.
    """

    def __init__(self, bundle: Bundle, texts: Sequence[Text]) -> None:
        self._texts = texts
        self._tokenizer = _open_tokenizer(bundle)
        self._names = [record.name for record in bundle.manifest.inputs]

    def __len__(self) -> int:
        return len(self._texts)

    def name(self, row: int) -> str:
        """A row's text."""
        return self._texts[row].text

    def inputs(self, start: int, end: int) -> Arrays:
        """The texts encoded, padded to the longest of them."""
        with within(self._place(start, end)):
            return dict(self._tokenizer.batch(self._of(start, end), self._names))

    def tokens(self, start: int, end: int) -> list[list[Token]]:
        """The tokens of these texts."""
        return text_tokens(self._tokenizer, self._of(start, end))

    def _of(self, start: int, end: int) -> list[str]:
        return [text.text for text in self._texts[start:end]]

    def _place(self, start: int, end: int) -> str:
        return self._texts[start].where + ("" if end == start + 1 else " and those after it")


class ArrayRows:
    """Arrays with an input of the base each, held against the manifest.

    Raises:
        RequestError: they do not fit.
    """

    def __init__(self, bundle: Bundle, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = check_inputs(arrays, bundle.manifest.inputs)
        self._mask = next((record.name for record in bundle.manifest.inputs if record.role == "mask"), None)

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def name(self, row: int) -> str:
        """A row's number."""
        return f"row {row}"

    def inputs(self, start: int, end: int) -> Arrays:
        """The arrays, or some of their rows."""
        return {name: array[start:end] for name, array in self._arrays.items()}

    def tokens(self, start: int, end: int) -> list[list[Token]]:
        """The tokens that the mask keeps."""
        shape = next(iter(self._arrays.values())).shape[:2]
        return array_tokens((np.ones(shape) if self._mask is None else self._arrays[self._mask])[start:end])


def _open_tokenizer(bundle: Bundle) -> Tokenizer:
    record = bundle.manifest.text
    if record is None:
        raise UsageError(
            "the bundle has no tokenizer, so it cannot read texts",
            fix="give `--arrays`, or build it again with `--tokenizer`",
        )
    require("tokenizers", "text", "reading texts")
    from adapter_export.text import Tokenizer

    return Tokenizer.from_json(read_tokenizer(bundle.folder / record.tokenizer), record.max_tokens)
