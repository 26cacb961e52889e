"""A loaded adapter: its tensors held against the slots of the graph, so that no run mixes it with anything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError, TensorError
from adapter_export.format.manifest import Manifest, SlotRecord
from adapter_export.graph.adapter import HEAD

_CLASSES = "classes"

Scope = tuple[str, str, str]
"""What one free size belongs to: a site, a graph at it, and a symbol of that graph."""


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter that can be run.

    Attributes:
        tensors: one for every slot.
        classes: how many classes its head has; none if it has no head.
        labels: the names of the classes; none if it has no head, or none were given.
    """

    tensors: Weights
    classes: int | None
    labels: tuple[str, ...] | None


def check_adapter(tensors: Weights, manifest: Manifest, labels: Sequence[str] | None, where: object) -> LoadedAdapter:
    """Hold an adapter against the graph.

    Args:
        tensors: what its file holds.
        manifest: that of the bundle.
        labels: the names of its classes.
        where: names the file in messages.

    Raises:
        TensorError: a tensor is missing, left over, misshapen, named like a data input, or holds NaN or Inf; all faults
            are listed.
        AdapterError: the labels are not as many as the classes.
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
    classes = _classes(tensors, manifest.slots)
    if labels is not None and len(labels) != (classes or 0):
        raise AdapterError(
            "labels and classes differ", where=where, found=f"{len(labels)} labels", expected=f"{classes or 0} classes"
        )
    return LoadedAdapter(tensors, classes, None if labels is None else tuple(labels))


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


def _classes(tensors: Mapping[str, np.ndarray], slots: Sequence[SlotRecord]) -> int | None:
    """The classes of the head that is in use; an idle head has the neutral shape and zeros alone."""
    heads = [slot for slot in slots if slot.site == HEAD]
    busy = {slot.graph for slot in heads if tensors[slot.name].shape != slot.neutral or tensors[slot.name].any()}
    for slot in heads:
        if slot.graph in busy and _CLASSES in slot.axes:
            return int(tensors[slot.name].shape[slot.axes.index(_CLASSES)])
    return None
