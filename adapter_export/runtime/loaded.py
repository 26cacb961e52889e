"""A loaded adapter: its tensors held against the slots of the graph, so that no run mixes it with anything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, TensorError
from adapter_export.format.manifest import HeadRecord, Manifest, SlotRecord
from adapter_export.graph.adapter import HEAD
from adapter_export.graph.tasks import CLASSES, LABELLED, TASK_OUTPUTS, Task

Scope = tuple[str, str, str]
"""What one free size belongs to: a site, a graph at it, and a symbol of that graph."""


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter that can be run.

    Attributes:
        tensors: one for every slot.
        output: the output that holds the result of its head; none if it has no head.
        task: what its head is for; none if it has no head, or nobody said it.
        labels: the names of its classes; none if it has no head, or none were given.
        graph: the name of its head's topology; none if it has no head.
    """

    tensors: Weights
    output: str | None
    task: Task | None
    labels: tuple[str, ...] | None
    graph: str | None


@dataclass(frozen=True)
class Claim:
    """What is said about the head of an adapter; its file says nothing.

    Attributes:
        labels: the names of its classes.
        task: what it is for; with labels and without a task, the classification that its head can do.
        output: the output that it fills, where its file holds no tensors of it.
    """

    labels: Sequence[str] | None = None
    task: Task | None = None
    output: str | None = None


def check_adapter(tensors: Weights, manifest: Manifest, claim: Claim, where: object) -> LoadedAdapter:
    """Hold an adapter against the graph.

    Args:
        tensors: what its file holds.
        manifest: that of the bundle.
        claim: what is said about its head.
        where: names the file in messages.

    Raises:
        TensorError: a tensor is missing, left over, misshapen, named like a data input, or holds NaN or Inf; all faults
            are listed.
        AdapterError: the labels are not a name for each class, the task is unknown or not one that its head can do, or
            it fills several heads.
    """
    faults = list(_faults(tensors, manifest))
    if faults:
        raise TensorError(
            "does not fit this bundle's graph",
            where=where,
            found="; ".join(faults),
            expected=f"a float32 tensor for each of {len(manifest.slots)} slots, as `manifest.json` lists them",
            fix="build the adapter for this bundle",
        )
    head = _head(tensors, manifest, claim, where)
    task = claim.task or _classification(head, claim)
    _check_task(task, head, where)
    labels = claim.labels
    _check_labels(labels, task, 0 if head is None else _classes(tensors, manifest.slots, head), where)
    named = None if labels is None else tuple(labels)
    if head is None:
        return LoadedAdapter(tensors, None, task, named, None)
    return LoadedAdapter(tensors, head.output, task, named, head.graph)


def check_model_version(found: int, manifest: Manifest, where: object) -> None:
    """Refuse an adapter of the right shapes that was made for another graph.

    Args:
        found: what its file says.
        manifest: that of the bundle; one that states no number comes from before files said theirs, and takes all.
        where: names the file in messages.

    Raises:
        AdapterError: the numbers differ: another base, other topologies, another site map, or a file of a program that
            says nothing.
    """
    if manifest.model_version is not None and found != manifest.model_version:
        raise AdapterError(
            "was made for another bundle: its base, the topology of its slots or its site map is another",
            where=where,
            found=f"`model_version` {found}",
            expected=manifest.model_version,
            fix="build the adapter for this bundle",
        )


def _faults(tensors: Weights, manifest: Manifest) -> Iterator[str]:
    slots = {slot.name: slot for slot in manifest.slots}
    inputs = {record.name for record in manifest.inputs}
    yield from (f"`{name}` is missing" for name in slots if name not in tensors)
    for name in tensors:
        if name in inputs:
            yield f"`{name}` is the name of a data input"
        elif name not in slots:
            yield f"`{name}` is left over"
    present = [slot for slot in manifest.slots if slot.name in tensors]
    for slot in present:
        yield from _tensor_faults(tensors[slot.name], slot)
    yield from _size_faults(tensors, present)


def _tensor_faults(tensor: np.ndarray, slot: SlotRecord) -> Iterator[str]:
    fixed = all(isinstance(axis, str) or axis == size for axis, size in zip(slot.axes, tensor.shape, strict=False))
    if tensor.ndim != len(slot.axes) or not fixed or 0 in tensor.shape:
        yield f"`{slot.name}` has shape {list(tensor.shape)}, not {list(slot.axes)}"
    if tensor.dtype != np.float32:
        yield f"`{slot.name}` is {tensor.dtype}, not float32"
    elif not np.isfinite(tensor).all():
        yield f"`{slot.name}` holds NaN or Inf"


def _size_faults(tensors: Weights, slots: Sequence[SlotRecord]) -> Iterator[str]:
    """ONNX Runtime does not see it when one name stands for two sizes, or fails deep inside a kernel."""
    sizes: dict[Scope, int] = {}
    for slot in slots:
        for axis, size in zip(slot.axes, tensors[slot.name].shape, strict=False):
            if isinstance(axis, str) and sizes.setdefault((slot.site, slot.graph, axis), size) != size:
                yield f"`{slot.name}` has `{axis}` = {size}, another tensor there {sizes[slot.site, slot.graph, axis]}"


def _head(tensors: Mapping[str, np.ndarray], manifest: Manifest, claim: Claim, where: object) -> HeadRecord | None:
    """The head that the adapter fills; an idle one has the neutral shape and zeros alone.

    One without tensors cannot be seen in a file: it is taken if it is the only one that fits what is said.
    """
    slots = [slot for slot in manifest.slots if slot.site == HEAD]
    busy = {slot.graph for slot in slots if tensors[slot.name].shape != slot.neutral or tensors[slot.name].any()}
    seen = [head for head in manifest.heads if head.graph in busy]
    if len(seen) > 1:
        found = ", ".join(f"`{head.graph}`" for head in seen)
        raise AdapterError(
            "fills several heads", where=where, found=found, expected="one, the others at their defaults"
        )
    if seen:
        return seen[0]
    said = [head for head in manifest.heads if claim.output == head.output]
    bare = [head for head in manifest.heads if head.graph not in {slot.graph for slot in slots}]
    fitting = said or [head for head in bare if claim.task is not None and head.result == TASK_OUTPUTS[claim.task]]
    return fitting[0] if len(fitting) == 1 or said else None


def _classification(head: HeadRecord | None, claim: Claim) -> Task | None:
    """The classification that a head with labels does."""
    if head is None or claim.labels is None:
        return None
    return next((task for task in LABELLED if TASK_OUTPUTS[task] == head.result), None)


def _check_labels(labels: Sequence[str] | None, task: Task | None, classes: int, where: object) -> None:
    """A name for each class: of two classes with one name, an answer could say only one."""
    if labels is None:
        return
    if len(labels) != classes or task not in LABELLED:
        raise AdapterError(
            "labels and classes differ", where=where, found=f"{len(labels)} labels", expected=f"{classes} classes"
        )
    if isinstance(labels, str) or len(set(labels)) != len(labels):
        raise AdapterError(
            "the labels are not one name for each class", where=where, found=repr(labels), expected="different names"
        )


def _check_task(task: Task | None, head: HeadRecord | None, where: object) -> None:
    if task is not None and task not in TASK_OUTPUTS:
        raise AdapterError("unknown task", where=where, found=f"`{task}`", expected=", ".join(TASK_OUTPUTS))
    if task is not None and (head is None or head.result != TASK_OUTPUTS[task]):
        raise AdapterError(
            f"has no head for the task `{task}`",
            where=where,
            found="no head" if head is None else f"a head that gives `{head.result}`",
            expected=f"a head that gives `{TASK_OUTPUTS[task]}`",
            fix="say another task, or give the file of another adapter",
        )


def _classes(tensors: Mapping[str, np.ndarray], slots: Sequence[SlotRecord], head: HeadRecord) -> int:
    """How many classes or numbers a head gives; 0 if it gives neither."""
    for slot in slots:
        if slot.site == HEAD and slot.graph == head.graph and CLASSES in slot.axes:
            return int(tensors[slot.name].shape[slot.axes.index(CLASSES)])
    return 0
