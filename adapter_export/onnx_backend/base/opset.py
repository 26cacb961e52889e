"""Bases of an older opset than slots need: converted, and held against what they were."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter

from adapter_export.errors import BaseModelError, RequestError
from adapter_export.numerics.sample_inputs import InputCase
from adapter_export.onnx_backend.session import open_session
from adapter_export.onnx_backend.view.flow import activations_of
from adapter_export.runtime.graphs import run_session

# Sums of activations inside other operators of the ONNX standard: written out, so that each sum is an `Add`.
#
# `Sum` adds any number of values. `Gemm` adds its third input to a product; where that is an activation, a tool has
# put a
# residual sum into it.

_C = 2
"""The input of `Gemm` that is added to the product."""


def open_sums(graph: ir.Graph) -> None:
    """Write out the sums of a graph, in place.

    The numbers stay what they were, the rounding of a `Gemm` aside.

    Raises:
        BaseModelError: a sum of activations holds a weight or a factor, too, and nothing says whose it is.
    """
    activations = activations_of(graph)
    for node in list(graph):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "Sum":
            _open_sum(graph, node, [value for value in node.inputs if value and value.name in activations])
        elif node.op_type == "Gemm" and len(node.inputs) > _C:
            added = node.inputs[_C]
            if added is not None and added.name in activations:
                _open_gemm(graph, node, added)


def _open_sum(graph: ir.Graph, node: ir.Node, activations: Sequence[ir.Value]) -> None:
    if len(activations) < 2 or len(node.inputs) == 2:
        return
    if len(activations) < len(node.inputs):
        raise _ambiguous(node, "weights among what it adds")
    total, *rest = activations
    result = node.outputs[0]
    for at, value in enumerate(rest[:-1]):
        partial = ir.Value(name=f"{result.name}/{at}", type=result.type, shape=result.shape)
        graph.insert_before(node, ir.Node("", "Add", [total, value], outputs=[partial], name=partial.name))
        total = partial
    _replace(graph, node, ir.Node("", "Add", [total, rest[-1]], name=node.name))


def _open_gemm(graph: ir.Graph, node: ir.Node, added: ir.Value) -> None:
    if node.attributes.get_float("beta", 1.0) != 1.0:
        raise _ambiguous(node, "`beta`, a factor of what it adds")
    result = node.outputs[0]
    product = ir.Value(name=f"{result.name}/product", type=result.type, shape=result.shape)
    attributes = [attribute for attribute in node.attributes.values() if attribute.name != "beta"]
    bare = ir.Node(
        "",
        "Gemm",
        node.inputs[:_C],
        attributes,
        outputs=[product],
        name=product.name,
        metadata_props=node.metadata_props,
    )
    graph.insert_before(node, bare)
    _replace(graph, node, ir.Node("", "Add", [product, added], name=node.name))


def _replace(graph: ir.Graph, node: ir.Node, new: ir.Node) -> None:
    """Put a node in the place of another; its output takes over name, type, shape and readers."""
    old, output = node.outputs[0], new.outputs[0]
    output.type, output.shape = old.type, old.shape
    name = old.name
    graph.insert_before(node, new)
    for at, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[at] = output
    old.replace_all_uses_with(output)
    graph.remove(node)
    output.name = name


def _ambiguous(node: ir.Node, found: str) -> BaseModelError:
    return BaseModelError(
        "adds activations in one operator with something else, and nothing says to which of them that belongs",
        where=f"`{node.outputs[0].name}`, {node.op_type}",
        found=found,
        expected="an `Add` for each sum",
        fix="give the graph as it was before it was optimised; ONNX Runtime fuses it again when it loads it",
    )


OLDEST_OPSET = 13
"""The oldest that is converted: from there on quantised weights may have a scale per channel."""

_LARGE_BYTES = 1024
"""Larger weights are not handed to the converter, which has no use for them and holds 2 GB at most."""

_ASIDE = "com.microsoft.other_calls"
"""The domain of ONNX Runtime's own operators meanwhile, some of which stand in the domain of ONNX."""

_TOLERANCE = 1e-5
"""Of the largest value of an output; the operators that compute it are the same, so their rounding is, too."""


def with_opset(model: ir.Model, opset: int) -> ir.Model:
    """The model in a newer opset of the ONNX domain; it shares the weights and is changed where they are.

    Raises:
        BaseModelError: ONNX cannot convert it.
    """
    try:
        with _without_large_weights(model.graph) as weights, _without_foreign_operators(model):
            proto = version_converter.convert_version(ir.to_proto(model), opset)
    except (RuntimeError, ValueError, onnx.onnx_cpp2py_export.shape_inference.InferenceError) as error:
        raise _not_converted(f"{error}".strip().partition("\n")[0], opset) from error
    converted = ir.from_proto(proto)
    for node in converted.graph:
        node.domain = "" if node.domain == _ASIDE else node.domain
    converted.opset_imports.pop(_ASIDE, None)
    given = {value.name: value for value in converted.graph.inputs}
    for name, tensor in weights.items():
        value = given[name]
        converted.graph.inputs.remove(value)
        value.const_value = tensor
        converted.graph.register_initializer(value)
    return converted


@contextmanager
def _without_large_weights(graph: ir.Graph) -> Iterator[dict[str, ir.TensorProtocol]]:
    """The graph with its large weights as inputs for a while."""
    large = [value for value in graph.initializers.values() if value.const_value and _is_large(value.const_value)]
    weights: dict[str, ir.TensorProtocol] = {}
    for value in large:
        tensor = value.const_value
        assert tensor is not None  # it has bytes
        assert value.name is not None  # it is an initializer
        weights[value.name] = tensor
        graph.initializers.pop(value.name)
        value.const_value, value.shape, value.type = None, ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        graph.inputs.append(value)
    try:
        yield weights
    finally:
        for value in large:
            graph.inputs.remove(value)
            value.const_value = weights[value.name or ""]
            graph.register_initializer(value)


@contextmanager
def _without_foreign_operators(model: ir.Model) -> Iterator[None]:
    """The model with the operators that its opset of the ONNX domain does not have in another domain for a while.

    ONNX Runtime has `LayerNormalization` in every opset, and its optimiser writes it.
    """
    opset = model.opset_imports[""]
    foreign = [node for node in model.graph if not node.domain and not _is_in_opset(node.op_type, opset)]
    for node in foreign:
        node.domain = _ASIDE
    model.opset_imports[_ASIDE] = 1
    try:
        yield
    finally:
        for node in foreign:
            node.domain = ""
        del model.opset_imports[_ASIDE]


def _is_in_opset(op: str, opset: int) -> bool:
    try:
        onnx.defs.get_schema(op, max_inclusive_version=opset, domain="")
    except onnx.defs.SchemaError:
        return False
    return True


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes > _LARGE_BYTES


def check_converted(before: ir.Model, after: ir.Model, folder: Path, case: InputCase) -> None:
    """Run a model and what it was converted to on the same inputs.

    Args:
        before: the model.
        after: what it was converted to.
        folder: where the external data of both lie.
        case: inputs that the model takes.

    Raises:
        BaseModelError: ONNX Runtime cannot run one of the two, or their outputs differ.
    """
    opset = after.opset_imports[""]
    try:
        expected, found = (
            run_session(open_session(model, folder, optimize=False), case.arrays) for model in (before, after)
        )
    except RequestError as error:
        raise BaseModelError(
            f"was converted to opset {opset}, which slots need, but cannot be compared with what it was",
            found=str(error.found),
            expected=f"a model that can be run on inputs of {', '.join(_shapes(case))}",
            fix=f"export it again with `opset_version={opset}`",
        ) from error
    for name, value in expected.items():
        if value.dtype.kind == "f" and not _agree(found[name], value):
            worst = np.abs(found[name].astype(np.float64) - value).max()
            raise _not_converted(f"output `{name}` deviates by {worst:.1e}", opset)


def _shapes(case: InputCase) -> Iterator[str]:
    yield from (f"`{name}` {list(array.shape)}" for name, array in case.arrays.items())


def _agree(found: np.ndarray, expected: np.ndarray) -> bool:
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0)
    return np.allclose(found, expected, rtol=0, atol=_TOLERANCE * float(scale), equal_nan=True)


def _not_converted(found: str, opset: int) -> BaseModelError:
    return BaseModelError(
        f"cannot be converted to opset {opset}, which slots need",
        found=found,
        expected="a model that computes the same as before",
        fix=f"export it again with `opset_version={opset}`",
    )
