"""Base and options of an import, shared by the importers of all libraries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adapter_export.importers.tensor_map import ReadPickle
from adapter_export.numerics.merged_layers import Layer
from adapter_export.sites.site import Site, SiteMap


def _no_tensor(_: str) -> None:
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
    """

    fingerprint: str
    sites: SiteMap
    model_type: str | None = None
    tensor: Callable[[str], np.ndarray | None] = _no_tensor
    layer_at: Callable[[Site], Layer | None] | None = None

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
