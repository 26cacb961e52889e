"""Validate the structure of an untrusted graph before reading it: names, attributes, tensors, order, size.

ONNX's checker validates more, but rejects graphs that run: it requires external data beside the graph, and does not
know ONNX Runtime's operators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import onnx_ir as ir

from adapter_export.errors import BaseModelError
from adapter_export.safe_io.parsers import parsing

_MOST_NODES = 1_000_000
"""Maximum nodes of a graph with its functions inlined."""

_MOST_AXES = 32
"""Maximum axes of a tensor: the limit of the oldest supported NumPy."""

ATTRIBUTES = {
    **dict.fromkeys(("accuracy_level", "axis", "bits", "gather_axis", "K", "keepdims"), ir.AttributeType.INT),
    **dict.fromkeys(("kv_num_heads", "num_heads", "transA", "transB"), ir.AttributeType.INT),
    **dict.fromkeys(("transBatchA", "transBatchB"), ir.AttributeType.INT),
    **dict.fromkeys(("axes", "perm"), ir.AttributeType.INTS),
    **dict.fromkeys(("alpha", "beta", "epsilon"), ir.AttributeType.FLOAT),
    **dict.fromkeys(("approximate", "equation"), ir.AttributeType.STRING),
}
"""Attributes that are read here, each of one type in all operators of ONNX and ONNX Runtime."""


def check_structure(model: ir.Model, path: Path) -> None:
    """Sort the nodes, and reject a graph that has a cycle, breaks a rule, or is too large.

    Raises:
        BaseModelError: a cycle, a recursive function, functions that unfold to more than a million nodes; or as for
            `check_parts`.
    """
    with parsing(partial(_refusal, path, "has a graph inside a node that cannot be read")):
        calls = {
            key: Counter(node.op_identifier() for node in function.all_nodes())
            for key, function in model.functions.items()
        }
        called = Counter(node.op_identifier() for node in model.graph.all_nodes())
    sizes: dict[ir.OperatorIdentifier, int] = {}
    try:
        for key in TopologicalSorter(calls).static_order():
            if key in calls:
                sizes[key] = sum(count * sizes.get(name, 1) for name, count in calls[key].items())
    except CycleError as error:
        names = " → ".join(f"`{name}`" for _, name, _ in error.args[1])
        raise _refusal(path, "has a recursive function", names) from error
    total = sum(count * sizes.get(name, 1) for name, count in called.items())
    if total > _MOST_NODES:
        raise _refusal(path, "has too many nodes after inlining its functions", f"{total:,}")
    for body in (model.graph, *(function.graph for function in model.functions.values())):
        try:
            if not _is_in_order(body):
                body.sort()
        except ValueError as error:
            raise _refusal(path, "has a cycle", "a node that needs its own result") from error
    for domain, version in model.opset_imports.items():
        if not 0 <= version < 2**31:
            raise _refusal(path, "imports an opset that does not exist", f"{version} of `{domain}`")
    if "" not in model.opset_imports:
        raise _refusal(path, "does not import an ONNX opset", "no opset import for `ai.onnx`")
    check_parts(model, path)


def check_parts(model: ir.Model, path: Path | None = None) -> None:
    """Reject names that are not text, attributes of a wrong type, impossible shapes, and unreadable tensors."""
    of_model = [(graph, False) for graph in model.graphs()]
    of_functions = [
        (graph, True)
        for function in model.functions.values()
        for graph in (function.graph, *function.graph.subgraphs())
    ]
    for graph, is_function in (*of_model, *of_functions):
        if any(not isinstance(name, str) for name in _names(graph)):  # protobuf returns bytes if a text is not UTF-8
            raise _refusal(path, "has a name that is not UTF-8", f"graph `{graph.name!a}`")
        for value in graph.inputs:  # only inputs: for other values, tools write -1 for an unknown length
            if any(isinstance(dim, int) and dim < 0 for dim in value.shape or ()):
                raise _refusal(path, "has an input of negative length", f"`{value.name}` {value.shape}")
        for node in graph:
            for name, attribute in node.attributes.items():
                if attribute.is_ref() and not is_function:
                    raise _refusal(path, "has an attribute that refers to a function", f"`{node.op_type}`, `{name}`")
                known = attribute.type != ir.AttributeType.UNDEFINED
                if not known or attribute.type != ATTRIBUTES.get(name, attribute.type):
                    shown = f"`{node.op_type}`, `{name}` of type {attribute.type.name}"
                    raise _refusal(path, "has an attribute of a wrong type", shown)
        _check_tensors(graph, path)


def _refusal(path: Path | None, what: str, place: str) -> BaseModelError:
    expected, fix = "a graph that an exporter wrote", "export the model again"
    return BaseModelError(what, where=path, found=place, expected=expected, fix=fix)


def _is_in_order(graph: ir.Graph) -> bool:
    done: set[ir.Node] = set()
    for node in graph:
        makers = (value.producer() for value in node.inputs if value is not None)
        if any(maker is not None and maker.graph is graph and maker not in done for maker in makers):
            return False
        done.add(node)
    return True


def _names(graph: ir.Graph) -> Iterator[object]:
    yield from (value.name or "" for value in (*graph.inputs, *graph.initializers.values()))
    for node in graph:
        yield from (node.domain, node.op_type, node.name or "", *node.attributes)
        yield from (value.name or "" for value in node.outputs)


def _check_tensors(graph: ir.Graph, path: Path | None) -> None:
    """Read the initializers and constants of a graph, except those in other files."""
    for value in (*graph.initializers.values(), *(node.outputs[0] for node in graph if node.outputs)):
        unreadable = parsing(partial(_refusal, path, f"has a tensor that cannot be read, `{value.name}`"))
        with unreadable:
            tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            continue
        if len(tensor.shape) > _MOST_AXES:
            raise _refusal(path, "has a tensor with too many axes", f"`{tensor.name}` with {len(tensor.shape)}")
        with unreadable:
            _ = tensor.nbytes if isinstance(tensor, ir.ExternalTensor) else tensor.numpy()
