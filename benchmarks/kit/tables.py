"""Results of a benchmark: tables as Markdown or JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NOTHING = "–"


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it.

    Attributes:
        median: half of the values are below.
        low: a quarter of the values is below.
        high: a quarter of the values is above.
        digits: how many behind the point are shown.
    """

    median: float
    low: float
    high: float
    digits: int = 2

    def __str__(self) -> str:
        middle, low, high = (f"{value:,.{self.digits}f}" for value in (self.median, self.low, self.high))
        return middle if low == high else f"{middle} ({low} to {high})"


def spread(values: Sequence[float], digits: int = 2) -> Spread:
    """Median and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], digits)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high, digits)


Cell = str | int | float | Spread | None


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: title.
        columns: headings; the first one names the rows.
        rows: a cell for each column; `None` if not applicable.
        note: explanation in whole sentences.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def markdown(self) -> str:
        """A section of a document."""
        lines = [f"### {self.title}", "", *([self.note, ""] if self.note else [])]
        lines += [_row(self.columns), _row(["---"] * len(self.columns))]
        return "\n".join([*lines, *(_row([_shown(cell) for cell in row]) for row in self.rows)])

    def document(self) -> dict[str, Any]:
        """For `--json`: a ratio is an object with `median`, `low` and `high`."""
        rows = [dict(zip(self.columns, map(_value, row), strict=True)) for row in self.rows]
        return {"title": self.title, "note": self.note, "columns": list(self.columns), "rows": rows}


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(cell: Cell) -> str:
    if cell is None:
        return NOTHING
    return f"{cell:,.2f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)


def _value(cell: Cell) -> Any:
    if isinstance(cell, Spread):
        return {"median": cell.median, "low": cell.low, "high": cell.high}
    return cell
