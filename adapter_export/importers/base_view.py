"""The base and the request of an import, as importers of all libraries read them."""

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
    """A base that an adapter is imported for.

    Attributes:
        fingerprint: the SHA-256 of its weights, `sha256:<hex>`.
        sites: the places where adapters can act.
        model_type: the name of its architecture in transformers, if it is known.
        tensor: returns a tensor by its name in the base, such as `encoder.layer.0.output.dense.bias`; `None` if there
            is none.
        layer_at: returns the layer behind a site with all that it adds; `None` if the base does not show its tensors.
            Without it, layers are looked up by the names of their tensors.
    """

    fingerprint: str
    sites: SiteMap
    model_type: str | None = None
    tensor: Callable[[str], np.ndarray | None] = _no_tensor
    layer_at: Callable[[Site], Layer | None] | None = None

    def weight_at(self, site: Site) -> np.ndarray | None:
        """Return the weight [out, in] of the layer behind a site; `None` if it is not known."""
        layer = None if self.layer_at is None else self.layer_at(site)
        return None if layer is None else layer.weight


@dataclass(frozen=True)
class ImportRequest:
    """Choices of an import that do not depend on the library.

    Attributes:
        name: what users will call the adapter.
        member: the adapter to take from a folder of several; of a setup, `None` is the whole.
        by_number: match layers by their numbers if no path agrees, whatever the architecture.
        read_pickle: reads a file of `torch.save`; without it, only safetensors are read.
    """

    name: str
    member: str | None = None
    by_number: bool = False
    read_pickle: ReadPickle | None = None
