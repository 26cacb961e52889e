"""A bank of a fixed number of rows, fed at run time: adapters come and go while calls use others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import onnxruntime as ort

from adapter_export.dtypes import Weights
from adapter_export.runtime.catalogue import Entry
from adapter_export.runtime.leases import Counts, Leases
from adapter_export.runtime.loaded import LoadedAdapter
from adapter_export.runtime.providers import Provider, on_device
from adapter_export.runtime.rows import MASKED, RowLayout, Width, widest

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
