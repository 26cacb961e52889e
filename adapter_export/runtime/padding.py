"""Where requests may be padded: along the axes of a mask, if it was tried out that padding changes nothing."""

from __future__ import annotations

from threading import Lock

from adapter_export.runtime.catalogue import Catalogue, Entry
from adapter_export.runtime.graphs import Graphs
from adapter_export.runtime.proofs import padded_axes, padding_is_neutral, random_tensors

_WIDTH = 3


class PaddingRule:
    """Tried out once for all adapters that the slots can hold, and where that fails for each adapter on its own.

    An adapter that counts padding, such as one with a gate over all tokens, must not be padded further.
    """

    def __init__(self, graphs: Graphs, catalogue: Catalogue) -> None:
        self._graphs = graphs
        self._catalogue = catalogue
        self._axes = padded_axes(graphs.manifest)
        self._all: bool | None = None
        self._known: dict[int | None, bool] = {}
        self._lock = Lock()

    def axes(self, entry: Entry | None) -> frozenset[str]:
        """The axes along which requests with this adapter may be padded."""
        if not self._axes:
            return self._axes
        with self._lock:
            if self._all is None:
                self._all = padding_is_neutral(self._graphs, random_tensors(self._graphs.manifest, _WIDTH))
            return self._axes if self._all or self._holds(entry) else frozenset()

    def _holds(self, entry: Entry | None) -> bool:
        key = None if entry is None else entry.serial
        if key not in self._known:
            tensors = {} if entry is None else self._catalogue.resident(entry).adapter.tensors
            self._known[key] = padding_is_neutral(self._graphs, tensors)
        return self._known[key]
