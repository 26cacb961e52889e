"""View of an ONNX graph as a backend-neutral dataflow graph."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from adapter_export.errors import BaseModelError, FormatError
from adapter_export.onnx_backend.base import operators
from adapter_export.safe_io.documents import parse_json
from adapter_export.sites.discover import OTHER_CALLS_KEY
from adapter_export.sites.view import Dim, FlowGraph, FlowNode, NodeKind, Step, constant_starts

_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"})
"""Operators that move data, and move nothing if they keep the shape."""

_MOVES = _RESHAPES | {
    *("Slice", "Split", "Gather", "GatherElements", "GatherND", "Concat", "Pad", "Tile"),
    *("Transpose", "ReverseSequence", "SpaceToDepth", "DepthToSpace"),
}

_ACTIVATIONS = frozenset({"Relu", "Gelu", "Erf", "Sigmoid", "Tanh", "Elu", "Selu", "Celu", "LeakyRelu", "PRelu"}) | {
    *("HardSigmoid", "HardSwish", "Mish", "Softplus", "Softsign", "Swish", "ThresholdedRelu", "Exp", "Clip"),
    *("Softmax", "LogSoftmax", "BiasSoftmax", "BiasGelu", "FastGelu", "QuickGelu"),
}

_ELEMENTWISE = operators.NORMS | {"Add", "Sub", "Mul", "Div", "Cast", "Identity"}
"""Operators whose result has the width of their input."""

_SHAPES_ALONE = frozenset({"Shape", "Size", "EyeLike"})
"""Operators that read the shape of a tensor and none of its values."""

_QUANTISED = frozenset({ir.DataType.INT8, ir.DataType.UINT8})
"""Types that products may read instead of an activation; adapters cannot, so these values get no shapes."""


LIBRARY_ERRORS: tuple[type[Exception], ...] = (
    *(ir.serde.SerdeError, ir.passes.PassError, ArithmeticError, AssertionError, AttributeError),
    *(LookupError, MemoryError, RuntimeError, TypeError, ValueError),
)
"""Errors that the libraries raise while reading or rewriting an unsupported graph."""


def flow_graph(model: ir.Model) -> FlowGraph:
    """View the main graph of a model as dataflow; its values keep their names, and missing shapes are inferred.

    A sum that is fused with its norm appears as two nodes: the sum, with the name of the fused node, and the norm.

    Raises:
        BaseModelError: a residual sum is hidden inside an operator, or the shape of a sum is unknown.
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
        outputs=tuple(value.name or "" for value in graph.outputs),
        other_calls=_other_calls(model, activations),
    )
    _check_sums_have_shapes(flow)
    return flow


def _check_sums_are_visible(graph: ir.Graph, activations: Set[str]) -> None:
    fused = Counter(node.op_type for node in graph if operators.hides_sum(node, activations))
    if fused:
        raise BaseModelError(
            "the residual sums of this graph are hidden inside fused operators",
            where=f"graph `{graph.name}`",
            found=", ".join(f"{count} `{op}`" for op, count in fused.items()),
            expected="an `Add` for each sum",
            fix="use the graph before optimization; ONNX Runtime fuses it when loading",
        )


def check_layers_are_visible(graph: ir.Graph) -> None:
    """Reject hidden sums, and layers in the branches of an `If` or the body of a loop, which cannot have slots."""
    _check_sums_are_visible(graph, activations_of(graph))
    products = {*operators.FACTORS, *operators.CONVOLUTIONS}
    inner = {node: {each.op_type for body in _bodies(node) for each in body.all_nodes()} for node in graph}
    hiding = Counter(node.op_type for node, ops in inner.items() if not ops.isdisjoint(products))
    if hiding:
        raise BaseModelError(
            "layers of this graph are inside control flow, where adapters cannot act",
            where=f"graph `{graph.name}`",
            found=", ".join(f"{count} `{op}` with products inside" for op, count in hiding.items()),
            expected="a graph with all layers outside control flow",
            fix="export it again for one case, without `If`, `Loop` and `Scan`",
        )


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs inside a node: branches of an `If`, the body of a loop."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _check_sums_have_shapes(flow: FlowGraph) -> None:
    """Reject a graph that is understood only in part: the rest of its sites would be missing."""
    if all(flow.shapes.keys() >= {*node.inputs, *node.outputs} for node in flow.nodes if node.kind == "add"):
        return
    opaque = Counter(
        node.op for node in flow.nodes if node.outputs[0] not in flow.shapes and flow.shapes.keys() >= set(node.inputs)
    )
    raise BaseModelError(
        "some shapes of this graph are neither recorded nor can be inferred",
        found=", ".join(f"{count} `{op}`" for op, count in opaque.items()) + " of unknown output shape",
        expected="operators of the ONNX standard, or shapes recorded in the graph",
        fix="use the graph before optimization; ONNX Runtime fuses it when loading",
    )


def has_shapes(graph: ir.Graph) -> bool:
    """Return whether the shapes of all float sums and of their operands are recorded."""
    for node in graph:
        if node.op_type == "Add" or operators.is_skip_norm(node):
            summands = [value for value in _read(node)[: operators.SUMMANDS] if value.producer() is not None]
            floats = [v for v in (node.outputs[0], *summands) if v.dtype is None or not v.dtype.is_integer()]
            if not all(is_known(value.shape) for value in floats):
                return False
    return True


def is_known(shape: ir.Shape | None) -> bool:
    """Return whether a shape has what discovery needs: its number of axes, and of two or three the last length."""
    if shape is None:
        return False
    last = shape[-1] if len(shape) in (2, 3) else 0
    # ONNX's inference gives unknown sizes such names
    return isinstance(last, int) or (last.value is not None and not last.value.startswith("unk__"))


def with_inferred_shapes(model: ir.Model) -> ir.Model:
    """Return a copy with the shapes that ONNX can infer; it shares the tensors of the original.

    Raises:
        BaseModelError: recorded shapes contradict each other.
    """
    try:
        return ShapeInferencePass(check_type=False, strict_mode=False)(model.clone()).model
    except LIBRARY_ERRORS as error:
        raise BaseModelError(
            "has shapes that contradict each other",
            found=str(error.__cause__ or error).partition("\n")[0],
            expected="shapes that ONNX can infer",
            fix="run `onnx.checker.check_model` on it, and export the model again",
        ) from error


def activations_of(graph: ir.Graph) -> set[str]:
    """Return the values that depend on an input, or on constants that start a stream."""
    computed = _computed_from(graph, set())
    constants = {
        value.name
        for node in graph
        for value in node.outputs
        if value.name and value.name not in computed and _is_repeated(value)
    }
    starts = constant_starts(map(_step, graph), constants) if constants else set()
    return _computed_from(graph, starts) if starts else computed


def _computed_from(graph: ir.Graph, starts: Set[str]) -> set[str]:
    computed = {value.name or "" for value in graph.inputs if value.name not in graph.initializers} | starts
    for node in graph:
        if node.op_type not in _SHAPES_ALONE and any(value.name in computed for value in all_read(node)):
            computed.update(value.name or "" for value in node.outputs)
    return computed


def _is_repeated(value: ir.Value) -> bool:
    """Return whether a tensor [batch, tokens, d] gets its batch from the inputs: a constant is repeated per row."""
    shape = _shape(value) or ()
    is_float = value.dtype is not None and value.dtype.is_floating_point()
    return is_float and len(shape) == 3 and not isinstance(shape[0], int) and isinstance(shape[2], int) and shape[2] > 1


def _step(node: ir.Node) -> Step:
    op = node.op_type
    read = () if op in _SHAPES_ALONE else tuple(value.name or "" for value in all_read(node))
    multiplies = op in operators.FACTORS or op in operators.CONVOLUTIONS or op.endswith("Attention")
    adds = op in ("Add", "Sub", "Sum") or operators.is_skip_norm(node)
    return Step(read, tuple(value.name or "" for value in node.outputs), multiplies, adds)


def _read(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a node, without optional inputs that are absent."""
    return [value for value in node.inputs if value is not None]


def all_read(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the inputs of a node, and the outer values that its control-flow bodies read."""
    yield from _read(node)
    for body in _bodies(node):
        inside = [*body.outputs, *(value for inner in body for value in all_read(inner))]
        yield from (value for value in inside if value.graph is not body)


def node_names(graph: ir.Graph) -> dict[ir.Node, str]:
    """Return a unique name for each node: its own, or that of its first output if its own is absent or shared."""
    names: dict[ir.Node, str] = {}
    used: set[str] = set()
    for node in graph:
        names[node] = node.name if node.name and node.name not in used else node.outputs[0].name or ""
        used.add(names[node])
    return names


def _seen(node: ir.Node, name: str, activations: Set[str]) -> Iterator[FlowNode]:
    """Yield the view of a node: a fused sum and norm are two nodes."""
    seen = _flow_node(node, name, activations)
    if not operators.is_skip_norm(node):
        yield seen
        return
    summands = tuple(value.name or "" for value in _read(node)[: operators.SUMMANDS] if value.name in activations)
    total = _sum_name(node, name)
    kind: NodeKind = "add" if len(summands) == operators.SUMMANDS else "other"
    yield replace(seen, kind=kind, inputs=summands, outputs=(total,), norm=None, normed=None)
    normed = tuple(value for value in seen.outputs if value != total)
    yield replace(seen, name=f"{name}/norm", kind="norm", inputs=(total,), outputs=normed, normed=total)


def _sum_name(node: ir.Node, name: str) -> str:
    """Return the name of the sum inside a fused node; a new name if the sum is not an output."""
    return operators.sum_output(node) or f"{name}{operators.UNNAMED_SUM}"


def _flow_node(node: ir.Node, name: str, activations: Set[str]) -> FlowNode:
    inputs = tuple(value.name or "" for value in all_read(node) if value.name in activations)
    table = operators.lookup_table(node)
    norm, normed = operators.norm_of(node, activations) or (None, None)
    return FlowNode(
        name=name,
        kind=_kind(node, inputs),
        op=node.op_type,
        inputs=inputs,
        outputs=tuple(value.name for value in node.outputs if value.name),
        weighted=operators.is_weighted(node, activations),
        path=module_path(node),
        norm=norm,
        normed=normed,
        linear=operators.is_linear(node, activations),
        weight=operators.trained_matrix(node) or (None if table is None else table.name),
        operands=operators.operands(node, activations),
        contracts=operators.contracted(node, activations),
        terms=operators.terms(node),
        epilogue=operators.epilogue(node, activations),
        cuts=operators.cuts_of(node),
        order=operators.order_of(node),
        packed=operators.packed(node),
        rows=None if table is None or table.const_value is None else int(table.const_value.shape.numpy()[0]),
    )


def _kind(node: ir.Node, inputs: tuple[str, ...]) -> NodeKind:
    op = node.op_type
    if op in ("Add", "Sum") and len(inputs) == 2 and len(node.inputs) == 2:
        return "add"
    if op == "Sub" and len(inputs) == 2 and len({_known_shape(value) for value in (*node.inputs, *node.outputs)}) == 1:
        return "add"  # a difference of activations of one shape; in a norm, one of them has width 1
    if op in operators.FACTORS:
        return "product"
    if op in operators.CONVOLUTIONS:
        return "convolution"
    if op.endswith("Attention"):
        return "attention"
    if op in operators.NORMS:
        return "norm"
    if op in _ACTIVATIONS:
        return "activation"
    before = None if op not in _RESHAPES or node.inputs[0] is None else _shape(node.inputs[0])
    keeps_places = before is not None and None not in before and before == _shape(node.outputs[0])
    return "layout" if op in _MOVES and not keeps_places else "other"


def _shapes(
    graph: ir.Graph, names: Mapping[ir.Node, str], activations: Set[str]
) -> Iterator[tuple[str, tuple[Dim, ...]]]:
    """Yield the shapes of activations.

    A sum that is fused with its norm has the norm's shape. If no shape is recorded, the input of a linear layer, before
    quantization, has the width of the matrix.
    """
    for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
        shape = _shape(value)
        is_rounded = value.dtype in _QUANTISED or operators.is_relative(value)
        if value.name in activations and shape is not None and not is_rounded:
            yield value.name or "", shape
    for value in graph.outputs:  # older torch exporters give each axis of a result a separate name
        shape, node = _shape(value), value.producer()
        if node is not None and shape and isinstance(shape[-1], str) and node.op_type in _ELEMENTWISE:
            summands = [before for each in _read(node) if (before := _shape(each)) and len(before) == len(shape)]
            widths = {before[-1] for before in summands if isinstance(before[-1], int)} - {1}
            if len(widths) == 1:
                yield value.name or "", (*shape[:-1], *widths)
    for node, name in names.items():
        shape = _shape(node.outputs[0])
        if operators.is_skip_norm(node) and shape is not None:
            yield _sum_name(node, name), shape
        width = operators.width_in(node) if operators.is_linear(node, activations) else None
        read = operators.before_rounding(node.inputs[0] if node.inputs else None)
        if width is not None and read is not None:
            recorded = _shape(read)
            known = recorded or shape
            if known and (not recorded or not isinstance(recorded[-1], int)):
                yield read.name or "", (*known[:-1], width)


def _known_shape(value: ir.Value | None) -> tuple[object, ...]:
    """Return the known ranks and widths; a unique tuple for each value without any."""
    shape = None if value is None else _shape(value)
    return (value,) if not shape or not isinstance(shape[-1], int) else (len(shape), shape[-1])


def _shape(value: ir.Value) -> tuple[Dim, ...] | None:
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def module_path(node: ir.Node) -> str | None:
    """Return the module path that torch's exporter records for a node: the scopes from the root to the node."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes is None:
        return None
    try:
        *modules, _ = ast.literal_eval(scopes)
    except (ValueError, SyntaxError, TypeError):  # shown to people only; other tools may have written anything
        return None
    return next((str(module) for module in reversed(modules) if module), None)


def _other_calls(model: ir.Model, activations: Set[str]) -> Mapping[str, int]:
    """Return the number of weight-only calls of each linear layer, by its module path and by the name of its matrix.

    Counted in this graph and, according to the metadata, in the graph it was exported from; see
    `FlowGraph.other_calls`.
    """
    counts = Counter(
        name
        for node in model.graph
        if operators.trained_matrix(node) is not None and all(value.name not in activations for value in node.outputs)
        for name in (module_path(node), operators.trained_matrix(node))
        if name is not None
    )
    text = model.metadata_props.get(OTHER_CALLS_KEY, "{}")
    try:
        noted = parse_json(text.encode(), OTHER_CALLS_KEY)
    except FormatError:
        noted = None
    if not isinstance(noted, dict) or any(type(count) is not int for count in noted.values()):
        raise BaseModelError(
            "has a malformed record of its layers",
            where=f"`metadata_props`, `{OTHER_CALLS_KEY}`",
            found=text[:60],
            expected="a JSON object of numbers",
            fix="export the graph again",
        )
    return {name: max(counts[name], noted.get(name, 0)) for name in {*counts, *noted}}
