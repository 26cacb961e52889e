"""Collected faults of a table, reported in one error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from adapter_export.errors import AdapterExportError, DataError
from adapter_export.tables import number_of, verb_for
from adapter_export.words import Words, joined

_MOST_KINDS, _MOST_LINES, _MOST_VALUES = 8, 5, 3
"""Maximum kinds of faults in a message, and maximum lines and values of each."""


def lines_of(lines: Sequence[int]) -> str:
    """Format line numbers, only the first few: `line 3`, `lines 3, 7, 9`."""
    shown = ", ".join(map(str, lines[:_MOST_LINES]))
    more = f", … ({len(lines):,} in all)" if len(lines) > _MOST_LINES else ""
    return f"line{'' if len(lines) == 1 else 's'} {shown}{more}"


def rows_that(count: int, verb: str, part: str | None = None, word: str = "row") -> str:
    """Format rows and a verb in the right number: `1 row has`, `2 rows of the training data repeat`."""
    of_part = "" if part is None else f" of the {part} data"
    return f"{number_of(count, word)}{of_part} {verb_for(count, verb)}"


def skipped(count: int) -> str:
    """Return `and was skipped`, or `and were skipped`."""
    return f"and {verb_for(count, 'were')} skipped"


@dataclass
class TableFaults:
    """Faults of one table.

    Attributes:
        path: the table.
        errors: each error with its line, from 1; `None` for the whole table.
    """

    path: Path
    errors: list[tuple[int | None, AdapterExportError]] = field(default_factory=list)

    def add(self, error: AdapterExportError, line: int | None = None) -> None:
        """Add a fault of a line, from 1, or of the whole table."""
        self.errors.append((line, error))

    @contextmanager
    def of_line(self, line: int) -> Iterator[None]:
        """Collect a `DataError` of the block as a fault of a line."""
        try:
            yield
        except DataError as error:
            self.add(error, line)

    @contextmanager
    def of_table(self) -> Iterator[None]:
        """Collect a `DataError` of the block as a fault of the whole table."""
        try:
            yield
        except DataError as error:
            self.add(error)

    def check(self) -> None:
        """Raise the collected faults; see `raise_faults`."""
        raise_faults([self])

    def worded(self, *, named: bool) -> list[str]:
        """Return a sentence for each kind of fault: lines, values found, and fix.

        Args:
            named: whether to start with the file name.
        """
        kinds: dict[tuple[str, str | None, str], list[tuple[int | None, AdapterExportError]]] = {}
        for line, error in self.errors:
            place = "" if line is not None else str(error.where or "").removeprefix(str(self.path)).lstrip(", ")
            kinds.setdefault((error.what, error.fix, place), []).append((line, error))
        file = self.path.name if named else ""
        return [_sentence(", ".join(filter(None, (file, key[-1]))), alike) for key, alike in kinds.items()]


def raise_faults(tables: Sequence[TableFaults]) -> None:
    """Raise the faults of tables in one error; a single fault is raised unchanged.

    Raises:
        DataError: there are faults.
    """
    faulty = [table for table in tables if table.errors]
    errors = [error for table in faulty for _, error in table.errors]
    if not errors:
        return
    if len(errors) == 1:
        raise errors[0]
    kinds = [sentence for table in faulty for sentence in table.worded(named=len(faulty) > 1)]
    more = len(kinds) - _MOST_KINDS
    listed = [*kinds[:_MOST_KINDS], *([f"{more} more kinds of faults."] if more > 0 else [])]
    where = ", ".join(str(table.path) for table in faulty)
    raise DataError(joined([f"{number_of(len(errors), 'fault')}:", *listed], "\n  ").rstrip("."), where=where)


def _sentence(file: str, faults: Sequence[tuple[int | None, AdapterExportError]]) -> str:
    """Return a sentence on the faults of one kind, starting with the file, if named, and the lines."""
    lines, first = [line for line, _ in faults if line is not None], faults[0][1]
    values = list(dict.fromkeys(error.found for _, error in faults if error.found is not None))
    facts: list[str] = [first.what]
    shown: list[str] = [*values[:_MOST_VALUES], *(["…"] if len(values) > _MOST_VALUES else [])]
    facts += ["found " + joined(shown)] if shown else []
    facts += [] if first.expected is None else ["expected " + first.expected]
    place = ", ".join(filter(None, (file, lines_of(lines) if lines else "")))
    sentence = Words(f"{place}: " if place else "", joined(facts, "; "), ".")
    return sentence if first.fix is None else sentence + " " + first.fix.capitalized() + "."
