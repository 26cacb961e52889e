"""The FX graph of a torch base as a neutral dataflow graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import accumulate
from typing import Any

import torch
from torch import finfo
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from adapter_export.sites.site import Norm
from adapter_export.sites.view import Cut, Dim, Epilogue, FlowGraph, FlowNode, NodeKind, rows_first

_UNBIND = 1
_SPLITS = {"split": 2, "split_with_sizes": 2, "chunk": 2, "unbind": _UNBIND}
"""What cuts a tensor into parts, and which argument is the axis; 0 if it is not given."""

_ORDERS = frozenset({"transpose", "permute", "unsqueeze", "squeeze", "contiguous", "clone"})


def cut_of(node: Node, op: str) -> Cut | None:
    """The slice of its input that a node is; none where it is not known, or is not one slice.

    For a part of a `split`, that is the slice of what was split.
    """
    if op == "getitem":
        whole, index = node.args
        return _part(whole, index) if isinstance(whole, Node) and isinstance(index, int) else None
    if op not in ("slice", "select", "narrow") or not isinstance(node.args[0], Node):
        return None
    axis, start = (*node.args[1:3], 0, 0)[:2]
    size, length = _size(node.args[0], axis), _size(node, axis)
    if not isinstance(start, int) or size is None:
        return None
    begin = start % size if start < 0 else min(start, size)
    steps = node.args[4] if op == "slice" and len(node.args) > 4 else 1
    length = 1 if op == "select" else length
    return None if length is None or steps != 1 else Cut(_axis(node.args[0], axis), begin, begin + length)


def order_of(node: Node, op: str) -> tuple[int | None, ...]:
    """The axis of its input that each axis of a node's result is, of those that move whole axes; empty for others."""
    value = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], Node) else None
    if not isinstance(value, torch.Tensor) or op not in _ORDERS:
        return ()
    axes = list(range(value.dim()))
    if op in ("contiguous", "clone"):
        return tuple(axes)
    first: Any = node.args[1] if len(node.args) > 1 else None
    if op == "permute":
        return tuple(axes[axis] for axis in first)
    if op == "unsqueeze":
        at = first % (value.dim() + 1)
        return (*axes[:at], None, *axes[at:])
    if op == "squeeze":
        at = first % value.dim() if isinstance(first, int) else None
        return tuple(axis for axis in axes if axis != at) if at is not None and value.shape[at] == 1 else ()
    other: Any = node.args[2]
    axes[first], axes[other] = axes[other], axes[first]
    return tuple(axes)


def _part(whole: Node, index: int) -> Cut | None:
    """One of the parts into which a tensor is split."""
    source, parts = whole.args[0] if whole.args else None, whole.meta.get("val")
    place = _SPLITS.get(getattr(whole.target, "__name__", "").split(".")[0])
    if not isinstance(source, Node) or not isinstance(parts, list | tuple) or place is None:
        return None
    axis = _axis(source, whole.kwargs.get("dim", whole.args[place] if len(whole.args) > place else 0))
    ends = list(accumulate(1 if place == _UNBIND else part.shape[axis] for part in parts))
    start = ends[index - 1] if index else 0
    return Cut(axis, start, ends[index]) if all(isinstance(end, int) for end in ends) else None


def _axis(node: Node, axis: object) -> int:
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor)  # the operators take nothing else
    assert isinstance(axis, int)
    return axis % value.dim()


def _size(node: Node, axis: object) -> int | None:
    value = node.meta.get("val")
    size = (
        value.shape[axis] if isinstance(value, torch.Tensor) and isinstance(axis, int) and value.dim() > axis else None
    )
    return size if isinstance(size, int) else None


_LAYER = ("layer_norm", "native_layer_norm")
_RMS = ("rms_norm", "_fused_rms_norm")
NORMS = (*_LAYER, *_RMS)
"""The operators, named without namespace and overload."""


def norm_of(node: Node, op: str) -> Norm | None:
    """The norm that a node is; none for any other node. Tensors have the names of the module's attributes."""
    if op not in NORMS:
        return None
    assert isinstance(node.target, OpOverload)  # norms are operators of torch in every exported program
    names = [argument.name for argument in node.target._schema.arguments]
    given: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    tensors = [given.get("weight"), given.get("bias")]
    trained = all(tensor is None or (isinstance(tensor, Node) and tensor.op == "get_attr") for tensor in tensors)
    if len(given["normalized_shape"]) != 1 or not trained:
        return Norm("unknown", 0.0, None, None)
    weight, bias = (str(tensor.target) if isinstance(tensor, Node) else None for tensor in tensors)
    epsilon = given.get("eps")
    if epsilon is None:  # torch's defaults
        epsilon = 1e-5 if op in _LAYER else finfo(node.all_input_nodes[0].meta["val"].dtype).eps
    return Norm("layer" if op in _LAYER else "rms", epsilon, weight, bias)


_FACTORS: Mapping[str, slice] = {
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "_scaled_mm", "_grouped_mm", "grouped_mm_fallback"), slice(0, 2)),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm"), slice(1, 3)),
    **dict.fromkeys(("_weight_int8pack_mm", "_weight_int4pack_mm"), slice(0, 2)),
    "einsum": slice(0, None),
}
"""The products, and which of the tensors they read are multiplied; the others are biases."""

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution", "_convolution", "conv_transpose1d", "conv_transpose2d")

_ATTENTION = slice(0, 3)
_MATRICES = ("linear", "matmul", "mm", "addmm")
"""What may multiply with one trained matrix."""


def is_weighted(node: Node, op: str, activations: Set[Node]) -> bool:
    """Return whether one of the factors of a product is no activation."""
    multiplies = op in _FACTORS or op in CONVOLUTIONS
    return multiplies and any(factor not in activations for factor in _factors(node, op))


def operands(node: Node, op: str, activations: Set[Node]) -> tuple[str, ...]:
    """The activations that are multiplied: factors of a product; query, key and value of an attention.

    An attention that computes these itself has none.
    """
    if op not in _FACTORS and ("attention" not in op or "multi_head_attention" in op):
        return ()
    found = tuple(factor.name for factor in _factors(node, op) if factor in activations)
    return rows_first(str(node.args[0]), found) if op == "einsum" else found


def _factors(node: Node, op: str) -> list[Node]:
    default = _ATTENTION if "attention" in op else slice(0, 2)
    return list(_tensors(node.args))[_FACTORS.get(op, default)]


def is_linear(node: Node, op: str, activations: Set[Node]) -> bool:
    """Return whether it multiplies an activation with one trained matrix, and does nothing else that would stay."""
    if op not in _MATRICES or any(node.kwargs.get(scale, 1) != 1 for scale in ("alpha", "beta")):
        return False
    left, right = _factors(node, op)
    weight = right.meta.get("val")
    return left in activations and right not in activations and isinstance(weight, torch.Tensor) and weight.dim() == 2


def trained_matrix(node: Node, op: str) -> str | None:
    """The name of the matrix of a linear layer, if the node multiplies with one."""
    factors = _factors(node, op) if op in _MATRICES else []
    right = factors[1] if len(factors) == 2 else None
    return str(right.target) if right is not None and right.op == "get_attr" else None


def epilogue(node: Node, op: str, activations: Set[Node]) -> Epilogue | None:
    """The step of a linear layer that a node is: the addition of a bias."""
    if op not in ("linear", "addmm", "add"):
        return None
    if op == "linear":
        return "bias" if len(list(_tensors(node.args))) > 2 else None
    others = [source for source in node.all_input_nodes if source not in activations]
    alone = op == "addmm" or (len(node.all_input_nodes) == 2 and len(others) == 1)
    return "bias" if alone and any(_is_vector(source) for source in others) else None


def _is_vector(node: Node) -> bool:
    """Return whether it has one number per feature: [d], or axes of length 1 before it."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.dim():
        return False
    return value.shape[-1] != 1 and all(size == 1 for size in value.shape[:-1])


def _tensors(arguments: object) -> Iterator[Node]:
    """The nodes among the arguments of a call, repetitions included."""
    if isinstance(arguments, Node):
        yield arguments
    elif isinstance(arguments, list | tuple):
        for argument in arguments:
            yield from _tensors(argument)


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
        other_calls=Counter(
            name for node in module.graph.nodes if node not in activations for name in _layer_names(node)
        ),
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
    """Return whether it is a number of Python's, such as the length of an axis."""
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
        epilogue=epilogue(node, op, activations.keys()),
        cuts={} if cut is None else {node.name: cut},
        order=order_of(node, op),
    )


def _kind(node: Node, op: str, read: list[Node]) -> NodeKind:
    if op == "add" and len(read) == 2 and node.kwargs.get("alpha", 1) == 1:
        return "add"
    if op in _FACTORS:
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
