"""The FX graph of a torch base as a neutral dataflow graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch.fx import GraphModule, Node

from adapter_export.sites.view import Dim, FlowGraph, FlowNode, NodeKind
from adapter_export.torch.cuts import cut_of, order_of
from adapter_export.torch.norms import NORMS, norm_of
from adapter_export.torch.products import (
    CONVOLUTIONS,
    finish,
    is_linear,
    is_product,
    is_weighted,
    operands,
    trained_matrix,
)

_RESHAPES = frozenset({"view", "_unsafe_view", "reshape", "view_as", "reshape_as", "flatten", "unflatten"}) | frozenset(
    {"squeeze", "unsqueeze", "expand", "expand_as", "slice", "narrow"}
)
"""Moves that leave every number where it is as long as the shape stays."""

_TURNS = frozenset({"transpose", "permute", "t", "mT", "movedim", "swapaxes", "roll", "flip"})
_PICKS = frozenset({"split", "chunk", "unbind", "select", "index", "index_select", "gather", "unfold"})
_JOINS = frozenset({"cat", "stack", "repeat", "tile", "pad", "constant_pad_nd"})
_MOVES = _RESHAPES | _TURNS | _PICKS | _JOINS

_ACTIVATIONS = frozenset({"relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "erf", "elu", "selu", "celu", "glu"}) | {
    *("leaky_relu", "prelu", "hardtanh", "hardswish", "hardsigmoid", "mish", "softplus", "softsign", "exp"),
    *("softmax", "_softmax", "_safe_softmax", "log_softmax", "clamp"),
}

_LIKE = frozenset(
    {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"}
)
_SHAPES_ALONE = _LIKE | {"sym_size", "sym_numel", "sym_stride"}
"""What reads the shape of a tensor and none of its numbers."""

_SECOND_IS_SHAPE = frozenset({"expand_as", "view_as", "reshape_as", "type_as"})
"""What reads the numbers of its first tensor and the shape or type of its second."""


def flow_graph(module: GraphModule) -> FlowGraph:
    """View the flat module of an exported program (`torch.export.load(path).module()`) as dataflow.

    The values are named like the FX nodes that compute them.
    """
    activations = _activations(module.graph.nodes)
    (result,) = module.graph.find_nodes(op="output")
    return FlowGraph(
        nodes=[_flow_node(node, activations) for node in activations if node.op != "placeholder"],
        shapes=dict(_shapes(activations)),
        outputs=tuple(node.name for node in result.all_input_nodes),
        aside=Counter(name for node in module.graph.nodes if node not in activations for name in _layer_names(node)),
    )


def _layer_names(node: Node) -> list[str]:
    """The path and the matrix of a linear layer; none of another node."""
    weight = trained_matrix(node, _op(node))
    return [] if weight is None else [name for name in (_path(node), weight) if name is not None]


def _activations(nodes: Iterable[Node]) -> dict[Node, None]:
    """The nodes that compute something from the numbers of an input, in order."""
    found: dict[Node, None] = {}
    for node in nodes:
        fed = node.op == "placeholder" or any(source in found for source in _sources(node))
        if fed and node.op != "output" and _op(node) not in _SHAPES_ALONE and not _is_scalar(node):
            found[node] = None
    return found


def _sources(node: Node) -> list[Node]:
    """The nodes whose results it reads, without those of which it reads the shape alone."""
    return node.all_input_nodes[:1] if _op(node) in _SECOND_IS_SHAPE else node.all_input_nodes


def _is_scalar(node: Node) -> bool:
    """Whether it is a number of Python's, such as the length of an axis."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int | float)


def _op(node: Node) -> str:
    """The name without namespace, overload and the mark of an in-place op: `add` for `aten.add_.Tensor`."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.split(".")[0].removesuffix("_")


def _flow_node(node: Node, activations: Mapping[Node, None]) -> FlowNode:
    op = _op(node)
    cut = cut_of(node, op)
    read = [source for source in _sources(node) if source in activations]
    return FlowNode(
        name=node.name,
        kind=_kind(node, op, read),
        op=op,
        inputs=tuple(source.name for source in read),
        outputs=(node.name,),
        weighted=is_weighted(node, op, activations.keys()),
        path=_path(node),
        norm=norm_of(node, op),
        normed=read[0].name if op in NORMS and read else None,
        linear=is_linear(node, op, activations.keys()),
        weight=trained_matrix(node, op),
        operands=operands(node, op, activations.keys()),
        finish=finish(node, op, activations.keys()),
        cuts={} if cut is None else {node.name: cut},
        order=order_of(node, op),
    )


def _kind(node: Node, op: str, read: list[Node]) -> NodeKind:
    if op == "add" and len(read) == 2 and node.kwargs.get("alpha", 1) == 1:
        return "add"
    if is_product(op):
        return "product"
    if op in CONVOLUTIONS:
        return "convolution"
    if "attention" in op:
        return "attention"
    if op in NORMS:
        return "norm"
    if op in _ACTIVATIONS:
        return "activation"
    return "layout" if op in _MOVES and not _keeps_places(node, op) else "other"


def _keeps_places(node: Node, op: str) -> bool:
    source = node.all_input_nodes[0]
    return op in _RESHAPES and _shape(source) is not None and _shape(source) == _shape(node)


def _path(node: Node) -> str | None:
    """The innermost module that was being called, of those with a name."""
    for path, _ in reversed((node.meta.get("nn_module_stack") or {}).values()):
        if not path.startswith("_empty_nn_module_stack"):  # torch's own note on nodes that belong to no module
            return path or None
    return None


def _shapes(nodes: Iterable[Node]) -> Iterator[tuple[str, tuple[Dim, ...]]]:
    for node in nodes:
        shape = _shape(node)
        if shape is not None:
            yield node.name, shape


def _shape(node: Node) -> tuple[Dim, ...] | None:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(size if isinstance(size, int) else str(size) for size in value.shape)
