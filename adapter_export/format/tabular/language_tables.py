"""Tables for language modelling, checked without the model: unique texts, prompts and answers, or conversations."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapter_export.errors import DataError, UsageError
from adapter_export.format.tabular.conversations import MESSAGES, Conversation, read_conversation
from adapter_export.format.tabular.labelled import Columns
from adapter_export.format.tabular.table_faults import TableFaults, lines_of, raise_faults, rows_that, skipped
from adapter_export.format.tabular.table_files import DETECTED, TextTable, open_table, text_lines
from adapter_export.format.tabular.training_tables import SplitFiles
from adapter_export.graph.tasks.cells import is_blank, text_cell
from adapter_export.safe_io.regular_files import read_stream, sha256_of
from adapter_export.words import argument

PROMPT, ANSWER = "prompt", "answer"
"""Default columns of a table of prompts and answers."""

WrittenText = tuple[str, str | None]
"""A text, or a prompt and its answer."""

Lines = Iterator[tuple[int, WrittenText | None, Mapping[str, Any]]]
"""The number of each line, its text, or `None` if it is incomplete, and its cells by column."""


@dataclass(frozen=True)
class LanguageFiles(SplitFiles):
    """Files of a language modelling task.

    A `.txt` file contains one text per line; other files are tables. With `columns.pair`, or columns `prompt` and
    `answer`, rows are prompts and answers; with a column `messages`, conversations.

    Attributes:
        validation: a file, or the fraction of `training` to hold out.
        skip_incomplete: skip rows without a text or an answer.
    """

    validation: Path | float = 0.1
    skip_incomplete: bool = False


@dataclass(frozen=True)
class LanguageTexts:
    """The unique texts of a file.

    Attributes:
        texts: the texts, prompts and answers, or conversations.
        repeated: lines of rows that repeat an earlier one, which are skipped.
        incomplete: lines of rows without a text or an answer, which are skipped.
        sha256: SHA-256 of the file.
        notes: notes on reading the file.
    """

    texts: Sequence[WrittenText] | Sequence[Conversation]
    repeated: Sequence[int]
    incomplete: Sequence[int]
    sha256: str
    notes: tuple[str, ...]

    def remarks(self, part: str) -> Iterator[str]:
        """Yield clauses on skipped rows."""
        yield from self.notes
        if self.repeated:
            where = lines_of(self.repeated)
            yield f"{rows_that(len(self.repeated), 'repeat', part)} another row {skipped(len(self.repeated))} ({where})"
        if self.incomplete:
            count, where = len(self.incomplete), lines_of(self.incomplete)
            yield f"{rows_that(count, 'have', part)} no text or no answer {skipped(count)} ({where})"


@dataclass(frozen=True)
class LanguageTables:
    """The texts of each part of a language modelling task."""

    files: LanguageFiles
    texts: Mapping[str, LanguageTexts]

    @property
    def has_conversations(self) -> bool:
        """True if some file has conversations."""
        return any(isinstance(texts.texts[0], Conversation) for texts in self.texts.values())


def read_language_tables(files: LanguageFiles) -> LanguageTables:
    """Read all files of a language modelling task.

    Raises:
        FileError: a file cannot be read.
        DataError: files are invalid; the message lists all faulty rows.
    """
    by_part = {part: _read(path, files) for part, path in files.paths.items()}
    raise_faults([faults for _, faults in by_part.values()])
    return LanguageTables(files, {part: texts for part, (texts, _) in by_part.items()})


@dataclass(frozen=True)
class LanguageLines:
    """The lines of a file of texts, read one by one.

    Attributes:
        lines: the number of each line, its text, or `None` if it is incomplete, and its cells by column.
        text: the column of texts or prompts; empty for a `.txt` file.
        answer: the column of answers; `None` for texts.
        faults: receives rows that cannot be read.
        notes: on how the file was read.
    """

    lines: Lines
    text: str
    answer: str | None
    faults: TableFaults
    notes: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, columns: Columns) -> LanguageLines:
        """Open a `.txt` file with a text in each line, or a table; errors as of `open_table`."""
        if path.suffix.lower() == ".txt":
            lines, note = text_lines(read_stream(path), path, columns.form.encoding)
            texts = ((number, line.strip("\r\n")) for number, line in enumerate(lines, 1) if not is_blank(line))
            rows: Lines = ((number, (line, None), {}) for number, line in texts)
            return cls(rows, "", None, TableFaults(path), tuple(filter(None, (note,))))
        return cls.of_table(open_table(path, columns.form), columns)

    @classmethod
    def of_table(cls, table: TextTable, columns: Columns) -> LanguageLines:
        """Return the lines of a table; UsageError for a table of conversations."""
        if _has_conversations(table, columns):
            raise UsageError(
                "has conversations, which only `train` reads",
                where=table.path,
                found=f"the column `{MESSAGES}`",
                expected="texts, or prompts and answers",
                fix="name the column of texts with " + argument("text"),
            )
        first, second = columns.text, columns.pair
        if _is_unnamed(columns) and first not in table.columns and {PROMPT, ANSWER} <= set(table.columns):
            first, second = PROMPT, ANSWER
        fix = "name the column with " + argument("text") + ", and of answers with " + argument("pair")
        cells = table.rows([first] if second is None else [first, second], fix)
        rows = (
            (line, _complete(row[first], None if second is None else row[second], second), row) for line, row in cells
        )
        return cls(rows, first, second, table.faults, table.notes)


def incomplete_rows(path: Path, lines: Sequence[int]) -> DataError:
    """Return the error for rows that lack a text or an answer."""
    return DataError(
        f"{rows_that(len(lines), 'have')} no text or no answer",
        where=path,
        found=lines_of(lines),
        fix="complete these rows, or give " + argument("skip_incomplete", True) + " to leave them out",
    )


def _read(path: Path, files: LanguageFiles) -> tuple[LanguageTexts, TableFaults]:
    if path.suffix.lower() == ".txt":
        return _read_texts(path, files, LanguageLines.of(path, files.columns))
    table = open_table(path, files.columns.form)
    if _has_conversations(table, files.columns):
        return _read_conversations(table, files)
    return _read_texts(path, files, LanguageLines.of_table(table, files.columns))


def _read_texts(path: Path, files: LanguageFiles, opened: LanguageLines) -> tuple[LanguageTexts, TableFaults]:
    texts_found: dict[WrittenText, None] = {}
    repeated, incomplete = list[int](), list[int]()
    faults = opened.faults
    for line, text, _ in opened.lines:
        if text is None:
            incomplete.append(line)
        elif text in texts_found:
            repeated.append(line)
        else:
            texts_found[text] = None
    if incomplete and not files.skip_incomplete:
        faults.add(incomplete_rows(path, incomplete))
    elif not texts_found and not faults.errors:
        expected = "a text in each line of a .txt file, or a table"
        faults.add(DataError("contains no texts", where=path, expected=expected))
    else:
        _check_groups(path, files, {text for text, _ in texts_found}, faults)
    digest = sha256_of(path) if texts_found else ""
    return LanguageTexts(list(texts_found), repeated, incomplete, digest, opened.notes), faults


def _read_conversations(table: TextTable, files: LanguageFiles) -> tuple[LanguageTexts, TableFaults]:
    conversations: dict[Conversation, None] = {}
    repeated, faults = list[int](), table.faults
    for line, cells in table.rows([MESSAGES], "write the messages of each row in this column"):
        with faults.of_line(line):
            conversation = read_conversation(cells, table.where(line))
            if conversation in conversations:
                repeated.append(line)
            conversations[conversation] = None
    if not conversations and not faults.errors:
        faults.add(DataError("contains no conversations", where=table.path))
    elif conversations:
        _check_groups(table.path, files, {conversation.opening for conversation in conversations}, faults)
    digest = sha256_of(table.path) if conversations else ""
    return LanguageTexts(list(conversations), repeated, (), digest, table.notes), faults


def _check_groups(path: Path, files: LanguageFiles, groups: Collection[str], faults: TableFaults) -> None:
    """Add a fault if the rows cannot be split, since all of them belong together."""
    if isinstance(files.validation, float) and path == files.training and len(groups) == 1:
        faults.add(
            DataError("a single text cannot be both trained on and validated", where=path, expected="at least two")
        )


def _has_conversations(table: TextTable, columns: Columns) -> bool:
    """Return whether the rows of a table are conversations: a column `messages`, if no other one has the texts."""
    if columns.text == MESSAGES:
        return MESSAGES in table.columns and columns.pair is None
    return MESSAGES in table.columns and _is_unnamed(columns) and columns.text not in table.columns


def _is_unnamed(columns: Columns) -> bool:
    return replace(columns, form=DETECTED) == Columns()


def _complete(text: object, answer: object, second: str | None) -> WrittenText | None:
    """Return a text, or a prompt with its answer; `None` if one of them is missing."""
    first, other = text_cell(text), text_cell(answer)
    return None if first is None or (second is not None and other is None) else (first, other)
