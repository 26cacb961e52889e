"""View of a torch base's FX graph as a backend-neutral dataflow graph."""

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
from adapter_export.sites.view import (
    Cut,
    Dim,
    Epilogue,
    FlowGraph,
    FlowNode,
    NodeKind,
    Step,
    constant_starts,
    convolved,
    rows_first,
)

# Operators are named without namespace and overload.

_LAYER = ("layer_norm", "native_layer_norm")
_NORMS = (*_LAYER, "rms_norm", "_fused_rms_norm")
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution", "_convolution", "conv_transpose1d", "conv_transpose2d")

_FACTORS: Mapping[str, slice] = {
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "_scaled_mm", "_grouped_mm", "grouped_mm_fallback"), slice(0, 2)),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm"), slice(1, 3)),
    **dict.fromkeys(("_weight_int8pack_mm", "_weight_int4pack_mm"), slice(0, 2)),
    "einsum": slice(0, None),
}
"""Products, and the indices of the tensors that are multiplied; the others are biases."""

_MATRICES = ("linear", "matmul", "mm", "addmm")
"""Products that may have one trained matrix."""

_SUMS = frozenset({"add", "sub", "subtract"})

_ACTIVATIONS = frozenset({"relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "erf", "elu", "selu", "celu", "glu"}) | {
    *("leaky_relu", "prelu", "hardtanh", "hardswish", "hardsigmoid", "mish", "softplus", "softsign", "exp"),
    *("softmax", "_softmax", "_safe_softmax", "log_softmax", "clamp"),
}

_RESHAPES = frozenset({"view", "_unsafe_view", "reshape", "view_as", "reshape_as", "flatten", "unflatten"}) | {
    *("squeeze", "unsqueeze", "expand", "expand_as", "slice", "narrow")
}
"""Operators that move data, and move nothing if they keep the shape."""

_MOVES = _RESHAPES | {
    *("transpose", "permute", "t", "mT", "movedim", "swapaxes", "roll", "flip"),
    *("split", "chunk", "unbind", "select", "index", "index_select", "gather", "unfold"),
    *("cat", "stack", "repeat", "tile", "pad", "constant_pad_nd"),
}

_AXES_MOVED = frozenset({"transpose", "permute", "unsqueeze", "squeeze", "contiguous", "clone"})
"""Operators that move whole axes."""

_SPLITS = {"split": 2, "split_with_sizes": 2, "chunk": 2, "unbind": 1}
"""Ops that split a tensor, and the position of the argument `axis`, which defaults to 0."""

_SHAPES_ALONE = frozenset({"zeros_like", "ones_like", "full_like", "empty_like", "sym_size", "sym_numel"}) | {
    *("new_zeros", "new_ones", "new_full", "new_empty", "sym_stride")
}
"""Ops that read the shape of a tensor and none of its values."""

_SECOND_IS_SHAPE = frozenset({"expand_as", "view_as", "reshape_as", "type_as"})
"""Ops that read the values of the first tensor, and the shape or type of the second."""


def flow_graph(module: GraphModule) -> FlowGraph:
    """View the flat module of an exported program (`torch.export.load(path).module()`) as dataflow.

    Values are named like the FX nodes that compute them.
    """
    activations = _activations(module.graph.nodes)
    (result,) = module.graph.find_nodes(op="output")
    other_calls = Counter[str]()
    for node in module.graph.nodes:
        weight = None if node in activations else _trained_matrix(node, _op(node))
        if weight is not None:
            other_calls.update(name for name in (_path(node), weight) if name is not None)
    return FlowGraph(
        nodes=[_flow_node(node, activations) for node in activations if node.op != "placeholder"],
        shapes={node.name: shape for node in activations if (shape := _shape(node)) is not None},
        outputs=tuple(node.name for node in result.all_input_nodes),
        other_calls=other_calls,
    )


def _activations(nodes: Iterable[Node]) -> dict[Node, None]:
    """Return in order the nodes whose tensors depend on an input, or on constants that start a stream."""
    nodes = list(nodes)
    computed = _computed_from(nodes, set())
    constants = {node.name for node in nodes if node not in computed and _is_repeated(node)}
    steps = (
        Step(
            tuple(source.name for source in _sources(node)),
            (node.name,),
            op in _FACTORS or op in _CONVOLUTIONS or "attention" in op,
            op in _SUMS,
        )
        for node, op in ((node, _op(node)) for node in nodes)
    )
    starts = constant_starts(steps, constants)
    return _computed_from(nodes, starts) if starts else computed


def _computed_from(nodes: Iterable[Node], starts: Set[str]) -> dict[Node, None]:
    scalars = torch.SymInt | torch.SymFloat | torch.SymBool | int | float  # for example, the length of an axis
    reached: dict[Node, None] = {}
    for node in nodes:
        fed = node.op == "placeholder" or any(source in reached for source in _sources(node))
        is_scalar = isinstance(node.meta.get("val"), scalars)
        if node.name in starts or (fed and node.op != "output" and not is_scalar and _op(node) not in _SHAPES_ALONE):
            reached[node] = None
    return reached


def _is_repeated(node: Node) -> bool:
    """Return whether a tensor [batch, tokens, d] gets its batch from the inputs: a constant is repeated per row."""
    value, shape = node.meta.get("val"), _shape(node) or ()
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return is_float and len(shape) == 3 and isinstance(shape[0], str) and isinstance(shape[2], int) and shape[2] > 1


def _flow_node(node: Node, activations: Mapping[Node, None]) -> FlowNode:
    op = _op(node)
    cut = _cut(node, op)
    read = [source for source in _sources(node) if source in activations]
    multiplies = op in _FACTORS or op in _CONVOLUTIONS
    return FlowNode(
        name=node.name,
        kind=_kind(node, op, read),
        op=op,
        inputs=tuple(source.name for source in read),
        outputs=(node.name,),
        weighted=multiplies and any(factor not in activations for factor in _factors(node, op)),
        path=_path(node),
        norm=_norm(node, op),
        normed=read[0].name if op in _NORMS and read else None,
        linear=_is_linear(node, op, activations.keys()),
        weight=_trained_matrix(node, op) or _table(node, op),
        operands=_operands(node, op, activations.keys()),
        contracts=_contracted(node, op, activations.keys()),
        terms=_terms(node, op),
        epilogue=_epilogue(node, op, activations.keys()),
        cuts={} if cut is None else {node.name: cut},
        order=_order(node, op),
        rows=_rows(node, op),
    )


def _op(node: Node) -> str:
    """Return the name without namespace, overload and in-place mark: `add` for `aten.add_.Tensor`."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.split(".")[0].removesuffix("_")


def _sources(node: Node) -> list[Node]:
    """Return the nodes whose values it reads, without those of which it reads only the shape."""
    if _op(node) in _SHAPES_ALONE:
        return []
    return node.all_input_nodes[:1] if _op(node) in _SECOND_IS_SHAPE else node.all_input_nodes


def _shape(node: object) -> tuple[Dim, ...] | None:
    """Return the shape of a node's tensor, with names for dynamic axes, or `None` for any other value."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, torch.Tensor):
        return None
    return tuple(size if isinstance(size, int) else str(size) for size in value.shape)


def modules_of(node: Node) -> dict[str, str]:
    """Return the module calls around a node, the outermost first: torch's key of each, and the module's path."""
    stack = (node.meta.get("nn_module_stack") or {}).items()
    # torch's key for nodes outside modules
    return {key: path for key, (path, _) in stack if not path.startswith("_empty_nn_module_stack")}


def _path(node: Node) -> str | None:
    """Return the path of the innermost module being called, or `None` for the root."""
    return next(reversed(modules_of(node).values()), None) or None


def _kind(node: Node, op: str, read: list[Node]) -> NodeKind:
    if op in _SUMS and len(read) == 2 and node.kwargs.get("alpha", 1) == 1:
        return "add"
    if op in _FACTORS:
        return "product"
    if op in _CONVOLUTIONS:
        return "convolution"
    if "attention" in op:
        return "attention"
    if op in _NORMS:
        return "norm"
    if op in _ACTIVATIONS:
        return "activation"
    if op not in _MOVES:
        return "other"
    before = _shape(node.all_input_nodes[0])
    return "other" if op in _RESHAPES and before is not None and before == _shape(node) else "layout"


def _norm(node: Node, op: str) -> Norm | None:
    """Return a node as a norm, or `None` for any other node. Tensors have the names of the module's attributes."""
    if op not in _NORMS:
        return None
    assert isinstance(node.target, OpOverload)  # in an exported program, norms are always torch operators
    names = [argument.name for argument in node.target._schema.arguments]
    arguments: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    tensors = [arguments.get("weight"), arguments.get("bias")]
    trained = all(tensor is None or (isinstance(tensor, Node) and tensor.op == "get_attr") for tensor in tensors)
    if len(arguments["normalized_shape"]) != 1 or not trained:
        return Norm("unknown", 0.0, None, None)
    weight, bias = (str(tensor.target) if isinstance(tensor, Node) else None for tensor in tensors)
    epsilon = arguments.get("eps")
    if epsilon is None:  # torch's defaults
        epsilon = 1e-5 if op in _LAYER else finfo(node.all_input_nodes[0].meta["val"].dtype).eps
    return Norm("layer" if op in _LAYER else "rms", epsilon, weight, bias)


def _operands(node: Node, op: str, activations: Set[Node]) -> tuple[str, ...]:
    """Return the activations that are multiplied: factors of a product; query, key and value of an attention.

    Empty for an attention that computes these itself.
    """
    if op not in _FACTORS and ("attention" not in op or "multi_head_attention" in op):
        return ()
    found = tuple(factor.name for factor in _factors(node, op) if factor in activations)
    return rows_first(str(node.args[0]), found) if op == "einsum" else found


def _factors(node: Node, op: str) -> list[Node]:
    default = slice(0, 3) if "attention" in op else slice(0, 2)
    return list(_tensors(node.args))[_FACTORS.get(op, default)]


def _tensors(arguments: object) -> Iterator[Node]:
    """Yield the nodes among the arguments of a call, including repetitions."""
    if isinstance(arguments, Node):
        yield arguments
    elif isinstance(arguments, list | tuple):
        for argument in arguments:
            yield from _tensors(argument)


def _is_linear(node: Node, op: str, activations: Set[Node]) -> bool:
    """Return whether it multiplies an activation by one trained matrix and has no other effect."""
    if op not in _MATRICES or any(node.kwargs.get(scale, 1) != 1 for scale in ("alpha", "beta")):
        return False
    left, right = _factors(node, op)
    return left in activations and right not in activations and len(_shape(right) or ()) == 2


def _contracted(node: Node, op: str, activations: Set[Node]) -> int | None:
    """Return the axis of its single activation, from the end, that a product with a weight sums over."""
    if op in _CONVOLUTIONS:
        shape = _shape(next(iter(_tensors(node.args))))
        return None if shape is None else 1 - len(shape)
    if op not in (*_MATRICES, "bmm", "baddbmm"):
        return None
    left, right = (factor in activations for factor in _factors(node, op))
    return None if left == right else -1 if left else -2


def _terms(node: Node, op: str) -> int | None:
    """Return the maximum number of products in an element of a convolution; `None` for other nodes or if unknown."""
    return (
        convolved(_shape(list(_tensors(node.args))[1]), transposed="transpose" in op) if op in _CONVOLUTIONS else None
    )


def _trained_matrix(node: Node, op: str) -> str | None:
    """Return the name of a linear layer's matrix, if the node multiplies by one."""
    factors = _factors(node, op) if op in _MATRICES else []
    right = factors[1] if len(factors) == 2 else None
    return str(right.target) if right is not None and right.op == "get_attr" else None


def _table(node: Node, op: str) -> str | None:
    """Return the name of the trained table in which a node looks up ids."""
    table = node.args[0] if op == "embedding" else None
    return str(table.target) if isinstance(table, Node) and table.op == "get_attr" else None


def _rows(node: Node, op: str) -> int | None:
    """Return the number of rows of that table."""
    shape = None if _table(node, op) is None else _shape(node.args[0])
    return shape[0] if shape and isinstance(shape[0], int) else None


def _epilogue(node: Node, op: str, activations: Set[Node]) -> Epilogue | None:
    """Return the step of a linear layer that a node is: addition of a bias, [d] or with leading axes of length 1."""
    if op not in ("linear", "addmm", "add"):
        return None
    if op == "linear":
        return "bias" if len(list(_tensors(node.args))) > 2 else None
    others = [source for source in node.all_input_nodes if source not in activations]
    if op == "add" and (len(node.all_input_nodes) != 2 or len(others) != 1):
        return None
    shapes = [_shape(source) or () for source in others]
    is_bias = any(shape[-1:] not in ((), (1,)) and set(shape[:-1]) <= {1} for shape in shapes)
    return "bias" if is_bias else None


def _cut(node: Node, op: str) -> Cut | None:
    """Return the slice of its input that a node is, or `None` if it is unknown or not one slice.

    One result of a `split` is a slice of the tensor that was split.
    """
    if op == "getitem":
        whole, index = node.args
        return _split(whole, index) if isinstance(whole, Node) and isinstance(index, int) else None
    if op not in ("slice", "select", "narrow") or not isinstance(node.args[0], Node):
        return None
    axis, start = (*node.args[1:3], 0, 0)[:2]
    size = _size(node.args[0], axis)
    length = 1 if op == "select" else _size(node, axis)
    step = node.args[4] if op == "slice" and len(node.args) > 4 else 1
    if not isinstance(start, int) or size is None or length is None or step != 1:
        return None
    begin = start % size if start < 0 else min(start, size)
    return Cut(_axis(node.args[0], axis), begin, begin + length)


def _split(whole: Node, index: int) -> Cut | None:
    """Return one of the tensors that another one is split into."""
    op, results = _op(whole), whole.meta.get("val")
    source = whole.args[0] if whole.args else None
    if not isinstance(source, Node) or not isinstance(results, list | tuple) or op not in _SPLITS:
        return None
    place = _SPLITS[op]
    axis = _axis(source, whole.kwargs.get("dim", whole.args[place] if len(whole.args) > place else 0))
    ends = list(accumulate(1 if op == "unbind" else result.shape[axis] for result in results))
    start = ends[index - 1] if index else 0
    return Cut(axis, start, ends[index]) if all(isinstance(end, int) for end in ends) else None


def _axis(node: Node, axis: object) -> int:
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor)  # these operators accept nothing else
    assert isinstance(axis, int)
    return axis % value.dim()


def _size(node: Node, axis: object) -> int | None:
    shape = _shape(node) or ()
    size = shape[axis] if isinstance(axis, int) and axis < len(shape) else None
    return size if isinstance(size, int) else None


def _order(node: Node, op: str) -> tuple[int | None, ...]:
    """Return the input axis of each axis of the result, for operators that only move axes; empty for others."""
    shape = _shape(node.args[0]) if node.args and op in _AXES_MOVED else None
    if shape is None:
        return ()
    axes = list(range(len(shape)))
    if op in ("contiguous", "clone"):
        return tuple(axes)
    first: Any = node.args[1] if len(node.args) > 1 else None
    if op == "permute":
        return tuple(axes[axis] for axis in first)
    if op == "unsqueeze":
        at = first % (len(shape) + 1)
        return (*axes[:at], None, *axes[at:])
    if op == "squeeze":
        at = first % len(shape) if isinstance(first, int) else None
        return tuple(axis for axis in axes if axis != at) if at is not None and shape[at] == 1 else ()
    other: Any = node.args[2]
    axes[first], axes[other] = axes[other], axes[first]
    return tuple(axes)
