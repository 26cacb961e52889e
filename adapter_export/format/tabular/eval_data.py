"""Labelled rows of a file for an evaluation, read without the bundle."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from adapter_export.errors import DataError, UsageError
from adapter_export.format.tabular.labelled import Columns, LabelledRow, data_digest, labelled_rows
from adapter_export.format.tabular.language_tables import LanguageLines, incomplete_rows
from adapter_export.format.tabular.table_faults import lines_of, raise_faults
from adapter_export.graph.tasks import CAUSAL_LM, DEFAULT_TYPE, TASK_TYPES, ProblemType, Task
from adapter_export.graph.tasks.cells import some
from adapter_export.modalities import FILE_MODALITIES
from adapter_export.tables import number_of, verb_for
from adapter_export.words import argument, did_you_mean, quoted

_SEED = 0
"""Seed for sampling rows: every contestant and run answers the same rows."""


@dataclass(frozen=True)
class EvalData:
    """Labelled rows of a file.

    Attributes:
        path: the file, or the folder with one file per row.
        sha256: `data_digest` of all rows.
        rows: the rows to answer.
        is_part: whether a limit excludes rows.
        columns: the columns read, by option name.
        groups: for a ranking, the group of each row.
        slices: the column whose values are scored separately.
        notes: notes on reading the file and skipped rows.
        problem: task type of the rows and their scores.
        compared: whether the vectors of each row's texts are compared.
        dimensions: number of leading vector elements used; `None` for all.
    """

    path: Path
    sha256: str
    rows: tuple[LabelledRow, ...]
    is_part: bool
    columns: Mapping[str, str | None]
    groups: tuple[str, ...] = ()
    slices: str | None = None
    notes: tuple[str, ...] = ()
    problem: ProblemType = DEFAULT_TYPE
    compared: bool = False
    dimensions: int | None = None

    def texts(self, row: LabelledRow) -> tuple[Any, ...]:
        """Return the texts of a row to compare: a pair, or an anchor and its documents."""
        return (row.text, row.pair) if TASK_TYPES[self.problem].has_answers else row.answer

    def check_pairs(self, task: Task, adapter: str) -> None:
        """Raise UsageError for texts if a task needs pairs, and for pairs if it needs texts."""
        has_pair = self.rows[0].pair is not None
        if not self.compared and has_pair != (task.input == "pair"):
            wanted = "one text" if task.input == "text" else "a pair of texts"
            fix = "name the column of the second texts: " + argument("pair")
            raise UsageError(
                f"adapter `{adapter}` answers {wanted} (`{task.type}`)",
                fix=fix if task.input == "pair" else "omit " + argument("pair"),
            )

    def unknown_labels(self, task: Task) -> dict[str, int]:
        """Return labels that a task lacks, each with the line of its first row."""
        lines: dict[str, int] = {}
        for row in self.rows if task.kind.has_labels else ():
            for label in task.kind.labels_of(row.answer):
                if label not in task.labels:
                    lines.setdefault(label, row.line)
        return lines

    def check_labels(self, task: Task) -> None:
        """Raise DataError for labels that the adapter's task lacks."""
        unknown = self.unknown_labels(task)
        if unknown:
            raise DataError(
                "contains labels that the adapter does not have",
                where=f"{self.path}, {lines_of(sorted(unknown.values()))}",
                found=some(unknown),
                expected=some(task.labels),
                fix="map the labels, or name their column: " + argument("label"),
            )

    def values(self, column: str) -> list[str]:
        """Return the cell of each row in a column; an empty cell is `(empty)`."""
        return ["(empty)" if row.cells[column] in (None, "") else str(row.cells[column]) for row in self.rows]


@dataclass(frozen=True)
class DataOptions:
    """Options of calls that read labelled rows.

    Attributes:
        columns: the columns with texts and labels.
        group: the column that a ranking groups by; `None` for the query.
        slices: the column whose values are scored separately.
        skip_incomplete: skip rows without a text or a label instead of rejecting the file.
        limit: size of a random sample of rows; `None` for all.
        dimensions: see `EvalData`.
    """

    columns: Columns
    group: str | None
    skip_incomplete: bool
    limit: int | None
    slices: str | None = None
    dimensions: int | None = None

    def read(self, path: Path, task: Task) -> EvalData:
        """Read labelled rows for a task.

        The label of compared pairs is a number, or absent: then anchors are ranked with documents.

        Raises:
            UsageError: a column does not exist, or the task does not support groups or these dimensions.
            DataError, FileError: the file cannot be read, or a row is invalid.
        """
        medium: Any = task.input if task.input in FILE_MODALITIES else None
        is_file = self.columns.text == "text" and medium is not None
        columns = replace(self.columns, text=task.input) if is_file else self.columns
        problem, columns = columns.read_as(task.type)
        if task.kind.compares_pairs and columns.pair is not None and problem == task.type:
            problem = "regression"
        table = labelled_rows(path, columns, problem, skip_incomplete=self.skip_incomplete, medium=medium)
        rows = table.rows
        if self.dimensions is not None and not task.kind.is_vector:
            where, shown = argument("dimensions"), f"the task `{task.type}`"
            raise UsageError("only vectors can be truncated", where=where, found=shown, fix="omit it")
        _check_columns(rows[0], group=self.group, slices=self.slices)
        if self.group is not None and not task.kind.ranks:
            raise UsageError("only a ranking has a " + argument("group"), found=f"the task `{task.type}`")
        of_rows = [str(row.text if self.group is None else row.cells[self.group]) for row in rows]
        chosen = self._sampled(of_rows if task.kind.ranks else [str(at) for at in range(len(rows))])
        drawn = tuple(rows[at] for at in chosen)
        groups = tuple(of_rows[at] for at in chosen) if task.kind.ranks else ()
        digest, is_part = data_digest(path, rows), len(drawn) < len(rows)
        notes = (*table.notes, *self._left_out(table.incomplete, len(drawn), len(rows)))
        return EvalData(
            path,
            digest,
            drawn,
            is_part,
            columns.names,
            groups,
            self.slices,
            notes,
            problem,
            compared=problem != task.type or not task.kind.has_answers,
            dimensions=self.dimensions,
        )

    def read_texts(self, path: Path) -> EvalData:
        """Read texts, or prompts and answers, for a language model; `columns.pair` is the column of answers.

        Raises:
            UsageError: a column does not exist, or an option does not go with texts.
            DataError, FileError: the file cannot be read, or a row is broken.
        """
        options = {"group": self.group, "dimensions": self.dimensions, "negative": self.columns.negatives or None}
        options |= {"label": self.columns.label, "start": self.columns.start}
        for option in (name for name, value in options.items() if value is not None):
            fix = "omit it; " + argument("pair") + " is the column of answers"
            raise UsageError("does not go with the texts of a language model", where=argument(option), fix=fix)
        opened = LanguageLines.of(path, self.columns)
        labelled_rows, incomplete = list[LabelledRow](), list[int]()
        for line, text, cells in opened.lines:
            if text is None:
                incomplete.append(line)
            else:
                labelled_rows.append(LabelledRow(line, text[0], text[1], text[1], cells))
        if incomplete and not self.skip_incomplete:
            opened.faults.add(incomplete_rows(path, incomplete))
        elif not labelled_rows and not opened.faults.errors:
            opened.faults.add(DataError("contains no texts", where=path, expected="a text in each line, or a table"))
        raise_faults([opened.faults])
        _check_columns(labelled_rows[0], slices=self.slices)
        rows = tuple(labelled_rows[at] for at in self._sampled([str(at) for at in range(len(labelled_rows))]))
        notes = (*opened.notes, *self._left_out(incomplete, len(rows), len(labelled_rows)))
        names = {**self.columns.names, "text": opened.text or None, "pair": opened.answer}
        return EvalData(
            path,
            data_digest(path, rows),
            rows,
            len(rows) < len(labelled_rows),
            names,
            slices=self.slices,
            notes=notes,
            problem=CAUSAL_LM,
        )

    def _left_out(self, incomplete: Sequence[int], drawn: int, total: int) -> Iterator[str]:
        """Yield clauses on rows that are not answered."""
        if incomplete:
            count = len(incomplete)
            rows = f"{number_of(count, 'row')} without a text or a label {verb_for(count, 'were')}"
            yield f"{rows} skipped ({lines_of(incomplete)})"
        if drawn < total:
            yield f"{drawn:,} of {number_of(total, 'row')} {verb_for(drawn, 'were')} drawn at random"

    def _sampled(self, units: Sequence[str]) -> list[int]:
        """Return the indices of a random sample in file order, deterministic for equal rows.

        Files are often sorted by label, so that the first rows would all have one class. Rows of one group stay
        together, because a partial group is another ranking.
        """
        if self.limit is None or self.limit >= len(units):
            return list(range(len(units)))
        counts = Counter(units)
        names = list(counts)
        random.Random(_SEED).shuffle(names)
        ends = accumulate(counts[name] for name in names)
        sample = {name for name, end in zip(names, ends, strict=True) if end <= self.limit} or {names[0]}
        return [at for at, unit in enumerate(units) if unit in sample]


def _check_columns(row: LabelledRow, **named: str | None) -> None:
    """Raise UsageError if an option names a column that a row does not have."""
    for option, column in named.items():
        if column is not None and column not in row.cells:
            expected = f"one of {quoted(row.cells)}"
            fix = did_you_mean(column, row.cells, "name one of these")
            raise UsageError("no such column", where=argument(option), found=f"`{column}`", expected=expected, fix=fix)
