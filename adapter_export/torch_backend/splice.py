"""Calls of adapter graphs put into a copy of a base's FX graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

import torch
from torch import Tensor, fx, nn

from adapter_export.graph.adapter import HEAD
from adapter_export.numerics.fit import check_tokens
from adapter_export.sites.edits import Entrance, entrance, in_order
from adapter_export.sites.index import FlowIndex
from adapter_export.sites.site import LAYERS, Site, SiteMap
from adapter_export.torch_backend.lowering import GraphLayer
from adapter_export.torch_backend.view import flow_graph

# A part of a fused layer's output: cut out of it, and put back among the others.


def cut_part(whole: Tensor, start: int, end: int, blocks: int) -> Tensor:
    """The features of a part, [..., width].

    Args:
        whole: the fused layer's output.
        start: where the part begins in each block of the features.
        end: where it ends.
        blocks: how many equal blocks there are.
    """
    return _in_blocks(whole, blocks)[..., start:end].flatten(-2)


def join_part(whole: Tensor, part: Tensor, start: int, end: int, blocks: int) -> Tensor:
    """The fused layer's output with other features in the place of a part; the arguments are those of `cut_part`."""
    around, middle = _in_blocks(whole, blocks), _in_blocks(part, blocks)
    return torch.cat([around[..., :start], middle, around[..., end:]], -1).flatten(-2)


def _in_blocks(value: Tensor, blocks: int) -> Tensor:
    return value.reshape(*value.shape[:-1], blocks, -1)


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

    Raises:
        NoSitesError: a layer replaces what a site's layer reads, and nothing there reads it.
        AdapterError: a layer takes the tokens of a text together where the base has no axis of tokens.
    """
    work = _Work(base)
    modules = {_target(index): layer for index, layer in enumerate(layers.values())}
    owners = {owner: _target(index) for index, owner in enumerate(layers)}
    places = ((site, layers[site.name].graph.replaces) for site in sites if site.name in layers)
    for site, replaced in in_order(places, work.index):
        work.insert(site, replaced, layers[site.name], owners[site.name])
    results = [work.values[sites.final]]
    if HEAD in layers:
        results.insert(0, work.insert_head(mask, sites.final, layers[HEAD], owners[HEAD]))
    _flatten_outputs(work.graph, results)
    work.graph.lint()
    return fx.GraphModule({**_frozen(base), **modules}, work.graph)


def _target(index: int) -> str:
    """A name of a submodule; names of sites hold dots, which torch does not take."""
    return f"adapter_layer_{index}"


class _Work:
    """A copy of a base's graph in which values are replaced, in the order of evaluation.

    Attributes:
        graph: the copy.
        index: of the graph as it was.
        values: what now stands for each node, by its name in the graph as it was.
    """

    def __init__(self, base: fx.GraphModule) -> None:
        self.graph = fx.Graph()
        self.index = FlowIndex(flow_graph(base))
        self.values: dict[str, fx.Node] = {}
        self._origins: dict[fx.Node, str] = {}
        self._names: dict[fx.Node, str] = {}
        self._inputs: dict[str, fx.Node] = {}
        for node in base.graph.nodes:
            copy = self.graph.node_copy(node, lambda used: self.values[used.name])
            self.values[node.name] = copy
            self._names[copy] = self._origins[copy] = node.name
        self._nodes = dict(self.values)

    def insert(self, site: Site, replaced: str, layer: GraphLayer, target: str) -> None:
        """Call a layer on a site's values; what it returns takes the place of one of them.

        In the place of `h` and of `y` everyone reads it, in the place of `u` the site's layer alone.
        """
        read = [self._value(site, name) for name in layer.graph.inputs]
        old = self._value(site, replaced)
        check_tokens(layer.graph, site, old.meta["val"].dim() if "val" in old.meta else None)
        with self.graph.inserting_after(self._last({*read, old})):
            call = self.graph.call_module(target, tuple(read))
        with self.graph.inserting_before(call):
            call.args = (*read, *(self.graph.get_attr(name) for name in layer.borrows))
        new, own = self._part(site, old, call) if site.role == "part" else (call, {call})
        new.meta, self._origins[new] = dict(old.meta), self._origins[old]
        if replaced == "u":
            self._redirect(old, new, entrance(self.index, site))
            self._inputs[site.name] = new
            return
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in own)
        for name in [name for name, value in self.values.items() if value is old]:
            self.values[name] = new

    def _part(self, site: Site, whole: fx.Node, call: fx.Node) -> tuple[fx.Node, set[fx.Node]]:
        """Let a layer read a part of a value alone; the whole with the result in it, and the nodes that make it."""
        ((start, end),) = site.parts.values()
        with self.graph.inserting_before(call):
            cut = self.graph.call_function(cut_part, (whole, start, end, site.blocks))
        call.replace_input_with(whole, cut)
        with self.graph.inserting_after(call):
            joined = self.graph.call_function(join_part, (whole, call, start, end, site.blocks))
        return joined, {cut, call, joined}

    def insert_head(self, mask: str | None, final: str, layer: GraphLayer, target: str) -> fx.Node:
        """Call the head on the final hidden state."""
        hidden = self.values[final]
        with self.graph.inserting_before(_output(self.graph)):
            tokens = self.values[mask] if mask is not None else self.graph.call_function(_every_token, (hidden,))
            offered = {"hidden": hidden, "mask": tokens}
            return self.graph.call_module(target, tuple(offered[name] for name in layer.graph.inputs))

    def _value(self, site: Site, name: str) -> fx.Node:
        """What now stands for one of a site's values."""
        original = getattr(site, name)
        if name != "u" or site.role not in LAYERS:
            return self._inputs[site.name] if name == "u" and site.name in self._inputs else self.values[original]
        within = entrance(self.index, site)
        node = self._nodes[within.reader]
        for value in within.back:  # a sublayer around a linear layer may have made something else of its input
            node = next(read for read in node.all_input_nodes if self._origins.get(read) == value)
        return node

    def _redirect(self, old: fx.Node, new: fx.Node, within: Entrance) -> None:
        """Let a layer read `new`; what prepares `old` for others as well gets a copy that prepares `new`."""
        for user in list(old.users):
            name = self._names.get(user)
            if name in within.readers:
                user.replace_input_with(old, new)
            elif name in within.copied:
                with self.graph.inserting_after(user):
                    copy = self.graph.node_copy(user, lambda used: new if used is old else used)
                self._names[copy], self._origins[copy] = self._names[user], self._origins[user]
                self._redirect(user, copy, within)

    def _last(self, nodes: set[fx.Node]) -> fx.Node:
        return max(nodes, key=list(self.graph.nodes).index)


def _every_token(hidden: Tensor) -> Tensor:
    """A mask that keeps every token of `hidden` [batch, tokens, d]."""
    return torch.ones_like(hidden[..., 0])


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
