"""Adapters as rows of a bank's tensors: where each number goes, and what stands where an adapter has none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import FormatError
from adapter_export.format.manifest import BankTensor, Manifest, SlotRecord
from adapter_export.graph.adapter import HEAD
from adapter_export.runtime.loaded import LoadedAdapter

MASKED = -3e38
"""What is added to the results of classes that a row's adapter does not have; a softmax makes them 0."""

Width = tuple[str, str, str]
"""A free width: a site or `head`, a graph there or an output of heads, a symbol."""

Widths = Mapping[Width, int]


class RowLayout:
    """What a row of a bank is made of, by the bundle's manifest.

    Raises:
        FormatError: the bundle has no bank, or one whose tensors are not those of its slots and heads.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.tensors = () if manifest.bank is None else manifest.bank.tensors
        self._slots = {slot.name: slot for slot in manifest.slots}
        self._outputs = {head.graph: head.output for head in manifest.heads}
        self._masked = {mask_name(head.output): head.output for head in manifest.heads}
        self._symbols = {
            self._masked[tensor.name]: str(tensor.axes[1]) for tensor in self.tensors if tensor.name in self._masked
        }
        self._check(manifest)

    def widths(self, adapter: LoadedAdapter | None) -> dict[Width, int]:
        """The free widths of an adapter's row; without one those of the base, where nothing acts."""
        found: dict[Width, int] = {}
        for slot in self._slots.values():
            shape = slot.neutral if adapter is None else adapter.tensors[slot.name].shape
            for axis, size in zip(slot.axes, shape, strict=True):
                if isinstance(axis, str):
                    key = self._width(slot, axis)
                    found[key] = max(size, found.get(key, 1))
        return found

    def shape(self, tensor: BankTensor, widths: Widths) -> tuple[int, ...]:
        """That of a tensor's rows."""
        if tensor.slot is None:
            output = self._masked[tensor.name]
            return (widths.get((HEAD, output, self._symbols[output]), 1),)
        slot = self._slots[tensor.slot]
        return tuple(axis if isinstance(axis, int) else widths[self._width(slot, axis)] for axis in slot.axes)

    def write(self, arrays: Weights, row: int, adapter: LoadedAdapter | None) -> None:
        """Write an adapter, or without one the base, into a row of tensors that are at least as wide."""
        for tensor in self.tensors:
            target = arrays[tensor.name][row]
            if tensor.slot is None:
                target[...] = 0.0
                width = None if adapter is None else self.result_width(adapter)
                if adapter is not None and width is not None and adapter.output == self._masked[tensor.name]:
                    target[width:] = MASKED
                continue
            slot = self._slots[tensor.slot]
            values = np.full(slot.neutral, slot.neutral_value) if adapter is None else adapter.tensors[slot.name]
            _write_padded(target, values)

    def result_width(self, adapter: LoadedAdapter) -> int | None:
        """How many numbers an adapter's head gives per row or token; none where the base fixes it, or without one."""
        symbol = None if adapter.output is None else self._symbols.get(adapter.output)
        for slot in self._slots.values():
            if slot.site == HEAD and slot.graph == adapter.graph and symbol in slot.axes:
                return int(adapter.tensors[slot.name].shape[slot.axes.index(symbol)])
        return None

    def stacked(self, adapters: Sequence[LoadedAdapter | None]) -> Weights:
        """A bank of these adapters alone, in tensors of its own."""
        widths = widest(self.widths(adapter) for adapter in adapters)
        arrays = self.empty(len(adapters), widths)
        for row, adapter in enumerate(adapters):
            self.write(arrays, row, adapter)
        return arrays

    def empty(self, rows: int, widths: Widths) -> Weights:
        """Tensors of zeros."""
        return {tensor.name: np.zeros((rows, *self.shape(tensor, widths)), np.float32) for tensor in self.tensors}

    def _width(self, slot: SlotRecord, symbol: str) -> Width:
        """Heads of one output give equally many numbers."""
        output = self._outputs.get(slot.graph, "") if slot.site == HEAD else ""
        if output and symbol == self._symbols.get(output):
            return HEAD, output, symbol
        return slot.site, slot.graph, symbol

    def _check(self, manifest: Manifest) -> None:
        held = [tensor.slot for tensor in self.tensors if tensor.slot is not None]
        others = [tensor.name for tensor in self.tensors if tensor.slot is None and tensor.name not in self._masked]
        if sorted(held) != sorted(self._slots) or others:
            raise FormatError(
                "the tensors of the bank are not those of the slots and heads",
                where=f"bundle of {manifest.producer}",
                found=f"{len(held)} tensors for {len(self._slots)} slots; {', '.join(others) or 'no others'}",
                fix="build the bundle again with `--flavours slots,inputs,bank`",
            )


def mask_name(output: str) -> str:
    """The tensor of a bank that masks an output of heads."""
    return f"bank.{HEAD}.{output}.mask"


def widest(widths: Iterable[Widths]) -> dict[Width, int]:
    """Of each width the largest."""
    found: dict[Width, int] = {}
    for some in widths:
        found.update({key: max(size, found.get(key, 1)) for key, size in some.items()})
    return found


def _write_padded(target: np.ndarray, values: np.ndarray) -> None:
    if target.shape != values.shape:
        target[...] = 0.0
    target[tuple(slice(size) for size in values.shape)] = values
