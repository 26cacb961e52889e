"""Adapters of any kind with random weights, at any sites."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.graph.adapter import HEAD, Adapter, Head
from adapter_export.graph.kinds import Kind, classification_head
from adapter_export.graph.tasks import Task
from adapter_export.sites.site import SiteMap


def random_tensors(kind: Kind, sites: SiteMap, seed: int = 0) -> Weights:
    """Return every tensor of a kind at its sites, with standard deviation 0.2; shared tensors occur once.

    Factors of Kronecker products have 0.6, so that their products have about 0.2, and learned factors are near 1.
    """
    rng, shapes = np.random.default_rng(seed), {}
    for site, part in kind.placed(sites):
        names = part.tensor_names(site.name)
        for name, shape in part.graph.parameter_shapes(part.widths_at(site)).items():
            shapes[names[name]] = shape
    return {name: _drawn(name, shape, rng) for name, shape in shapes.items()}


def _drawn(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    std = 0.6 if name.endswith((".rule", ".left", ".right")) else 0.2
    return rng.normal(float(name.endswith(".scaling.weight")), std, shape).astype(np.float32)


def random_of_kind(
    name: str, kind: Kind, sites: SiteMap, base: str, *, labels: Sequence[str] = (), seed: int = 0
) -> Adapter:
    """An adapter of a kind, with a head if there are labels."""
    weights, head = random_tensors(kind, sites, seed), None
    if labels:
        head = Head(
            classification_head(), {"d": sites.width, "classes": len(labels)}, Task("single_label", tuple(labels))
        )
        rng = np.random.default_rng(seed + 1)
        shapes = head.graph.parameter_shapes(head.widths)
        weights |= {f"{HEAD}.{key}": rng.normal(0, 0.2, shape).astype(np.float32) for key, shape in shapes.items()}
    graphs = {part.graph_name: part.graph for _, part in kind.at(sites)}
    return Adapter(name, kind.name, base, graphs, kind.placements(sites), weights, head)
