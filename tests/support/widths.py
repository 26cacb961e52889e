"""Tables as a terminal of some width shows them, and the check that no number is broken."""

from __future__ import annotations

from io import StringIO

from rich.cells import cell_len
from rich.console import Console

from adapter_export.cli.fitted_table import fitted
from adapter_export.tables import Table
from adapter_export.words import visible, worded

WIDTHS = (80, 120)

LONGEST_WORD = 24
"""Longer words, such as paths and digests, may be folded."""


def drawn(table: Table, width: int) -> list[str]:
    """The lines of a table on a terminal."""
    out = Console(width=width, file=StringIO(), highlight=False, legacy_windows=False)
    out.print(fitted(table, width))
    assert isinstance(out.file, StringIO)
    return out.file.getvalue().splitlines()


def shown_columns(table: Table, lines: list[str]) -> set[str]:
    """The columns that are in the table, by the note on those that are not."""
    note = " ".join(lines).partition("not shown: ")[2].partition(";")[0]
    left_out = {name.strip() for name in " ".join(note.split()).split(", ")} if note else set()
    return {column for column in table.columns if column not in left_out}


def check_whole(table: Table, width: int) -> None:
    """Assert that the table fits, and that words with digits in the columns that are shown are whole."""
    lines = drawn(table, width)
    assert all(cell_len(line) <= width for line in lines), "\n".join(lines)
    kept, words = shown_columns(table, lines), set(" ".join(lines).split())
    for row in table.rows:
        for column, cell in zip(table.columns, row, strict=True):
            for word in visible(worded(str(cell), "shell")).split() if column in kept else ():
                if any(one.isdigit() for one in word) and len(word) <= LONGEST_WORD:
                    assert word in words, f"`{word}` of `{column}` at {width}:\n" + "\n".join(lines)
