"""An adapter before training: the graphs of a kind at the sites of a base, and drawn weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from adapter_export.dtypes import Weights
from adapter_export.graph.adapter import HEAD, Adapter, Head
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.initialise import initialise
from adapter_export.graph.kinds import Kind
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.attach import AdaptedModel, attach


def fresh_adapter(
    kind: Kind,
    sites: SiteMap,
    *,
    name: str,
    base: str,
    bottleneck: int | None = None,
    scheme: str | None = None,
    seed: int = 0,
    labels: Sequence[str] | None = None,
    pooling: str = "mean",
    head: Head | None = None,
) -> Adapter:
    """Make an adapter with drawn weights at every site that the kind asks for.

    Args:
        kind: what acts where.
        sites: the sites of the base.
        name: what users call it.
        base: the fingerprint of the base.
        bottleneck: the width `b`; the kind's own if none is given.
        scheme: how the weights are drawn, a name in `SCHEMES`; the kind's own if none is given.
        seed: the same seed draws the same weights.
        labels: the classes of a head that classifies texts.
        pooling: what that head reads, `mean` or `first`.
        head: a head of another look or for another task, in the place of that one; no head without this and labels.

    Raises:
        AdapterError: the base has none of the sites of a part.
        UsageError: an unknown scheme or pooling, or a width that the kind cannot have in this base.
    """
    kind = kind if bottleneck is None else kind.with_widths(b=bottleneck)
    placed = kind.placed(sites)
    if head is None and labels is not None:
        head = make_head(width=sites.width, labels=labels, options=HeadOptions(pooling))
    rng, scheme = np.random.default_rng(seed), scheme or kind.scheme
    weights: Weights = {}
    for site, part in placed:
        drawn, names = initialise(part.graph, part.widths_at(site), scheme, rng), part.tensor_names(site.name)
        weights = {names[parameter]: tensor for parameter, tensor in drawn.items()} | weights
    if head is not None:
        drawn = initialise(head.graph, head.widths, scheme, rng)
        weights |= {f"{HEAD}.{parameter}": tensor for parameter, tensor in drawn.items()}
    graphs = {part.graph_name: part.graph for _, part in placed}
    return Adapter(name, kind.name, base, graphs, kind.placements(sites), weights, head)


def with_head(adapter: Adapter, head: Head, *, seed: int = 0) -> Adapter:
    """The adapter with a fresh head in the place of its own.

    Args:
        adapter: the adapter.
        head: the head.
        seed: the same seed draws the same weights, N(0, 0.02²).
    """
    drawn = initialise(head.graph, head.widths, "normal", np.random.default_rng(seed))
    own = {name: tensor for name, tensor in adapter.weights.items() if not name.startswith(f"{HEAD}.")}
    return replace(adapter, head=head, weights={**own, **{f"{HEAD}.{name}": tensor for name, tensor in drawn.items()}})


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
