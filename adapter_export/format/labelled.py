"""Labelled texts out of csv, tsv and jsonl files, read strictly: what each problem type reads in a row.

Images and audio are the files of a folder for each class, or files that a table names.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from adapter_export.errors import DataError, FileError, UsageError, argument
from adapter_export.format.table_files import check_columns, read_rows
from adapter_export.graph.tasks import MEDIA_TYPES, ProblemType
from adapter_export.safe_io.regular_files import sha256_of

SEPARATOR = "|"
"""Stands between the labels of a text, or between the choices of a question, where they are one string."""

_SHOWN = 60
_NAMED = 5

PAIRED: tuple[ProblemType, ...] = ("multiple_choice", "span", "ranking")
"""The types that read two columns of texts."""

SINGLE: tuple[ProblemType, ...] = ("token", "embedding")
"""The types that read one column of texts."""


@dataclass(frozen=True)
class Columns:
    """The names of the columns.

    Attributes:
        text: the texts: the questions of span and multiple_choice, the queries of ranking, the words of token.
        pair: the second texts: the contexts of span, the choices of multiple_choice, the documents of ranking.
        label: what is to be learnt of each row.
        start: of span: where the answer begins in its context, counted in characters from 0.
    """

    text: str = "text"
    pair: str | None = None
    label: str = "label"
    start: str | None = None

    def check(self, problem: ProblemType) -> None:
        """Raise UsageError where a problem type reads other columns."""
        name = argument("pair")
        if problem in PAIRED and self.pair is None:
            raise UsageError(f"`{problem}` reads pairs of texts", fix=f"name the column of the second texts: {name}")
        if problem in SINGLE and self.pair is not None:
            raise UsageError(f"`{problem}` reads one text, no pair", found=f"`{self.pair}`", fix=f"leave {name} out")
        if self.start is not None and problem != "span":
            raise UsageError(f"only answers to questions have a {argument('start')}", found=f"the task `{problem}`")

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that every row must have."""
        return tuple(name for name in (self.text, self.pair, self.label, self.start) if name is not None)


@dataclass(frozen=True)
class GivenSpan:
    """An answer in a context: its text, and its first character, counted from 0."""

    text: str
    start: int


@dataclass(frozen=True)
class LabelledFile:
    """An image or an audio file; two of the same bytes are the same, whatever they are called."""

    path: Path = field(compare=False)
    sha256: str

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class LabelledRow:
    """A row: its line, its texts, and what is to be learnt of them.

    Attributes:
        line: counted from 1.
        text: a text, for token its words, or a file.
        pair: the second text, or for multiple_choice the choices; none where one text is read.
        answer: the label (single_label, embedding), a set of labels (multi_label), the labels of the words (token),
            numbers (regression), a relevance from 0 to 1 (ranking), the number of the right choice, counted from 0
            (multiple_choice), or the spans that answer the question (span).
        cells: the whole row, by column.
    """

    line: int
    text: str | tuple[str, ...] | LabelledFile
    pair: str | tuple[str, ...] | None
    answer: Any
    cells: Mapping[str, Any]


def labelled_rows(
    path: Path,
    columns: Columns,
    problem: ProblemType,
    *,
    skip_incomplete: bool = False,
    medium: Literal["image", "audio"] | None = None,
) -> tuple[list[LabelledRow], list[int]]:
    """Read the labelled rows of a table; returns them, and the lines of rows that are incomplete and left out.

    With a `medium`, the texts of the table are paths of images or audio, from its own folder on; or `path` is a
    folder with a folder of them for each label, whose rows are counted from 1 in the order of their paths.

    Args:
        path: a csv, tsv or jsonl file in UTF-8, recognised by its suffix or else by its first line.
        columns: the names of its columns.
        problem: what the columns mean.
        skip_incomplete: leave rows out that lack a text or a label, instead of refusing the file.
        medium: what the rows are, where they are no texts.

    Raises:
        UsageError: the problem type reads other columns.
        FileError: the file cannot be read.
        DataError: a line is broken, a column is missing, or rows are incomplete.
    """
    columns.check(problem)
    if medium is not None and problem not in MEDIA_TYPES:
        raise UsageError(f"`{problem}` reads texts, and the model {medium}", fix=f"give another {argument('task')}")
    if path.is_dir():
        return _of_folder(path, columns, problem, medium), []
    read = _READERS[problem]
    rows: list[LabelledRow] = []
    incomplete: list[int] = []
    empty = True
    for line, cells in read_rows(path):
        empty, where = False, f"{path}, line {line}"
        check_columns(cells, columns.needed, where)
        found = read(cells, columns, where)
        if found is None:
            incomplete.append(line)
        elif medium is None:
            rows.append(LabelledRow(line, *found, cells))
        else:
            rows.append(LabelledRow(line, labelled_file(path.parent / found[0], where), *found[1:], cells))
    if empty:
        raise DataError("holds no rows", where=path, expected="a line with the column names, then one row a line")
    if incomplete and not skip_incomplete:
        raise DataError(
            f"{len(incomplete):,} rows have no text or no label",
            where=path,
            found=f"lines {some(incomplete, quote='')}",
            expected=f"all of {some(columns.needed)} in every row",
            fix=f"complete these rows, or give {argument('skip_incomplete', True)} to leave them out",
        )
    if not rows:
        raise DataError("no row has both a text and a label", where=path)
    return rows, incomplete


def labelled_file(path: Path, where: object) -> LabelledFile:
    """Return a file with its hash; `DataError` if there is none, or it is empty."""
    try:
        size, digest = path.stat().st_size, sha256_of(path)
    except (OSError, FileError, ValueError) as error:
        raise DataError(
            "a file that cannot be read", where=where, found=f"`{path.name}`", fix="check the path"
        ) from error
    if not size:
        raise DataError("an empty file", where=where, found=f"`{path.name}`")
    return LabelledFile(path, digest)


def _of_folder(path: Path, columns: Columns, problem: ProblemType, medium: str | None) -> list[LabelledRow]:
    """Read a folder with a folder for each label; names that begin with a dot are passed over."""
    if medium is None or problem not in ("single_label", "embedding"):
        found = "a folder" if medium is None else f"a folder, and the task `{problem}`"
        raise DataError("is no table", where=path, found=found, expected="a csv, tsv or jsonl file")
    inside = sorted(one for one in path.iterdir() if not one.name.startswith("."))
    strays = [one for one in inside if not one.is_dir()]
    expected = "a folder of files for each label, and nothing else"
    if strays or not inside:
        found = f"the file `{strays[0].name}`" if strays else "nothing"
        fix = "move it into the folder of its label, or give a table of paths and labels"
        raise DataError("is no folder of labelled files", where=path, found=found, expected=expected, fix=fix)
    rows: list[LabelledRow] = []
    for folder in inside:
        files = sorted(one for one in folder.rglob("*") if one.is_file() and not one.name.startswith("."))
        if not files:
            raise DataError("a label without files", where=folder, expected=expected, fix="remove the folder")
        for file in files:
            cells = {columns.text: file.relative_to(path).as_posix(), columns.label: folder.name}
            rows.append(LabelledRow(len(rows) + 1, labelled_file(file, file), None, folder.name, cells))
    return rows


def data_digest(path: Path, rows: Sequence[LabelledRow]) -> str:
    """Return the sha256 of a table of texts; of files, that over their hashes and answers, whatever they are called."""
    if not isinstance(rows[0].text, LabelledFile):
        return sha256_of(path)
    lines = (f"{row.text.sha256} {row.answer}\n" for row in rows if isinstance(row.text, LabelledFile))
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def some(found: Collection[object], quote: str = "`") -> str:
    """Return the first few of many values for a message, each quoted and cut to a readable length."""
    shown = [f"{quote}{short(value)}{quote}" for value in islice(found, _NAMED)]
    return ", ".join(shown) + (f", … ({len(found):,} in all)" if len(found) > _NAMED else "")


def short(value: object) -> str:
    """Return a value for a message, cut to a readable length."""
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def text_cell(cell: object) -> str | None:
    """Return a text; none where there is none."""
    return cell if isinstance(cell, str) and cell.strip() else None


def words(cell: object, where: str) -> tuple[str, ...] | None:
    """Return the words of a text: a list, or one string with spaces between them."""
    found = cell.split() if isinstance(cell, str) else cell
    if found is None or found == []:
        return None
    if not isinstance(found, list) or not all(isinstance(word, str) and word for word in found):
        raise DataError("holds no words", where=where, found=f"`{short(cell)}`", expected="a list of words")
    return tuple(found)


def label(cell: object, where: str) -> str | None:
    """Return a label as text; none where there is none, NaN included, which is how tables spell an empty cell."""
    if cell is None or cell != cell:
        return None
    if not isinstance(cell, str | int | float):
        raise DataError("a label is not a word or a number", where=where, found=type(cell).__name__)
    found = str(cell).strip()
    return None if found.lower() in {"", "nan"} else found


def labels(cell: object, where: str) -> tuple[str, ...] | None:
    """Return the labels of words: a list, or one string with spaces between them."""
    found = cell.split() if isinstance(cell, str) else cell
    if found is None or found == [] or found != found:
        return None
    if not isinstance(found, list):
        raise DataError("holds no labels of words", where=where, found=f"`{short(cell)}`", expected="a list of labels")
    named = [label(one, where) for one in found]
    if None in named:
        raise DataError("a word has no label", where=where, found=f"`{short(cell)}`", expected="a label for each word")
    return tuple(str(one) for one in named)


def label_set(cell: object, where: str) -> frozenset[str] | None:
    """Return the labels of a text, any number of them: a list, or one string with `|` between them.

    An empty list, and a string of `|` alone, is a text that no label applies to; an empty cell has no answer.
    """
    if cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()):
        return None
    found = [part for part in cell.split(SEPARATOR) if part.strip()] if isinstance(cell, str) else cell
    if not isinstance(found, list):
        expected = f"a list of labels, or one string with `{SEPARATOR}` between them"
        raise DataError("holds no set of labels", where=where, found=f"`{short(cell)}`", expected=expected)
    named = [label(one, where) for one in found]
    twice = len(set(named)) < len(named)
    if None in named or twice:
        fault = "a label occurs twice in a set" if twice else "a set has an empty label"
        raise DataError(fault, where=where, found=f"`{short(cell)}`", expected="different labels")
    return frozenset(str(one) for one in named)


def numbers(cell: Any, where: str) -> tuple[float, ...] | None:
    """Return numbers: one, a list, or one string with spaces between them; none where there is none, or a NaN."""
    parts = cell.split() if isinstance(cell, str) else cell if isinstance(cell, list) else [cell]
    if parts in ([], [None]):
        return None
    wanted = "a number, or a list"
    try:
        found = tuple(float(part) for part in parts if not isinstance(part, bool))
    except (TypeError, ValueError) as error:
        raise DataError("holds no numbers", where=where, found=f"`{short(cell)}`", expected=wanted) from error
    if len(found) != len(parts) or any(math.isinf(number) for number in found):
        raise DataError("holds no finite numbers", where=where, found=f"`{short(cell)}`", expected=wanted)
    return None if any(math.isnan(number) for number in found) else found


def choices(cell: object, where: str) -> tuple[str, ...] | None:
    """Return the choices of a question: a list, or one string with `|` between them."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    found = [part.strip() for part in cell.split(SEPARATOR)] if isinstance(cell, str) else cell
    texts = isinstance(found, list) and all(isinstance(one, str) and one.strip() for one in found)
    if not isinstance(found, list) or not texts or len(found) < 2 or len(set(found)) < len(found):
        expected = f"two or more different texts: a list, or one string with `{SEPARATOR}` between them"
        raise DataError("holds no choices", where=where, found=f"`{short(cell)}`", expected=expected)
    return tuple(found)


_Found = tuple[Any, Any, Any] | None
"""A text, a second one if the row has two, and what is to be learnt of them; none if one of them is not there."""


def _whole(text: Any, pair: Any, answer: Any, columns: Columns) -> _Found:
    missing = text is None or answer is None or (columns.pair is not None and pair is None)
    return None if missing else (text, pair, answer)


def _texts(cells: Mapping[str, Any], columns: Columns) -> tuple[str | None, str | None]:
    """The text and the second one; none where there is none."""
    second = None if columns.pair is None else text_cell(cells[columns.pair])
    return text_cell(cells[columns.text]), second


def _with(read_answer: Callable[[Any, str], Any]) -> Callable[[Mapping[str, Any], Columns, str], _Found]:
    """Read a text or a pair, and by `read_answer` what is to be learnt of it."""

    def read(cells: Mapping[str, Any], columns: Columns, where: str) -> _Found:
        return _whole(*_texts(cells, columns), read_answer(cells[columns.label], where), columns)

    return read


def _words(cells: Mapping[str, Any], columns: Columns, where: str) -> _Found:
    found, learnt = words(cells[columns.text], where), labels(cells[columns.label], where)
    if found is not None and learnt is not None and len(found) != len(learnt):
        raise DataError(
            "words and labels differ in number",
            where=where,
            found=f"{len(found)} words and {len(learnt)} labels",
            expected="a label for each word",
        )
    return _whole(found, None, learnt, columns)


def _relevance(cell: Any, where: str) -> float | None:
    """How relevant a document is, from 0 to 1."""
    found = numbers(cell, where)
    if found is not None and (len(found) != 1 or not 0 <= found[0] <= 1):
        raise DataError("is no relevance", where=where, found=f"`{short(cell)}`", expected="a number from 0 to 1")
    return None if found is None else found[0]


def _choice(cells: Mapping[str, Any], columns: Columns, where: str) -> _Found:
    question = text_cell(cells[columns.text])
    found = choices(cells[str(columns.pair)], where)
    right = cells[columns.label]
    if question is None or found is None or right is None or right != right or right == "":
        return None
    if isinstance(right, str) and right.strip() in found:
        right = found.index(right.strip())
    if isinstance(right, bool | str) or right not in range(len(found)):
        expected = f"the text of one of them, or a JSON number from 0 to {len(found) - 1}"
        raise DataError(
            "the answer is none of the choices",
            where=where,
            found=f"`{short(right)}`; the choices are {some(found)}",
            expected=expected,
        )
    return question, found, int(right)


def _span(cells: Mapping[str, Any], columns: Columns, where: str) -> _Found:
    question, context = _texts(cells, columns)
    spans = _spans(cells[columns.label], None if columns.start is None else cells[columns.start], where)
    if question is None or context is None or not spans:
        return None
    return question, context, tuple(dict.fromkeys(_placed(text, start, context, where) for text, start in spans))


def _spans(cell: Any, start: Any, where: str) -> list[tuple[Any, Any]]:
    """The texts of answers with their first characters, which may be unknown; of SQuAD's layouts, or of two columns."""
    found: list[tuple[Any, Any]]
    if isinstance(cell, Mapping):
        texts, starts = cell.get("text"), cell.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            found = list(zip(texts, starts, strict=True))
        else:
            found = [(texts, starts)]
    elif isinstance(cell, list) and all(isinstance(one, Mapping) for one in cell):
        found = [(one.get("text"), one.get("answer_start")) for one in cell]
    else:
        answer = text_cell(cell)
        found = [] if answer is None else [(answer, start)]
    if not all(isinstance(text, str) and text.strip() for text, _ in found):
        expected = 'a text, or `{"text": […], "answer_start": […]}` as in SQuAD'
        raise DataError("holds no answer", where=where, found=f"`{short(cell)}`", expected=expected)
    return found


def _placed(text: str, start: Any, context: str, where: str) -> GivenSpan:
    """An answer where it stands in its context."""
    shown = f"`{short(text)}`"
    if start is None or start == "":
        count = context.count(text)
        if not count:
            raise DataError("the answer is not in its context", where=where, found=shown, expected="its very words")
        if count > 1:
            fix = f"name the column with its first character: {argument('start')}"
            raise DataError(f"the answer is {count} times in its context", where=where, found=shown, fix=fix)
        return GivenSpan(text, context.index(text))
    whole = not isinstance(start, bool) and str(start).strip().isdecimal()
    at = int(start) if whole else -1
    there = context[max(at, 0) :][: len(text)]
    if at < 0 or there != text:
        raise DataError(
            "the answer is not in its context at its start",
            where=where,
            found=f"{shown} at `{short(start)}`" + ("" if at < 0 else f", where there is `{short(there)}`"),
            expected="the number of its first character, counted from 0",
        )
    return GivenSpan(text, at)


_READERS: Mapping[ProblemType, Callable[[Mapping[str, Any], Columns, str], _Found]] = {
    "single_label": _with(label),
    "multi_label": _with(label_set),
    "multiple_choice": _choice,
    "token": _words,
    "span": _span,
    "regression": _with(numbers),
    "embedding": _with(label),
    "ranking": _with(_relevance),
}


def read_texts(path: Path, columns: Columns) -> list[tuple[str, str | None]]:
    """Read the texts of a table, labelled or not, and the second ones; rows without a text are left out.

    Raises:
        FileError: the file cannot be read.
        DataError: a line is broken, a column is missing, or no row has a text.
    """
    wanted, found = [name for name in (columns.text, columns.pair) if name is not None], []
    for line, cells in read_rows(path):
        where = f"{path}, line {line}"
        check_columns(cells, wanted, where)
        text, pair = _texts(cells, columns)
        if text is not None and (columns.pair is None or pair is not None):
            found.append((text, pair))
    if not found:
        raise DataError("no row has a text", where=path, expected=f"texts in {some(wanted)}")
    return found
