"""Strict reader of labelled texts in csv, tsv, jsonl and Parquet files, for each task type.

Images and audio are files in one folder per class, or files named in a table.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapter_export.errors import DataError, FileError, UsageError
from adapter_export.format.tabular.table_faults import TableFaults, lines_of, rows_that
from adapter_export.format.tabular.table_files import DETECTED, TableFormat, open_table
from adapter_export.graph.tasks import HEAD_TYPES, TASK_TYPES, ProblemType
from adapter_export.graph.tasks.cells import Cells, some, text_cell
from adapter_export.safe_io.regular_files import sha256_of
from adapter_export.words import argument

_DIGEST_BYTES, _SALT_BYTES = 4, 16
"""BLAKE2b takes a salt of 16 bytes. Of 2,048 digests of 4 bytes, one in two million other rows matches by chance."""

_LABEL = "label"
MOST_DIGESTS = 2048
"""Row digests of each file in a training record: 8 kB."""


@dataclass(frozen=True)
class Columns:
    """Column names and format of a file.

    Attributes:
        text: the texts: the questions of span and multiple_choice, the queries of ranking, the words of token.
        pair: the second texts: the contexts of span, the choices of multiple_choice, the documents of ranking.
        label: the targets. Default: `label`, or no labels for embedding pairs and with negatives.
        start: for span, the position of the answer in its context, in characters from 0.
        form: delimiter and encoding.
        negatives: texts that do not match those of `text`.
    """

    text: str = "text"
    pair: str | None = None
    label: str | None = None
    start: str | None = None
    form: TableFormat = DETECTED
    negatives: tuple[str, ...] = ()

    @property
    def names(self) -> dict[str, str | None]:
        """Return column names by purpose."""
        by_purpose = {"text": self.text, "pair": self.pair, "label": self.label, "start": self.start}
        return by_purpose | {"negative": ",".join(self.negatives) or None}

    def read_as(self, problem: ProblemType) -> tuple[ProblemType, Columns]:
        """Return the task type that reads these columns, and the columns with the default of `label`."""
        kind = TASK_TYPES[problem]
        if kind.of_pairs is not None and self.pair is not None and self.label is None:
            kind = TASK_TYPES[kind.of_pairs]
        answers = kind.has_answers and not self.negatives
        return kind.name, replace(self, label=self.label or _LABEL) if answers else self

    def check(self, problem: ProblemType) -> None:
        """Raise UsageError if a task type needs other columns."""
        name, kind = argument("pair"), TASK_TYPES[self.read_as(problem)[0]]
        if self.negatives and not kind.has_negatives:
            what = f"`{kind.name}` does not use negatives" if kind.of_pairs is None else "negatives need pairs"
            fix = "name the column of the positives: " + name + ", or omit " + argument("negative")
            raise UsageError(what, where=argument("negative"), found=f"`{self.negatives[0]}`", fix=fix)
        if self.label is not None and (self.negatives or not kind.has_answers):
            what = "positives and negatives have no labels"
            shown, fix = f"`{self.label}`", "omit " + argument("label")
            raise UsageError(what, where=argument("label"), found=shown, fix=fix)
        if len(set(self.needed)) < len(self.needed):
            raise UsageError("a column is named twice", found=some(self.needed), expected="different columns")
        if kind.pairs == "required" and self.pair is None:
            raise UsageError(f"`{problem}` reads pairs of texts", fix="name the column of the second texts: " + name)
        if kind.pairs == "never" and self.pair is not None:
            fix = "omit " + name if kind.of_pairs is None else "omit " + argument("label") + ": pairs have no labels"
            raise UsageError(f"`{problem}` reads single texts, not pairs", found=f"`{self.pair}`", fix=fix)
        if self.start is not None and not kind.has_start:
            raise UsageError("only answers to questions have a " + argument("start"), found=f"the task `{problem}`")

    def cells(self, row: Mapping[str, Any], where: str) -> Cells:
        """Return the cells of a row by purpose."""
        pair, label, start = (None if name is None else row[name] for name in (self.pair, self.label, self.start))
        negatives = tuple(row[name] for name in self.negatives)
        return Cells(row[self.text], pair, label, start, self.pair is not None, where, negatives)

    @property
    def needed(self) -> tuple[str, ...]:
        """Required columns."""
        columns = (self.text, self.pair, self.label, self.start)
        return (*(name for name in columns if name is not None), *self.negatives)


@dataclass(frozen=True)
class LabelledFile:
    """An image or audio file, compared by contents regardless of its name."""

    path: Path = field(compare=False)
    sha256: str

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class LabelledRow:
    """A row: line, texts and target.

    Attributes:
        line: line number, from 1.
        text: a text, the words for token, or a file.
        pair: the second text, or the choices for multiple_choice; `None` for single texts.
        answer: the label (single_label, embedding), a set of labels (multi_label), the labels of the words (token),
            numbers (regression), a relevance from 0 to 1 (ranking), the number of the right choice, counted from 0
            (multiple_choice), the spans that answer the question (span), or the anchor with its positive and its
            negatives (retrieval).
        cells: all cells of the row, by column.
    """

    line: int
    text: str | tuple[str, ...] | LabelledFile
    pair: str | tuple[str, ...] | None
    answer: Any
    cells: Mapping[str, Any]


@dataclass(frozen=True)
class LabelledTable:
    """The labelled rows of a table, or of a folder of files.

    Attributes:
        path: the file or the folder.
        rows: the complete rows.
        incomplete: lines of rows without a text or label, which are skipped.
        notes: notes on reading the file.
        faults: faults of invalid rows.
    """

    path: Path
    rows: Sequence[LabelledRow]
    incomplete: Sequence[int]
    notes: tuple[str, ...]
    faults: TableFaults


def labelled_rows(
    path: Path,
    columns: Columns,
    problem: ProblemType,
    *,
    skip_incomplete: bool = False,
    medium: str | None = None,
) -> LabelledTable:
    """Read the labelled rows of a table.

    For arguments and other errors see `find_labelled_rows`.

    Raises:
        DataError: rows are invalid or incomplete; the message lists them.
    """
    table = find_labelled_rows(path, columns, problem, skip_incomplete=skip_incomplete, medium=medium)
    table.faults.check()
    return table


def find_labelled_rows(
    path: Path,
    columns: Columns,
    problem: ProblemType,
    *,
    skip_incomplete: bool = False,
    medium: str | None = None,
) -> LabelledTable:
    """Read the labelled rows of a table, and collect the faults of invalid rows.

    With a `medium`, the texts of the table are paths of images or audio relative to its folder; or `path` is a folder
    with a subfolder for each label, whose files are numbered from 1 in path order.

    Args:
        path: a csv, tsv, jsonl or Parquet file, detected by suffix or else by its first line.
        columns: column names and format.
        problem: task type of the columns.
        skip_incomplete: skip rows without a text or label, instead of rejecting the file.
        medium: modality of the rows; `None` for texts.

    Raises:
        UsageError: the task type needs other columns.
        FileError: the file cannot be read.
        DataError: the file is not a table.
    """
    columns.check(problem)
    problem, columns = columns.read_as(problem)
    kind = HEAD_TYPES[problem]
    if medium is not None and not kind.reads_files:
        raise UsageError(f"`{problem}` reads texts, and the model {medium}", fix="pass another " + argument("task"))
    if path.is_dir():
        return LabelledTable(path, _of_folder(path, columns, problem, medium), (), (), TableFaults(path))
    table = open_table(path, columns.form)
    ignored = columns.label is None and _LABEL in table.columns
    notes = (f"the column `{_LABEL}` is ignored, as " + argument("label") + " does not name it",) if ignored else ()
    rows: list[LabelledRow] = []
    incomplete: list[int] = []
    for line, cells in table.rows(columns.needed):
        with table.faults.of_line(line):
            for row in kind.rows(columns.cells(cells, table.where(line))):
                if row is None:
                    incomplete.append(line)
                elif medium is None:
                    rows.append(LabelledRow(line, *row, cells))
                else:
                    file = labelled_file(path.parent / row[0], table.where(line))
                    rows.append(LabelledRow(line, file, *row[1:], cells))
    if incomplete and not skip_incomplete:
        table.faults.add(_incomplete(path, columns, incomplete))
    elif not rows and not table.faults.errors:
        expected = "a line with the column names, then one row a line"
        empty = DataError("contains no rows", where=path, expected=expected)
        table.faults.add(DataError("no row has both a text and a label", where=path) if incomplete else empty)
    return LabelledTable(path, rows, incomplete, (*table.notes, *notes), table.faults)


def _incomplete(path: Path, columns: Columns, lines: Sequence[int]) -> DataError:
    return DataError(
        f"{rows_that(len(lines), 'have')} no text or no label",
        where=path,
        found=lines_of(lines),
        expected=f"all of {some(columns.needed)} in every row",
        fix="complete these rows, or give " + argument("skip_incomplete", True) + " to leave them out",
    )


def labelled_file(path: Path, where: object) -> LabelledFile:
    """Return a file with its hash; DataError if it is missing or empty."""
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
    """Read a folder with a subfolder for each label, ignoring hidden names."""
    if medium is None or not TASK_TYPES[problem].stratified:
        entry = "a folder" if medium is None else f"a folder, and the task `{problem}`"
        raise DataError("is not a table", where=path, found=entry, expected="a csv, tsv, jsonl or Parquet file")
    inside = sorted(entry_path for entry_path in path.iterdir() if not entry_path.name.startswith("."))
    strays = [entry_path for entry_path in inside if not entry_path.is_dir()]
    expected = "a folder of files for each label, and nothing else"
    if strays or not inside:
        entry = f"the file `{strays[0].name}`" if strays else "nothing"
        fix = "move it into the folder of its label, or pass a table of paths and labels"
        raise DataError("is not a folder of labelled files", where=path, found=entry, expected=expected, fix=fix)
    rows: list[LabelledRow] = []
    for folder in inside:
        files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
        if not files:
            raise DataError("a label without files", where=folder, expected=expected, fix="remove the folder")
        for file in files:
            cells = {columns.text: file.relative_to(path).as_posix(), str(columns.label): folder.name}
            rows.append(LabelledRow(len(rows) + 1, labelled_file(file, file), None, folder.name, cells))
    return rows


def data_digest(path: Path, rows: Sequence[LabelledRow]) -> str:
    """Return the SHA-256 of a text table; for media, of their hashes and answers, regardless of names."""
    if not isinstance(rows[0].text, LabelledFile):
        return sha256_of(path)
    lines = (f"{row.text.sha256} {row.answer}\n" for row in rows if isinstance(row.text, LabelledFile))
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def row_digest(row: LabelledRow, salt: str) -> int:
    """Return 32 bits of a salted hash of a row's texts, ignoring label, case and spaces.

    Args:
        row: the row.
        salt: hexadecimal, such as the `data_digest` of the training file.
    """
    texts = json.dumps([_unspaced(row.text), _unspaced(row.pair)]).encode()  # escapes what UTF-8 cannot encode
    salted = hashlib.blake2b(texts, digest_size=_DIGEST_BYTES, salt=bytes.fromhex(salt)[:_SALT_BYTES])
    return int.from_bytes(salted.digest(), "big")


def _unspaced(value: object) -> object:
    if isinstance(value, LabelledFile):
        return value.sha256
    if isinstance(value, str):
        return " ".join(value.split()).casefold()
    return list(map(_unspaced, value)) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class RememberedRows:
    """Row digests of a file: all rows of a short file, a sample of a long one.

    The sample is the smallest digests (bottom-k, Cohen and Kaplan 2007): rows with larger digests are unknown, so that
    only part of another file's rows can be looked up.

    Attributes:
        salt: hexadecimal salt.
        rows: number of distinct rows.
        digests: the smallest digests, at most `MOST_DIGESTS`.
    """

    salt: str
    rows: int
    digests: frozenset[int]

    @classmethod
    def of(cls, digests: Iterable[int], salt: str) -> RememberedRows:
        """Store digests made with this salt."""
        different = sorted(set(digests))
        return cls(salt[: 2 * _SALT_BYTES], len(different), frozenset(different[:MOST_DIGESTS]))

    @classmethod
    def from_json(cls, document: object) -> RememberedRows | None:
        """Parse the output of `to_json`; `None` for other values, such as the record of another program."""
        record = document if isinstance(document, Mapping) else {}
        salt, rows, packed = (record.get(name) for name in ("salt", "rows", "digests"))
        if not (isinstance(salt, str) and isinstance(rows, int) and isinstance(packed, str)):
            return None
        try:
            data, _ = base64.b64decode(packed, validate=True), bytes.fromhex(salt)
        except ValueError:
            return None
        places = range(0, len(data), _DIGEST_BYTES)
        return cls(salt, rows, frozenset(int.from_bytes(data[at : at + _DIGEST_BYTES], "big") for at in places))

    def to_json(self) -> dict[str, Any]:
        """Return the rows for a training record."""
        packed = b"".join(digest.to_bytes(_DIGEST_BYTES, "big") for digest in sorted(self.digests))
        return {"salt": self.salt, "rows": self.rows, "digests": base64.b64encode(packed).decode()}

    def count(self, rows: Iterable[LabelledRow]) -> tuple[int, int]:
        """Return the number of known rows, and the number of rows that could be looked up."""
        # only the smallest digests are stored: a larger one may be of a known row
        most = 2 ** (8 * _DIGEST_BYTES) if len(self.digests) >= self.rows else max(self.digests, default=-1)
        known = [digest for digest in (row_digest(row, self.salt) for row in rows) if digest <= most]
        return sum(digest in self.digests for digest in known), len(known)


def read_texts(path: Path, columns: Columns) -> tuple[list[tuple[str, str | None]], tuple[str, ...]]:
    """Read the texts and second texts of a table, without labels; rows without a text are skipped.

    Returns:
        The texts, and notes on reading the file.

    Raises:
        FileError: the file cannot be read.
        DataError: lines are invalid, a column is missing, or no row has a text.
    """
    wanted, pairs = [name for name in (columns.text, columns.pair) if name is not None], []
    table = open_table(path, columns.form)
    for _, cells in table.rows(wanted):
        text = text_cell(cells[columns.text])
        pair = None if columns.pair is None else text_cell(cells[columns.pair])
        if text is not None and (columns.pair is None or pair is not None):
            pairs.append((text, pair))
    if not pairs and not table.faults.errors:
        table.faults.add(DataError("no row has a text", where=path, expected=f"texts in {some(wanted)}"))
    table.faults.check()
    return pairs, table.notes
