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
from adapter_export.runtime.bank import MASK_BELOW
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


def own_results(outputs: Arrays, manifest: Manifest, filled: Sequence[str | None]) -> Arrays:
    """Return the outputs of a bank, those of heads as wide as the widest of their rows.

    `filled` is for each row the output that its adapter's head fills; none without a head. Other rows of an output of
    heads become NaN, and classes that a row's adapter does not have −inf. The base's outputs stay as they are.
    """
    found = dict(outputs)
    for name in {head.output for head in manifest.heads} & set(outputs):
        own = np.array([name == output for output in filled])
        result = np.where(outputs[name] < MASK_BELOW, -np.inf, outputs[name]).astype(outputs[name].dtype)
        result[~own] = np.nan
        found[name] = np.ascontiguousarray(result[..., : _width(result[own])])
    return found


def own_classes(row: np.ndarray) -> np.ndarray:
    """Return what a row's adapter has of a result [classes] or [tokens, classes]."""
    return row[..., : _width(row)]


def _width(results: np.ndarray) -> int:
    """Return how many classes are anybody's: those behind them are −inf in all rows."""
    return int(np.count_nonzero(~np.isneginf(results).all(axis=tuple(range(results.ndim - 1)))))


_METHODS: Mapping[Task, str] = {
    "sequence_classification": "classify",
    "token_classification": "classify_tokens",
    "regression": "predict",
    "embedding": "embed",
}


def check_task(entry: Entry | None, task: Task) -> Entry:
    """Return an adapter whose head is for this task, with a known `output`; RequestError if it is not, or is none."""
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


def stacked(results: Sequence[np.ndarray], entries: Sequence[Entry]) -> np.ndarray:
    """Return results of rows as one array [batch, width]; RequestError if they are of different widths."""
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
    # the masks of the tokens that have labels: not that of an encoder's where they are a decoder's
    known = {axis for record in manifest.inputs for axis in record.axes}
    labelled = [record for record in manifest.outputs if record.name.endswith("token_logits")]
    axes = {record.axes[1] for record in labelled if len(record.axes) > 1} & known
    names = masks_of(manifest.inputs, axes.pop() if len(axes) == 1 else None)
    masks = [np.asarray(inputs[name]) != 0 for name in names]
    real = next((mask for mask in masks if mask.shape == shape), np.ones(shape, bool))
    return [
        [one if keep else None for one, keep in zip(predict(result, entry.labels or ()), row, strict=True)]
        for result, entry, row in zip(results, entries, real, strict=True)
    ]
