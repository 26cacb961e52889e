"""A classification of texts out of files: classes, rows to learn from, to validate by and to test with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter_export.errors import UsageError
from adapter_export.format.files import sha256_of
from adapter_export.text import Tokenizer
from adapter_export.torch.data import TextExamples, class_indices, label_names, split
from adapter_export.torch.table import LabelledTexts, read_table


@dataclass(frozen=True)
class TaskFiles:
    """Where the rows are.

    Attributes:
        training: the file to learn from.
        validation: a file to validate by, or the fraction of each class of `training` that is kept for it.
        test: a file that is looked at once, at the end.
        text: the column that holds the texts.
        label: the column that holds the labels.
        skip_incomplete: leave rows without text or label out, instead of refusing the file.
    """

    training: Path
    validation: Path | float = 0.1
    test: Path | None = None
    text: str = "text"
    label: str = "label"
    skip_incomplete: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.validation, float) and not 0 < self.validation < 1:
            raise UsageError(
                "the part kept for validation is a fraction", found=self.validation, expected="above 0 and below 1"
            )

    def read(self, path: Path) -> LabelledTexts:
        """Read one of the files."""
        return read_table(path, self.text, self.label, skip_incomplete=self.skip_incomplete)


@dataclass(frozen=True)
class TextTask:
    """What `read_task` returns.

    Attributes:
        labels: the name of each class.
        training: the rows to learn from.
        validation: the rows that decide which epoch is the best.
        test: rows that decide nothing.
        sources: the files with their sha256 and numbers of rows, for the training record.
        notes: what a user should know about the data, each a clause.
    """

    labels: tuple[str, ...]
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
    labels = label_names(tables["training"].labels, str(files.training))
    paths = {name: getattr(files, name) for name in tables}
    examples = {name: _examples(table, labels, paths[name], tokenizer, names) for name, table in tables.items()}
    notes = tuple(note for name in tables for note in _notes(name, tables, examples[name]))
    sources: dict[str, Any] = {name: _source(paths[name], table) for name, table in tables.items()}
    if isinstance(files.validation, float):
        kept, held_out = split(examples["training"].classes, files.validation, seed)
        whole = examples["training"]
        examples |= {"training": whole.only(kept), "validation": whole.only(held_out)}
        sources["validation"] = {"fraction": files.validation, "rows": len(held_out), "of": "training"}
    return TextTask(labels, examples["training"], examples["validation"], examples.get("test"), sources, notes)


def _examples(
    table: LabelledTexts, labels: tuple[str, ...], path: Path, tokenizer: Tokenizer, names: tuple[str, ...]
) -> TextExamples:
    return TextExamples.of(table.texts, class_indices(table.labels, labels, str(path)), tokenizer, names)


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
