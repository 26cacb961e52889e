"""Tables of a training run, checked without its model: unique labelled rows of each part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter_export.errors import DataError, UsageError
from adapter_export.format.tabular.labelled import (
    Columns,
    LabelledRow,
    LabelledTable,
    data_digest,
    find_labelled_rows,
    row_digest,
)
from adapter_export.format.tabular.table_faults import TableFaults, lines_of, raise_faults, rows_that, skipped
from adapter_export.graph.tasks import DEFAULT_TYPE, HEAD_TYPES, ProblemType, TaskType
from adapter_export.graph.tasks.cells import some
from adapter_export.words import Words, argument


@dataclass(frozen=True)
class LabelledTexts:
    """The unique rows of a file: texts, pairs, words or the pairs of a question, with their targets.

    Attributes:
        texts: the texts.
        labels: the targets.
        lines: line of each row, the first one of repeated rows.
        repeated: lines of rows that repeat an earlier one, which are skipped.
        incomplete: lines of rows without a text or a label, which are skipped.
        contradicting: for each text with several labels, the line with the second one; all are kept.
        sha256: `data_digest` of the file.
        digests: row digests for the training record.
        notes: notes on reading the file.
    """

    texts: tuple[Any, ...]
    labels: tuple[Any, ...]
    lines: tuple[int, ...]
    repeated: tuple[int, ...] = ()
    incomplete: tuple[int, ...] = ()
    contradicting: tuple[int, ...] = ()
    sha256: str = field(default="", compare=False)
    digests: tuple[int, ...] = field(default=(), compare=False)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: LabelledTable, kind: TaskType, prefixes: tuple[str, str] = ("", "")) -> LabelledTexts:
        """Return the rows of a table for a task type; for `prefixes` see `TaskFiles`."""
        first: dict[tuple[Any, Any], LabelledRow] = {}
        repeated, contradicting, labels = list[int](), dict[Any, int](), dict[Any, Any]()
        for row in table.rows:
            text = kind.tokenized(row.text, row.pair, row.answer, prefixes)
            if (text, row.answer) in first:
                repeated.append(row.line)
                continue
            first[text, row.answer] = row
            if labels.setdefault(text, row.answer) != row.answer:
                contradicting.setdefault(text, row.line)
        digest = data_digest(table.path, table.rows) if table.rows else ""
        return cls(
            tuple(text for text, _ in first),
            tuple(label for _, label in first),
            tuple(row.line for row in first.values()),
            tuple(repeated),
            tuple(table.incomplete),
            tuple(contradicting.values()),
            digest,
            tuple(row_digest(row, digest) for row in first.values()),
            table.notes,
        )

    def remarks(self, part: str, word: str) -> Iterator[str]:
        """Yield clauses on skipped and contradicting rows; `word` names a row, such as `text`."""
        yield from self.notes
        if self.repeated:
            count, where = len(self.repeated), lines_of(self.repeated)
            yield f"{rows_that(count, 'repeat', part)} another row {skipped(count)} ({where})"
        if self.incomplete:
            count, where = len(self.incomplete), lines_of(self.incomplete)
            yield f"{rows_that(count, 'have', part)} no text or no label {skipped(count)} ({where})"
        if self.contradicting:
            count, where = len(self.contradicting), lines_of(self.contradicting)
            yield f"{rows_that(count, 'occur', part, word)} with more than one label ({where})"


@dataclass(frozen=True)
class SplitFiles:
    """Files of a training run.

    Attributes:
        training: the training rows.
        validation: a file, or the fraction of `training` to hold out; `None` if nothing is trained.
        test: rows scored once, at the end.
        columns: columns of all files.

    Raises:
        UsageError: the fraction is not between 0 and 1.
    """

    training: Path
    validation: Path | float | None = 0.1
    test: Path | None = None
    columns: Columns = field(default_factory=Columns)

    def __post_init__(self) -> None:
        check_fraction(self.validation)

    @property
    def paths(self) -> dict[str, Path]:
        """Return the files by part: `training`, `validation` and `test`."""
        sources = {"training": self.training, "validation": self.validation, "test": self.test}
        return {part: path for part, path in sources.items() if isinstance(path, Path)}


@dataclass(frozen=True)
class TaskFiles(SplitFiles):
    """Files of a task.

    Attributes:
        problem: task type of the rows.
        skip_incomplete: skip rows without a text or a label.
        prefixes: prefix of the texts of an embedding; for pairs, the prefixes of anchors and documents.
        labels: labels of an existing head; empty for a new head, whose labels are those of the rows.
        remembers_rows: whether the training record stores row digests.
    """

    problem: ProblemType = DEFAULT_TYPE
    skip_incomplete: bool = False
    prefixes: tuple[str, str] = ("", "")
    labels: tuple[str, ...] = ()
    remembers_rows: bool = True


def check_fraction(validation: Path | float | None) -> None:
    """Raise UsageError unless the validation fraction is between 0 and 1."""
    if isinstance(validation, float) and not 0 < validation < 1:
        raise UsageError("the validation fraction must be above 0 and below 1", found=validation)


@dataclass(frozen=True)
class TrainingTables:
    """Consistent tables of a training run.

    Attributes:
        files: the files.
        tables: the rows of each part.
        labels: class names; empty without classes.
        answers: targets of each part.
        numbers: number of regression targets; 0 for other tasks.
        medium: modality of the rows; `None` for texts.
    """

    files: TaskFiles
    tables: Mapping[str, LabelledTexts]
    labels: tuple[str, ...]
    answers: Mapping[str, Any]
    numbers: int
    medium: str | None = None


def read_tables(files: TaskFiles, medium: str | None = None) -> TrainingTables:
    """Read all files of a task; repeated rows are skipped, so that no row is in two splits.

    Raises:
        UsageError: the task type needs other columns.
        FileError: a file cannot be read.
        DataError: files are invalid; the message lists all faulty rows.
    """
    options: dict[str, Any] = {"skip_incomplete": files.skip_incomplete, "medium": medium}
    files_by_part = {
        part: find_labelled_rows(path, files.columns, files.problem, **options) for part, path in files.paths.items()
    }
    kind = HEAD_TYPES[files.problem]
    tables = {part: LabelledTexts.of(rows, kind, files.prefixes) for part, rows in files_by_part.items()}
    labels, answers = _labels(kind, files, tables["training"], files_by_part["training"].faults), dict[str, Any]()
    for part, table in tables.items() if labels is not None else ():
        faults = files_by_part[part].faults
        if table.texts and not _unknown_labels(kind, table, labels or (), faults):
            with faults.of_table():
                answers[part] = kind.encode(table.labels, labels or (), str(files.paths[part]))
                if not isinstance(files.validation, float):
                    kind.check_rows(table.texts, answers[part], part)
    raise_faults([table.faults for table in files_by_part.values()])
    counts = {part: kind.numbers(table.labels) for part, table in tables.items()}
    if len(set(counts.values())) > 1:
        raise DataError("the files have different numbers of numbers", found=counts, expected="one number for all")
    return TrainingTables(files, tables, labels or (), answers, counts["training"], medium)


def _labels(kind: TaskType, files: TaskFiles, table: LabelledTexts, faults: TableFaults) -> tuple[str, ...] | None:
    """Return the valid labels; `None` if faults of the table prevent it.

    Rows that cannot be split in two are faults.
    """
    if files.validation is None or not table.texts:
        return files.labels or (None if faults.errors else ())
    split = isinstance(files.validation, float)
    try:
        named = kind.label_names(table.labels, str(files.training), split=split)
        if split:
            check_split(kind, table.texts, files.training)
    except DataError as error:
        counts = Counter(label for label in table.labels if isinstance(label, str))
        rare = [line for line, label in zip(table.lines, table.labels, strict=True) if counts[label] == 1]
        if rare and len(counts) > 1:
            error.where = Words(f"{files.training}, {lines_of(rare)}")
            error.args = (error.sentence(),)
        faults.add(error)
        return files.labels or None
    return files.labels or named


def check_split(kind: TaskType, texts: Sequence[Any], path: Path) -> None:
    """Raise DataError for rows that cannot be split in two, by class, by group or individually."""
    if kind.stratified:  # checked with the labels
        return
    groups = {kind.group(text) for text in texts}
    if len(texts) < 2 or (None not in groups and len(groups) < 2):
        what = "row" if len(texts) < 2 else "group of rows"
        raise DataError(
            f"a single {what} cannot be both trained on and validated",
            where=path,
            expected="at least two",
            fix="add rows, or pass a validation file: " + argument("validation_data", words="FILE"),
        )


def _unknown_labels(kind: TaskType, table: LabelledTexts, labels: Sequence[str], faults: TableFaults) -> bool:
    """Add rows with unknown labels to the faults; return whether there are any."""
    known, any_found = set(labels), False
    for line, answer in zip(table.lines, table.labels, strict=True) if kind.has_labels else ():
        unknown = [label for label in kind.labels_of(answer) if label not in known]
        if unknown:
            where, fix = f"{faults.path}, line {line}", "correct the label, or remove the row"
            shown, expected = some(unknown), some(labels)
            faults.add(DataError("contains unknown labels", where=where, found=shown, expected=expected, fix=fix), line)
            any_found = True
    return any_found
