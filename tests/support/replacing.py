"""Adapters that replace any value of any site, and the small encoder with the same written into its forward pass.

Nothing here knows of discovery, of graphs in a base, or of slots: the sites are named by hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from small_encoder import WIDTH, Encoder
from torch import Tensor
from torch.nn import functional as F

from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.sites.site import SiteMap

RANK = 3
OTHERS = {"u": "x", "h": "u", "y": "h"}
"""Inputs of a graph besides the value that it replaces."""

_PROJECTIONS = {"attention": ("query", "key", "value", "output"), "ffn": ("up", "down")}
SUBLAYERS = [f"layers.{number}.{role}" for number in range(2) for role in _PROJECTIONS]
LINEARS = [f"{sublayer}.{name}" for sublayer in SUBLAYERS for name in _PROJECTIONS[sublayer.rpartition(".")[2]]]
"""The sites of the small encoder."""


def scaled_plus(replaced: str, other: str, *, shared: bool = False) -> AdapterGraph:
    """`r·w + tanh(o D) U`, with `D` shared by all places or not; `r` is the value replaced, `o` another one."""
    width_in, width_out = ("d_in" if name == "u" else "d" for name in (other, replaced))
    nodes = (
        Node("linear", (other,), "down", {"weight": "down.weight"}),
        Node("tanh", ("down",), "squashed"),
        Node("linear", ("squashed",), "up", {"weight": "up.weight"}),
        Node("scale_features", (replaced,), "scaled", {"weight": "scale.weight"}),
        Node("add", ("scaled", "up"), "result"),
    )
    shapes = {"down.weight": (width_in, "r"), "up.weight": ("r", width_out), "scale.weight": (width_out,)}
    inputs = tuple(dict.fromkeys((replaced, other)))
    return AdapterGraph(inputs, shapes, nodes, "result", replaced, ("down.weight",) if shared else ())


def scaled(replaced: str) -> AdapterGraph:
    """`r·w`, as IA3 has it."""
    width = "d_in" if replaced == "u" else "d"
    node = Node("scale_features", (replaced,), "result", {"weight": "scale.weight"})
    return AdapterGraph((replaced,), {"scale.weight": (width,)}, (node,), "result", replaced)


def behind_the_norm(replaced: str) -> AdapterGraph:
    """`r + relu(base_norm(h + x) D) U`, as AdapterHub's `seq_bn` has it."""
    nodes = (
        Node("add", ("h", "x"), "total"),
        Node("base_norm", ("total",), "normed"),
        Node("linear", ("normed",), "down", {"weight": "down.weight"}),
        Node("relu", ("down",), "cut"),
        Node("linear", ("cut",), "up", {"weight": "up.weight"}),
        Node("add", (replaced, "up"), "result"),
    )
    inputs = tuple(dict.fromkeys((replaced, "h", "x")))
    return AdapterGraph(inputs, {"down.weight": ("d", "r"), "up.weight": ("r", "d")}, nodes, "result", replaced)


def adapter_at(name: str, graph: AdapterGraph, names: Sequence[str], sites: SiteMap, base: str) -> Adapter:
    """An adapter with one graph at some sites; weights of standard deviation 0.2, scales around 1."""
    widths = {site.name: {"d": site.width, "d_in": site.width_in, "r": RANK} for site in sites}
    placements = {
        site: Placement("graph", {symbol: widths[site][symbol] for symbol in graph.symbols()}) for site in names
    }
    rng = np.random.default_rng([*name.encode()])
    weights = {}
    for site, placement in placements.items():
        for parameter, shape in graph.parameter_shapes(placement.widths).items():
            owner = "shared.graph" if parameter in graph.shared else site
            drawn = 0.2 * rng.standard_normal(shape) + (parameter == "scale.weight")
            weights.setdefault(f"{owner}.{parameter}", drawn.astype(np.float32))
    return Adapter(name, "custom", base, {"graph": graph}, placements, weights)


def at_every_place(sites: SiteMap, base: str) -> list[Adapter]:
    """Adapters that together replace every value of every site."""
    names = {role: [site.name for site in sites.of_roles((role,))] for role in ("linear", "embeddings")}
    sublayers = [site.name for site in sites.sublayers]
    graphs = [(scaled_plus(replaced, other), sublayers) for replaced, other in OTHERS.items()]
    graphs += [(behind_the_norm("h"), sublayers), (behind_the_norm("y"), sublayers)]
    graphs += [(scaled("u"), names["linear"]), (scaled_plus("h", "u"), names["linear"])]
    graphs += [(scaled_plus("h", "h"), names["embeddings"])] if names["embeddings"] else []
    assert names["linear"]
    return [adapter_at(f"case_{at}", graph, places, sites, base) for at, (graph, places) in enumerate(graphs)]


class Acting:
    """Reference implementation of adapters: one formula for each kind of graph in this file."""

    def __init__(self, adapter: Adapter | None) -> None:
        self.adapter = adapter
        self.done: list[str] = []

    def __call__(self, site: str, replaced: str, norm: object = None, **values: Tensor) -> Tensor:
        if self.adapter is None or site not in self.adapter.placements:
            return values[replaced]
        graph = self.adapter.graphs["graph"]
        if graph.replaces != replaced:
            return values[replaced]
        self.done.append(site)
        tensors = {name: torch.from_numpy(array) for name, array in self.adapter.parameters(site).items()}
        other = next(iter([name for name in graph.inputs if name != replaced]), replaced)
        if any(node.op == "base_norm" for node in graph.nodes):
            total = values["h"] + values["x"]
            normed = total if norm is None else norm(total)  # type: ignore[operator]
            return values[replaced] + F.relu(normed @ tensors["down.weight"]) @ tensors["up.weight"]
        result = values[replaced] * tensors["scale.weight"]
        if "up.weight" in tensors:
            result = result + torch.tanh(values[other] @ tensors["down.weight"]) @ tensors["up.weight"]
        return result


def adapted(encoder: Encoder, adapter: Adapter | None, inputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The outputs of the encoder with an adapter."""
    act = Acting(adapter)
    with torch.no_grad():
        outputs = _forward(encoder, act, inputs)
    assert set(act.done) == set(adapter.placements if adapter else ())
    return {name: value.numpy() for name, value in outputs.items()}


def _forward(encoder: Encoder, act: Acting, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bias = (1.0 - inputs["attention_mask"][:, None, None, :].float()) * -1e9
    ids = inputs["input_ids"]
    x = encoder.tokens(ids) + encoder.positions(torch.arange(ids.shape[1]))
    x = act("embeddings", "h", h=x)
    for number, layer in enumerate(encoder.layers):

        def linear(module: str, name: str, u: Tensor, layer: object = layer, number: int = number) -> Tensor:
            site = f"layers.{number}.{name}"
            u = act(site, "u", u=u)
            return act(site, "h", u=u, h=getattr(layer, module)(u))

        def attention(u: Tensor, linear: object = linear) -> Tensor:
            q, k, v = (
                linear(name, f"attention.{name}", u).unflatten(-1, (2, WIDTH // 2)).transpose(1, 2)  # type: ignore[operator]
                for name in ("query", "key", "value")
            )
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            return linear("out", "attention.output", mixed.transpose(1, 2).flatten(2))  # type: ignore[operator]

        def ffn(u: Tensor, linear: object = linear) -> Tensor:
            return linear("down", "ffn.down", F.gelu(linear("up", "ffn.up", u)))  # type: ignore[operator]

        for role, sublayer, norm in (("attention", attention, layer.norm1), ("ffn", ffn, layer.norm2)):
            site, behind = f"layers.{number}.{role}", None if layer.pre_norm else norm
            u = act(site, "u", x=x, u=norm(x) if layer.pre_norm else x)
            h = act(site, "h", behind, x=x, u=u, h=sublayer(u))
            total = x + h
            y = total if behind is None else behind(total)
            x = act(site, "y", behind, x=x, u=u, h=h, y=y)
    return {"hidden": x, "pooled": torch.tanh(encoder.pooler(x[:, 0]))}
