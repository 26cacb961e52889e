"""From the results of heads to answers: labels, numbers and vectors for each row, by the row's own adapter."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapter_export.errors import RequestError
from adapter_export.format.axes import masks_of
from adapter_export.format.manifest import Manifest
from adapter_export.graph.tasks import Task
from adapter_export.runtime.catalogue import Entry

# From logits to labels, for a text or for each of its tokens.


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
    """Predictions for logits [rows, classes]."""
    return [_prediction(row, labels) for row in softmax(logits)]


def predict_tokens(
    logits: np.ndarray, labels: Sequence[str], real: npt.NDArray[np.bool_] | None
) -> list[list[Prediction | None]]:
    """Predictions for logits [batch, tokens, classes], none at padding.

    Args:
        logits: the logits.
        labels: the name of each class.
        real: which tokens are real, [batch, tokens]; all of them if not given.
    """
    kept = np.ones(logits.shape[:2], bool) if real is None else real
    return [
        [one if keep else None for one, keep in zip(predict(row, labels), keeps, strict=True)]
        for row, keeps in zip(logits, kept, strict=True)
    ]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def _prediction(row: np.ndarray, labels: Sequence[str]) -> Prediction:
    best = int(row.argmax())
    return Prediction(labels[best], float(row[best]), dict(zip(labels, map(float, row), strict=True)))


# The outputs of heads in a batch whose rows have different adapters: what is not a row's own cannot be mistaken.

_NOT_A_CLASS = -1e30
"""Below this is what a bank gives for classes that a row's adapter does not have."""


def wanted_outputs(manifest: Manifest, filled: Sequence[Collection[str]]) -> list[str]:
    """The base's outputs, and those of heads that some row fills."""
    some = set().union(*filled)
    base = {record.name for record in manifest.base_outputs}
    return [record.name for record in manifest.outputs if record.name in base or record.name in some]


def only_own_results(
    outputs: dict[str, np.ndarray], manifest: Manifest, filled: Sequence[Collection[str]]
) -> dict[str, np.ndarray]:
    """Outputs in which the results of heads are as wide as the widest of their rows.

    Args:
        outputs: as a bank gives them.
        manifest: the bundle's.
        filled: for each row the outputs that its adapter's head fills.

    Returns:
        The base's outputs as they are. In those of heads, NaN for rows that do not fill them, and −inf for the classes
        that a row's adapter does not have.
    """
    heads = {head.output for head in manifest.heads}
    return {
        name: _own(array, np.array([name in row for row in filled])) if name in heads else array
        for name, array in outputs.items()
    }


def own_classes(row: np.ndarray) -> np.ndarray:
    """What a row's adapter has of a result [classes] or [tokens, classes]."""
    return row[..., : _width(row)]


def _own(array: np.ndarray, own: np.ndarray) -> np.ndarray:
    result = np.where(array < _NOT_A_CLASS, -np.inf, array).astype(array.dtype)
    result[~own] = np.nan
    return np.ascontiguousarray(result[..., : _width(result[own])])


def _width(results: np.ndarray) -> int:
    """How many classes are anybody's: those behind them are −inf in all rows."""
    axes = tuple(range(results.ndim - 1))
    return int(np.count_nonzero(~np.isneginf(results).all(axis=axes)))


_METHODS: Mapping[Task, str] = {
    "sequence_classification": "classify",
    "token_classification": "classify_tokens",
    "regression": "predict",
    "embedding": "embed",
}


def check_task(entry: Entry | None, task: Task) -> str:
    """The output of an adapter whose head is for this task.

    Raises:
        RequestError: it is for another one, or there is no adapter.
    """
    if entry is None:
        raise RequestError(f"the base alone cannot do `{task}`", fix="give every row an adapter, or call `run`")
    unknown = "call `run`, or give `labels` or `task` to `load`"
    if entry.task != task or entry.output is None:
        raise RequestError(
            f"an adapter with another task cannot do `{task}`",
            where=f"adapter `{entry.name}`",
            found="no known task" if entry.task is None else f"the task `{entry.task}`",
            fix=unknown if entry.task is None else f"call `{_METHODS[entry.task]}`",
        )
    return entry.output


def row_results(outputs: Mapping[str, np.ndarray], entries: Sequence[Entry | None]) -> list[np.ndarray]:
    """What each row's own adapter gives."""
    return [
        own_classes(outputs[entry.output][row])
        for row, entry in enumerate(entries)
        if entry is not None and entry.output is not None
    ]


def label_rows(results: Sequence[np.ndarray], entries: Sequence[Entry | None]) -> list[Prediction]:
    """A label for each row."""
    return [predict(result[None], _labels(entry))[0] for result, entry in zip(results, entries, strict=True)]


def label_tokens(
    results: Sequence[np.ndarray],
    entries: Sequence[Entry | None],
    inputs: Mapping[str, np.ndarray],
    manifest: Manifest,
) -> list[list[Prediction | None]]:
    """A label for each token; none where the mask says that it is padding."""
    shape = (len(results), len(results[0]))
    masks = [np.asarray(inputs[name]) != 0 for name in _token_masks(manifest)]
    real = next((mask for mask in masks if mask.shape == shape), np.ones(shape, bool))
    return [
        predict_tokens(result[None], _labels(entry), row[None])[0]
        for result, entry, row in zip(results, entries, real, strict=True)
    ]


def _token_masks(manifest: Manifest) -> list[str]:
    """The masks of the tokens that heads give labels: not that of an encoder's where they are a decoder's."""
    known = {axis for record in manifest.inputs for axis in record.axes}
    labelled = [record for record in manifest.outputs if record.name.endswith("token_logits")]
    axes = {record.axes[1] for record in labelled if len(record.axes) > 1} & known
    return masks_of(manifest.inputs, axes.pop() if len(axes) == 1 else None)


def _labels(entry: Entry | None) -> tuple[str, ...]:
    return () if entry is None or entry.labels is None else entry.labels
