"""Weights and biases of the layers at a base's sites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

import numpy as np

from adapter_export.numerics.merged_layers import Layer
from adapter_export.sites.linear_layers import layer_of
from adapter_export.sites.site import LAYERS, Site
from adapter_export.sites.view import FlowIndex, FlowNode


class LayerSource(Protocol):
    """A base in its backend: the dataflow graph and the tensors that its nodes read."""

    @property
    def index(self) -> FlowIndex:
        """The dataflow graph."""

    @property
    def has_modules(self) -> bool:
        """True if the base stores matrices like the modules in torch; exporters of graphs transpose them."""

    def tensor(self, name: str) -> np.ndarray | None:
        """Return a floating-point tensor by its name in the base; `None` if there is none."""

    def layer_weight(self, name: str, product: FlowNode | None) -> tuple[np.ndarray | None, bool]:
        """Return a weight as [out, in], or [d] for a norm, and true if the base stores it as [in, out]."""

    def bias_name(self, weight: str, product: FlowNode | None) -> str:
        """Return the name of the bias that belongs to a weight; empty if there is none."""

    def readers(self, name: str) -> int:
        """Return the number of nodes that read a weight."""


def layer_finder(base: LayerSource) -> Callable[[Site], Layer | None]:
    """Return a function that finds the layer at a site; it returns `None` if the base has no tensors there."""
    index, calls = base.index, Counter[str]()
    products: dict[str, FlowNode] = {}
    for node in index.nodes:
        if node.linear and node.weight is not None:
            calls[node.weight] += 1
            if (layer := layer_of(index, node)) is not None:
                products[layer.h] = node

    def at(site: Site) -> Layer | None:
        product = products.get(site.h) if site.role in LAYERS else None
        if product is not None:
            weight_name = product.weight or ""
        elif site.role == "embeddings":
            weight_name = f"{site.path}.weight"
        else:
            weight_name = "" if site.norm is None else site.norm.weight or ""
        bias_name = base.bias_name(weight_name, product)
        (weight, in_first), bias = base.layer_weight(weight_name, product), base.tensor(bias_name)
        if weight is None or weight.ndim != (1 if product is None else 2):
            return None
        if product is not None:
            added = product.epilogue == "bias" or site.h != product.outputs[0]
            if added != (bias is not None):  # a bias is hidden, or a tensor is no bias
                return None
        return Layer(
            (weight_name, bias_name),
            weight.astype(np.float64),
            None if bias is None else bias.astype(np.float64),
            max(calls[weight_name], base.readers(weight_name), 1) + site.other_calls,
            in_first,
            in_first if base.has_modules else None,
        )

    return at
