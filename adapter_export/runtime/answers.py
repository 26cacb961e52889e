"""From the results of heads to answers: labels, numbers and vectors for each row, by the row's own adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adapter_export.errors import RequestError
from adapter_export.format.axes import masks_of
from adapter_export.format.manifest import Manifest
from adapter_export.graph.tasks import Task
from adapter_export.runtime.catalogue import Entry
from adapter_export.runtime.head_rows import own_classes
from adapter_export.runtime.predict import Prediction, predict, predict_tokens

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
