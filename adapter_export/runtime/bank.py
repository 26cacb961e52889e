"""Mixed batches: each row of a call through its own adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import numpy as np
import onnxruntime as ort

from adapter_export.dtypes import Weights
from adapter_export.errors import FormatError, RequestError
from adapter_export.format.manifest import BankRecord, BankTensor, Manifest, SlotRecord
from adapter_export.graph.adapter import HEAD
from adapter_export.runtime.answers import only_own_results, wanted_outputs
from adapter_export.runtime.catalogue import Catalogue, Counts, Entry, Leases
from adapter_export.runtime.graphs import Graphs, Provider, on_device
from adapter_export.runtime.loaded import LoadedAdapter
from adapter_export.runtime.proofs import check_widths_can_be_filled

# Adapters as rows of a bank's tensors: where each number goes, and what stands where an adapter has none.

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


# A bank of a fixed number of rows, fed at run time: adapters come and go while calls use others.

Feeds = Mapping[str, ort.OrtValue]


@dataclass(frozen=True)
class Lease:
    """Rows of a table for the time of a call.

    Attributes:
        rows: the row of each adapter; 0 is the base.
        feeds: the tensors of the bank, which hold these adapters in these rows until the call ends.
    """

    rows: tuple[int, ...]
    feeds: Feeds


class Table:
    """The rows of a bank. Row 0 is the base; the others hold adapters, each as wide as the widest so far.

    On the CPU the tensors of the bank are fed as they lie here, without a copy. On a device they are uploaded whenever
    an adapter was put in, and kept there.

    Args:
        layout: what a row is made of.
        rows: how many adapters there is room for.
        provider: where the graph runs.
    """

    def __init__(self, layout: RowLayout, rows: int, provider: Provider) -> None:
        self._layout = layout
        self._size = rows + 1
        self._provider = provider
        self._leases = Leases(rows)
        self._widths: dict[Width, int] = {}
        self._arrays: Weights = {}
        self._feeds: Feeds = {}
        self._occupied: set[int] = set()

    @property
    def counts(self) -> Counts:
        """What the table has done so far."""
        return self._leases.counts

    def forget(self, entry: Entry) -> None:
        """Replace this adapter first."""
        self._leases.forget(entry.serial)

    @contextmanager
    def lease(self, rows: Sequence[Entry | None], read: Callable[[Entry], LoadedAdapter]) -> Iterator[Lease]:
        """Put adapters into rows, and keep them there until the block ends.

        Args:
            rows: an adapter for each row of a batch; none is the base.
            read: gives the tensors of those that are not there.

        Raises:
            RequestError: they are more than the table has rows.
        """
        entries = {entry.serial: entry for entry in rows if entry is not None}
        keys = list(entries)
        ahead = {key: read(entries[key]) for key in self._leases.absent(keys)}  # others go on meanwhile
        found, feeds = self._leases.take(
            keys,
            lambda missing: self._fill({row: ahead.get(key) or read(entries[key]) for key, row in missing.items()}),
        )
        try:
            row = dict(zip(keys, (1 + each for each in found), strict=True))
            yield Lease(tuple(0 if entry is None else row[entry.serial] for entry in rows), feeds)
        finally:
            self._leases.give_back(keys)

    def _fill(self, missing: Mapping[int, LoadedAdapter]) -> Feeds:
        """Called by one thread at a time."""
        self._grow(list(missing.values()))
        for row, adapter in missing.items():
            self._layout.write(self._arrays, 1 + row, adapter)
            self._occupied.add(1 + row)
        if missing and self._provider != "cpu":
            self._feeds = self._fed(self._arrays)
        return self._feeds

    def _grow(self, adapters: Sequence[LoadedAdapter]) -> None:
        """Make room for wider adapters, in new tensors: calls that run now read the old ones to their end."""
        widths = widest([self._layout.widths(None), self._widths, *map(self._layout.widths, adapters)])
        if widths == self._widths:
            return
        arrays = self._layout.empty(self._size, widths)
        self._layout.write(arrays, 0, None)
        for tensor in self._layout.tensors:
            for row in self._occupied:
                old = self._arrays[tensor.name][row]
                if tensor.slot is None:  # an adapter does not have the classes that are new
                    arrays[tensor.name][row] = MASKED
                arrays[tensor.name][row][tuple(slice(size) for size in old.shape)] = old
        self._feeds, self._arrays, self._widths = self._fed(arrays), arrays, widths

    def _fed(self, arrays: Weights) -> Feeds:
        return {name: on_device(array, self._provider) for name, array in arrays.items()}


class Bank:
    """Runs the graph `bank` of a bundle.

    Where a call names none but adapters that the bundle's own bank holds, nothing is fed but which they are. For others
    there is a table of `resident` rows beside it, made when it is first needed.

    Args:
        graphs: the bundle's.
        catalogue: the session's adapters.
        resident: how many adapters the table holds at once.
    """

    def __init__(self, graphs: Graphs, catalogue: Catalogue, resident: int) -> None:
        self._graphs = graphs
        self._catalogue = catalogue
        self._resident = resident
        self._lock = Lock()
        self._layout: RowLayout | None = None
        self._table: Table | None = None

    @property
    def counts(self) -> Counts:
        """What the table has done so far."""
        return Counts() if self._table is None else self._table.counts

    def forget(self, entry: Entry) -> None:
        """An adapter that is gone makes room first."""
        if self._table is not None:
            self._table.forget(entry)

    def takes(self, entries: Sequence[Entry | None]) -> bool:
        """Whether these adapters can be mixed here."""
        if "bank" not in self._graphs.manifest.graphs:
            return False
        if all(entry is None or entry.row is not None for entry in entries):
            return True
        try:
            self._opened_table()
        except RequestError:
            return False
        return True

    def run(self, feeds: Feeds, rows: Sequence[Entry | None]) -> dict[str, np.ndarray]:
        """Run each row of a batch through its own adapter.

        Args:
            feeds: the data inputs.
            rows: the adapter of each row; none is the base.

        Raises:
            RequestError: the bundle has no bank, the adapters are more than the table holds, or cannot share one; or
                ONNX Runtime cannot compute the inputs.
        """
        self._graphs.session("bank")
        filled = [own_outputs(one) for one in rows]
        with self._lease(rows) as lease:
            ids = ort.OrtValue.ortvalue_from_numpy(np.array(lease.rows, np.int64))
            given = {**feeds, **lease.feeds, self._record.ids: ids}
            outputs = self._graphs.run("bank", wanted_outputs(self._graphs.manifest, filled), given)
        return only_own_results(outputs, self._graphs.manifest, filled)

    @property
    def _record(self) -> BankRecord:
        record = self._graphs.manifest.bank
        assert record is not None  # a manifest with such a graph has one
        return record

    @contextmanager
    def _lease(self, rows: Sequence[Entry | None]) -> Iterator[Lease]:
        built = [0 if entry is None else entry.row for entry in rows]
        if None not in built:
            yield Lease(tuple(row for row in built if row is not None), {})
            return
        with self._opened_table().lease(rows, lambda entry: self._catalogue.resident(entry).adapter) as lease:
            yield lease

    def _opened_table(self) -> Table:
        with self._lock:
            if self._table is None:
                self._table = Table(self._row_layout(), self._resident, self._graphs.provider)
            return self._table

    def _row_layout(self) -> RowLayout:
        if self._layout is None:
            check_widths_can_be_filled(self._graphs)
            self._layout = RowLayout(self._graphs.manifest)
        return self._layout


def own_outputs(entry: Entry | None) -> frozenset[str]:
    """The outputs of heads that mean something for an adapter."""
    return frozenset() if entry is None or entry.output is None else frozenset({entry.output})
