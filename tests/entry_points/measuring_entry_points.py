"""The entry point of `evaluate` and `compare`, which ask labelled rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from asked_bundles import Bundle
from asking import Document, EntryPoint, shape, together
from oracle import Row, answer, choice
from python_entry_points import refusing

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.format.tabular.eval_data import DataOptions
from adapter_export.format.tabular.labelled import Columns
from adapter_export.plugins.lab.commands._contestants import contestants_of
from adapter_export.reporting import SILENT

LABELS = {"multi_label": [], "multiple_choice": 0, "regression": [0.5, 0.5], "ranking": 1, "embedding": "-"}
"""Labels for measuring; correctness does not matter, because results are compared before scoring."""


@cache
def _opened(folder: Path) -> OpenedBundle:
    return OpenedBundle.open(folder)


@refusing
def evaluate(bundle: Bundle, rows: Sequence[Row], _: Any) -> Sequence[Document]:
    """The results by which `evaluate` and `compare` judge; they become answers as the oracle's do."""

    def ask(some: Sequence[Row]) -> Sequence[Document]:
        recipe = bundle.oracle.recipe(some[0])
        assert recipe is not None
        opened = _opened(bundle.folder)
        (own,) = contestants_of(opened, [recipe.name], "")
        is_pair = shape(some[0]) != "text"
        columns = Columns("text", "pair" if is_pair else None, "label", "start" if own.task.type == "span" else None)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "rows.jsonl")
            path.write_text("".join(json.dumps(_cells(row, recipe.task)) + "\n" for row in some), encoding="utf-8")
            data = DataOptions(columns, group=None, skip_incomplete=False, limit=None).read(path, own.task)
            results = own.answer(own.read(data), SILENT)
        return [_document(bundle, row, own) for row, own in zip(some, results, strict=True)]

    return together(rows, lambda row: (row.adapter, shape(row)), ask)


def _cells(row: Row, task: Any) -> dict[str, Any]:
    first = row.pieces[0]
    cells = {"text": first if isinstance(first, str) else first[0]}
    if shape(row) != "text":
        cells["pair"] = row.asked[1] if shape(row) == "pair" else [piece[1] for piece in row.pieces]
    cells["label"] = LABELS.get(task["type"], (task.get("labels") or ("",))[0])
    if task["type"] == "span":
        cells |= {"label": str(cells["pair"]).split()[0], "start": 0}
    return cells


def _document(bundle: Bundle, row: Row, results: Sequence[Any]) -> Document:
    recipe = bundle.oracle.recipe(row)
    assert recipe is not None
    tokens = bundle.oracle.tokens(row)
    found = answer(recipe.task, results[0], tokens[0], row.asked).document
    if shape(row) == "choices":
        found = choice([result[0] for result in results]).document
    cut = max(one.cut for one in tokens)
    return {"adapter": recipe.name, "task": recipe.task["type"], **found, **({"cut": cut} if cut else {})}


def labelled_rows(bundle: Bundle, row: Row) -> bool:
    """Return whether a table of labelled texts can contain a row: words for token tasks, no empty text, no strength."""
    recipe = bundle.oracle.recipe(row)
    return (
        recipe is not None
        and recipe.task["type"] != "token"
        and row.asked != ""
        and row.strength == 1
        and row.weights is None
    )


MEASURING = (EntryPoint("evaluate, compare", evaluate, "text", labelled_rows),)
