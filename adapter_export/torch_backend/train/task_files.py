"""The files of a task: labelled rows, each once, split in two, and what is known of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapter_export.errors import DataError, UsageError
from adapter_export.format.labelled import (
    Columns,
    LabelledRow,
    RememberedRows,
    data_digest,
    labelled_rows,
    row_digest,
)
from adapter_export.graph.tasks import DEFAULT_TYPE, TASK_TYPES, Learnt, ProblemType, TaskType
from adapter_export.text import Pair, Side
from adapter_export.torch_backend.train.data import LabelledExamples, Rows, RowSource, split, split_groups


@dataclass(frozen=True)
class LabelledTexts:
    """The rows of a file, each once: texts, pairs, words or the pairs of a question, and what is to be learnt of each.

    Rows that repeat another one or are incomplete are left out and counted; texts with more than one label are kept.
    `digests` are those of the rows, by which their training record recognises them.
    """

    texts: tuple[Any, ...]
    labels: tuple[Any, ...]
    repeated: int
    incomplete: int
    contradicting: int
    sha256: str = field(default="", compare=False)
    digests: tuple[int, ...] = field(default=(), compare=False)


def read_table(
    path: Path,
    columns: Columns | None = None,
    problem: ProblemType = DEFAULT_TYPE,
    *,
    prefix: str = "",
    skip_incomplete: bool = False,
    medium: str | None = None,
) -> LabelledTexts:
    """Read labelled texts from a table; repeated rows are left out, so that no split can hold both.

    Raises:
        UsageError, DataError: as `labelled_rows`.
    """
    columns = columns or Columns()
    rows, incomplete = labelled_rows(path, columns, problem, skip_incomplete=skip_incomplete, medium=medium)
    complete = [(_text(row, prefix), row.answer) for row in rows]
    digest = data_digest(path, rows)
    first = dict(zip(reversed(complete), reversed(rows), strict=True))  # of repeated rows the first one stays
    unique = tuple(dict.fromkeys(complete))
    contradicting = sum(count > 1 for count in Counter(text for text, _ in unique).values())
    texts, labels = zip(*unique, strict=True)
    digests = tuple(row_digest(first[one], digest) for one in unique)
    return LabelledTexts(texts, labels, len(complete) - len(unique), len(incomplete), contradicting, digest, digests)


def _text(row: LabelledRow, prefix: str) -> Any:
    """Return the tokenizer's input for a row: for a question with choices, a pair of it with each choice."""
    if row.pair is None or not isinstance(row.text, str):
        return prefix + row.text if isinstance(row.text, str) else row.text
    if isinstance(row.pair, str):
        return Pair(row.text, row.pair)
    return tuple(Pair(row.text, choice) for choice in row.pair)


@dataclass(frozen=True)
class TaskFiles:
    """The files of a task, read as by `read_table`.

    `validation` is a file, or the fraction of each class of `training` that is kept for it; `test` is used once, at the
    end. An embedding learns from labels: texts of one label shall be near each other; `prefix` stands before each of
    its texts. `side` is where texts are cut. With `remembers_rows`, the training record recognises the rows.
    """

    training: Path
    validation: Path | float = 0.1
    test: Path | None = None
    columns: Columns = field(default_factory=Columns)
    problem: ProblemType = DEFAULT_TYPE
    skip_incomplete: bool = False
    prefix: str = ""
    side: Side = "right"
    labels: tuple[str, ...] = ()
    remembers_rows: bool = True

    def __post_init__(self) -> None:
        check_fraction(self.validation)


def check_fraction(validation: Path | float) -> None:
    """Raise UsageError for a part kept for validation that is none."""
    if isinstance(validation, float) and not 0 < validation < 1:
        raise UsageError("the part kept for validation is a fraction", found=validation, expected="above 0 and below 1")


@dataclass(frozen=True)
class TextTask:
    """The rows of a task, and what is known of them.

    Attributes:
        problem: what is to be learnt.
        labels: the name of each class; empty where there are none.
        numbers: how many numbers a regression learns; 0 for other tasks.
        training: the rows to learn from.
        validation: the rows that decide which epoch is the best.
        test: rows that decide nothing.
        sources: the files with their sha256 and numbers of rows, for the training record.
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
        """The rows by what they are for: `training`, `validation` and, if there are any, `test`."""
        test = {} if self.test is None else {"test": self.test}
        return {"training": self.training, "validation": self.validation, **test}


def read_task(files: TaskFiles, source: RowSource, seed: int = 0) -> TextTask:
    """Read the files, split what is to be split by the seed, and make examples of the rows.

    Raises:
        DataError: a file cannot be used; the message says which line.
        RequestError: the base has an input that text cannot fill.
    """
    paths = {"training": files.training}
    if isinstance(files.validation, Path):
        paths["validation"] = files.validation
    if files.test is not None:
        paths["test"] = files.test
    problem = files.problem
    tables = {name: _table(path, files, source) for name, path in paths.items()}
    kind = TASK_TYPES[problem]
    known, where = tables["training"].labels, str(files.training)
    labels = kind.label_names(known, where, split=not isinstance(files.validation, Path))
    labels = files.labels or labels
    answers = {name: kind.encode(table.labels, labels, str(paths[name])) for name, table in tables.items()}
    counts = {name: kind.numbers(table.labels) for name, table in tables.items()}
    if len(set(counts.values())) > 1:
        raise DataError("the files have different numbers of numbers", found=counts, expected="one number for all")
    examples: dict[str, LabelledExamples] = {
        name: source.examples(table.texts, answers[name], problem, files.side) for name, table in tables.items()
    }
    notes = tuple(note for name in tables for note in _warnings(name, tables, examples[name]))
    sources: dict[str, Any] = {
        name: {
            "file": paths[name].name,
            "sha256": table.sha256,
            "rows": len(table.texts),
            "repeated_rows_left_out": table.repeated,
            "incomplete_rows_left_out": table.incomplete,
            "texts_with_contradicting_labels": table.contradicting,
        }
        for name, table in tables.items()
    }
    digests = {name: np.array(table.digests) for name, table in tables.items()}
    if isinstance(files.validation, float):
        whole = examples["training"]
        kept, held_out = _halves(kind, whole, files.validation, seed)
        digests = {"training": digests["training"][kept], "validation": digests["training"][held_out]}
        examples |= {"training": whole.only(kept), "validation": whole.only(held_out)}
        sources["validation"] = {"fraction": files.validation, "rows": len(held_out), "of": "training"}
    salts = {name: tables.get(name, tables["training"]).sha256 for name in ("training", "validation")}
    for name, salt in salts.items() if files.remembers_rows else ():
        sources[name]["row_digests"] = RememberedRows.of(digests[name].tolist(), salt).to_json()
    for name, found in examples.items():
        kind.check_rows(found.texts, found.answers, name)
    return TextTask(
        problem,
        labels,
        counts["training"],
        examples["training"],
        examples["validation"],
        examples.get("test"),
        sources,
        notes,
    )


def read_examples(files: TaskFiles, source: RowSource) -> LabelledExamples:
    """Read the training file alone, unsplit, for a head that there is: its labels are those of `files`.

    Raises:
        DataError: the file cannot be used, or has labels that the head does not know.
        RequestError: the base has an input that text cannot fill.
    """
    table = _table(files.training, files, source)
    answers = TASK_TYPES[files.problem].encode(table.labels, files.labels, str(files.training))
    return source.examples(table.texts, answers, files.problem, files.side)


def _table(path: Path, files: TaskFiles, source: RowSource) -> LabelledTexts:
    skip, medium = files.skip_incomplete, source.medium
    return read_table(path, files.columns, files.problem, prefix=files.prefix, skip_incomplete=skip, medium=medium)


def _halves(kind: TaskType, whole: Any, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Return the rows to learn from and those to validate by: by class, by group, or as they come."""
    count = len(whole.lengths)
    if kind.stratified:
        return split(np.asarray(whole.answers), fraction, seed)
    if count < 2:
        raise DataError("a single row cannot be both trained on and validated", expected="at least two rows")
    groups = [kind.group(text) for text in whole.texts]
    if None in groups:
        return split(np.zeros(count, np.int64), fraction, seed)
    return split_groups(groups, fraction, seed)


def _warnings(name: str, tables: dict[str, LabelledTexts], examples: LabelledExamples) -> Iterator[str]:
    table, word = tables[name], f"{examples.word}s"
    if table.repeated:
        yield f"{table.repeated:,} rows of the {name} data repeat another row and were left out"
    if table.incomplete:
        yield f"{table.incomplete:,} rows of the {name} data have no text or no label and were left out"
    if table.contradicting:
        yield f"{table.contradicting:,} {word} of the {name} data occur with more than one label"
    if examples.cut:
        yield f"{examples.cut:,} {word} of the {name} data are longer than {examples.limit} and are cut there"
    if examples.lost:
        yield f"{examples.lost:,} answers of the {name} data lie in what is cut and cannot be learnt"
    shared = len(set(table.texts) & set(tables["training"].texts)) if name != "training" else 0
    if shared:
        yield f"{shared:,} {word} of the {name} data are in the training data, too, so its scores flatter"
