"""Tables behind the lookups of a base, and the linear layers that multiply by the same table, such as tied heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from adapter_export.sites.linear_layers import layer_of
from adapter_export.sites.site import Site, SiteMap
from adapter_export.sites.view import FlowIndex


class TableSource(Protocol):
    """A base in its backend: the dataflow graph and the tensors that its nodes read."""

    @property
    def index(self) -> FlowIndex:
        """The dataflow graph."""

    def table(self, name: str) -> np.ndarray | None:
        """Return a floating-point matrix as it is stored; `None` if there is none."""

    def is_same(self, name: str, other: str) -> bool:
        """Return whether two names are those of one tensor."""


@dataclass(frozen=True)
class LookupTable:
    """A table [rows, width].

    Attributes:
        rows: the table.
        tied: the linear layers whose matrix it is, as in language heads with tied weights.
        alike: linear layers with a separate matrix of equal numbers.
    """

    rows: np.ndarray
    tied: tuple[Site, ...] = ()
    alike: tuple[Site, ...] = ()


def table_finder(base: TableSource, sites: SiteMap) -> Callable[[Site], LookupTable | None]:
    """Return a function that finds the table of a lookup; it returns `None` if the base does not expose it."""
    index = base.index
    names = {node.outputs[0]: node.weight for node in index.nodes if node.rows is not None}
    layers = ((node.weight, layer_of(index, node)) for node in index.nodes if node.linear and node.weight)
    matrices = {layer.h: weight for weight, layer in layers if layer is not None}
    linear = [(site, matrices[site.h]) for site in sites.of_roles(("linear",)) if site.h in matrices]

    def at(site: Site) -> LookupTable | None:
        name = names.get(site.h) if site.role == "lookup" else None
        rows = None if name is None else base.table(name)
        if name is None or rows is None or rows.shape != (site.width_in, site.width):
            return None
        tied, alike = list[Site](), list[Site]()
        for layer, matrix in linear:
            if {layer.width_in, layer.width} != {*rows.shape}:
                continue
            if base.is_same(name, matrix):
                tied.append(layer)
            elif (other := base.table(matrix)) is not None and _is_equal(rows, other):
                alike.append(layer)
        return LookupTable(rows, tuple(tied), tuple(alike))

    return at


def _is_equal(rows: np.ndarray, matrix: np.ndarray) -> bool:
    """Return whether a matrix has the numbers of a table, in its layout or transposed."""
    return any(rows.shape == other.shape and np.array_equal(rows, other) for other in (matrix, matrix.T))
