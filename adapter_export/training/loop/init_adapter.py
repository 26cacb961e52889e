"""An adapter before training: the graphs of a kind at the sites of a base, with initial weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from adapter_export.dtypes import Weights
from adapter_export.graph.adapter import HEAD, Adapter, Head
from adapter_export.graph.initialise import initialise
from adapter_export.graph.kinds import Kind
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.attach import AdaptedModel, attach


def init_adapter(
    kind: Kind,
    sites: SiteMap,
    *,
    name: str,
    base: str,
    scheme: str | None = None,
    seed: int = 0,
    head: Head | None = None,
) -> Adapter:
    """Make an adapter with weights initialized by a scheme of `SCHEMES` at every site that the kind requires.

    The default scheme depends on the kind; `base` is the base's fingerprint.

    Raises:
        AdapterError: the base has none of the sites of a component.
        UsageError: an unknown scheme, or a width that the kind cannot have in this base.
    """
    placed = kind.placed(sites)
    rng, scheme = np.random.default_rng(seed), scheme or kind.scheme
    weights: Weights = {}
    for site, component in placed:
        drawn = initialise(component.graph, component.widths_at(site), scheme, rng)
        names = component.tensor_names(site.name)
        # the first draw of a tensor that sites share stays
        weights = {names[parameter]: tensor for parameter, tensor in drawn.items()} | weights
    if head is not None:
        weights |= _head_weights(head, scheme, rng)
    graphs = {component.graph_name: component.graph for _, component in placed}
    return Adapter(name, kind.name, base, graphs, kind.placements(sites), weights, head)


def with_head(adapter: Adapter, head: Head, *, seed: int = 0) -> Adapter:
    """Return the adapter with a new head instead of its own, whose weights are drawn from N(0, 0.02²)."""
    own = {name: tensor for name, tensor in adapter.weights.items() if not name.startswith(f"{HEAD}.")}
    weights = own | _head_weights(head, "normal", np.random.default_rng(seed))
    return replace(adapter, head=head, weights=weights)


def head_alone(head: Head, name: str, base: str, *, seed: int = 0) -> Adapter:
    """Return an adapter without sites: a new head, initialized as by `with_head`."""
    return Adapter(name, "base_head", base, {}, {}, _head_weights(head, "normal", np.random.default_rng(seed)), head)


def with_prior(adapter: Adapter, targets: np.ndarray) -> Adapter:
    """Return the adapter with the log-odds of targets [rows, classes] or [rows] as the bias of its head.

    Its initial answers then have the right frequencies. Otherwise the first steps learn how rare each label is, and
    little else, with gradients that stay in AdamW's moments for hundreds of steps (Lin et al. 2017, §3.3, on rare
    classes).
    """
    name = f"{HEAD}.classifier.bias"
    if name not in adapter.weights:
        return adapter
    # Laplace's rule of succession: no rate is 0 or 1, whose logits are infinite
    rates = (targets.sum(0) + 1) / (len(targets) + 2)
    bias = np.log(rates / (1 - rates)).astype(np.float32).reshape(-1)
    return replace(adapter, weights={**adapter.weights, name: bias})


def _head_weights(head: Head, scheme: str, rng: np.random.Generator) -> Weights:
    drawn = initialise(head.graph, head.widths, scheme, rng)
    return {f"{HEAD}.{parameter}": tensor for parameter, tensor in drawn.items()}


def relative_change(model: AdaptedModel, inputs: Mapping[str, torch.Tensor]) -> float:
    """Measure the change of the final hidden state: `‖adapted − base‖ / ‖base‖`, Frobenius norms, in float64.

    Near 0 the adapted model is close to the base, where training should start.
    """
    inputs = model.placed(inputs)
    with torch.inference_mode():
        alone = attach(model.base, None, sites=model.sites).hidden(**inputs).double()
        return float((model.hidden(**inputs).double() - alone).norm() / alone.norm())
