"""Single calls: what is chosen for a call or for each row, held against the inputs, and the graph that takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from adapter_export.errors import RequestError
from adapter_export.format.manifest import Manifest
from adapter_export.graph.tasks import Task
from adapter_export.runtime.answers import check_task, row_results
from adapter_export.runtime.bank import Bank, Share
from adapter_export.runtime.binding import run_bound
from adapter_export.runtime.catalogue import Catalogue, Entry
from adapter_export.runtime.graphs import Graphs
from adapter_export.runtime.head_rows import wanted_outputs
from adapter_export.runtime.providers import on_device
from adapter_export.runtime.request import check_inputs, check_rows
from adapter_export.runtime.weighting import Weighting, weight_choices, weight_tensors

Inputs = Mapping[str, np.ndarray]
Outputs = dict[str, np.ndarray]
Rows = Sequence[str | None]
"""An adapter for each row of a batch; none is the base."""


class Calls:
    """Runs one call at a time, any number of them at once.

    Args:
        graphs: the bundle's.
        catalogue: the session's adapters.
        bank: runs rows through different adapters.
    """

    def __init__(self, graphs: Graphs, catalogue: Catalogue, bank: Bank) -> None:
        self._graphs = graphs
        self._catalogue = catalogue
        self._bank = bank

    @property
    def manifest(self) -> Manifest:
        """That of the bundle."""
        return self._graphs.manifest

    def entry(self, name: str | None) -> Entry | None:
        """The adapter of a name; none is the base.

        Raises:
            RequestError: it is not loaded.
        """
        return None if name is None else self._catalogue.entry(name)

    def run(
        self,
        inputs: Inputs,
        adapter: str | None,
        adapters: Rows | None,
        mixture: Sequence[Share] | None,
        weights: Weighting | None,
        allow_mixed_rows: bool,
    ) -> Outputs:
        """Compute the outputs, as `Session.run` says it."""
        if sum(each is not None for each in (adapter, adapters, mixture)) > 1:
            raise RequestError("one call has one choice", expected="`adapter`, `adapters` or `mixture`")
        if weights is not None and adapter is None:
            raise RequestError("weights are those of a fusion's members", expected="`adapter`, the name of the fusion")
        arrays = check_inputs(inputs, self.manifest.inputs)
        if mixture is not None:
            check_rows(arrays, [sorted(share.items()) for share in mixture], self.manifest, allow_mixed_rows)
            return self._bank.mix(_fed(arrays), mixture)
        if adapters is not None:
            return self._rows(arrays, self._entries(adapters), allow_mixed_rows)
        return self._one(arrays, self.entry(adapter), weights, allow_mixed_rows)

    def together(self, arrays: Outputs, entries: Sequence[Entry | None]) -> Outputs:
        """Run checked inputs whose rows may stand in one call; rows of one adapter need no bank."""
        if len({None if entry is None else entry.serial for entry in entries}) == 1:
            return self._one(arrays, entries[0])
        return self._bank.run(_fed(arrays), entries)

    def on_device(self, inputs: Inputs, adapter: str | None) -> dict[str, ort.OrtValue]:
        """Compute the outputs and leave them on the device, as `Session.run_on_device` says it."""
        entry = self.entry(adapter)
        arrays = check_inputs(inputs, self.manifest.inputs)
        feeds = {name: on_device(array, self._graphs.provider) for name, array in arrays.items()}
        feeds.update({} if entry is None else self._catalogue.resident(entry).feeds)
        return run_bound(self._graphs.session("slots"), self._outputs(entry), feeds, self._graphs.provider)

    def results(
        self,
        inputs: Inputs,
        adapter: str | None,
        adapters: Sequence[str] | None,
        task: Task,
        weights: Weighting | None = None,
    ) -> tuple[list[np.ndarray], Sequence[Entry | None]]:
        """What the heads give for each row, if they are for this task, and each row's adapter.

        Raises:
            RequestError: none or both are given, an adapter's task is another one, or as `run`.
        """
        if (adapter is None) == (adapters is None):
            raise RequestError("no adapter is chosen", expected="`adapter`, or `adapters` with one for each row")
        if adapters is None:
            entry = self.entry(adapter)
            output = check_task(entry, task)
            found = self._one(check_inputs(inputs, self.manifest.inputs), entry, weights)[output]
            return list(found), [entry] * len(found)
        if weights is not None:
            raise RequestError("weights are those of a fusion's members", expected="`adapter`, the name of the fusion")
        entries = self._entries(adapters)
        for one in entries:
            check_task(one, task)
        outputs = self._rows(check_inputs(inputs, self.manifest.inputs), entries, allow_mixed_rows=False)
        return row_results(outputs, entries), entries

    def _entries(self, names: Rows) -> list[Entry | None]:
        """Each name is looked up once, so that all its rows have the same weights."""
        found = {name: self.entry(name) for name in dict.fromkeys(names)}
        return [found[name] for name in names]

    def _outputs(self, entry: Entry | None) -> list[str]:
        filled = () if entry is None or entry.output is None else (entry.output,)
        return wanted_outputs(self.manifest, [filled])

    def _one(
        self,
        arrays: Outputs,
        entry: Entry | None,
        weights: Weighting | None = None,
        allow_mixed_rows: bool = False,
    ) -> Outputs:
        feeds = _fed(arrays)
        feeds.update({} if entry is None else self._catalogue.resident(entry).feeds)
        if weights is not None:
            choices = weight_choices(weights, len(next(iter(arrays.values()))))
            check_rows(arrays, choices, self.manifest, allow_mixed_rows)
            feeds.update(_fed(weight_tensors(entry, weights)))
        return self._graphs.run("slots", self._outputs(entry), feeds)

    def _rows(self, arrays: Outputs, entries: Sequence[Entry | None], allow_mixed_rows: bool) -> Outputs:
        check_rows(arrays, [None if one is None else one.serial for one in entries], self.manifest, allow_mixed_rows)
        return self._bank.run(_fed(arrays), entries)


def _fed(arrays: Outputs) -> dict[str, ort.OrtValue]:
    return {name: on_device(array, "cpu") for name, array in arrays.items()}
