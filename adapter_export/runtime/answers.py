"""From the results of heads to answers: labels, numbers and vectors for each row, by the row's own adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapter_export.errors import RequestError
from adapter_export.format.axes import masks_of
from adapter_export.format.manifest import Manifest
from adapter_export.graph.tasks import Task
from adapter_export.runtime.adapters import Entry
from adapter_export.runtime.graphs import Arrays


@dataclass(frozen=True)
class Prediction:
    """What an adapter says about one text, or about one token.

    Attributes:
        label: the most probable class.
        probability: its probability.
        probabilities: of every class, in the order of the logits.
    """

    label: str
    probability: float
    probabilities: Mapping[str, float]


def predict(logits: np.ndarray, labels: Sequence[str]) -> list[Prediction]:
    """Return predictions for logits [rows, classes]."""
    return [
        Prediction(labels[int(row.argmax())], float(row.max()), dict(zip(labels, map(float, row), strict=True)))
        for row in softmax(logits)
    ]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


# The outputs of heads in a batch whose rows have different adapters: what is not a row's own cannot be mistaken.

_NOT_A_CLASS = -1e30
"""Below this is what a bank gives for classes that a row's adapter does not have."""


def own_results(outputs: Arrays, manifest: Manifest, filled: Sequence[str | None]) -> Arrays:
    """Return the outputs of a bank with the results of heads as wide as the widest of their rows.

    Args:
        outputs: as a bank gives them.
        manifest: the bundle's.
        filled: for each row the output that its adapter's head fills; none without a head.

    Returns:
        The base's outputs as they are. In those of heads, NaN for rows that do not fill them, and −inf for the classes
        that a row's adapter does not have.
    """
    heads = {head.output for head in manifest.heads}
    return {
        name: _own(array, np.array([name == output for output in filled])) if name in heads else array
        for name, array in outputs.items()
    }


def own_classes(row: np.ndarray) -> np.ndarray:
    """Return what a row's adapter has of a result [classes] or [tokens, classes]."""
    return row[..., : _width(row)]


def _own(array: np.ndarray, own: np.ndarray) -> np.ndarray:
    result = np.where(array < _NOT_A_CLASS, -np.inf, array).astype(array.dtype)
    result[~own] = np.nan
    return np.ascontiguousarray(result[..., : _width(result[own])])


def _width(results: np.ndarray) -> int:
    """Return how many classes are anybody's: those behind them are −inf in all rows."""
    axes = tuple(range(results.ndim - 1))
    return int(np.count_nonzero(~np.isneginf(results).all(axis=axes)))


_METHODS: Mapping[Task, str] = {
    "sequence_classification": "classify",
    "token_classification": "classify_tokens",
    "regression": "predict",
    "embedding": "embed",
}


def check_task(entry: Entry | None, task: Task) -> Entry:
    """Return an adapter whose head is for this task; its `output` is known then.

    Raises:
        RequestError: it is for another one, or there is no adapter.
    """
    if entry is None:
        raise RequestError(f"the base alone cannot do `{task}`", fix="give every row an adapter, or call `run`")
    if entry.task != task or entry.output is None:
        unknown = "call `run`, or give `labels` or `task` to `load`"
        raise RequestError(
            f"an adapter with another task cannot do `{task}`",
            where=f"adapter `{entry.name}`",
            found="no known task" if entry.task is None else f"the task `{entry.task}`",
            fix=unknown if entry.task is None else f"call `{_METHODS[entry.task]}`",
        )
    return entry


def row_results(outputs: Arrays, entries: Sequence[Entry]) -> list[np.ndarray]:
    """Return what each row's own adapter gives."""
    return [own_classes(outputs[str(entry.output)][row]) for row, entry in enumerate(entries)]


def stacked(results: Sequence[np.ndarray], entries: Sequence[Entry]) -> np.ndarray:
    """Return results of rows as one array [batch, width].

    Raises:
        RequestError: they are of different widths.
    """
    widths = {entry.name: result.shape[-1] for result, entry in zip(results, entries, strict=True)}
    if len(set(widths.values())) > 1:
        raise RequestError(
            "the adapters of a batch give results of different widths",
            found=", ".join(f"`{name}`: {width}" for name, width in widths.items()),
            fix="call it for each of them",
        )
    return np.stack(results)


def label_rows(results: Sequence[np.ndarray], entries: Sequence[Entry]) -> list[Prediction]:
    """Return a label for each row."""
    return [predict(result[None], entry.labels or ())[0] for result, entry in zip(results, entries, strict=True)]


def label_tokens(
    results: Sequence[np.ndarray], entries: Sequence[Entry], inputs: Mapping[str, np.ndarray], manifest: Manifest
) -> list[list[Prediction | None]]:
    """Return a label for each token; none where the mask says that it is padding."""
    shape = (len(results), len(results[0]))
    masks = [np.asarray(inputs[name]) != 0 for name in _token_masks(manifest)]
    real = next((mask for mask in masks if mask.shape == shape), np.ones(shape, bool))
    return [
        [one if keep else None for one, keep in zip(predict(result, entry.labels or ()), row, strict=True)]
        for result, entry, row in zip(results, entries, real, strict=True)
    ]


def _token_masks(manifest: Manifest) -> list[str]:
    """Return the masks of the tokens that heads give labels: not that of an encoder's where they are a decoder's."""
    known = {axis for record in manifest.inputs for axis in record.axes}
    labelled = [record for record in manifest.outputs if record.name.endswith("token_logits")]
    axes = {record.axes[1] for record in labelled if len(record.axes) > 1} & known
    return masks_of(manifest.inputs, axes.pop() if len(axes) == 1 else None)
