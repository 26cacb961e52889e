"""An adapter before training: the graphs of a kind at the sites of a base, and drawn weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from adapter_export.dtypes import Weights
from adapter_export.errors import AdapterError
from adapter_export.graph.adapter import HEAD, Adapter, Head, Placement
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.initialise import initialise
from adapter_export.graph.kinds import DEFAULT_BOTTLENECK, Kind, classification_head
from adapter_export.sites.site import SiteMap
from adapter_export.torch.attach import AdaptedModel, attach

DEFAULT_SCHEME = "small_normal"


def fresh_adapter(
    kind: Kind,
    sites: SiteMap,
    *,
    name: str,
    base: str,
    bottleneck: int = DEFAULT_BOTTLENECK,
    scheme: str = DEFAULT_SCHEME,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    pooling: str = "mean",
) -> Adapter:
    """Make an adapter with drawn weights at every site whose role the kind asks for.

    Args:
        kind: what acts where.
        sites: the sites of the base.
        name: what users call it.
        base: the fingerprint of the base.
        bottleneck: the width `b`.
        scheme: how the weights are drawn, a name in `SCHEMES`.
        seed: the same seed draws the same weights.
        labels: the classes of its head; no head if there are none.
        pooling: what the head reads, `mean` or `first`.

    Raises:
        AdapterError: the base has no site of these roles.
        UsageError: an unknown scheme or pooling.
    """
    places = sites.of_roles(kind.roles)
    if not places:
        roles = " or ".join(kind.roles)
        raise AdapterError(f"the base has no site for kind `{kind.name}`", expected=roles, fix="choose another kind")
    placements = {
        site.name: Placement(kind.graph_name, _widths(kind.graph, {"d": site.width, "d_in": site.width}, bottleneck))
        for site in places
    }
    head = None if labels is None else _head(tuple(labels), pooling, sites.width)
    rng = np.random.default_rng(seed)
    weights: Weights = {}
    for site, placement in placements.items():
        weights |= _named(site, initialise(kind.graph, placement.widths, scheme, rng))
    if head is not None:
        weights |= _named(HEAD, initialise(head.graph, head.widths, scheme, rng))
    return Adapter(name, kind.name, base, {kind.graph_name: kind.graph}, placements, weights, head)


def relative_change(model: AdaptedModel, inputs: Mapping[str, torch.Tensor]) -> float:
    """How far the adapter moves the final hidden state: `‖adapted − base‖ / ‖base‖`, Frobenius norms, in float64.

    Near 0 the adapted model is near the base, where training should start.

    Args:
        model: the adapted model.
        inputs: the base's inputs.
    """
    inputs = model.placed(inputs)
    with torch.inference_mode():
        alone = attach(model.base, None, sites=model.sites).hidden(**inputs).double()
        return float((model.hidden(**inputs).double() - alone).norm() / alone.norm())


def _widths(graph: AdapterGraph, fixed: Mapping[str, int], bottleneck: int) -> dict[str, int]:
    """The site's widths, and the bottleneck for every symbol that the site does not fix."""
    return {symbol: fixed.get(symbol, bottleneck) for symbol in graph.symbols()}


def _head(labels: tuple[str, ...], pooling: str, width: int) -> Head:
    graph = classification_head(pooling)
    return Head(graph, {"d": width, "classes": len(labels)}, labels)


def _named(owner: str, weights: Weights) -> Weights:
    return {f"{owner}.{name}": tensor for name, tensor in weights.items()}
