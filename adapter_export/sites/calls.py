"""Calls of a module beside its sites: what acts on the module acts there, too, and an adapter at its site does not.

DeBERTa projects its relative positions with the layers that project queries and keys (He et al. 2021, §3.1). These
calls read no activation, so that nothing can be replaced there; exporters may even have computed them already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from adapter_export.sites.index import FlowIndex
from adapter_export.sites.layer import layer_of
from adapter_export.sites.site import Site
from adapter_export.sites.view import FlowNode

ASIDE_KEY = "adapter_export.called_aside"
"""Where the metadata of an ONNX graph say what `FlowGraph.aside` was in the graph that it was exported from: JSON."""

_Identity = tuple[str, object]


def with_calls(index: FlowIndex, sites: Iterable[Site]) -> Iterator[Site]:
    """The sites, each linear one with the number of calls of its module that are no sites.

    A module shows by its path, its matrix by its name; a path alone may stand for matrices of several shapes.
    """
    sites = list(sites)
    products = [node for node in index.nodes if node.linear]
    layers = ((product, layer_of(index, product)) for product in products)
    found = {layer.h: product for product, layer in layers if layer is not None}
    inside = [found[site.h] for site in sites if site.role == "linear" and site.h in found]
    calls, known = (Counter(name for node in nodes for name in _names(index, node)) for nodes in (products, inside))
    for site in sites:
        if site.role != "linear" or site.h not in found:
            yield site
            continue
        names = _names(index, found[site.h])
        more = max((calls[name] - known[name] for name in names), default=0)
        aside = max((index.flow.aside.get(str(name[0]), 0) for name in names), default=0)
        yield replace(site, elsewhere=more + aside)


def _names(index: FlowIndex, product: FlowNode) -> list[_Identity]:
    """By which a call is known to be one of a module: its path and the widths of its matrix; the matrix itself."""
    widths = (index.flow.width(product.operands[0]), index.flow.width(product.outputs[0]))
    by_path = [] if product.path is None else [(product.path, widths)]
    return [*by_path, *([] if product.weight is None else [(product.weight, "weight")])]
