"""Base and options of an import, shared by the importers of all libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.format.manifest import InputRecord
from adapter_export.graph.graph import AdapterGraph
from adapter_export.numerics.lookup_tables import LookupTable
from adapter_export.numerics.merged_layers import Layer
from adapter_export.sites.site import Site, SiteMap

ReadPickle = Callable[[Path], Mapping[str, np.ndarray]]
"""Reader of `torch.save` files; only callers that may import torch pass one (`torch_backend.base.pickles`)."""


def _no_tensor(_: str) -> None:
    return None


class ArchitectureHead(Protocol):
    """Head of a class of the base's library, from the final hidden state to the results.

    Attributes:
        name: the class.
        prefix: name of the base in a model of the class.
        shapes: shapes of all tensors that the head reads, by name in the model, including those of the base.
        stored: values that the base's files contain for tensors of the head.
    """

    @property
    def name(self) -> str:
        """The class."""

    @property
    def prefix(self) -> str:
        """Name of the base in a model of the class."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of all tensors that the head reads, by name in the model, including those of the base."""

    @property
    def stored(self) -> Mapping[str, np.ndarray]:
        """Values that the base's files contain for tensors of the head, by name in the model."""

    @property
    def graph(self) -> AdapterGraph:
        """Graph of the head."""

    @property
    def widths(self) -> Mapping[str, int]:
        """Widths of the symbols in the graph."""

    @property
    def sources(self) -> Mapping[str, tuple[str, bool]]:
        """Tensor of each parameter of the graph, and whether the parameter is its transpose."""

    def weights(self, tensors: Mapping[str, np.ndarray]) -> Weights:
        """Return the parameters of the graph; AdapterError if the library computes something else with them."""


HeadOf = Callable[[Sequence[str], str | None, Mapping[str, tuple[int, ...]]], ArchitectureHead | None]
"""Returns the head of the base's architecture, by the ends of class names, the class if known, and the shapes of its
tensors as far as known; `None` if the base does not record its architecture.

AdapterError if the library lacks the class or these tensors, or if the head has an operation that the head language
lacks.
"""


def _no_table(_: Site) -> None:
    return None


def _no_head(*_: object) -> None:
    return None


@dataclass(frozen=True)
class BaseView:
    """The base of an import.

    Attributes:
        fingerprint: SHA-256 of the weights, `sha256:<hex>`.
        sites: the sites of adapters.
        model_type: architecture name in transformers, if known.
        tensor: returns a tensor by its name in the base, such as `encoder.layer.0.output.dense.bias`, or `None`. A name
            does not state the layout of a matrix: `layer_at` does.
        layer_at: returns the complete layer of a site, its weight as [out, in] by the base's program, or `None` if the
            base does not expose its tensors.
        head_of: returns the head of the base's architecture.
        table_at: returns the table of a lookup, or `None` if the base does not expose it.
        inputs: the data inputs of the base.
    """

    fingerprint: str
    sites: SiteMap
    model_type: str | None = None
    tensor: Callable[[str], np.ndarray | None] = _no_tensor
    layer_at: Callable[[Site], Layer | None] | None = None
    head_of: HeadOf = _no_head
    table_at: Callable[[Site], LookupTable | None] = _no_table
    inputs: Sequence[InputRecord] = ()

    def layer(self, site: Site) -> Layer | None:
        """Return the complete layer of a site, or `None` if unknown."""
        return None if self.layer_at is None else self.layer_at(site)

    def weight_at(self, site: Site) -> np.ndarray | None:
        """Return the weight [out, in] of a site's layer, or `None` if unknown."""
        layer = self.layer(site)
        return None if layer is None else layer.weight


@dataclass(frozen=True)
class ImportRequest:
    """Options of an import, independent of the library.

    Attributes:
        name: name of the imported adapter.
        member: the adapter to import from a folder with several; `None` imports a setup as a whole.
        by_number: match layers by number if no path matches, for any architecture.
        read_pickle: reads a file of `torch.save`; without it, only safetensors are supported.
    """

    name: str
    member: str | None = None
    by_number: bool = False
    read_pickle: ReadPickle | None = None
