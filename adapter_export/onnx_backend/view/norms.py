"""The norms of an ONNX graph: which kind each is, and the names of its trained tensors."""

from __future__ import annotations

from collections.abc import Mapping, Set

import numpy as np
import onnx_ir as ir

from adapter_export.errors import BaseModelError
from adapter_export.sites.site import Norm, SiteMap

# Operators that hold a residual sum inside, as ONNX Runtime and its tools fuse them: the sum, and how it is opened.
#
# `SkipLayerNormalization` and `SkipSimplifiedLayerNormalization` (domain com.microsoft, opset 1) add two activations
# and
# normalise the sum; the sum is their fourth output. A bias of theirs was fused into them from the sublayer that they
# add,
# so it belongs to `h`.

_BIAS = {"SkipLayerNormalization": 4, "SkipSimplifiedLayerNormalization": 3}
"""The operators, and which of their inputs is the bias."""

_NORM = {
    "SkipLayerNormalization": "LayerNormalization",
    "SkipSimplifiedLayerNormalization": "SimplifiedLayerNormalization",
}
"""What is left of them when the sum is taken out."""

_BIASED = {"BiasGelu": "Gelu", "FastGelu": "FastGelu"}
"""Activations of com.microsoft whose second input is a bias of what they read, and the same without a bias."""

UNNAMED_SUM = "/sum"
"""What stands behind the name of such a node in the name of its sum, where nobody else reads it."""

SUMMANDS = 2
"""Their first inputs are what they add."""

_SUM_OUTPUT = 3

_ADDED = {"QLinearAdd": (0, 3), "FusedConv": (3,), "QOrderedMatMul": (6,), "BiasDropout": (2,), "BiasAdd": (2,)}
"""Operators of com.microsoft that add activations to what they compute, and the inputs that are such sums' parts."""


def is_skip_norm(node: ir.Node) -> bool:
    """Whether it adds two activations and normalises the sum."""
    return node.op_type in _BIAS


def hides_sum(node: ir.Node, activations: Set[str]) -> bool:
    """Whether it may hold a residual sum that cannot be opened; `activations` are those of the graph, by name."""
    if node.op_type.startswith("Skip"):
        return not is_skip_norm(node)
    added = [node.inputs[at] for at in _ADDED.get(node.op_type, ()) if at < len(node.inputs)]
    return bool(added) and all(value is not None and value.name in activations for value in added)


def sum_output(node: ir.Node) -> str | None:
    """The name of the sum inside such a node; none if the node keeps it to itself."""
    return (node.outputs[_SUM_OUTPUT].name or None) if len(node.outputs) > _SUM_OUTPUT else None


def take_bias(node: ir.Node) -> ir.Value | None:
    """Take the bias out of a node; the caller adds it to `h`. None for any other node, or one without a bias.

    Beside the sums, activations hold one: that of the linear layer before them.
    """
    bias = _bias(node)
    if bias is not None:
        node.replace_input_with(node.inputs.index(bias, 1), None)
    if bias is not None and node.op_type in _BIASED:
        node.resize_inputs(1)
        node.op_type = _BIASED[node.op_type]
    return bias


def open_sum(node: ir.Node) -> ir.Value:
    """Take the sum out of a node, which then is the norm alone.

    Returns:
        The sum. Whoever read it before reads it now; it has the name that it had, or none if it had none.
    """
    graph = node.graph
    assert graph is not None
    assert _bias(node) is None  # it belongs to `h`, and was put there before
    named = node.outputs[_SUM_OUTPUT] if len(node.outputs) > _SUM_OUTPUT else None
    add = ir.Node("", "Add", node.inputs[:SUMMANDS])
    total = add.outputs[0]
    total.shape, total.type = node.outputs[0].shape, node.outputs[0].type
    graph.insert_before(node, add)
    if named is not None:
        name = named.name
        for at, output in enumerate(graph.outputs):
            if output is named:
                graph.outputs[at] = total
        named.replace_all_uses_with(total)
        total.name = name
    read = [total, *(value for value in node.inputs[SUMMANDS:] if value is not None)]
    for at, value in enumerate(read):
        node.replace_input_with(at, value)
    node.resize_inputs(len(read))
    node.resize_outputs(1)
    node.op_type, node.domain = _NORM[node.op_type], ""
    return total


def check_biases(nodes: Mapping[str, ir.Node], sites: SiteMap) -> None:
    """Every fused bias belongs to one sublayer.

    Args:
        nodes: those of the graph by the names that `sites` uses.
        sites: what was found in it.

    Raises:
        BaseModelError: a bias was fused behind the sum of two parallel sublayers, and nothing says whose it is.
    """
    residuals = {site.residual for site in sites.sublayers if site.residual is not None}
    sums = {value for name in residuals for value in nodes[name].outputs}
    for name, node in nodes.items():
        if name not in residuals and _bias(node) is not None and not sums.isdisjoint(node.inputs[:SUMMANDS]):
            raise BaseModelError(
                "a bias was fused behind the sum of two sublayers, and nothing says to which it belongs",
                where=f"`{name}`, {node.op_type}",
                fix="give the graph as it was before it was optimised; ONNX Runtime fuses it again when it loads it",
            )


def _bias(node: ir.Node) -> ir.Value | None:
    at = 1 if node.op_type in _BIASED and node.domain == "com.microsoft" else _BIAS.get(node.op_type)
    return node.inputs[at] if at is not None and at < len(node.inputs) else None


NORMS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"})

_WEIGHT = 1
_SKIP_WEIGHT = 2
"""The input with the factor; that of a layer norm is followed by its bias."""

_DEFAULT_EPSILON = {"SkipLayerNormalization": 1e-12, "SkipSimplifiedLayerNormalization": 1e-6}
_UNKNOWN = Norm("unknown", 0.0, None, None)


def norm_of(node: ir.Node, activations: Set[str]) -> tuple[Norm, str] | None:
    """The norm that a node is, has inside beside a sum, or ends that is written out, and the name of what it reads.

    None for any other node; what is read beside a sum is the sum, which has no name here.
    """
    if node.op_type in NORMS or is_skip_norm(node):
        return _whole(node, activations), _name(node.inputs[0])
    return _written_out(node, activations) if node.op_type in ("Add", "Mul") and not node.domain else None


def _whole(node: ir.Node, activations: Set[str]) -> Norm:
    at = _SKIP_WEIGHT if is_skip_norm(node) else _WEIGHT
    is_rms = "LayerNormalization" not in node.op_type or "Simplified" in node.op_type
    tensors = [node.inputs[i] if i < len(node.inputs) else None for i in ((at,) if is_rms else (at, at + 1))]
    if not _is_over_features(node) or any(tensor is not None and tensor.name in activations for tensor in tensors):
        return _UNKNOWN
    epsilon = _as_written(node.attributes.get_float("epsilon", _DEFAULT_EPSILON.get(node.op_type, 1e-5)))
    weight, bias = (*(None if tensor is None else tensor.name for tensor in tensors), None)[:2]
    return Norm("rms" if is_rms else "layer", epsilon, weight, bias)


def _as_written(epsilon: float) -> float:
    """The shortest decimal of a float32: files hold 1e-12 as 9.99999996e-13."""
    return float(str(np.float32(epsilon)))


def _is_over_features(node: ir.Node) -> bool:
    """Whether it normalises over the last axis alone; the shape of its input says which axis that is."""
    axis = node.attributes.get_int("axis", -1)
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _written_out(last: ir.Node, activations: Set[str]) -> tuple[Norm, str] | None:
    """A layer norm `(x - mean) / sqrt(variance + epsilon) * weight + bias`, or an RMS norm without mean and bias."""
    scaled, bias = _split(last, activations) if last.op_type == "Add" else (last.outputs[0], None)
    weighted = _made_by(scaled, "Mul")
    if weighted is None or (bias is None) != (last is weighted):
        return None
    normed, weight = _split(weighted, activations)
    divided = _made_by(normed, "Div")
    if divided is None or weight is None:
        return None
    centred, root = divided.inputs
    shifted = _of(_made_by(root, "Sqrt"), "Add")
    epsilon = None if shifted is None else _number(shifted, activations)
    mean = None if shifted is None else _of(shifted, "ReduceMean")
    if epsilon is None or mean is None or not _is_square(mean.inputs[0], centred) or not _reduces_last(mean):
        return None
    source = _before_centring(centred)
    if (source is None) != (bias is None):  # the first pieces of a layer norm, or a bias behind an RMS norm
        return None
    if source is None or bias is None:
        return Norm("rms", _as_written(epsilon), weight.name, None), _name(centred)
    return Norm("layer", _as_written(epsilon), weight.name, bias.name), _name(source)


def _before_centring(value: ir.Value | None) -> ir.Value | None:
    """What a value is, without its mean over the features; none if it is something else."""
    subtracted = _made_by(value, "Sub")
    mean = None if subtracted is None else _made_by(subtracted.inputs[1], "ReduceMean")
    if subtracted is None or mean is None or mean.inputs[0] is not subtracted.inputs[0] or not _reduces_last(mean):
        return None
    return subtracted.inputs[0]


def _split(node: ir.Node, activations: Set[str]) -> tuple[ir.Value | None, ir.Value | None]:
    """The activation and the trained vector of an operation on both."""
    one, other = node.inputs[0], node.inputs[1]
    pair = (one, other) if _is_activation(one, activations) else (other, one)
    is_vector = pair[1] is not None and pair[1].shape is not None and len(pair[1].shape) == 1
    return pair if is_vector and not _is_activation(pair[1], activations) else (None, None)


def _is_activation(value: ir.Value | None, activations: Set[str]) -> bool:
    return value is not None and value.name in activations


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""


def _made_by(value: ir.Value | None, op: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op else None


def _of(node: ir.Node | None, op: str) -> ir.Node | None:
    """The operation of this name that a node reads."""
    found = [] if node is None else [made for value in node.inputs if (made := _made_by(value, op)) is not None]
    return found[0] if found else None


def _number(node: ir.Node, activations: Set[str]) -> float | None:
    """The constant that is added to an activation."""
    for value in node.inputs:
        tensor = None if value is None or value.name in activations else ir.convenience.get_const_tensor(value)
        if tensor is not None and tensor.size == 1:
            return float(tensor.numpy().item())
    return None


def _is_square(value: ir.Value | None, of: ir.Value | None) -> bool:
    power, product = _made_by(value, "Pow"), _made_by(value, "Mul")
    if product is not None:
        return all(factor is of for factor in product.inputs)
    exponent = None if power is None or power.inputs[1] is None else ir.convenience.get_const_tensor(power.inputs[1])
    return power is not None and exponent is not None and power.inputs[0] is of and (exponent.numpy() == 2).all()


def _reduces_last(mean: ir.Node) -> bool:
    """Whether a mean is over the last axis alone, which stays as one of length 1."""
    axes = mean.attributes.get_ints("axes", ())
    if len(mean.inputs) > 1 and mean.inputs[1] is not None:
        tensor = ir.convenience.get_const_tensor(mean.inputs[1])
        axes = () if tensor is None else tuple(int(axis) for axis in tensor.numpy().ravel())
    source = mean.inputs[0]
    rank = None if source is None or source.shape is None else len(source.shape)
    is_last = len(axes) == 1 and (axes[0] == -1 or (rank is not None and axes[0] == rank - 1))
    return is_last and mean.attributes.get_int("keepdims", 1) == 1
