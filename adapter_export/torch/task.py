"""A task out of files: classes or numbers, rows to learn from, to validate by and to test with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapter_export.errors import DataError, UsageError
from adapter_export.format.files import sha256_of
from adapter_export.graph.tasks import DEFAULT_TASK, Task
from adapter_export.text import Tokenizer
from adapter_export.torch.data import (
    Rows,
    TextExamples,
    class_indices,
    label_names,
    number_rows,
    split,
    word_label_names,
)
from adapter_export.torch.table import LabelledTexts, read_table


@dataclass(frozen=True)
class TaskFiles:
    """Where the rows are.

    Attributes:
        training: the file to learn from.
        validation: a file to validate by, or the fraction of each class of `training` that is kept for it.
        test: a file that is looked at once, at the end.
        text: the column that holds the texts.
        label: the column that holds the labels, or what else is to be learnt.
        skip_incomplete: leave rows without text or label out, instead of refusing the file.
        task: what is to be learnt. An embedding learns from labels: texts of one label shall be near each other.
    """

    training: Path
    validation: Path | float = 0.1
    test: Path | None = None
    text: str = "text"
    label: str = "label"
    skip_incomplete: bool = False
    task: Task = DEFAULT_TASK

    def __post_init__(self) -> None:
        if isinstance(self.validation, float) and not 0 < self.validation < 1:
            raise UsageError(
                "the part kept for validation is a fraction", found=self.validation, expected="above 0 and below 1"
            )

    def read(self, path: Path) -> LabelledTexts:
        """Read one of the files."""
        return read_table(path, self.text, self.label, task=self.task, skip_incomplete=self.skip_incomplete)


@dataclass(frozen=True)
class TextTask:
    """What `read_task` returns.

    Attributes:
        task: what is to be learnt.
        labels: the name of each class; empty for a regression.
        numbers: how many numbers a regression learns; 0 for other tasks.
        training: the rows to learn from.
        validation: the rows that decide which epoch is the best.
        test: rows that decide nothing.
        sources: the files with their sha256 and numbers of rows, for the training record.
        notes: what a user should know about the data, each a clause.
    """

    task: Task
    labels: tuple[str, ...]
    numbers: int
    training: TextExamples
    validation: TextExamples
    test: TextExamples | None
    sources: dict[str, Any]
    notes: tuple[str, ...]


def read_task(files: TaskFiles, tokenizer: Tokenizer, names: tuple[str, ...], seed: int = 0) -> TextTask:
    """Read the files, split what is to be split, and count the tokens.

    Args:
        files: where the rows are.
        tokenizer: makes the tokens.
        names: the base's inputs.
        seed: decides the split.

    Raises:
        DataError: a file cannot be used; the message says which line.
        RequestError: the base has an input that text cannot fill.
    """
    tables = {"training": files.read(files.training)}
    if isinstance(files.validation, Path):
        tables["validation"] = files.read(files.validation)
    if files.test is not None:
        tables["test"] = files.read(files.test)
    labels = _names(files.task, tables["training"], str(files.training))
    paths = {name: getattr(files, name) for name in tables}
    answers = {name: _answers(files.task, table, labels, str(paths[name])) for name, table in tables.items()}
    numbers = _numbers(answers, files.task)
    examples = {name: TextExamples.of(tables[name].texts, answers[name], tokenizer, names) for name in tables}
    notes = tuple(note for name in tables for note in _notes(name, tables, examples[name]))
    sources: dict[str, Any] = {name: _source(paths[name], table) for name, table in tables.items()}
    if isinstance(files.validation, float):
        whole = examples["training"]
        kept, held_out = split(_strata(files.task, whole), files.validation, seed)
        examples |= {"training": whole.only(kept), "validation": whole.only(held_out)}
        sources["validation"] = {"fraction": files.validation, "rows": len(held_out), "of": "training"}
    return TextTask(
        files.task,
        labels,
        numbers,
        examples["training"],
        examples["validation"],
        examples.get("test"),
        sources,
        notes,
    )


def _names(task: Task, table: LabelledTexts, where: str) -> tuple[str, ...]:
    if task == "regression":
        return ()
    return word_label_names(table.labels, where) if task == "token_classification" else label_names(table.labels, where)


def _answers(task: Task, table: LabelledTexts, labels: tuple[str, ...], where: str) -> np.ndarray | list[Rows]:
    if task == "regression":
        return number_rows(table.labels, where)
    if task == "token_classification":
        return [class_indices(row, labels, where) for row in table.labels]
    return class_indices(table.labels, labels, where)


def _numbers(answers: Mapping[str, np.ndarray | list[Rows]], task: Task) -> int:
    """How many numbers every row of every file has."""
    if task != "regression":
        return 0
    counts = {name: int(rows.shape[1]) for name, rows in answers.items() if isinstance(rows, np.ndarray)}
    if len(set(counts.values())) > 1:
        raise DataError("the files have different numbers of numbers", found=counts, expected="one number for all")
    return counts["training"]


def _strata(task: Task, examples: TextExamples) -> Rows:
    """What both halves of a split must have: every class, where rows have one."""
    if task in ("sequence_classification", "embedding"):
        return np.asarray(examples.answers)
    if len(examples.lengths) < 2:
        raise DataError("a single row cannot be both trained on and validated", expected="at least two rows")
    return np.zeros(len(examples.lengths), np.int64)


def _source(path: Path, table: LabelledTexts) -> dict[str, Any]:
    return {
        "file": path.name,
        "sha256": sha256_of(path),
        "rows": len(table.texts),
        "repeated_rows_left_out": table.repeated,
        "incomplete_rows_left_out": table.incomplete,
        "texts_with_contradicting_labels": table.contradicting,
    }


def _notes(name: str, tables: dict[str, LabelledTexts], examples: TextExamples) -> Iterator[str]:
    table = tables[name]
    if table.repeated:
        yield f"{table.repeated:,} rows of the {name} data repeat another row and were left out"
    if table.incomplete:
        yield f"{table.incomplete:,} rows of the {name} data have no text or no label and were left out"
    if table.contradicting:
        yield f"{table.contradicting:,} texts of the {name} data occur with more than one label"
    if examples.cut:
        limit = examples.tokenizer.max_tokens
        yield f"{examples.cut:,} texts of the {name} data are longer than {limit} tokens and are cut there"
    shared = len(set(table.texts) & set(tables["training"].texts)) if name != "training" else 0
    if shared:
        yield f"{shared:,} texts of the {name} data are in the training data, too, so its scores flatter"
