"""Tables as data, rendered as plain text, as HTML in notebooks, or by the command line."""

from __future__ import annotations

import html
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from adapter_export.words import visible

_KILO = 1000
_LONGEST_FACT = 60
_NUMBERS_SHOWN = 5
_BAR = 24
_EIGHTHS = ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")


@dataclass(frozen=True)
class Table:
    """Rows with column headings, displayed by `print` and in notebooks.

    Attributes:
        columns: the column headings.
        rows: the cells, written with `str`.
        title: heading of the table.
        numbers: alignment, one letter per column: `r` is right, any other letter left.
        spare: columns that a narrow terminal omits, in this order.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str | None = None
    numbers: str = ""
    spare: Sequence[str] = ()

    def __str__(self) -> str:
        lines = [self.columns, *([str(cell) for cell in row] for row in self.rows)]
        widths = [max(len(line[at]) for line in lines) for at in range(len(self.columns))]
        right = [self.is_right(at) for at in range(len(self.columns))]
        texts = (
            "  ".join(
                cell.rjust(width) if to_right else cell.ljust(width)
                for cell, width, to_right in zip(line, widths, right, strict=True)
            ).rstrip()
            for line in lines
        )
        return "\n".join([*([] if self.title is None else [self.title]), *texts])

    def _repr_html_(self) -> str:
        sides = ["right" if self.is_right(at) else "left" for at in range(len(self.columns))]

        def line(tag: str, cells: Sequence[object]) -> str:
            texts = (html.escape(str(cell)) for cell in cells)
            elements = (
                f'<{tag} style="text-align:{side}">{text}</{tag}>' for text, side in zip(texts, sides, strict=True)
            )
            return f"<tr>{''.join(elements)}</tr>"

        title = "" if self.title is None else f"<caption>{html.escape(self.title)}</caption>"
        rows = "".join(line("td", row) for row in self.rows)
        return f"<table>{title}<thead>{line('th', self.columns)}</thead><tbody>{rows}</tbody></table>"

    def is_right(self, column: int) -> bool:
        """Return whether a column is right-aligned."""
        return self.numbers[column : column + 1] == "r"


class Described(ABC):
    """A public object that `repr` shows in one line, and a notebook as a table.

    Dataclasses of this class are declared with `repr=False`.
    """

    @abstractmethod
    def described(self) -> Mapping[str, object]:
        """Return the facts to display by name; each must be cheap to compute."""

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={_fact(value)}" for name, value in self.described().items())
        return f"{type(self).__name__}({facts})"

    def _repr_html_(self) -> str:
        facts = [(name.replace("_", " "), _fact(value)) for name, value in self.described().items()]
        return Table((type(self).__name__, ""), facts)._repr_html_()


def _fact(value: object) -> str:
    """Format a value in one line: quoted texts, thousands separators, only the first few items of a list."""
    if isinstance(value, str | PurePath):
        return f"'{one_line(value, _LONGEST_FACT)}'"
    if isinstance(value, list | tuple):
        shown = [_fact(entry) for entry in value[:_NUMBERS_SHOWN]]
        return f"[{', '.join([*shown, *(['…'] if len(value) > len(shown) else [])])}]"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return one_line(value, _LONGEST_FACT)


def html_of(table: Table, *sentences: str) -> str:
    """Render a table and sentences below it as HTML for a notebook, with all values escaped."""
    return table._repr_html_() + "".join(f"<p>{html.escape(visible(sentence))}</p>" for sentence in sentences)


def one_line(value: object, most: int | None = None) -> str:
    """Format a value as one line of visible characters, truncated to `most`.

    Terminal controls and bidirectional marks, which could disguise the text, are escaped.
    """
    text = " ".join((f"{value:.6g}" if isinstance(value, float) else str(value)).split())
    text = text if most is None or len(text) <= most else f"{text[: most - 1]}…"
    return visible(text)


def size(count: int) -> str:
    """Format a number of bytes in powers of 1000: `91.4 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < _KILO:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= _KILO
    return f"{value:.1f} GB"


def number_of(count: int, noun: str, plural: str | None = None) -> str:
    """Format a number of things: `1 row`, `2,000 rows`."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def verb_for(count: int, verb: str) -> str:
    """Return a verb in the number of its subject: `are` for 2 rows, `is` for 1."""
    if count != 1:
        return verb
    irregular = {"have": "has", "are": "is", "were": "was", "do": "does"}
    return irregular.get(verb, f"{verb}es" if verb.endswith("ch") else f"{verb}s")


def bar(probability: float) -> str:
    """Draw a probability as a bar, in eighths of a character."""
    full, eighths = divmod(round(probability * _BAR * 8), 8)
    return "█" * full + _EIGHTHS[eighths]


def probability_cells(probability: float) -> tuple[str, str]:
    """Format a probability, and draw its bar."""
    return f"{probability:.3f}", bar(probability)


def numbers_cell(numbers: Sequence[float]) -> str:
    """Format the first numbers of a list."""
    more = " …" if len(numbers) > _NUMBERS_SHOWN else ""
    return " ".join(f"{number:.4f}" for number in numbers[:_NUMBERS_SHOWN]) + more


def duration(seconds: float) -> str:
    """Format seconds: `0.4 s`, `12 s`, `2:05`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 60 else f"{int(seconds // 60)}:{int(seconds % 60):02d}"
