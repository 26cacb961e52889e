"""Rows of tables as texts, pairs or questions with choices, each with the adapter that it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapter_export.errors import DataError, argument
from adapter_export.format.labelled import choices, short, text_cell
from adapter_export.format.table_files import check_columns
from adapter_export.runtime.text_answers import Asked
from adapter_export.text import Pair

_BASE = ("", "-", None)
"""How a cell of a table names the base alone."""


@dataclass(frozen=True)
class Text:
    """A text, a pair or a question with its choices, its place for messages, and the adapter that its row names."""

    text: Asked
    where: str
    adapter: str | None = None

    @property
    def name(self) -> str:
        """What stands for it in results: the first of two texts."""
        return self.text if isinstance(self.text, str) else _first(self.text)

    @property
    def second(self) -> str | list[str] | None:
        """The second text of a pair, or the choices."""
        if isinstance(self.text, Pair):
            return self.text.second
        return None if isinstance(self.text, str) else [pair.second for pair in self.text if isinstance(pair, Pair)]


def _first(text: Asked) -> str:
    pair = text if isinstance(text, Pair) else text[0]
    return pair.first if isinstance(pair, Pair) else " ".join(map(str, text))


@dataclass(frozen=True)
class Columns:
    """The names of the columns with the texts, with the second texts of pairs, and with the adapters."""

    text_column: str = "text"
    pair_column: str | None = None
    adapter_column: str | None = None

    @property
    def names(self) -> list[str]:
        """Those that a row must have."""
        return [name for name in (self.text_column, self.pair_column, self.adapter_column) if name is not None]

    def text(self, cells: Mapping[str, Any], where: str) -> Text:
        """Return what stands in a row; DataError if it has no text, or names no adapter."""
        flags = [argument(name) for name in ("text_column", "pair_column", "adapter_column")]
        fix = f"name the columns with {', '.join(flags[:-1])} and {flags[-1]}"
        check_columns(cells, self.names, where, fix)
        text = cells[self.text_column]
        adapter = None if self.adapter_column is None else cells[self.adapter_column]
        if not isinstance(text, str) or not text.strip():
            found = f"`{text}` in the column `{self.text_column}`"
            raise DataError("has no text", where=where, found=found, fix="give it one, or leave the row out")
        if adapter is not None and not isinstance(adapter, str):
            expected = "a name, or `-` for the base"
            raise DataError("names no adapter", where=where, found=f"`{adapter}`", expected=expected)
        asked: Asked = text
        if self.pair_column is not None:
            second = cells[self.pair_column]
            seconds = choices(second, where) if isinstance(second, list) else text_cell(second)
            if seconds is None:
                found = f"`{short(second)}` in the column `{self.pair_column}`"
                raise DataError("has no second text", where=where, found=found, fix="give it one, or leave the row out")
            asked = Pair(text, seconds) if isinstance(seconds, str) else [Pair(text, one) for one in seconds]
        return Text(asked, where, None if adapter in _BASE else adapter.strip())
