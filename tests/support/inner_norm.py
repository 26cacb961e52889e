"""An adapter that no zeros can fill up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from adapter_export.graph.adapter import Adapter
from adapter_export.graph.graph import AdapterGraph, Node


def with_inner_norm(adapter: Adapter) -> Adapter:
    """The same with a layer norm over the bottleneck, whose mean zeros would change."""
    (name, graph), *_ = adapter.graphs.items()
    norm = Node("layer_norm", ("down",), "normed", {"weight": "n.weight", "bias": "n.bias"}, {"epsilon": 1e-5})
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes.append(replace(node, inputs=("normed",)) if node.inputs == ("down",) else node)
        if node.output == "down":
            nodes.append(norm)
    parameters = {**graph.parameters, "n.weight": ("b",), "n.bias": ("b",)}
    changed = AdapterGraph(graph.inputs, parameters, tuple(nodes), graph.result)
    width = next(iter(adapter.placements.values())).widths["b"]
    rng = np.random.default_rng(width)
    more = {f"{site}.n.{role}": (0.2 * rng.standard_normal(width)).astype(np.float32)
            for site in adapter.placements for role in ("weight", "bias")}  # fmt: skip
    return replace(adapter, graphs={name: changed}, weights={**adapter.weights, **more})
