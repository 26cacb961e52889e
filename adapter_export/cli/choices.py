"""What rows run through: one adapter, or one for each row; and what their results mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adapter_export.cli.results import Head
from adapter_export.cli.rows import BASE, Text
from adapter_export.errors import UsageError, within

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.runtime import Session

Arrays = dict[str, "np.ndarray"]


@dataclass(frozen=True)
class Choice:
    """What the rows of a call run through.

    Attributes:
        rows: the adapter of each row; none is the base.
        allow_mixed_rows: put rows of different adapters into one call although they influence each other.
        weights: of the members of the one adapter, if it is a weighted fusion and shall not have its own.
    """

    rows: tuple[str | None, ...]
    allow_mixed_rows: bool
    weights: Mapping[str, float] | None = None

    def part(self, start: int, end: int) -> Choice:
        """That of some of the rows."""
        return replace(self, rows=self.rows[start:end])

    def run(self, session: Session, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """Run rows through what is chosen for them."""
        if len(set(self.rows)) == 1:
            return session.run(arrays, self.rows[0], weights=self.weights)
        return session.run(arrays, adapters=self.rows, allow_mixed_rows=self.allow_mixed_rows)

    def heads(self, session: Session) -> list[Head]:
        """What the result of each row means."""
        known = {name: head_of(session, name) for name in dict.fromkeys(self.rows)}
        return [known[name] for name in self.rows]


def parse_adapters(text: str) -> tuple[str | None, ...]:
    """The adapters of `a,b,-`; `-` is the base.

    Raises:
        UsageError: a name is empty.
    """
    names = [name.strip() for name in text.split(",")]
    if "" in names:
        raise UsageError("an adapter without a name", where="`--adapters`", found=f"`{text}`", expected=f"`a,b,{BASE}`")
    return tuple(None if name == BASE else name for name in names)


def check_rows(choices: Sequence[str | None], rows: int) -> None:
    """An adapter for each row.

    Raises:
        UsageError: it is not so.
    """
    if len(choices) != rows:
        raise UsageError(
            "there is not one adapter for each row",
            where="`--adapters`",
            found=f"{len(choices)} adapters for {rows} rows",
            fix=f"name one for each, `{BASE}` for the base; `--adapter` is for all rows",
        )


def check_names(texts: Sequence[Text], session: Session) -> None:
    """Look every adapter of a table up before anything is computed.

    Raises:
        RequestError: one is not loaded; the message names its line.
    """
    seen: set[str] = set()
    for text in texts:
        if text.adapter is not None and text.adapter not in seen:
            with within(text.where):
                session.task(text.adapter)
            seen.add(text.adapter)


def head_of(session: Session, adapter: str | None) -> Head:
    """What the result of an adapter means.

    Raises:
        RequestError: it is not loaded.
    """
    if adapter is None:
        return Head(None, None, (), None)
    return Head(adapter, session.task(adapter), session.labels(adapter) or (), session.output(adapter))
