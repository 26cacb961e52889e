"""Examples of a task: rows of its tables as inputs of a base, split in two, with facts about them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapter_export.format.tabular.labelled import RememberedRows
from adapter_export.format.tabular.table_faults import lines_of, rows_that
from adapter_export.format.tabular.training_tables import TrainingTables
from adapter_export.graph.tasks import HEAD_TYPES, Learnt, TaskType
from adapter_export.text import Side
from adapter_export.training.loop.data import LabelledExamples, Rows, RowSource, split, split_groups


@dataclass(frozen=True)
class TextTask:
    """Rows of a task, with facts about them.

    Attributes:
        problem: task type to learn.
        labels: name of each class; empty without classes.
        numbers: number of outputs of a regression; 0 for other tasks.
        training: training rows.
        validation: rows that select the best epoch.
        test: rows that are only scored.
        sources: the files with their SHA-256 and numbers of rows, for the training record.
        notes: warnings about the data, each a clause.
    """

    problem: Learnt
    labels: tuple[str, ...]
    numbers: int
    training: LabelledExamples
    validation: LabelledExamples
    test: LabelledExamples | None
    sources: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def parts(self) -> dict[str, LabelledExamples]:
        """Rows by split: `training`, `validation` and, if present, `test`."""
        test = {} if self.test is None else {"test": self.test}
        return {"training": self.training, "validation": self.validation, **test}


def read_task(tables: TrainingTables, source: RowSource, *, side: Side = "right", seed: int = 0) -> TextTask:
    """Make examples of the rows of tables, splitting them with the seed if necessary.

    Args:
        tables: the rows.
        source: makes examples of them.
        side: side on which texts are truncated.
        seed: seed of the split.

    Raises:
        DataError: a split cannot be scored.
        RequestError: the base has an input that text cannot fill.
    """
    files, problem = tables.files, tables.files.problem
    kind = HEAD_TYPES[problem]
    examples: dict[str, LabelledExamples] = {
        name: source.examples(table.texts, tables.answers[name], problem, side) for name, table in tables.tables.items()
    }
    notes = tuple(note for name in examples for note in _warnings(name, tables, examples[name]))
    sources: dict[str, Any] = {
        name: {
            "file": files.paths[name].name,
            "sha256": table.sha256,
            "rows": len(table.texts),
            "repeated_rows_left_out": len(table.repeated),
            "incomplete_rows_left_out": len(table.incomplete),
            "texts_with_contradicting_labels": len(table.contradicting),
        }
        for name, table in tables.tables.items()
    }
    digests = {name: np.array(table.digests) for name, table in tables.tables.items()}
    if isinstance(files.validation, float):
        whole = examples["training"]
        kept, held_out = _halves(kind, whole, files.validation, seed)
        digests = {"training": digests["training"][kept], "validation": digests["training"][held_out]}
        examples |= {"training": whole.only(kept), "validation": whole.only(held_out)}
        sources["validation"] = {"fraction": files.validation, "rows": len(held_out), "of": "training"}
    salts = {name: tables.tables.get(name, tables.tables["training"]).sha256 for name in ("training", "validation")}
    for name, salt in salts.items() if files.remembers_rows else ():
        sources[name]["row_digests"] = RememberedRows.of(digests[name].tolist(), salt).to_json()
    for name, found in examples.items():
        kind.check_rows(found.texts, found.answers, name)
    return TextTask(
        problem,
        tables.labels,
        tables.numbers,
        examples["training"],
        examples["validation"],
        examples.get("test"),
        sources,
        notes,
    )


def read_examples(tables: TrainingTables, source: RowSource, *, side: Side = "right") -> LabelledExamples:
    """Make examples of the training file only, without splitting it, for an existing head.

    Raises:
        RequestError: the base has an input that text cannot fill.
    """
    return source.examples(tables.tables["training"].texts, tables.answers["training"], tables.files.problem, side)


def _halves(kind: TaskType, whole: Any, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Return training rows and validation rows: by class, by group, or in order."""
    if kind.stratified:
        return split(np.asarray(whole.answers), fraction, seed)
    groups = [kind.group(text) for text in whole.texts]
    if None in groups:
        return split(np.zeros(len(whole.lengths), np.int64), fraction, seed)
    return split_groups(groups, fraction, seed)


def _warnings(name: str, tables: TrainingTables, examples: LabelledExamples) -> Iterator[str]:
    table, word = tables.tables[name], examples.word
    yield from table.remarks(name, examples.word)
    if examples.cut:
        where = lines_of([table.lines[at] for at in examples.cut])
        are = "is" if len(examples.cut) == 1 else "are"
        exceeding = rows_that(len(examples.cut), "exceed", name, word)
        yield f"{exceeding} {examples.limit} and {are} truncated ({where})"
    if examples.lost:
        where = lines_of([table.lines[at] for at in examples.lost])
        yield f"{rows_that(len(examples.lost), 'are', name, 'answer')} truncated and cannot be learned ({where})"
    known = set(tables.tables["training"].texts) if name != "training" else set()
    shared = [line for text, line in zip(table.texts, table.lines, strict=True) if text in known]
    if shared:
        said = f"{rows_that(len(shared), 'are', name, word)} also in the training data, which inflates the scores"
        yield f"{said} ({lines_of(shared)})"
