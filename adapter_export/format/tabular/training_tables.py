"""The tables of a training, read and checked without its model: labelled rows, each once, for each part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter_export.errors import DataError, Note, UsageError, argument
from adapter_export.format.tabular.labelled import (
    Columns,
    LabelledRow,
    LabelledTable,
    data_digest,
    find_labelled_rows,
    row_digest,
)
from adapter_export.format.tabular.table_faults import TableFaults, lines_of, raise_faults
from adapter_export.graph.tasks import DEFAULT_TYPE, TASK_TYPES, ProblemType, TaskType
from adapter_export.graph.tasks.cells import some


@dataclass(frozen=True)
class LabelledTexts:
    """The rows of a file, each once: texts, pairs, words or the pairs of a question, and what is to be learnt of each.

    Attributes:
        texts: the texts.
        labels: the answer to each.
        lines: the line of each, the first one of rows that repeat each other.
        repeated: the lines of rows that repeat an earlier one; they are left out.
        incomplete: the lines of rows without a text or a label; they are left out.
        contradicting: for each text that has several labels, the line with the second one; all are kept.
        sha256: `data_digest` of the file.
        digests: those of the rows, by which their training record recognises them.
        notes: on how the file was read.
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
        """Return the rows of a table as a type reads them; `prefixes` as in `TaskFiles`."""
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
        """Yield clauses on rows that were left out or contradict each other; `word` names a row, such as `text`."""
        yield from self.notes
        if self.repeated:
            count, where = len(self.repeated), lines_of(self.repeated)
            yield f"{count:,} rows of the {part} data repeat another row and were left out ({where})"
        if self.incomplete:
            count, where = len(self.incomplete), lines_of(self.incomplete)
            yield f"{count:,} rows of the {part} data have no text or no label and were left out ({where})"
        if self.contradicting:
            count, where = len(self.contradicting), lines_of(self.contradicting)
            yield f"{count:,} {word}s of the {part} data occur with more than one label ({where})"


@dataclass(frozen=True)
class SplitFiles:
    """The files of a training.

    Attributes:
        training: the rows to learn from.
        validation: a file, or the fraction of `training` that is held out; `None` where nothing learns from the rows.
        test: rows that are scored once, at the end.
        columns: of all files.

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
        """The files by what they are for: `training`, `validation` and `test`."""
        found = {"training": self.training, "validation": self.validation, "test": self.test}
        return {part: path for part, path in found.items() if isinstance(path, Path)}


@dataclass(frozen=True)
class TaskFiles(SplitFiles):
    """The files of a task.

    Attributes:
        problem: what the rows ask.
        skip_incomplete: leave rows out that lack a text or a label.
        prefixes: text before each row of an embedding; of pairs, before anchors and before documents.
        labels: those of a head that exists; empty for a new one, whose labels are those of the rows.
        remembers_rows: the training record recognises the rows.
    """

    problem: ProblemType = DEFAULT_TYPE
    skip_incomplete: bool = False
    prefixes: tuple[str, str] = ("", "")
    labels: tuple[str, ...] = ()
    remembers_rows: bool = True


def check_fraction(validation: Path | float | None) -> None:
    """Raise UsageError for a part kept for validation that is none."""
    if isinstance(validation, float) and not 0 < validation < 1:
        raise UsageError("the part kept for validation is a fraction", found=validation, expected="above 0 and below 1")


@dataclass(frozen=True)
class TrainingTables:
    """The tables of a training, whose rows go together.

    Attributes:
        files: the files.
        tables: the rows of each part.
        labels: the name of each class; empty where there are none.
        answers: the answers of each part, as a model learns them.
        numbers: how many numbers a regression learns; 0 for other tasks.
        medium: what the rows are, where they are no texts.
    """

    files: TaskFiles
    tables: Mapping[str, LabelledTexts]
    labels: tuple[str, ...]
    answers: Mapping[str, Any]
    numbers: int
    medium: str | None = None


def read_tables(files: TaskFiles, medium: str | None = None) -> TrainingTables:
    """Read all files of a task; repeated rows are left out, so that no split can hold both.

    Raises:
        UsageError: the problem type reads other columns.
        FileError: a file cannot be read.
        DataError: files cannot be used; the error names every row that is at fault, and what to do.
    """
    options: dict[str, Any] = {"skip_incomplete": files.skip_incomplete, "medium": medium}
    found = {
        part: find_labelled_rows(path, files.columns, files.problem, **options) for part, path in files.paths.items()
    }
    kind = TASK_TYPES[files.problem]
    tables = {part: LabelledTexts.of(one, kind, files.prefixes) for part, one in found.items()}
    labels, answers = _labels(kind, files, tables["training"], found["training"].faults), dict[str, Any]()
    for part, table in tables.items() if labels is not None else ():
        faults = found[part].faults
        if table.texts and not _unknown_labels(kind, table, labels or (), faults):
            with faults.of_table():
                answers[part] = kind.encode(table.labels, labels or (), str(files.paths[part]))
                if not isinstance(files.validation, float):
                    kind.check_rows(table.texts, answers[part], part)
    raise_faults([one.faults for one in found.values()])
    counts = {part: kind.numbers(table.labels) for part, table in tables.items()}
    if len(set(counts.values())) > 1:
        raise DataError("the files have different numbers of numbers", found=counts, expected="one number for all")
    return TrainingTables(files, tables, labels or (), answers, counts["training"], medium)


def _labels(kind: TaskType, files: TaskFiles, table: LabelledTexts, faults: TableFaults) -> tuple[str, ...] | None:
    """Return the labels that rows may have; `None` where faults of the table leave them open.

    Rows that cannot be split in two are faults, too.
    """
    if files.validation is None or not table.texts:
        return files.labels or (None if faults.found else ())
    split = isinstance(files.validation, float)
    try:
        named = kind.label_names(table.labels, str(files.training), split=split)
        if split:
            check_split(kind, table.texts, files.training)
    except DataError as error:
        counts = Counter(label for label in table.labels if isinstance(label, str))
        rare = [line for line, label in zip(table.lines, table.labels, strict=True) if counts[label] == 1]
        if rare and len(counts) > 1:
            error.where = Note(f"{files.training}, {lines_of(rare)}")
            error.args = (error.sentence(),)
        faults.add(error)
        return files.labels or None
    return files.labels or named


def check_split(kind: TaskType, texts: Sequence[Any], path: Path) -> None:
    """Raise DataError for rows that cannot be split in two by class, by group, or as they come."""
    if kind.stratified:  # its labels were counted
        return
    groups = {kind.group(text) for text in texts}
    if len(texts) < 2 or (None not in groups and len(groups) < 2):
        what = "row" if len(texts) < 2 else "group of rows"
        raise DataError(
            f"a single {what} cannot be both trained on and validated",
            where=path,
            expected="at least two",
            fix=f"give more rows, or a file to validate by: {argument('validation_data', words='FILE')}",
        )


def _unknown_labels(kind: TaskType, table: LabelledTexts, labels: Sequence[str], faults: TableFaults) -> bool:
    """Add rows with unknown labels to the faults; returns whether there are any."""
    known, any_found = set(labels), False
    for line, answer in zip(table.lines, table.labels, strict=True) if kind.has_labels else ():
        unknown = [label for label in kind.labels_of(answer) if label not in known]
        if unknown:
            where, fix = f"{faults.path}, line {line}", "correct the label, or leave the row out"
            found, expected = some(unknown), some(labels)
            faults.add(DataError("holds unknown labels", where=where, found=found, expected=expected, fix=fix), line)
            any_found = True
    return any_found
