"""What the cells of a table mean to a task: texts, words, labels, numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from adapter_export.errors import DataError
from adapter_export.graph.tasks import Task

Cell = Callable[[Any, str], Any]
"""From a cell and the name of its place to what it means; `None` where there is nothing."""


def text(cell: object, _: str) -> str | None:
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


CELLS: Mapping[Task, tuple[Cell, Cell]] = {
    "sequence_classification": (text, label),
    "token_classification": (words, labels),
    "regression": (text, numbers),
    "embedding": (text, label),
}
"""How each task reads its texts, and what it learns of them."""


def pair(task: Task, source: object, answer: object, where: str) -> tuple[Any, Any]:
    """What a row says: a text, or its words, and what is to be learnt of it; `None` for what is not there.

    Raises:
        DataError: a cell means nothing to the task, or the words of a row are not as many as their labels.
    """
    read_text, read_answer = CELLS[task]
    found, learnt = read_text(source, where), read_answer(answer, where)
    if task == "token_classification" and found is not None and learnt is not None and len(found) != len(learnt):
        raise DataError(
            "words and labels differ in number",
            where=where,
            found=f"{len(found)} words and {len(learnt)} labels",
            expected="a label for each word",
        )
    return found, learnt
