"""Labels of rows as classes: their names in order, and the index of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from adapter_export.errors import DataError
from adapter_export.graph.tasks.answers import LabelSet, Prediction, ShownRow
from adapter_export.graph.tasks.cells import some
from adapter_export.tables import Table, probability_cells
from adapter_export.words import argument

FEW = 3
"""Rows of which all classes are shown."""


def class_indices(labels: Sequence[str], names: Sequence[str], where: str) -> npt.NDArray[np.int64]:
    """Return the class of each label; DataError for an unknown label."""
    index = {name: number for number, name in enumerate(names)}
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise DataError("contains unknown labels", where=where, found=some(unknown), expected=some(names))
    return np.array([index[label] for label in labels], np.int64)


def label_names(labels: Sequence[str], where: str, *, rows: int = 2, least: int = 2) -> tuple[str, ...]:
    """Return the different labels in order, numbers by value, words by letter.

    Raises:
        DataError: there are fewer than `least`, or one has fewer rows than `rows`, the least that a split needs of
            each.
    """
    counts = Counter(labels)
    if len(counts) < least:
        fault = "holds no label" if least < 2 else "holds fewer than two classes"
        raise DataError(fault, where=where, found=some(counts))
    single = sorted(label for label, count in counts.items() if count < rows)
    if single:
        raise DataError(
            "a class has one row only, so it cannot be both trained on and validated",
            where=where,
            found=some(single),
            expected="at least two rows of each class",
            fix="add rows of that class, take it out, or name another column of labels: " + argument("label"),
        )
    numbers = all(label.removeprefix("-").isdecimal() for label in counts)
    return tuple(sorted(counts, key=int if numbers else str))


def balanced_classes(classes: npt.NDArray[np.int64], count: int) -> np.ndarray:
    """Return the weights of classes, rows / (classes · rows of the class), as scikit-learn's `balanced`."""
    weights: np.ndarray = len(classes) / (count * np.maximum(np.bincount(classes, minlength=count), 1))
    return weights


def ranked(logits: np.ndarray, absolute: float) -> bool:
    """Return true if the largest logit of the last axis leads by more than twice `absolute` everywhere."""
    if logits.shape[-1] < 2:
        return True
    ordered = np.sort(logits, axis=-1)
    return bool((ordered[..., -1] - ordered[..., -2] > 2 * absolute).all())


def class_tables(rows: Sequence[ShownRow]) -> Iterator[Table | str]:
    """Yield the name of each row and its classes, the most probable first; labels of a set that apply are marked."""
    for row in rows:
        answer = row.text_answer.answer
        assert isinstance(answer, Prediction | LabelSet)
        applies = answer.labels if isinstance(answer, LabelSet) else ()
        ordered = sorted(answer.probabilities.items(), key=lambda item: -item[1])
        cells = [(f"{name} ✓" if name in applies else name, *probability_cells(share)) for name, share in ordered]
        yield row.name
        yield Table(("label", "probability", ""), cells, numbers="lr")
