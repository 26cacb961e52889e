"""Labelled texts out of csv, tsv and jsonl files, read strictly, and the task that they make."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapter_export.errors import DataError, UsageError, argument
from adapter_export.format.files import sha256_of
from adapter_export.format.tables import check_columns, read_rows
from adapter_export.graph.tasks import DEFAULT_TYPE, ProblemType
from adapter_export.text import Tokenizer
from adapter_export.torch_backend.train.data import Rows, TextExamples, class_indices, label_names, split

Cell = Callable[[Any, str], Any]
"""From a cell and the name of its place to what it means; `None` where there is nothing."""


def text_cell(cell: object, _: str) -> str | None:
    """A text."""
    return cell if isinstance(cell, str) and cell.strip() else None


def words(cell: object, where: str) -> tuple[str, ...] | None:
    """The words of a text: a list, or one string with spaces between them."""
    found = cell.split() if isinstance(cell, str) else cell
    if found is None or found == []:
        return None
    if not isinstance(found, list) or not all(isinstance(word, str) and word for word in found):
        raise DataError("holds no words", where=where, found=f"`{cell}`", expected="a list of words")
    return tuple(found)


def label(cell: object, where: str) -> str | None:
    """A label as text; `None` where there is none, NaN included, which is how tables spell an empty cell."""
    if cell is None or cell != cell:  # NaN alone differs from itself
        return None
    if not isinstance(cell, str | int | float):
        raise DataError("a label is not a word or a number", where=where, found=type(cell).__name__)
    found = str(cell).strip()
    return None if found.lower() in {"", "nan"} else found


def labels(cell: object, where: str) -> tuple[str, ...] | None:
    """The labels of words: a list, or one string with spaces between them."""
    found = cell.split() if isinstance(cell, str) else cell
    if found is None or found == [] or found != found:
        return None
    if not isinstance(found, list):
        raise DataError("holds no labels of words", where=where, found=f"`{cell}`", expected="a list of labels")
    named = [label(one, where) for one in found]
    if None in named:
        raise DataError("a word has no label", where=where, found=f"`{cell}`", expected="a label for each word")
    return tuple(str(one) for one in named)


def numbers(cell: Any, where: str) -> tuple[float, ...] | None:
    """Numbers: one, a list, or one string with spaces between them; `None` where there is none, or a NaN."""
    parts = cell.split() if isinstance(cell, str) else cell if isinstance(cell, list) else [cell]
    if parts in ([], [None]):
        return None
    try:
        found = tuple(float(part) for part in parts if not isinstance(part, bool))
    except (TypeError, ValueError) as error:
        raise DataError("holds no numbers", where=where, found=f"`{cell}`", expected="a number, or a list") from error
    if len(found) != len(parts) or any(math.isinf(number) for number in found):
        raise DataError("holds no finite numbers", where=where, found=f"`{cell}`", expected="a number, or a list")
    return None if any(math.isnan(number) for number in found) else found


_CELLS: Mapping[ProblemType, tuple[Cell, Cell]] = {
    "single_label": (text_cell, label),
    "token": (words, labels),
    "regression": (text_cell, numbers),
    "embedding": (text_cell, label),
}
"""How each task reads its texts, and what it learns of them."""


def _pair(task: ProblemType, source: object, answer: object, where: str) -> tuple[Any, Any]:
    """A text, or its words, and what is to be learnt of it; `None` for what is not there."""
    read_text, read_answer = _CELLS[task]
    found, learnt = read_text(source, where), read_answer(answer, where)
    if task == "token" and found is not None and learnt is not None and len(found) != len(learnt):
        raise DataError(
            "words and labels differ in number",
            where=where,
            found=f"{len(found)} words and {len(learnt)} labels",
            expected="a label for each word",
        )
    return found, learnt


@dataclass(frozen=True)
class LabelledTexts:
    """The rows of a file: texts, or the words of each, and a label, the labels of the words, or numbers.

    Rows that repeat another one or are incomplete are left out and counted; texts with more than one label are kept.
    """

    texts: tuple[Any, ...]
    labels: tuple[Any, ...]
    repeated: int
    incomplete: int
    contradicting: int


def read_table(
    path: Path, text: str, label: str, *, task: ProblemType = DEFAULT_TYPE, skip_incomplete: bool = False
) -> LabelledTexts:
    """Read labelled texts from two columns of a table; repeated rows are left out, so that no split can hold both.

    Args:
        path: a csv, tsv or jsonl file in UTF-8, recognised by its suffix or else by its first line.
        text: the column of the texts.
        label: the column of the labels, or what else the task learns.
        task: what the columns mean.
        skip_incomplete: leave rows without text or label out, instead of refusing the file.

    Raises:
        DataError: the file cannot be read, a line is broken, a column is missing, or rows are incomplete.
    """
    rows = list(read_rows(path))
    if not rows:
        raise DataError("holds no rows", where=path, expected="a line with the column names, then one row a line")
    for line, cells in rows:
        check_columns(cells, (text, label), f"{path}, line {line}")
    pairs = [(line, *_pair(task, cells[text], cells[label], f"{path}, line {line}")) for line, cells in rows]
    incomplete = [line for line, *said in pairs if None in said]
    if incomplete and not skip_incomplete:
        named = ", ".join(map(str, incomplete[:5])) + (", …" if len(incomplete) > 5 else "")
        raise DataError(
            f"{len(incomplete)} rows have no text or no label",
            where=path,
            found=f"lines {named}",
            expected="both in every row",
            fix=f"complete these rows, or give {argument('skip_incomplete', True)} to leave them out",
        )
    complete = [tuple(said) for _, *said in pairs if None not in said]
    if not complete:
        raise DataError("no row has both a text and a label", where=path)
    unique = tuple(dict.fromkeys(complete))
    contradicting = sum(count > 1 for count in Counter(words for words, _ in unique).values())
    texts, labels = zip(*unique, strict=True)
    return LabelledTexts(texts, labels, len(complete) - len(unique), len(incomplete), contradicting)


def read_texts(path: Path, text: str) -> tuple[str, ...]:
    """Read the texts of a table, labelled or not; rows without a text are left out.

    Raises:
        DataError: the file cannot be read, a line is broken, the column is missing, or no row has a text.
    """
    found = []
    for line, cells in read_rows(path):
        check_columns(cells, (text,), f"{path}, line {line}")
        found.append(text_cell(cells[text], f"{path}, line {line}"))
    texts = tuple(words for words in found if words is not None)
    if not texts:
        raise DataError("no row has a text", where=path, expected=f"texts in the column `{text}`")
    return texts


@dataclass(frozen=True)
class TaskFiles:
    """The files of a task, read as by `read_table`.

    `validation` is a file, or the fraction of each class of `training` that is kept for it; `test` is used once, at the
    end. An embedding learns from labels: texts of one label shall be near each other.
    """

    training: Path
    validation: Path | float = 0.1
    test: Path | None = None
    text: str = "text"
    label: str = "label"
    skip_incomplete: bool = False
    task: ProblemType = DEFAULT_TYPE

    def __post_init__(self) -> None:
        if isinstance(self.validation, float) and not 0 < self.validation < 1:
            raise UsageError(
                "the part kept for validation is a fraction", found=self.validation, expected="above 0 and below 1"
            )


@dataclass(frozen=True)
class TextTask:
    """The rows of a task, and what is known of them.

    Attributes:
        task: what is to be learnt.
        labels: the name of each class; empty for a regression.
        numbers: how many numbers a regression learns; 0 for other tasks.
        training: the rows to learn from.
        validation: the rows that decide which epoch is the best.
        test: rows that decide nothing.
        sources: the files with their sha256 and numbers of rows, for the training record.
        notes: warnings about the data, each a clause.
    """

    task: ProblemType
    labels: tuple[str, ...]
    numbers: int
    training: TextExamples
    validation: TextExamples
    test: TextExamples | None
    sources: dict[str, Any]
    notes: tuple[str, ...]


def read_task(files: TaskFiles, tokenizer: Tokenizer, names: tuple[str, ...], seed: int = 0) -> TextTask:
    """Read the files, split what is to be split by the seed, and count the tokens; `names` are the base's inputs.

    Raises:
        DataError: a file cannot be used; the message says which line.
        RequestError: the base has an input that text cannot fill.
    """
    paths = {"training": files.training}
    if isinstance(files.validation, Path):
        paths["validation"] = files.validation
    if files.test is not None:
        paths["test"] = files.test
    skip = files.skip_incomplete
    tables = {
        name: read_table(path, files.text, files.label, task=files.task, skip_incomplete=skip)
        for name, path in paths.items()
    }
    labels: tuple[str, ...] = ()
    known = tables["training"].labels
    if files.task == "token":
        labels = label_names([label for row in known for label in row], str(files.training), rows=1)
    elif files.task != "regression":
        labels = label_names(known, str(files.training))
    answers = {name: _answers(files.task, table, labels, str(paths[name])) for name, table in tables.items()}
    counts = {name: len(table.labels[0]) for name, table in tables.items() if files.task == "regression"}
    if len(set(counts.values())) > 1:
        raise DataError("the files have different numbers of numbers", found=counts, expected="one number for all")
    examples = {name: TextExamples.of(tables[name].texts, answers[name], tokenizer, names) for name in tables}
    notes = tuple(note for name in tables for note in _warnings(name, tables, examples[name]))
    sources: dict[str, Any] = {
        name: {
            "file": paths[name].name,
            "sha256": sha256_of(paths[name]),
            "rows": len(table.texts),
            "repeated_rows_left_out": table.repeated,
            "incomplete_rows_left_out": table.incomplete,
            "texts_with_contradicting_labels": table.contradicting,
        }
        for name, table in tables.items()
    }
    if isinstance(files.validation, float):
        whole = examples["training"]
        if files.task in ("single_label", "embedding"):
            classes = np.asarray(whole.answers)
        elif len(whole.lengths) > 1:
            classes = np.zeros(len(whole.lengths), np.int64)
        else:
            raise DataError("a single row cannot be both trained on and validated", expected="at least two rows")
        kept, held_out = split(classes, files.validation, seed)
        examples |= {"training": whole.only(kept), "validation": whole.only(held_out)}
        sources["validation"] = {"fraction": files.validation, "rows": len(held_out), "of": "training"}
    return TextTask(
        files.task,
        labels,
        counts.get("training", 0),
        examples["training"],
        examples["validation"],
        examples.get("test"),
        sources,
        notes,
    )


def _answers(task: ProblemType, table: LabelledTexts, labels: tuple[str, ...], where: str) -> np.ndarray | list[Rows]:
    if task == "regression":
        counts = sorted({len(row) for row in table.labels})
        if len(counts) > 1:
            found = ", ".join(map(str, counts))
            raise DataError("rows have different numbers of numbers", where=where, found=found, expected="one")
        return np.array(table.labels, np.float32)
    if task == "token":
        return [class_indices(row, labels, where) for row in table.labels]
    return class_indices(table.labels, labels, where)


def _warnings(name: str, tables: dict[str, LabelledTexts], examples: TextExamples) -> Iterator[str]:
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
