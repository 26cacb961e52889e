"""Tables that fit a terminal: numbers never break, text wraps, and dropped columns are named."""

from __future__ import annotations

from collections.abc import Sequence

import rich.table
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.text import Text

from adapter_export.tables import Table
from adapter_export.words import visible, worded

_BETWEEN = 3
"""Characters between two columns: a space on each side and the box edge."""

_LONGEST_WORD = 24
"""Words longer than this, such as paths and digests, may break; shorter words and numbers do not."""

_LEAST_TEXT = 12
"""Minimum readable width of a text column."""

_VERDICTS = {"passed": "green", "pass": "green", "failed": "bold red", "FAIL": "bold red"}


def fitted(table: Table, width: int) -> rich.table.Table:
    """Return a rich table for a console of `width` characters.

    Markup is not interpreted, and verdicts are coloured. Columns are dropped until numbers and words fit: first those
    that the table marks as optional, then from the last one on.
    """
    cells = [[visible(worded(cell, "shell")) for cell in row] for row in table.rows]
    columns_shown = _columns_that_fit(table, cells, width)
    left_out = [column for at, column in enumerate(table.columns) if at not in columns_shown]
    rich_table = rich.table.Table(
        title=None if table.title is None else Text(table.title, style="bold"),
        title_justify="left",
        caption=Text(f"not shown: {', '.join(left_out)}; `--json` has them", "dim") if left_out else None,
        caption_justify="left",
        header_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
    )
    for at, wide in zip(columns_shown, _widths(table, cells, columns_shown, width), strict=True):
        rich_table.add_column(
            Text(table.columns[at]), justify="right" if table.is_right(at) else "left", overflow="fold", width=wide
        )
    for row, values in zip(cells, table.rows, strict=True):
        rich_table.add_row(*(Text(row[at], _VERDICTS.get(str(values[at]), "")) for at in columns_shown))
    return rich_table


def _columns_that_fit(table: Table, cells: Sequence[Sequence[str]], width: int) -> list[int]:
    """Return the indices of the columns that fit."""
    columns_shown = list(range(len(table.columns)))
    least = [_least(table, cells, at) for at in columns_shown]
    for at in _order(table):
        if _room(len(columns_shown), width) >= sum(least[column] for column in columns_shown):
            break
        columns_shown.remove(at)
    return columns_shown


def _order(table: Table) -> list[int]:
    """Return the indices of droppable columns: optional ones first, then from the last one on."""
    places = list(range(1, len(table.columns)))
    spare = [at for name in table.spare for at in reversed(places) if table.columns[at] == name]
    verdicts = [at for at in places if any(str(row[at]) in _VERDICTS for row in table.rows)]
    rest = [at for at in reversed(places) if at not in (*spare, *verdicts)]
    return [*spare, *rest, *reversed(verdicts)]


def _room(columns: int, width: int) -> int:
    """Return the characters available for cells."""
    return width - _BETWEEN * columns + 1


def _longest_word(text: str) -> int:
    return max((cell_len(word) for word in text.split()), default=0)


def _natural(table: Table, cells: Sequence[Sequence[str]], at: int) -> int:
    """Return the width at which only the heading wraps."""
    lines = (line for row in cells for line in row[at].splitlines())
    return max([_longest_word(table.columns[at]), *map(cell_len, lines)])


def _least(table: Table, cells: Sequence[Sequence[str]], at: int) -> int:
    """Return the width at which no number and no word breaks, except very long words."""
    natural = _natural(table, cells, at)
    if table.is_right(at):
        return natural
    words = [_longest_word(row[at]) for row in cells]
    longest = max((word for word in words if word <= _LONGEST_WORD), default=0)
    folded = _LEAST_TEXT if any(word > _LONGEST_WORD for word in words) else 0
    return min(natural, max(longest, folded, _longest_word(table.columns[at]), min(_LEAST_TEXT, natural)))


def _widths(table: Table, cells: Sequence[Sequence[str]], columns_shown: Sequence[int], width: int) -> list[int]:
    """Return each column's width: its minimum, plus remaining room for text, narrowest first."""
    natural = [_natural(table, cells, at) for at in columns_shown]
    widths = [_least(table, cells, at) for at in columns_shown]
    left = _room(len(columns_shown), width) - sum(widths)
    if left < 0:  # one or two columns that exceed the console by themselves
        widths[0] = max(1, widths[0] + left)
    waiting = sorted((at for at in range(len(columns_shown)) if widths[at] < natural[at]), key=lambda at: natural[at])
    for count, at in enumerate(waiting):
        extra = min(natural[at] - widths[at], max(left, 0) // (len(waiting) - count))
        widths[at], left = widths[at] + extra, left - extra
    return widths
