"""Operators of an ONNX graph: products and linear layers, layouts, norms, and their fusions.

`SkipLayerNormalization` and `SkipSimplifiedLayerNormalization` (domain com.microsoft, opset 1) add two activations and
normalize the sum, which is their fourth output. Their bias comes from the sublayer that they add, so it belongs to `h`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from itertools import accumulate, pairwise

import numpy as np
import onnx_ir as ir

from adapter_export.errors import BaseModelError
from adapter_export.sites.site import Norm, SiteMap
from adapter_export.sites.view import Cut, Epilogue, convolved, rows_first

FACTORS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("MatMul", "Gemm", "MatMulInteger", "FusedMatMul", "TransposeMatMul", "FusedGemm"), (0, 1)),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), (0, 1)),
    **dict.fromkeys(("QLinearMatMul", "QGemm"), (0, 3)),
    "Einsum": tuple(range(8)),
}
"""Products, and the indices of the inputs that are multiplied; the others are biases, scales and zero points."""

CONVOLUTIONS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "FusedConv", "NhwcConv"), (0, 1)),
    "QLinearConv": (0, 3),
}

_PROJECTING = frozenset({("com.microsoft", "Attention"), ("com.microsoft", "QAttention")})
"""Fused attentions whose second input contains the weights of query, key and value."""

_SEPARATE = frozenset(
    {"MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention", "SparseAttention"}
)
"""Attentions of com.microsoft whose first inputs are query, key and value, or one value that packs all three."""

_MATRICES = frozenset({"MatMul", "Gemm", "MatMulInteger", "FusedMatMul", "TransposeMatMul", "MatMulIntegerToFloat"}) | {
    "DynamicQuantizeMatMul"
}
_PACKED = frozenset({"MatMulNBits", "MatMulBnb4"})
"""Operators that multiply by one trained matrix: a tensor [in, out], or packed blocks."""

_PREPARING = frozenset({"Transpose", "Cast", "DequantizeLinear", "Identity"})
"""Operators that may transform a matrix before it is multiplied."""

LOOKUPS = {"Gather": ("axis", 0), "GatherBlockQuantized": ("gather_axis", 0)}
"""Operators that look up rows of a table, with the attribute of its axis and that attribute's default."""

_SAME_ROWS = frozenset({"Cast", "Identity", "DequantizeLinear", "Mul"})
"""Operators that may change a table's numbers before a lookup, and not its rows."""

_MATRIX_AXES = 2

_BIASES = {"Gemm": 2, "MatMulNBits": 5, "DynamicQuantizeMatMul": 4, "MatMulIntegerToFloat": 6}
"""Index of the input with the bias of a linear layer."""

_RESCALED = frozenset({"MatMulIntegerToFloat", "MatMulNBits"})
"""Linear layers of com.microsoft whose result may be multiplied by a factor per token, computed from their input."""

_SKIP_NORMS = {"SkipLayerNormalization": 4, "SkipSimplifiedLayerNormalization": 3}
"""Operators that add and normalize, and the index of the input with the bias."""

UNBIASED = {"BiasGelu": "Gelu", "FastGelu": "FastGelu"}
"""Activations of com.microsoft whose second input is a bias of the first, and their equivalents without a bias."""

UNNAMED_SUM = "/sum"
"""Suffix of the name of such a node's sum, after the node's name, if the sum is not an output."""

SUMMANDS = 2
"""Indices of the summands of an operator that adds and normalizes."""

SUM_OUTPUT = 3
"""Index of the output with the sum."""

_ADDED = {"QLinearAdd": (0, 3), "FusedConv": (3,), "QOrderedMatMul": (6,), "BiasDropout": (2,), "BiasAdd": (2,)}
"""Operators of com.microsoft that add activations to their result, and the indices of these inputs."""

NORMS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"})

DEFAULT_EPSILON = {"SkipLayerNormalization": 1e-12, "SkipSimplifiedLayerNormalization": 1e-12}
"""Epsilon of operators without the attribute, by ONNX Runtime's schemas."""


def required_inputs(op: str) -> Sequence[int]:
    """Return the indices of the required inputs of an operator of ONNX Runtime, among those that are read here."""
    places = {**dict.fromkeys(("BiasGelu", *NORMS), (0, 1)), **dict.fromkeys(_SKIP_NORMS, (0, 1, 2))}
    return {**FACTORS, **CONVOLUTIONS, **places}.get(op, (0,))


def cuts_of(node: ir.Node) -> dict[str, Cut]:
    """Return the slice of the input that each output is; empty if it is unknown or not a single slice."""
    source = node.inputs[0] if node.inputs else None
    if source is None or source.shape is None or node.op_type not in ("Split", "Slice", "Gather"):
        return {}
    axes = _numbers(node, 3) if node.op_type == "Slice" else [node.attributes.get_int("axis", 0)]
    if axes is None or len(axes) != 1 or not len(source.shape):
        return {}
    axis = axes[0] % len(source.shape)
    if node.op_type == "Split":
        cuts, start = {}, 0
        for output in node.outputs:
            length = output.shape[axis] if output.shape is not None and axis < len(output.shape) else None
            if not isinstance(length, int):
                return {}
            if output.name:
                cuts[output.name] = Cut(axis, start, start + length)
            start += length
        return cuts
    size, picked, ends, steps = source.shape[axis], _numbers(node, 1), _numbers(node, 2), _numbers(node, 4)
    result = node.outputs[0].name
    if not result or not isinstance(size, int) or size < 1 or not picked:
        return {}
    if node.op_type == "Gather":
        return {result: Cut(axis, picked[0] % size, picked[0] % size + 1)} if len(picked) == 1 else {}
    if not ends or steps not in (None, [1]):
        return {}
    start, end, _ = slice(picked[0], ends[0]).indices(size)
    return {result: Cut(axis, start, end)}


def _numbers(node: ir.Node, at: int) -> list[int] | None:
    """Return the integers of an input if they are constant."""
    value = node.inputs[at] if at < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return (
        None if tensor is None or not tensor.dtype.is_integer() else [int(number) for number in tensor.numpy().ravel()]
    )


def order_of(node: ir.Node) -> tuple[int | None, ...]:
    """Return the input axis of each axis of the result, for operators that only move axes; empty for others."""
    source = node.inputs[0] if node.inputs else None
    if node.op_type == "Transpose":
        return tuple(node.attributes.get_ints("perm", ()))
    axes = _numbers(node, 1) if node.op_type in ("Unsqueeze", "Squeeze") else None
    if axes is None or source is None or source.shape is None:
        return ()
    rank = len(source.shape)
    every = rank if node.op_type == "Squeeze" else rank + len(axes)
    chosen = {axis % every for axis in axes if every}
    if len(chosen) != len(axes):
        return ()
    if node.op_type == "Squeeze":
        return tuple(axis for axis in range(rank) if axis not in chosen)
    old = iter(range(rank))
    return tuple(None if axis in chosen else next(old) for axis in range(every))


def stacked(node: ir.Node) -> list[ir.Value]:
    """Return the values that a reduction reads if they were stacked on the single axis it removes; otherwise empty."""
    maker = None if node.inputs[0] is None else node.inputs[0].producer()
    axes = list(node.attributes.get_ints("axes", ())) or _numbers(node, 1) or []
    if maker is None or maker.op_type != "Concat" or len(axes) != 1 or node.attributes.get_int("keepdims", 1) == 1:
        return []
    parts, places = [], [maker.attributes.get_int("axis", 0), *axes]
    for part in maker.inputs:
        opened = _made_by(part, "Unsqueeze")
        if opened is None or opened.inputs[0] is None or opened.inputs[0].shape is None:
            return []
        parts.append(opened.inputs[0])
        places += _numbers(opened, 1) or []
    ranks = {len(part.shape) + 1 for part in parts if part.shape is not None}
    one_place = len(ranks) == 1 and len({place % min(ranks) for place in places}) == 1
    return parts if one_place and len(parts) > 1 and len(places) == len(parts) + 2 else []


def is_weighted(node: ir.Node, activations: Set[str]) -> bool:
    """Return whether one of the factors of a product is not an activation."""
    return any(value is not None and value.name not in activations for value in _factors(node))


def operands(node: ir.Node, activations: Set[str]) -> tuple[str, ...]:
    """Return the activations that are multiplied: factors of a product; query, key and value of an attention.

    Empty for an attention that computes these itself.
    """
    if holds_weights(node):
        return ()
    names = tuple(name for value in _factors(node) if (name := _name(value)) and name in activations)
    return rows_first(node.attributes.get_string("equation", ""), names) if node.op_type == "Einsum" else names


def holds_weights(node: ir.Node) -> bool:
    """Return whether a node is a fused attention that computes query, key and value itself."""
    return (node.domain, node.op_type) in _PROJECTING


def _factors(node: ir.Node) -> list[ir.Value | None]:
    if holds_weights(node):
        places: tuple[int, ...] = (0, 1)
    elif node.op_type in _SEPARATE or (node.op_type == "Attention" and not node.domain):
        places = (0, 1, 2)
    else:
        places = FACTORS.get(node.op_type) or CONVOLUTIONS.get(node.op_type, ())
    return [node.inputs[at] for at in places if at < len(node.inputs)]


def packed(node: ir.Node) -> tuple[tuple[int, int], ...]:
    """Return the slices of query, key and value in the single packed value that a grouped attention may read.

    Source: its documentation, [(heads + 2·kv_heads)·head_size], in this order.
    """
    value = node.inputs[0] if node.inputs else None
    if node.op_type != "GroupQueryAttention" or value is None or value.shape is None or any(node.inputs[1:3]):
        return ()
    counts = [node.attributes.get_int(name, 0) for name in ("num_heads", "kv_num_heads", "kv_num_heads")]
    width = value.shape[-1] if len(value.shape) else None
    if not isinstance(width, int) or min(counts) < 1 or width % sum(counts):
        return ()
    ends = list(accumulate(count * width // sum(counts) for count in counts))
    return tuple(pairwise([0, *ends]))


def is_linear(node: ir.Node, activations: Set[str]) -> bool:
    """Return whether a node multiplies an activation by one trained matrix and has no other effect."""
    if operands(node, activations) != (_name(node.inputs[0] if node.inputs else None),):
        return False
    if node.op_type in _PACKED:
        return True
    weight = node.inputs[1]
    return (
        node.op_type in _MATRICES
        and weight is not None
        and weight.shape is not None
        and len(weight.shape) == 2
        and node.attributes.get_float("alpha", 1.0) == 1.0
        and not any(node.attributes.get_int(transposed, 0) for transposed in ("transA", "transBatchA", "transBatchB"))
    )


def contracted(node: ir.Node, activations: Set[str]) -> int | None:
    """Return the axis of its activation, from the end, that a product with a weight sums over; `None` if unknown."""
    if node.op_type in _PACKED:
        return -1
    if node.op_type in CONVOLUTIONS:
        shape = None if node.inputs[0] is None else node.inputs[0].shape
        return None if shape is None else 1 - len(shape)
    factors = [_name(value) in activations for value in _factors(node)]
    if node.op_type not in _MATRICES or sum(factors) != 1 or len(factors) != 2:
        return None
    left = factors[0]
    flipped = node.attributes.get_int("transA" if left else "transB", 0)
    return -1 if left != bool(flipped) else -2


def terms(node: ir.Node) -> int | None:
    """Return the maximum number of products in an element of a convolution; `None` for other nodes or if unknown."""
    weight = next(iter(_factors(node)[1:]), None) if node.op_type in CONVOLUTIONS else None
    if weight is None or weight.shape is None:
        return None
    shape = [size if isinstance(size, int) else None for size in weight.shape]
    return convolved(shape, transposed=node.op_type == "ConvTranspose")


def before_rounding(value: ir.Value | None) -> ir.Value | None:
    """Return the activation before its rounding to 8 bits; the value if it is not rounded."""
    maker = None if value is None else value.producer()
    if maker is None or maker.op_type not in ("DynamicQuantizeLinear", "QuantizeLinear"):
        return value
    read = maker.inputs[0]
    divided = None if read is None or not is_relative(read) else read.producer()
    return read if divided is None else divided.inputs[0]


def is_relative(value: ir.Value) -> bool:
    """Return whether an activation was divided by the maximum of each token only for rounding."""
    maker = value.producer()
    readers = {use.node.op_type for use in value.uses()}
    return maker is not None and maker.op_type == "Div" and readers == {"QuantizeLinear"}


def trained_matrix(node: ir.Node) -> str | None:
    """Return the name of a linear layer's matrix if the node may be one, as stored, before any transposition."""
    if node.op_type not in _MATRICES | _PACKED or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    while weight is not None and (maker := weight.producer()) is not None and maker.op_type in _PREPARING:
        weight = maker.inputs[0]
    return _name(weight) or None


def width_in(node: ir.Node) -> int | None:
    """Return the input width of a linear layer, from its matrix."""
    if node.op_type in _PACKED:
        return node.attributes.get_int("K", 0) or None
    transposed = node.attributes.get_int("transB", 0)
    shape = None if node.inputs[1] is None else node.inputs[1].shape
    size = None if shape is None or len(shape) != 2 else shape[1 if transposed else 0]
    return size if isinstance(size, int) else None


def lookup_table(node: ir.Node) -> ir.Value | None:
    """Return the trained table [rows, width] in which a node looks up ids, as stored."""
    if node.op_type not in LOOKUPS or node.attributes.get_int(*LOOKUPS[node.op_type]) != 0:
        return None
    table = node.inputs[0]
    while table is not None:
        if table.const_value is not None:
            return table if len(table.const_value.shape) == _MATRIX_AXES else None
        producer = table.producer()
        is_same = producer is not None and producer.op_type in _SAME_ROWS
        table = producer.inputs[0] if producer is not None and is_same else None
    return None


def epilogue(node: ir.Node, activations: Set[str]) -> Epilogue | None:
    """Return the step of a linear layer that a node is: the addition of a bias, or the rescaling of integers."""
    if node.op_type in _BIASES:
        at = _BIASES[node.op_type]
        has_bias = at < len(node.inputs) and node.inputs[at] is not None
        return "bias" if has_bias else None
    if node.op_type == "Add" and sum(_name(value) in activations for value in node.inputs) == 1:
        return "bias" if any(_is_vector(value) for value in node.inputs if _name(value) not in activations) else None
    casts = [node] if node.op_type == "Cast" else []
    if node.op_type == "Mul":
        makers = [maker for value in node.inputs if value is not None and (maker := value.producer()) is not None]
        if any(maker.op_type in _RESCALED for maker in makers):
            return "rescale"
        casts = [maker for maker in makers if maker.op_type == "Cast"]
    sources = (None if cast.inputs[0] is None else cast.inputs[0].producer() for cast in casts)
    return "rescale" if any(source is not None and source.op_type == "MatMulInteger" for source in sources) else None


def _is_vector(value: ir.Value | None) -> bool:
    """Return whether a value has one number per feature: [d], or with leading axes of length 1."""
    shape = [] if value is None or value.shape is None else list(value.shape)
    return bool(shape) and all(size == 1 for size in shape[:-1]) and shape[-1] != 1


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""


def is_skip_norm(node: ir.Node) -> bool:
    """Return whether a node adds two activations and normalizes the sum."""
    return node.op_type in _SKIP_NORMS


def hides_sum(node: ir.Node, activations: Set[str]) -> bool:
    """Return whether a node may contain a residual sum that cannot be expanded; `activations` are names."""
    if node.op_type.startswith("Skip"):
        return not is_skip_norm(node)
    added = [node.inputs[at] for at in _ADDED.get(node.op_type, ()) if at < len(node.inputs)]
    return bool(added) and all(value is not None and value.name in activations for value in added)


def sum_output(node: ir.Node) -> str | None:
    """Return the name of the sum inside such a node; `None` if it is not an output."""
    return (node.outputs[SUM_OUTPUT].name or None) if len(node.outputs) > SUM_OUTPUT else None


def check_biases(nodes: Mapping[str, ir.Node], sites: SiteMap) -> None:
    """Reject a bias that was fused with the sum of two parallel sublayers: its owner is ambiguous.

    `nodes` are named as in `sites`.
    """
    residuals = {site.residual for site in sites.sublayers if site.residual is not None}
    sums = {value for name in residuals for value in nodes[name].outputs}
    for name, node in nodes.items():
        if name not in residuals and fused_bias(node) is not None and not sums.isdisjoint(node.inputs[:SUMMANDS]):
            raise BaseModelError(
                "a bias was fused with the sum of two sublayers, so its owner is ambiguous",
                where=f"`{name}`, {node.op_type}",
                fix="use the graph before optimization; ONNX Runtime fuses it when loading",
            )


def fused_bias(node: ir.Node) -> ir.Value | None:
    """Return the bias of a linear layer that is fused into the next operator: a residual sum or an activation."""
    at = 1 if node.op_type in UNBIASED and node.domain == "com.microsoft" else _SKIP_NORMS.get(node.op_type)
    return node.inputs[at] if at is not None and at < len(node.inputs) else None


def norm_of(node: ir.Node, activations: Set[str]) -> tuple[Norm, str] | None:
    """Return the norm that a node is, contains besides a sum, or ends, and the name of the norm's input.

    `None` for any other node. Besides a sum, the norm reads that sum, which has no name here.
    """
    if node.op_type in NORMS or is_skip_norm(node):
        return _whole(node, activations), _name(node.inputs[0])
    return _written_out(node, activations) if node.op_type in ("Add", "Mul") and not node.domain else None


def _whole(node: ir.Node, activations: Set[str]) -> Norm:
    """Return the norm of a single operator, whose inputs after the first are the factor and a layer norm's bias."""
    at = SUMMANDS if is_skip_norm(node) else 1
    is_rms = "LayerNormalization" not in node.op_type or "Simplified" in node.op_type
    tensors = [node.inputs[i] if i < len(node.inputs) else None for i in ((at,) if is_rms else (at, at + 1))]
    axis, shape = node.attributes.get_int("axis", -1), node.inputs[0].shape if node.inputs[0] is not None else None
    over_features = axis == -1 or (shape is not None and axis == len(shape) - 1)
    if not over_features or any(tensor is not None and tensor.name in activations for tensor in tensors):
        return Norm("unknown", 0.0, None, None)
    epsilon = _as_written(node.attributes.get_float("epsilon", DEFAULT_EPSILON.get(node.op_type, 1e-5)))
    weight, bias = (*(None if tensor is None else tensor.name for tensor in tensors), None)[:2]
    return Norm("rms" if is_rms else "layer", epsilon, weight, bias)


def _as_written(epsilon: float) -> float:
    """Return the shortest decimal for a float32: files contain 1e-12 as 9.99999996e-13."""
    return float(str(np.float32(epsilon)))


def _written_out(last: ir.Node, activations: Set[str]) -> tuple[Norm, str] | None:
    """Return a layer norm `(x - mean) / sqrt(variance + epsilon) * weight + bias`, or an RMS norm."""
    scaled, bias = _operands_of(last, activations) if last.op_type == "Add" else (last.outputs[0], None)
    weighted = _made_by(scaled, "Mul")
    if weighted is None or (bias is None) != (last is weighted):
        return None
    normed, weight = _operands_of(weighted, activations)
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
    if (source is None) != (bias is None):  # part of a layer norm, or a bias after an RMS norm
        return None
    if source is None or bias is None:
        return Norm("rms", _as_written(epsilon), weight.name, None), _name(centred)
    return Norm("layer", _as_written(epsilon), weight.name, bias.name), _name(source)


def _before_centring(value: ir.Value | None) -> ir.Value | None:
    """Return the value before its mean over the features was subtracted; `None` if it is another operation."""
    subtracted = _made_by(value, "Sub")
    mean = None if subtracted is None else _made_by(subtracted.inputs[1], "ReduceMean")
    if subtracted is None or mean is None or mean.inputs[0] is not subtracted.inputs[0] or not _reduces_last(mean):
        return None
    return subtracted.inputs[0]


def _operands_of(node: ir.Node, activations: Set[str]) -> tuple[ir.Value | None, ir.Value | None]:
    """Return the activation and the trained vector of an operation on both."""
    first, other = node.inputs[0], node.inputs[1]
    activation, vector = (first, other) if first is not None and first.name in activations else (other, first)
    if vector is None or vector.name in activations or vector.shape is None or len(vector.shape) != 1:
        return None, None
    return activation, vector


def _made_by(value: ir.Value | None, op: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op else None


def _of(node: ir.Node | None, op: str) -> ir.Node | None:
    """Return the operation with this name that a node reads."""
    producers = (
        [] if node is None else [producer for value in node.inputs if (producer := _made_by(value, op)) is not None]
    )
    return producers[0] if producers else None


def _number(node: ir.Node, activations: Set[str]) -> float | None:
    """Return the constant that is added to an activation."""
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
    """Return whether a mean is over the last axis only and keeps it with length 1."""
    axes = list(mean.attributes.get_ints("axes", ()))
    if len(mean.inputs) > 1 and mean.inputs[1] is not None:
        axes = _numbers(mean, 1) or []
    source = mean.inputs[0]
    rank = None if source is None or source.shape is None else len(source.shape)
    is_last = len(axes) == 1 and (axes[0] == -1 or (rank is not None and axes[0] == rank - 1))
    return is_last and mean.attributes.get_int("keepdims", 1) == 1
