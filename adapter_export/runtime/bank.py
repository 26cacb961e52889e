"""Mixed batches and mixtures: each row of a call through its own adapter, or through shares of several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock

import numpy as np
import onnxruntime as ort

from adapter_export.errors import RequestError
from adapter_export.format.manifest import BankRecord
from adapter_export.runtime.catalogue import Catalogue, Entry
from adapter_export.runtime.graphs import Graphs
from adapter_export.runtime.head_rows import only_own_results, wanted_outputs
from adapter_export.runtime.leases import Counts
from adapter_export.runtime.loaded import LoadedAdapter
from adapter_export.runtime.proofs import check_widths_can_be_filled
from adapter_export.runtime.providers import on_device
from adapter_export.runtime.rows import RowLayout
from adapter_export.runtime.table import Lease, Table

Feeds = Mapping[str, ort.OrtValue]
Share = Mapping[str, float]
"""How much of each adapter; the base has what is left to 1."""

_ROUNDING = 1e-6


class Bank:
    """Runs the graphs `bank` and `mixture` of a bundle.

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

    def mix(self, feeds: Feeds, shares: Sequence[Share]) -> dict[str, np.ndarray]:
        """Run each row of a batch through a mixture of adapters.

        Args:
            feeds: the data inputs.
            shares: for each row the shares of adapters.

        Raises:
            RequestError: the bundle has no graph for mixtures, shares do not fit, or as `run`.
        """
        self._graphs.session("mixture")
        entries = {name: self._catalogue.entry(name) for share in shares for name in share}
        rows, bank = self._rows_of_mixture(entries)
        weights = np.zeros((len(shares), max(rows.values(), default=0) + 1 if bank else len(self._record.rows)), "f4")
        for row, share in enumerate(shares):
            weights[row, 0] = _rest(share, row)
            for name, part in share.items():
                weights[row, rows[name]] += part
        given = {**feeds, **bank, self._record.weights: ort.OrtValue.ortvalue_from_numpy(weights)}
        filled = [frozenset().union(*(own_outputs(entries[name]) for name in share)) for share in shares]
        outputs = self._graphs.run("mixture", wanted_outputs(self._graphs.manifest, filled), given)
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

    def _rows_of_mixture(self, entries: Mapping[str, Entry]) -> tuple[Mapping[str, int], Feeds]:
        """Where each adapter lies, and the tensors of a bank that holds no others, unless the bundle's own has all."""
        built = {name: entry.row for name, entry in entries.items() if entry.row is not None}
        if len(built) == len(entries):
            return built, {}
        with self._lock:
            layout = self._row_layout()
        adapters: list[LoadedAdapter | None] = [None]
        adapters += [self._catalogue.resident(entry).adapter for entry in entries.values()]
        feeds = {name: on_device(array, self._graphs.provider) for name, array in layout.stacked(adapters).items()}
        return {name: 1 + index for index, name in enumerate(entries)}, feeds

    def _row_layout(self) -> RowLayout:
        if self._layout is None:
            check_widths_can_be_filled(self._graphs)
            self._layout = RowLayout(self._graphs.manifest)
        return self._layout


def own_outputs(entry: Entry | None) -> frozenset[str]:
    """The outputs of heads that mean something for an adapter."""
    return frozenset() if entry is None or entry.output is None else frozenset({entry.output})


def _rest(share: Share, row: int) -> float:
    """What is left for the base."""
    total = math.fsum(share.values())
    if not all(0 <= part <= 1 for part in share.values()) or total > 1 + _ROUNDING:  # NaN is neither
        raise RequestError(
            "shares are from 0 to 1, and so is their sum; the base gets what is left",
            where=f"row {row}",
            found=", ".join(f"`{name}`: {part}" for name, part in share.items()),
        )
    return max(0.0, 1.0 - total)
