"""Results of heads, and checks that adapters can answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from adapter_export.errors import RequestError
from adapter_export.format.axes import masks_of
from adapter_export.format.manifest import Manifest
from adapter_export.graph.tasks import PER_TOKEN, ProblemType, Task
from adapter_export.runtime.bank import MASK_BELOW
from adapter_export.runtime.graphs import Arrays
from adapter_export.runtime.loaded_adapters import Entry


class Head(NamedTuple):
    """The adapter of a row at the time of the request: its name, its task, and the output of its head."""

    adapter: str | None
    task: Task | None
    output: str | None


def own_results(outputs: Arrays, manifest: Manifest, filled: Sequence[str | None]) -> Arrays:
    """Return the outputs of a bank, with results of heads truncated to the widest row.

    `filled` is the output of each row's head, `None` without a head. In other outputs of heads the row is NaN, and
    classes that its adapter lacks are −inf. The base's outputs are unchanged.
    """
    results = dict(outputs)
    for name in {head.output for head in manifest.heads} & set(outputs):
        rows = np.array([name == output for output in filled])
        result = np.where(outputs[name] < MASK_BELOW, -np.inf, outputs[name]).astype(outputs[name].dtype)
        result[~rows] = np.nan
        results[name] = np.ascontiguousarray(result[..., : _width(result[rows])])
    return results


def own_classes(row: np.ndarray) -> np.ndarray:
    """Return the classes of a row's own adapter in a result [classes] or [tokens, classes]."""
    return row[..., : _width(row)]


def _width(results: np.ndarray) -> int:
    """Return the number of classes of any row; later ones are −inf in all rows."""
    return int(np.count_nonzero(~np.isneginf(results).all(axis=tuple(range(results.ndim - 1)))))


def check_type(entry: Entry | None, problem: ProblemType | None = None) -> tuple[Entry, Task]:
    """Return an adapter whose head can answer, and its task, which must have the type `problem` if given.

    Raises:
        RequestError: there is no adapter, or its head has no task or another task type.
    """
    action = "answer" if problem is None else f"do `{problem}`"
    if entry is None:
        raise RequestError(f"the base by itself cannot {action}", fix="pass an adapter for every row, or call `run`")
    if entry.task is None or entry.output is None:
        raise RequestError(
            f"an adapter without a known task cannot {action}",
            where=f"adapter `{entry.name}`",
            found="no head" if entry.output is None else "a head without a task",
            fix="call `run`, which returns raw results, or pass `labels` or `task` to `load`",
        )
    if problem is not None and entry.task.type != problem:
        raise RequestError(
            f"an adapter with another task cannot {action}",
            where=f"adapter `{entry.name}`",
            found=f"the problem type `{entry.task.type}`",
            fix=f"call `{entry.task.kind.method}`",
        )
    return entry, entry.task


def check_context(task: Task, context: npt.NDArray[np.bool_] | None, where: str) -> None:
    """Raise RequestError if a row lacks the mask of possible answers, and its task needs one."""
    if task.kind.needs_context and context is None:
        raise RequestError(
            f"a row of arrays for `{task.type}` needs a mask of the tokens that may be the answer",
            where=where,
            expected="`context`, such as the tokens of the second text",
            fix="pass `context`, or texts",
        )


def stacked(results: Sequence[np.ndarray], entries: Sequence[Entry]) -> np.ndarray:
    """Return results of rows as one array [batch, width]; RequestError if they are of different widths."""
    widths = {entry.name: result.shape[-1] for result, entry in zip(results, entries, strict=True)}
    if len(set(widths.values())) > 1:
        raise RequestError(
            "the results of a batch have different widths",
            found=", ".join(f"`{name}`: {width}" for name, width in widths.items()),
            fix="call each adapter separately",
        )
    return np.stack(results)


def real_tokens(
    results: Sequence[np.ndarray], inputs: Mapping[str, np.ndarray], manifest: Manifest
) -> Sequence[npt.NDArray[np.bool_] | None]:
    """Return a mask of real tokens for each row, `None` if its result has no axis of tokens."""
    tokens = next((len(result) for result in results if result.ndim == 2), None)
    if tokens is None:
        return [None] * len(results)
    shape = (len(results), tokens)
    # masks of the tokens that have results: of an encoder–decoder, those of the decoder
    known = {axis for record in manifest.inputs for axis in record.axes}
    filled = {head.output for head in manifest.heads if head.result in PER_TOKEN}
    labelled = [record for record in manifest.outputs if record.name in filled]
    axes = {record.axes[1] for record in labelled if len(record.axes) > 1} & known
    names = masks_of(manifest.inputs, axes.pop() if len(axes) == 1 else None)
    masks = [np.asarray(inputs[name]) != 0 for name in names]
    real = next((mask for mask in masks if mask.shape == shape), np.ones(shape, bool))
    return [row if result.ndim == 2 else None for result, row in zip(results, real, strict=True)]
