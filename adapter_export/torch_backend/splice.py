"""Insert calls of adapter graphs into a copy of a base's FX graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter

import torch
from torch import Tensor, fx, nn

from adapter_export.graph.adapter import HEAD
from adapter_export.numerics.evaluate_adapter import check_tokens
from adapter_export.sites.edits import Edit, Ref, Rewiring, plan_edits
from adapter_export.sites.site import SiteMap
from adapter_export.sites.view import Piece
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.torch_backend.torch_lowering import GraphLayer


def cut_piece(whole: Tensor, start: int, end: int, blocks: int) -> Tensor:
    """Return features `start` to `end` of each of the equal blocks of a fused layer's output, [..., width]."""
    return _in_blocks(whole, blocks)[..., start:end].flatten(-2)


def join_piece(whole: Tensor, piece: Tensor, start: int, end: int, blocks: int) -> Tensor:
    """Return the fused layer's output with the features that `cut_piece` returns replaced."""
    around, middle = _in_blocks(whole, blocks), _in_blocks(piece, blocks)
    return torch.cat([around[..., :start], middle, around[..., end:]], -1).flatten(-2)


def _in_blocks(value: Tensor, blocks: int) -> Tensor:
    return value.reshape(*value.shape[:-1], blocks, -1)


def splice(
    base: TorchBase, mask: str | None, sites: SiteMap, layers: Mapping[str, GraphLayer], seen: Sequence[str] = ()
) -> fx.GraphModule:
    """Return a module that computes the base with layers called at some sites, by name, and at the `head`.

    The module shares the weights of the base, which is not modified, and freezes them. It takes the base's inputs by
    position and returns a flat tuple: the base's outputs, the head's result if there is one, the `seen` values of the
        base, and the final hidden state. `mask` is the placeholder that marks real tokens; without one, all are real.

    Raises:
        NoSitesError: a layer replaces the input of a site's layer, and nothing there reads it.
        AdapterError: a layer processes the tokens of a text together, but the base has no axis of tokens.
    """
    work = _Work(base.flat)
    # site names contain dots, which torch does not allow in submodule names
    targets = {owner: f"adapter_layer_{index}" for index, owner in enumerate(layers)}
    places = ((site, layers[site.name].graph.replaces) for site in sites if site.name in layers)
    for edit in plan_edits(base.index, places):
        work.insert(edit, layers[edit.site.name], targets[edit.site.name])
    results = [work.nodes[Ref(value)] for value in (*seen, sites.final)]
    if HEAD in layers:
        results.insert(0, work.insert_head(mask, sites.final, layers[HEAD], targets[HEAD]))
    (flat,) = work.output.args
    assert isinstance(flat, tuple | list)
    work.output.args = ((*(value for value in flat if isinstance(value, fx.Node)), *results),)
    work.graph.lint()
    modules = {targets[owner]: layer for owner, layer in layers.items()}
    return fx.GraphModule({**_frozen(base.flat), **modules}, work.graph)


class _Work:
    """A copy of a base's graph for planned edits; `nodes` are its current values by the plan's names."""

    def __init__(self, base: fx.GraphModule) -> None:
        self.graph = fx.Graph()
        self.nodes: dict[Ref, fx.Node] = {}
        for node in base.graph.nodes:
            self.nodes[Ref(node.name)] = self.graph.node_copy(node, lambda used: self.nodes[Ref(used.name)])
        self._operations = dict(self.nodes)
        (self.output,) = self.graph.find_nodes(op="output")

    def insert(self, edit: Edit, layer: GraphLayer, target: str) -> None:
        """Call a layer on a site's values; its result replaces one of them."""
        read = [self.nodes[edit.values[name]] for name in layer.graph.inputs]
        old = self.nodes[edit.values[edit.replaced]]
        check_tokens(layer.graph, edit.site, old.meta["val"].dim() if "val" in old.meta else None)
        with self.graph.inserting_after(max({*read, old})):
            call = self.graph.call_module(target, tuple(read))
        with self.graph.inserting_before(call):
            call.args = (*read, *(self.graph.get_attr(name) for name in layer.borrows))
        new, added = (call, {call}) if edit.piece is None else self._join(edit.piece, old, call)
        new.meta = dict(old.meta)
        if edit.replaced == "u":
            self.nodes[edit.result] = new
            for rewiring in edit.rewirings:
                self._rewire(rewiring)
            return
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in added)
        self.nodes |= {ref: new for ref, node in self.nodes.items() if node is old}

    def _join(self, piece: Piece, whole: fx.Node, call: fx.Node) -> tuple[fx.Node, set[fx.Node]]:
        """Let a layer read only a piece of a value; return the whole with its result, and the nodes that compute it."""
        with self.graph.inserting_before(call):
            cut = self.graph.call_function(cut_piece, (whole, *piece))
        call.replace_input_with(whole, cut)
        with self.graph.inserting_after(call):
            joined = self.graph.call_function(join_piece, (whole, call, *piece))
        return joined, {cut, call, joined}

    def _rewire(self, rewiring: Rewiring) -> None:
        old, new, node = self.nodes[rewiring.old], self.nodes[rewiring.new], self._operations[rewiring.node]
        if not rewiring.outputs:
            node.replace_input_with(old, new)
            return
        with self.graph.inserting_after(node):
            copy = self.graph.node_copy(node, lambda used: new if used is old else used)
        ref = rewiring.node._replace(layer=rewiring.new.layer)
        self.nodes[ref] = self._operations[ref] = copy

    def insert_head(self, mask: str | None, final: str, layer: GraphLayer, target: str) -> fx.Node:
        """Call the head on the final hidden state."""
        hidden = self.nodes[Ref(final)]
        with self.graph.inserting_before(self.output):
            tokens = self.nodes[Ref(mask)] if mask is not None else self.graph.call_function(every_token, (hidden,))
            offered = {"hidden": hidden, "mask": tokens}
            return self.graph.call_module(target, tuple(offered[name] for name in layer.graph.inputs))


def every_token(hidden: Tensor) -> Tensor:
    """Return a mask that keeps every token of `hidden` [batch, tokens, d]."""
    return torch.ones_like(hidden[..., 0])


def _frozen(base: fx.GraphModule) -> dict[str, object]:
    """Return the objects that the graph refers to; weights become parameters without gradients that share memory."""
    targets = {str(node.target) for node in base.graph.nodes if node.op in {"get_attr", "call_module"}}
    found = {target: attrgetter(target)(base) for target in targets}
    return {
        target: nn.Parameter(value.detach(), requires_grad=False) if isinstance(value, nn.Parameter) else value
        for target, value in found.items()
    }
