"""Calls of adapter graphs put into a copy of a base's FX graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

import torch
from torch import Tensor, fx, nn

from adapter_export.graph.adapter import HEAD
from adapter_export.sites.site import Site, SiteMap
from adapter_export.torch.layer import GraphLayer


def splice(base: fx.GraphModule, mask: str | None, sites: SiteMap, layers: Mapping[str, GraphLayer]) -> fx.GraphModule:
    """A module that computes the base with a layer called at each of some sites.

    The module shares the base's weights, frozen, and leaves the base's graph as it is. It takes the base's inputs by
    position and returns a flat tuple: the base's outputs, the head's result if `layers` has a `head`, and the final
    hidden state.

    Args:
        base: a flat graph, whose placeholders are the base's inputs.
        mask: the placeholder that says which tokens are real; if there is none, all of them are.
        sites: the sites of the base.
        layers: what acts at each site, by its name, and at the `head`.
    """
    graph, copies = _copied(base.graph)
    modules = {_target(index): layer for index, layer in enumerate(layers.values())}
    owners = {owner: _target(index) for index, owner in enumerate(layers)}
    for site in sites.sublayers:
        if site.name in owners:
            _insert(graph, copies, site, layers[site.name], owners[site.name])
    results = [copies[sites.final]]
    if HEAD in layers:
        results.insert(0, _insert_head(graph, copies, mask, sites.final, layers[HEAD], owners[HEAD]))
    _flatten_outputs(graph, results)
    graph.lint()
    return fx.GraphModule({**_frozen(base), **modules}, graph)


def _target(index: int) -> str:
    """A name of a submodule; names of sites hold dots, which torch does not take."""
    return f"adapter_layer_{index}"


def _copied(source: fx.Graph) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """A copy, and its nodes by their names in the source."""
    graph = fx.Graph()
    copies: dict[str, fx.Node] = {}
    for node in source.nodes:
        copies[node.name] = graph.node_copy(node, lambda used: copies[used.name])
    return graph, copies


def _insert(graph: fx.Graph, values: dict[str, fx.Node], site: Site, layer: GraphLayer, target: str) -> None:
    """Call a layer on the site's values; what it returns takes the place of `h`, in `values`, too."""
    read = tuple(values[getattr(site, name)] for name in layer.graph.inputs)
    h = values[site.h]
    with graph.inserting_after(_last(graph, {*read, h})):
        call = graph.call_module(target, read)
    h.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
    values[site.h] = call


def _insert_head(
    graph: fx.Graph, values: Mapping[str, fx.Node], mask: str | None, final: str, layer: GraphLayer, target: str
) -> fx.Node:
    hidden = values[final]
    with graph.inserting_before(_output(graph)):
        tokens = values[mask] if mask is not None else graph.call_function(_every_token, (hidden,))
        offered = {"hidden": hidden, "mask": tokens}
        return graph.call_module(target, tuple(offered[name] for name in layer.graph.inputs))


def _every_token(hidden: Tensor) -> Tensor:
    """A mask that keeps every token of `hidden` [batch, tokens, d]."""
    return torch.ones_like(hidden[..., 0])


def _last(graph: fx.Graph, nodes: set[fx.Node]) -> fx.Node:
    return max(nodes, key=list(graph.nodes).index)


def _output(graph: fx.Graph) -> fx.Node:
    (found,) = graph.find_nodes(op="output")
    assert isinstance(found, fx.Node)
    return found


def _flatten_outputs(graph: fx.Graph, more: Sequence[fx.Node]) -> None:
    """Return the base's outputs in a flat tuple, and `more` after them."""
    output = _output(graph)
    (flat,) = output.args
    assert isinstance(flat, tuple | list)
    output.args = ((*(value for value in flat if isinstance(value, fx.Node)), *more),)


def _frozen(base: fx.GraphModule) -> dict[str, object]:
    """What the graph refers to: weights as parameters without gradients that share the base's memory."""
    targets = {str(node.target) for node in base.graph.nodes if node.op in {"get_attr", "call_module"}}
    found = {target: attrgetter(target)(base) for target in targets}
    return {
        target: nn.Parameter(value.detach(), requires_grad=False) if isinstance(value, nn.Parameter) else value
        for target, value in found.items()
    }
