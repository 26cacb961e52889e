"""The adapters of a bank as rows of tensors: all of one width, the narrower ones filled up so that nothing changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapter_export.dtypes import Array, Weights
from adapter_export.errors import AdapterError
from adapter_export.graph.adapter import HEAD, Adapter
from adapter_export.graph.graph import HEAD_VALUES, SITE_VALUES
from adapter_export.onnx.head_outputs import HeadSum
from adapter_export.onnx.slots import SLOT_PREFIX, Part, SlotPlan, slot_tensors
from adapter_export.reference.bound import bound_to
from adapter_export.reference.evaluate import evaluate

MASKED = -3e38
"""What a bank gives for a class that a row's adapter does not have; a softmax makes it 0."""

_BANK_PREFIX = "bank."

Sizes = Mapping[int | str, int]
"""The length of every free axis of a graph, by its name there."""


@dataclass(frozen=True)
class BankRows:
    """The contents of a bank.

    Attributes:
        names: the adapter in each row; none is the base, in row 0.
        tensors: float32 [adapters, …] for each slot.
        masks: float32 [adapters, width] for each output of heads of several widths, to be added to it: 0, and `MASKED`
            beyond the width of the row's adapter.
    """

    names: tuple[str | None, ...]
    tensors: Weights
    masks: Weights


def bank_name(slot: str) -> str:
    """The tensor of a bank that holds a slot's tensors of all adapters."""
    return _BANK_PREFIX + slot.removeprefix(SLOT_PREFIX)


def mask_name(output: str) -> str:
    """The tensor of a bank that masks an output."""
    return f"{_BANK_PREFIX}{HEAD}.{output}.mask"


def bank_rows(plan: SlotPlan, heads: Sequence[HeadSum], adapters: Sequence[Adapter]) -> BankRows:
    """The base in row 0, then the adapters.

    Args:
        plan: the slots.
        heads: the outputs that heads fill.
        adapters: those of the bank, in order.

    Raises:
        AdapterError: an adapter cannot be filled up to the width of a wider one.
    """
    filled = [_neutral(plan), *(slot_tensors(plan, adapter) for adapter in adapters)]
    sizes = _sizes(plan, heads, filled)
    for adapter, tensors in zip(adapters, filled[1:], strict=True):
        for part in plan.parts:
            _check_padding(part, adapter, tensors, sizes)
    stacked = {
        part.slot(name): np.stack([_padded(part, name, tensors[part.slot(name)], sizes) for tensors in filled])
        for part in plan.parts
        for name in part.graph.parameters
    }
    masks = {head.output: _mask(head, filled, sizes) for head in heads if isinstance(head.width, str)}
    return BankRows((None, *(adapter.name for adapter in adapters)), stacked, masks)


def _neutral(plan: SlotPlan) -> Weights:
    return {part.slot(name): tensor for part in plan.parts for name, tensor in part.neutral().items()}


def _sizes(plan: SlotPlan, heads: Sequence[HeadSum], filled: Sequence[Weights]) -> Sizes:
    """Of every free axis the longest; heads of one output are equally wide."""
    sizes: dict[int | str, int] = {}
    for part in plan.parts:
        for name, axes in _axes(part).items():
            for tensors in filled:
                for axis, size in zip(axes, tensors[part.slot(name)].shape, strict=True):
                    sizes[axis] = max(size, sizes.get(axis, 1))
    for head in heads:
        if isinstance(head.width, str):
            names = [part.axis_name(part.result_width) for part in head.parts]
            sizes.update(dict.fromkeys(names, max(sizes.get(name, 1) for name in names)))
    return sizes


def _axes(part: Part) -> dict[str, tuple[int | str, ...]]:
    """The axes of each parameter, free ones by their names in the graph."""
    return {
        record.parameter: tuple(part.axis_name(axis, record.parameter) for axis in record.axes)
        for record in part.records()
    }


def _padded(part: Part, name: str, tensor: Array, sizes: Sizes) -> Array:
    """Zeros behind what is there, along every axis."""
    wanted = [sizes[axis] for axis in _axes(part)[name]]
    return np.pad(tensor, [(0, size - found) for size, found in zip(wanted, tensor.shape, strict=True)])


def _check_padding(part: Part, adapter: Adapter, tensors: Weights, sizes: Sizes) -> None:
    """Try out on random values whether a part computes the same from the wider tensors."""
    own = {name: tensors[part.slot(name)] for name in part.graph.parameters}
    wide = {name: _padded(part, name, tensor, sizes) for name, tensor in own.items()}
    if all(own[name].shape == wide[name].shape for name in own):
        return
    expected, found = _tried(part, own), _tried(part, wide)
    kept = found[..., : expected.shape[-1]]
    if not np.allclose(kept, expected, rtol=1e-9, atol=1e-9) or found[..., expected.shape[-1] :].any():
        raise AdapterError(
            "an adapter cannot stand in a bank beside a wider one: zeros in its tensors change what it computes",
            where=f"adapter `{adapter.name}`, graph `{part.graph_name}` at `{part.owner}`",
            found=", ".join(f"`{name}` {list(own[name].shape)}" for name in own if own[name].shape != wide[name].shape),
            expected=", ".join(str(list(wide[name].shape)) for name in own if own[name].shape != wide[name].shape),
            fix="give the adapters one width, or build with `--flavours slots,inputs`",
        )


def _tried(part: Part, parameters: Weights) -> Array:
    graph, rng = bound_to(part.graph, None), np.random.default_rng(0)
    widths = {"d": 1, **part.site_widths, "batch": 1, "tokens": 2}
    shapes = HEAD_VALUES if part.owner == HEAD else SITE_VALUES
    values = {name: rng.standard_normal([widths[str(axis)] for axis in shapes[name]]) for name in graph.inputs}
    if "mask" in values:
        values["mask"] = np.ones_like(values["mask"])
    return evaluate(graph, values, parameters)


def _mask(head: HeadSum, filled: Sequence[Weights], sizes: Sizes) -> Array:
    """A head lies idle where all its tensors are zero; without a busy one, nothing of the output means anything."""
    width = sizes[head.parts[0].axis_name(head.parts[0].result_width)]
    mask = np.zeros((len(filled), width), np.float32)
    for row, tensors in zip(mask, filled, strict=True):
        busy = [own for part in head.parts if (own := _own_width(part, tensors)) is not None]
        row[max(busy, default=width) :] = MASKED
    return mask


def _own_width(part: Part, tensors: Weights) -> int | None:
    own = {name: tensors[part.slot(name)] for name in part.graph.parameters}
    if not any(tensor.any() for tensor in own.values()):
        return None
    symbol = part.axis_name(part.result_width)
    widths = [
        size
        for name, axes in _axes(part).items()
        for axis, size in zip(axes, own[name].shape, strict=True)
        if axis == symbol
    ]
    return max(widths, default=None)
