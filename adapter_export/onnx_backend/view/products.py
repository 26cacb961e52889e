"""The products of an ONNX graph: their factors, which are linear layers, and what is left to do behind those."""

from __future__ import annotations

from collections.abc import Mapping, Set
from itertools import accumulate, pairwise

import onnx_ir as ir

from adapter_export.sites.view import Cut, Epilogue, rows_first

# Layouts of an ONNX graph that cut one axis of what they read, or move whole axes.


def cuts_of(node: ir.Node) -> dict[str, Cut]:
    """The slice of its input that each output is; none where it is not known, or is not one slice."""
    source = node.inputs[0] if node.inputs else None
    if source is None or source.shape is None:
        return {}
    if node.op_type == "Split":
        return _split(node, len(source.shape))
    cut = {"Slice": _slice, "Gather": _pick}.get(node.op_type, _none)(node, source.shape)
    return {} if cut is None or not node.outputs[0].name else {node.outputs[0].name: cut}


def _none(_node: ir.Node, _shape: ir.Shape) -> None:
    return None


def _split(node: ir.Node, rank: int) -> dict[str, Cut]:
    axis = node.attributes.get_int("axis", 0) % rank
    found, start = {}, 0
    for output in node.outputs:
        size = output.shape[axis] if output.shape is not None else None
        if not isinstance(size, int):
            return {}
        if output.name:
            found[output.name] = Cut(axis, start, start + size)
        start += size
    return found


def _slice(node: ir.Node, shape: ir.Shape) -> Cut | None:
    starts, ends, axes, steps = (_numbers(node, at) for at in (1, 2, 3, 4))
    if starts is None or ends is None or axes is None or len(axes) != 1 or steps not in (None, [1]):
        return None
    axis = axes[0] % len(shape)
    size = shape[axis]
    if not isinstance(size, int):
        return None
    start, end, _ = slice(starts[0], ends[0]).indices(size)
    return Cut(axis, start, end)


def _pick(node: ir.Node, shape: ir.Shape) -> Cut | None:
    picked = _numbers(node, 1)
    axis = node.attributes.get_int("axis", 0) % len(shape)
    size = shape[axis]
    if picked is None or len(picked) != 1 or not isinstance(size, int):
        return None
    return Cut(axis, picked[0] % size, picked[0] % size + 1)


def _numbers(node: ir.Node, at: int) -> list[int] | None:
    """The numbers of an input, if they are constant."""
    value = node.inputs[at] if at < len(node.inputs) else None
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(number) for number in tensor.numpy().ravel()]


def order_of(node: ir.Node) -> tuple[int | None, ...]:
    """The axis of its input that each axis of a node's result is, of those that move whole axes; empty for others."""
    source = node.inputs[0] if node.inputs else None
    if node.op_type == "Transpose":
        return tuple(node.attributes.get_ints("perm", ()))
    axes = _numbers(node, 1) if node.op_type in ("Unsqueeze", "Squeeze") else None
    if axes is None or source is None or source.shape is None:
        return ()
    rank = len(source.shape)
    if node.op_type == "Squeeze":
        dropped = {axis % rank for axis in axes}
        return tuple(axis for axis in range(rank) if axis not in dropped)
    new, old = {axis % (rank + len(axes)) for axis in axes}, iter(range(rank))
    return tuple(None if axis in new else next(old) for axis in range(rank + len(axes)))


_FACTORS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("MatMul", "Gemm", "MatMulInteger", "FusedMatMul", "TransposeMatMul", "FusedGemm"), (0, 1)),
    **dict.fromkeys(("MatMulNBits", "MatMulBnb4", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), (0, 1)),
    **dict.fromkeys(("QLinearMatMul", "QGemm"), (0, 3)),
    "Einsum": tuple(range(8)),
}
"""The products, and which of their inputs are multiplied; the others are biases, scales and zero points."""

CONVOLUTIONS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "FusedConv", "NhwcConv"), (0, 1)),
    "QLinearConv": (0, 3),
}

_PROJECTING = frozenset({("com.microsoft", "Attention"), ("com.microsoft", "QAttention")})
"""The fused attentions that hold the weights of query, key and value, as their second input."""

_SEPARATE = frozenset(
    {"MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention", "SparseAttention"}
)
"""Those of com.microsoft whose first inputs are query, key and value, or one value that holds all three."""

_MATRICES = frozenset({"MatMul", "Gemm", "MatMulInteger", "FusedMatMul", "TransposeMatMul", "MatMulIntegerToFloat"}) | {
    "DynamicQuantizeMatMul"
}
_PACKED = frozenset({"MatMulNBits", "MatMulBnb4"})
"""What multiplies with one trained matrix: as a tensor [in, out], or packed in blocks."""

_PREPARING = frozenset({"Transpose", "Cast", "DequantizeLinear", "Identity"})
"""What may be done to a matrix before it is multiplied with."""

_BIASES = {"Gemm": 2, "MatMulNBits": 5, "DynamicQuantizeMatMul": 4, "MatMulIntegerToFloat": 6}
"""The input that is the bias of a linear layer."""


def is_product(op: str) -> bool:
    """Whether operators of this name are matrix products."""
    return op in _FACTORS


def is_weighted(node: ir.Node, activations: Set[str]) -> bool:
    """Whether one of the factors of a product is no activation."""
    return any(value is not None and value.name not in activations for value in _factors(node))


def operands(node: ir.Node, activations: Set[str]) -> tuple[str, ...]:
    """The activations that are multiplied: factors of a product; query, key and value of an attention.

    An attention that computes these itself has none.
    """
    if holds_weights(node):
        return ()
    found = tuple(name for value in _factors(node) if (name := _name(value)) and name in activations)
    return rows_first(node.attributes.get_string("equation", ""), found) if node.op_type == "Einsum" else found


def holds_weights(node: ir.Node) -> bool:
    """Whether it is a fused attention that computes query, key and value itself."""
    return (node.domain, node.op_type) in _PROJECTING


def _factors(node: ir.Node) -> list[ir.Value | None]:
    if holds_weights(node):
        places: tuple[int, ...] = (0, 1)
    elif node.op_type in _SEPARATE or (node.op_type == "Attention" and not node.domain):
        places = (0, 1, 2)
    else:
        places = _FACTORS.get(node.op_type) or CONVOLUTIONS.get(node.op_type, ())
    return [node.inputs[at] for at in places if at < len(node.inputs)]


def packed(node: ir.Node) -> tuple[tuple[int, int], ...]:
    """The slices of query, key and value in the one value that a grouped attention may read them in.

    Its documentation has them as [(heads + 2·kv_heads)·head_size], one after the other.
    """
    value = node.inputs[0] if node.inputs else None
    if node.op_type != "GroupQueryAttention" or value is None or value.shape is None or any(node.inputs[1:3]):
        return ()
    counts = [node.attributes.get_int(name, 0) for name in ("num_heads", "kv_num_heads", "kv_num_heads")]
    width = value.shape[-1]
    if not isinstance(width, int) or not all(counts) or width % sum(counts):
        return ()
    ends = list(accumulate(count * width // sum(counts) for count in counts))
    return tuple(pairwise([0, *ends]))


def is_linear(node: ir.Node, activations: Set[str]) -> bool:
    """Whether it multiplies an activation with one trained matrix, and does nothing else that would stay."""
    if len(operands(node, activations)) != 1 or operands(node, activations)[0] != _name(node.inputs[0]):
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


def trained_matrix(node: ir.Node) -> str | None:
    """The name of the matrix of a linear layer, if the node may be one; as it is stored, before any transposition."""
    if node.op_type not in _MATRICES | _PACKED or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    while weight is not None and (maker := weight.producer()) is not None and maker.op_type in _PREPARING:
        weight = maker.inputs[0]
    return _name(weight) or None


def width_in(node: ir.Node) -> int | None:
    """The width of what a linear layer reads, as its matrix says."""
    if node.op_type in _PACKED:
        return node.attributes.get_int("K", 0) or None
    transposed = node.attributes.get_int("transB", 0)
    shape = None if node.inputs[1] is None else node.inputs[1].shape
    size = None if shape is None else shape[1 if transposed else 0]
    return size if isinstance(size, int) else None


def epilogue(node: ir.Node, activations: Set[str]) -> Epilogue | None:
    """The step of a linear layer that a node is: the addition of a bias, or what scales integers back."""
    if node.op_type in _BIASES:
        at = _BIASES[node.op_type]
        has_bias = at < len(node.inputs) and node.inputs[at] is not None
        return "bias" if has_bias else None
    if node.op_type == "Add" and sum(_name(value) in activations for value in node.inputs) == 1:
        return "bias" if any(_is_vector(value) for value in node.inputs if _name(value) not in activations) else None
    if node.op_type == "Mul" and any(_is_integer_product(_producer(_producer_input(value))) for value in node.inputs):
        return "rescale"
    return "rescale" if node.op_type == "Cast" and _is_integer_product(_producer(node.inputs[0])) else None


def _producer_input(value: ir.Value | None) -> ir.Value | None:
    """What is cast to a value; none for a value that is no cast."""
    node = _producer(value)
    return node.inputs[0] if node is not None and node.op_type == "Cast" else None


def _producer(value: ir.Value | None) -> ir.Node | None:
    return None if value is None else value.producer()


def _is_integer_product(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "MatMulInteger"


def _is_vector(value: ir.Value | None) -> bool:
    """Whether it has one number per feature: [d], or axes of length 1 before it."""
    shape = [] if value is None or value.shape is None else list(value.shape)
    return bool(shape) and all(size == 1 for size in shape[:-1]) and shape[-1] != 1


def _name(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""
