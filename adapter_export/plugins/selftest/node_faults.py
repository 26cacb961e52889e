"""Faults in nodes of the base."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from adapter_export.plugins.selftest.fault import Copy, Place, Plant, in_graph, kinds_of
from adapter_export.plugins.selftest.weight_faults import values_of


def _base_nodes(model: ir.Model, *types: str) -> list[ir.Node]:
    """Return nodes of the base, without adapters' nodes, in order of evaluation."""
    return [
        node
        for node in model.graph
        if node.op_type in types and not any("adapter" in (key or "") for key in (node.name, *node.metadata_props))
    ]


def _before(node: ir.Node) -> set[ir.Node]:
    """Return the nodes that a node depends on."""
    found, todo = set[ir.Node](), [node]
    while todo:
        for value in todo.pop().inputs:
            producer = None if value is None else value.producer()
            if producer is not None and producer not in found:
                found.add(producer)
                todo.append(producer)
    return found


def insert_after(old: ir.Value, new: ir.Node, model: ir.Model) -> None:
    """Redirect all readers of a value to the result of a new node, which may itself read the value."""
    result = new.outputs[0]
    result.type, result.shape = old.type, old.shape
    producer = old.producer()
    for node, index in list(old.uses()):
        if node is not new and node not in _before(new):
            node.replace_input_with(index, result)
    graph = model.graph
    for at, value in enumerate(graph.outputs):
        if value is old:
            name, old.name = old.name, f"{old.name}.before"
            result.name = name
            graph.outputs[at] = result
    if producer is not None:
        graph.insert_after(producer, new)
    else:
        own = [other for other in graph if other in _before(new)]
        graph.insert_after(own[-1], new) if own else graph.insert_before(graph[0], new)


def add_number(model: ir.Model, array: np.ndarray, name: str) -> ir.Value:
    """Add a constant to a graph."""
    value = ir.Value(name=f"planted.{name}", const_value=ir.Tensor(array, name=f"planted.{name}"))
    value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
    model.graph.register_initializer(value)
    return value


def in_node(change: Callable[[ir.Model, ir.Node], bool], *types: str, variant: str = "slots") -> Plant:
    """Change one node of the given types; `change` returns whether it applies."""

    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        nodes = _base_nodes(model, *types)
        for at in copy.rng.permutation(len(nodes)):
            node = nodes[int(at)]
            names = [node.name or "", *(value.name or "" for value in node.outputs)]
            if change(model, node):
                return names
        return None

    return in_graph(changed, variant)


OTHER_ACTIVATIONS = {"Gelu": "Tanh", "Erf": "Tanh", "Relu": "Elu", "Tanh": "Softsign", "Sigmoid": "HardSigmoid"}


def other_activation(_: ir.Model, node: ir.Node) -> bool:
    """Replace the activation of a node by another."""
    node.op_type = OTHER_ACTIVATIONS[node.op_type]
    node.attributes.clear()
    return True


def _approximate(_: ir.Model, node: ir.Node) -> bool:
    other = {"tanh": "none"}.get(node.attributes.get_string("approximate", "none") or "none", "tanh")
    node.attributes["approximate"] = ir.AttrString("approximate", other)
    return True


def _epsilon(_: ir.Model, node: ir.Node) -> bool:
    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 10 * (node.attributes.get_float("epsilon", 1e-5) or 1e-5))
    return True


def _axis(_: ir.Model, node: ir.Node) -> bool:
    node.attributes["axis"] = ir.AttrInt64("axis", -2 if node.attributes.get_int("axis", -1) in (-1, 3) else -1)
    return True


def _perm(_: ir.Model, node: ir.Node) -> bool:
    perm = list(node.attributes.get_ints("perm") or ())
    if len(perm) < 4:
        return False
    perm[-1], perm[-2] = perm[-2], perm[-1]
    node.attributes["perm"] = ir.AttrInt64s("perm", perm)
    return True


def _operands(node: ir.Node) -> list[ir.Value]:
    """Return the computed inputs of a node."""
    return [value for value in node.inputs if value is not None and value.producer() is not None]


def _is_residual(node: ir.Node) -> bool:
    """Return whether a node adds two computed values of one shape."""
    own = _operands(node)
    return len(own) == 2 and own[0].shape is not None and own[0].shape == own[1].shape and len(own[0].shape) >= 2


def _identity_of(at: int) -> Callable[[ir.Model, ir.Node], bool]:
    """Remove a residual connection."""

    def change(_: ir.Model, node: ir.Node) -> bool:
        return _is_residual(node) and _became_identity(node, _operands(node)[at])

    return change


def _became_identity(node: ir.Node, of: ir.Value) -> bool:
    node.op_type = "Identity"
    node.replace_input_with(0, of)
    node.resize_inputs(1)
    return True


def _without_bias(_: ir.Model, node: ir.Node) -> bool:
    own = _operands(node)
    if len(own) != 1 or len(node.inputs) != 2 or not any(v is not None and v.is_initializer() for v in node.inputs):
        return False
    return _became_identity(node, own[0])


def skip_node(_: ir.Model, node: ir.Node) -> bool:
    """Make a node pass its input through."""
    node.op_type = "Identity"
    node.attributes.clear()
    node.resize_inputs(1)
    return True


def _twice(model: ir.Model, node: ir.Node) -> bool:
    """Add a residual twice."""
    if not _is_residual(node):
        return False
    insert_after(node.outputs[0], ir.Node("", "Add", [node.outputs[0], _operands(node)[0]]), model)
    return True


def _to_sub(_: ir.Model, node: ir.Node) -> bool:
    if len(_operands(node)) != 2:
        return False
    node.op_type = "Sub"
    return True


def times(factor: float) -> Callable[[ir.Model, ir.Value], ir.Node]:
    """Return a function that creates a node which multiplies a value by a factor."""
    return lambda model, value: ir.Node("", "Mul", [value, add_number(model, np.array(factor, np.float32), "factor")])


def scale_result(factor: float) -> Callable[[ir.Model, ir.Node], bool]:
    """Return a change that multiplies the result of a node."""

    def change(model: ir.Model, node: ir.Node) -> bool:
        insert_after(node.outputs[0], times(factor)(model, node.outputs[0]), model)
        return True

    return change


def _rounded(model: ir.Model, node: ir.Node) -> bool:
    value = node.outputs[0]
    small = ir.Node("", "Cast", [value], [ir.AttrInt64("to", ir.DataType.FLOAT16)])
    wide = ir.Node("", "Cast", [small.outputs[0]], [ir.AttrInt64("to", ir.DataType.FLOAT)])
    insert_after(value, wide, model)
    small.replace_input_with(0, value)
    model.graph.insert_before(wide, small)
    return True


def _noisy(model: ir.Model, node: ir.Node) -> bool:
    value = node.outputs[0]
    noise = ir.Node("", "RandomNormalLike", [value], [ir.AttrFloat32("scale", 1e-3)])
    total = ir.Node("", "Add", [value, noise.outputs[0]])
    insert_after(value, total, model)
    noise.replace_input_with(0, value)
    model.graph.insert_before(total, noise)
    return True


def _number_of_attention(model: ir.Model, node: ir.Node) -> bool:
    scalar = [v for v in node.inputs if v is not None and v.const_value is not None and v.const_value.size == 1]
    if len(scalar) != 1 or scalar[0].const_value is None or scalar[0].const_value.dtype != ir.DataType.FLOAT:
        return False
    own = add_number(model, np.asarray(values_of(scalar[0]) * np.float32(1.01)), "scale")
    node.replace_input_with(list(node.inputs).index(scalar[0]), own)
    return True


def in_mask(change: Callable[[ir.Model, ir.Value], ir.Node], role: str = "mask") -> Plant:
    """Change the mask or the ids where the base first reads them."""

    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        names = [one.name for one in copy.manifest.inputs if one.role == role and one.dtype in ("int64", "int32")]
        value = next((value for value in model.graph.inputs if value.name in names and value.uses()), None)
        if value is None:
            return None
        readers = [node.name or "" for node, _ in value.uses()]
        insert_after(value, change(model, value), model)
        return [value.name or "", *readers]

    return in_graph(changed)


def _int(model: ir.Model, value: ir.Value, number: int, name: str) -> ir.Value:
    dtype = np.int64 if value.dtype == ir.DataType.INT64 else np.int32
    return add_number(model, np.array(number, dtype), name)


NODES = kinds_of(
    "base nodes",
    {
        "another activation": in_node(other_activation, *OTHER_ACTIVATIONS),
        "another approximation of GELU": in_node(_approximate, "Gelu"),
        "an activation removed": in_node(skip_node, *OTHER_ACTIVATIONS),
        "a norm with ten times its epsilon": in_node(_epsilon, "LayerNormalization", "RMSNormalization"),
        "a norm removed": in_node(skip_node, "LayerNormalization", "RMSNormalization"),
        "a softmax over another axis": in_node(_axis, "Softmax"),
        "a transpose over other axes": in_node(_perm, "Transpose"),
        "a residual removed": in_node(_identity_of(0), "Add"),
        "a sublayer removed": in_node(_identity_of(1), "Add"),
        "a residual subtracted": in_node(_to_sub, "Add"),
        "a residual added twice": in_node(_twice, "Add"),
        "a bias removed": in_node(_without_bias, "Add"),
        "a product scaled by 1.01": in_node(scale_result(1.01), "MatMul", "Gemm"),
        "a product scaled by 1.0001": in_node(scale_result(1.0001), "MatMul", "Gemm"),
        "a product zeroed": in_node(scale_result(0.0), "MatMul", "Gemm"),
        "a product rounded to float16": in_node(_rounded, "MatMul", "Gemm"),
        "a product with noise": in_node(_noisy, "MatMul", "Gemm"),
        "another attention scale": in_node(_number_of_attention, "Mul", "Div"),
        "the mask ignored": in_mask(lambda m, v: ir.Node("", "Max", [v, _int(m, v, 1, "one")])),
        "the mask inverted": in_mask(lambda m, v: ir.Node("", "Sub", [_int(m, v, 1, "one"), v])),
        "each word id halved": in_mask(lambda m, v: ir.Node("", "Div", [v, _int(m, v, 2, "two")]), "ids"),
    },
)
