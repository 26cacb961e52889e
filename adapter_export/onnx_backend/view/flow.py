"""An ONNX graph as a neutral dataflow graph."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from adapter_export.errors import BaseModelError
from adapter_export.onnx_backend.view.operators import (
    CONVOLUTIONS,
    NORMS,
    SUMMANDS,
    UNNAMED_SUM,
    cuts_of,
    epilogue,
    hides_sum,
    is_linear,
    is_product,
    is_skip_norm,
    is_weighted,
    norm_of,
    operands,
    order_of,
    packed,
    sum_output,
    trained_matrix,
    width_in,
)
from adapter_export.sites.discover import OTHER_CALLS_KEY
from adapter_export.sites.view import Dim, FlowGraph, FlowNode, NodeKind

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"})
"""Moves that leave every number where it is as long as the shape stays."""

_PICKS = frozenset({"Slice", "Split", "Gather", "GatherElements", "GatherND"})
_JOINS = frozenset({"Concat", "Pad", "Tile"})
_MOVES = _RESHAPES | _PICKS | _JOINS | {"Transpose", "ReverseSequence", "SpaceToDepth", "DepthToSpace"}

_ACTIVATIONS = frozenset({"Relu", "Gelu", "Erf", "Sigmoid", "Tanh", "Elu", "Selu", "Celu", "LeakyRelu", "PRelu"}) | {
    *("HardSigmoid", "HardSwish", "Mish", "Softplus", "Softsign", "Swish", "ThresholdedRelu", "Exp", "Clip"),
    *("Softmax", "LogSoftmax", "BiasSoftmax", "BiasGelu", "FastGelu", "QuickGelu"),
}

_SHAPES_ALONE = frozenset({"Shape", "Size", "EyeLike"})
"""Operators that read the shape of a tensor and none of its numbers."""

_QUANTISED = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
"""Dtypes that products may read in the place of an activation; no adapter can, so that these get no shapes."""

_INVENTED = "unk__"
"""The beginning of the names that ONNX's shape inference gives to lengths it does not know."""


def flow_graph(model: ir.Model) -> FlowGraph:
    """View the main graph of a model as dataflow.

    The values have their names in the graph. Shapes that the model does not record are inferred; it stays as it is.
    A sum that is fused with its norm is shown as two nodes: the sum, with the name of the fused node, and the norm.

    Raises:
        BaseModelError: a residual sum is hidden inside an operator, or the shape of a sum cannot be known.
    """
    graph = (model if has_shapes(model.graph) else with_inferred_shapes(model)).graph
    activations, names = activations_of(graph), node_names(graph)
    _check_sums_are_visible(graph, activations)
    flow = FlowGraph(
        nodes=[
            seen
            for node, name in names.items()
            if any(value.name in activations for value in node.outputs)
            for seen in _seen(node, name, activations)
        ],
        shapes=dict(_shapes(graph, names, activations)),
        outputs=tuple(_name(value) for value in graph.outputs),
        other_calls=_other_calls(model, activations),
    )
    _check_sums_have_shapes(flow)
    return flow


def _check_sums_are_visible(graph: ir.Graph, activations: Set[str]) -> None:
    fused = Counter(node.op_type for node in graph if hides_sum(node, activations))
    if fused:
        raise BaseModelError(
            "the residual sums of this graph are hidden inside fused operators",
            where=f"graph `{graph.name}`",
            found=", ".join(f"{count} `{op}`" for op, count in fused.items()),
            expected="an `Add` for each of them",
            fix="give the graph as it was before it was optimised; ONNX Runtime fuses it again when it loads it",
        )


def check_layers_are_visible(graph: ir.Graph) -> None:
    """Refuse layers in the branches of an `If` or the body of a loop, where no slot can stand.

    Raises:
        BaseModelError: there are some, or residual sums are hidden inside an operator.
    """
    _check_sums_are_visible(graph, activations_of(graph))
    hiding = Counter(node.op_type for node in graph if any(_has_products(body) for body in bodies(node)))
    if hiding:
        raise BaseModelError(
            "layers of this graph lie inside its control flow, where adapters cannot act",
            where=f"graph `{graph.name}`",
            found=", ".join(f"{count} `{op}` with products inside" for op, count in hiding.items()),
            expected="a graph whose layers all lie in the open",
            fix="export it again for one case, without `If`, `Loop` and `Scan`",
        )


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs inside a node: branches of an `If`, the body of a loop."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _has_products(body: ir.Graph) -> bool:
    return any(is_product(node.op_type) or node.op_type in CONVOLUTIONS for node in body.all_nodes())


def _check_sums_have_shapes(flow: FlowGraph) -> None:
    """Refuse a graph of which only the first part is understood: the rest of its sites would be missing."""
    if all(flow.shapes.keys() >= {*node.inputs, *node.outputs} for node in flow.nodes if node.kind == "add"):
        return
    opaque = Counter(
        node.op for node in flow.nodes if node.outputs[0] not in flow.shapes and flow.shapes.keys() >= set(node.inputs)
    )
    raise BaseModelError(
        "the shapes of this graph are not recorded, and not all of them can be inferred",
        found=", ".join(f"{count} `{op}`" for op, count in opaque.items()) + " of unknown output shape",
        expected="operators of the ONNX standard, or shapes recorded in the graph",
        fix="give the graph as it was before it was optimised; ONNX Runtime fuses it again when it loads it",
    )


def has_shapes(graph: ir.Graph) -> bool:
    """Return whether the shapes of all sums of floats are recorded, and of what they add."""
    for node in graph:
        if node.op_type == "Add" or is_skip_norm(node):
            summands = [value for value in _read(node)[:SUMMANDS] if value.producer() is not None]
            floats = [v for v in (node.outputs[0], *summands) if v.dtype is None or not v.dtype.is_integer()]
            if not all(is_known(value.shape) for value in floats):
                return False
    return True


def is_known(shape: ir.Shape | None) -> bool:
    """Return whether a shape says what discovery needs: how many axes, and of two or three how long the last is."""
    if shape is None:
        return False
    last = shape[-1] if len(shape) in (2, 3) else 0
    return isinstance(last, int) or (last.value is not None and not last.value.startswith(_INVENTED))


def with_inferred_shapes(model: ir.Model) -> ir.Model:
    """A copy with the shapes that ONNX can infer; its tensors are those of the original."""
    return ShapeInferencePass(check_type=False, strict_mode=False)(model.clone()).model


def _name(value: ir.Value) -> str:
    return value.name or ""


def activations_of(graph: ir.Graph) -> set[str]:
    """The values that are computed from the numbers of an input."""
    found = {_name(value) for value in graph.inputs if value.name not in graph.initializers}
    for node in graph:
        if node.op_type not in _SHAPES_ALONE and any(value.name in found for value in _all_read(node)):
            found.update(_name(value) for value in node.outputs)
    return found


def _read(node: ir.Node) -> list[ir.Value]:
    """The inputs that are there; an optional input may be left out."""
    return [value for value in node.inputs if value is not None]


def _all_read(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs, and what the bodies of control flow read from outside."""
    yield from _read(node)
    for body in bodies(node):
        for inner in body.all_nodes():
            yield from (value for value in _read(inner) if value.graph is not body)


def node_names(graph: ir.Graph) -> dict[ir.Node, str]:
    """A unique name for each node: its own, or that of its first output where it has none or shares it."""
    names: dict[ir.Node, str] = {}
    taken: set[str] = set()
    for node in graph:
        name = node.name if node.name and node.name not in taken else _name(node.outputs[0])
        names[node] = name
        taken.add(name)
    return names


def _seen(node: ir.Node, name: str, activations: Set[str]) -> Iterator[FlowNode]:
    """The node as the view shows it: a fused sum and norm as two nodes."""
    seen = _flow_node(node, name, activations)
    if not is_skip_norm(node):
        yield seen
        return
    summands = tuple(value for value in map(_name, _read(node)[:SUMMANDS]) if value in activations)
    total = _sum_name(node, name)
    kind: NodeKind = "add" if len(summands) == SUMMANDS else "other"
    yield replace(seen, kind=kind, inputs=summands, outputs=(total,), norm=None, normed=None)
    normed = tuple(value for value in seen.outputs if value != total)
    yield replace(seen, name=f"{name}/norm", kind="norm", inputs=(total,), outputs=normed, normed=total)


def _sum_name(node: ir.Node, name: str) -> str:
    """The sum inside a fused node, by a name of its own where nobody else reads it."""
    return sum_output(node) or f"{name}{UNNAMED_SUM}"


def _flow_node(node: ir.Node, name: str, activations: Set[str]) -> FlowNode:
    inputs = tuple(_name(value) for value in _all_read(node) if value.name in activations)
    norm, normed = norm_of(node, activations) or (None, None)
    return FlowNode(
        name=name,
        kind=_kind(node, inputs),
        op=node.op_type,
        inputs=inputs,
        outputs=tuple(value.name for value in node.outputs if value.name),
        weighted=is_weighted(node, activations),
        path=_module_path(node),
        norm=norm,
        normed=normed,
        linear=is_linear(node, activations),
        weight=trained_matrix(node),
        operands=operands(node, activations),
        epilogue=epilogue(node, activations),
        cuts=cuts_of(node),
        order=order_of(node),
        packed=packed(node),
    )


def _kind(node: ir.Node, inputs: tuple[str, ...]) -> NodeKind:
    op = node.op_type
    if op in ("Add", "Sum") and len(inputs) == 2 and len(node.inputs) == 2:
        return "add"
    if is_product(op):
        return "product"
    if op in CONVOLUTIONS:
        return "convolution"
    if op.endswith("Attention"):
        return "attention"
    if op in NORMS:
        return "norm"
    if op in _ACTIVATIONS:
        return "activation"
    return "layout" if op in _MOVES and not _keeps_places(node) else "other"


def _keeps_places(node: ir.Node) -> bool:
    source, result = node.inputs[0], node.outputs[0]
    if node.op_type not in _RESHAPES or source is None:
        return False
    shape = _shape(source)
    return shape is not None and None not in shape and shape == _shape(result)


def _shapes(
    graph: ir.Graph, names: Mapping[ir.Node, str], activations: Set[str]
) -> Iterator[tuple[str, tuple[Dim, ...]]]:
    """The shapes of activations.

    A sum that is fused with its norm has the norm's shape. What a linear layer reads has the width of its matrix, where
    that is not recorded.
    """
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        shape = _shape(value)
        if value.name in activations and shape is not None and value.dtype not in _QUANTISED:
            yield _name(value), shape
    for node, name in names.items():
        shape = _shape(node.outputs[0])
        if is_skip_norm(node) and shape is not None:
            yield _sum_name(node, name), shape
        width = width_in(node) if is_linear(node, activations) else None
        read = _before_quantising(node.inputs[0]) if node.inputs else None
        if width is not None and read is not None:
            recorded = _shape(read)
            known = recorded or shape
            if known and (recorded is None or not isinstance(recorded[-1], int)):
                yield _name(read), (*known[:-1], width)


def _before_quantising(value: ir.Value | None) -> ir.Value | None:
    """The value that was made integers of, or itself where there are none."""
    maker = None if value is None else value.producer()
    return maker.inputs[0] if maker is not None and maker.op_type == "DynamicQuantizeLinear" else value


def _shape(value: ir.Value) -> tuple[Dim, ...] | None:
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def _module_path(node: ir.Node) -> str | None:
    """The module path that torch's exporter stamps on a node: the scopes, from the root to the node itself."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes is None:
        return None
    try:
        *modules, _ = ast.literal_eval(scopes)
    except (ValueError, SyntaxError, TypeError):  # a note for people; another tool may have written what it likes
        return None
    return next((str(module) for module in reversed(modules) if module), None)


def _other_calls(model: ir.Model, activations: Set[str]) -> Mapping[str, int]:
    """Linear layers computed of weights alone, here or in the graph that this one was exported from.

    Returns:
        How often, by module path and by the name of the matrix; see `FlowGraph.other_calls`.

    Raises:
        BaseModelError: the note on the graph that it was exported from cannot be read.
    """
    found = Counter(
        name
        for node in model.graph
        if trained_matrix(node) is not None and all(value.name not in activations for value in node.outputs)
        for name in (_module_path(node), trained_matrix(node))
        if name is not None
    )
    noted = _noted(model.metadata_props.get(OTHER_CALLS_KEY, "{}"))
    return {name: max(found[name], noted.get(name, 0)) for name in {*found, *noted}}


def _noted(text: str) -> dict[str, int]:
    try:
        noted = json.loads(text)
    except (ValueError, RecursionError):
        noted = None
    if not isinstance(noted, dict) or any(type(count) is not int for count in noted.values()):
        raise BaseModelError(
            "has a note on its layers that cannot be read",
            where=f"`metadata_props`, `{OTHER_CALLS_KEY}`",
            found=text[:60],
            expected="a JSON object of numbers",
            fix="export the graph again",
        )
    return noted
