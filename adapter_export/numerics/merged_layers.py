"""Adapters merged into the weights of a base, which is possible for any fixed change of layers.

A layer with the adapter is evaluated in float64: on all unit vectors, which determine its weight and bias, and on
random vectors, which show that it is linear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapter_export.errors import AdapterError
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.evaluate_adapter import evaluate
from adapter_export.sites.site import LAYERS, Site, SiteMap

Matrix = npt.NDArray[np.float64]

_RANDOM_ROWS = 8
"""Vectors besides zeros and unit vectors: those determine a weight and a bias, these show that nothing else acts."""

_TOLERANCE = 1e-9
"""Relative difference allowed between an adapted layer and the weight and bias solved for it."""

_OTHER_WAY = "merge an adapter of linear layers, such as LoRA, or build a bundle, in which it stays separate"


@dataclass(frozen=True)
class Layer:
    """A layer of the base: `weight` [out, in] and perhaps `bias` [out], or of a norm both [d], in float64.

    `names` are their names in the base, `calls` is the number of uses of the weight, and `in_first` is true if the base
    stores the matrix as [in, out]. `module_in_first` is true if the module in torch does, as `Conv1D` of transformers;
    `None` if unknown.
    """

    names: tuple[str, str]
    weight: Matrix
    bias: Matrix | None
    calls: int = 1
    in_first: bool = False
    module_in_first: bool | None = None


def merged_layers(
    adapter: Adapter, sites: SiteMap, layer_at: Callable[[Site], Layer | None]
) -> dict[str, tuple[Layer, Matrix, Matrix | None]]:
    """Return each changed layer by the name of its weight, with its new weight and bias.

    `layer_at` returns the layer at a site, or `None` if the base has no tensors there.

    Raises:
        AdapterError: the adapter is no fixed change of the layer, the layer has no bias to add its own to, or the base
            also applies the layer where the adapter does not act.
    """
    known = {site.name: site for site in sites}
    at: dict[str, dict[str, list[Site]]] = {}
    layers: dict[str, Layer] = {}
    for name in adapter.placements:
        site = known[name]
        if site.role == "lookup":
            raise _refusal(adapter, name, "it changes rows of a table of embeddings")
        layer = layer_at(site)
        if layer is None:
            raise _refusal(adapter, name, "the base has no weight there to add a change to")
        layers[layer.names[0]] = layer
        at.setdefault(layer.names[0], {}).setdefault(site.h if site.role in LAYERS else site.name, []).append(site)
    merged = {}
    for weight_name, calls in at.items():
        layer = layers[weight_name]
        results = [_changed(adapter, layer, called_sites) for called_sites in calls.values()]
        first = results[0]
        alike = all(
            np.array_equal(array, other) for result in results for array, other in zip(first, result, strict=True)
        )
        if len(calls) < layer.calls or not alike:
            what = f"the base uses its weight {layer.calls} times, and the adapter does not change all of them alike"
            raise _refusal(adapter, next(iter(calls.values()))[0].name, what)
        weight, bias = first
        if layer.bias is None and bias.any():
            raise _refusal(adapter, next(iter(calls.values()))[0].name, "the layer has no bias to add its own to")
        merged[weight_name] = (layer, weight, None if layer.bias is None else bias)
    return merged


def _changed(adapter: Adapter, layer: Layer, sites: Sequence[Site]) -> tuple[Matrix, Matrix]:
    """Return the weight and bias of a layer with the adapter at its sites, whole or parts of a fused layer."""
    graphs = {site.name: adapter.graphs[adapter.placements[site.name].graph] for site in sites}
    if sites[0].role not in LAYERS:
        return _changed_norm(adapter, layer, sites[0])
    if len(sites) > 1 and any(graph.replaces == "u" for graph in graphs.values()):
        raise _refusal(adapter, sites[0].name, "it changes both the input of the layer and parts of its output")
    width_in = layer.weight.shape[1]
    bias = np.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    random = np.random.default_rng(0).standard_normal((_RANDOM_ROWS, width_in))
    read = np.vstack([np.zeros((1, width_in)), np.eye(width_in), random])
    # zeros give the bias, unit vectors the rows of the weight
    value = read @ layer.weight.T + bias
    for site in sites:
        graph, parameters = graphs[site.name], adapter.parameters(site.name)
        places = features_of(site, len(layer.weight))
        values = {"u": read[:, None], "h": value[:, None][..., places]}  # each vector is a text of its own
        result = np.asarray(evaluate(graph, {name: values[name] for name in graph.inputs}, parameters), np.float64)[
            :, 0
        ]
        if graph.replaces == "u":
            value = result @ layer.weight.T + bias
        else:
            value = value.copy()
            value[:, places] = result
    change = value[0], value[1 : width_in + 1] - value[0]
    seems = random @ change[1] + change[0]
    if np.abs(seems - value[width_in + 1 :]).max() > _TOLERANCE * np.abs(value).max():
        raise _refusal(adapter, sites[0].name, "its result is not linear in its input")
    return change[1].T, change[0]


def _changed_norm(adapter: Adapter, layer: Layer, site: Site) -> tuple[Matrix, Matrix]:
    """Return the factors and the bias of a norm after which the adapter scales and shifts each feature."""
    graph, width = adapter.graphs[adapter.placements[site.name].graph], len(layer.weight)
    random = np.random.default_rng(0).standard_normal((_RANDOM_ROWS, width))
    read = np.vstack([np.zeros((1, width)), np.ones((1, width)), random])
    if graph.inputs != (graph.replaces,):
        raise _refusal(adapter, site.name, "it acts on a whole sublayer, which is no linear layer")
    value = np.asarray(evaluate(graph, {graph.replaces: read[None]}, adapter.parameters(site.name))[0], np.float64)
    shift, scale = value[0], value[1] - value[0]
    if np.abs(random * scale + shift - value[2:]).max() > _TOLERANCE * np.abs(value).max():
        raise _refusal(adapter, site.name, "it acts on a whole sublayer, and is no factor and sum of each feature")
    bias = np.zeros(width) if layer.bias is None else layer.bias
    return layer.weight * scale, bias * scale + shift


def features_of(site: Site, width: int) -> slice | list[int]:
    """Return the features of a layer's output that belong to a site."""
    if site.role != "part":
        return slice(None)
    (start, end), block = next(iter(site.parts.values())), width // site.blocks
    return [number * block + place for number in range(site.blocks) for place in range(start, end)]


def _refusal(adapter: Adapter, site: str, reason: str) -> AdapterError:
    return AdapterError(
        "cannot be merged into the base",
        where=f"adapter `{adapter.name}`, `{site}`",
        found=reason,
        expected="a fixed change of the weights and biases of linear layers, or of norms after a sum",
        fix=_OTHER_WAY,
    )


def stored(layer: Layer, weight: Matrix, bias: Matrix | None) -> dict[str, Matrix]:
    """Return new tensors by their names in the base, in its layout."""
    name, of_bias = layer.names
    return {name: weight.T if layer.in_first else weight} | ({} if bias is None else {of_bias: bias})
