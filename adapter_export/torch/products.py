"""The products of an FX graph: their factors, which are linear layers, and what is left to do behind those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set

import torch
from torch.fx import Node

from adapter_export.sites.view import Finish, rows_first

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


def is_product(op: str) -> bool:
    """Whether operators of this name are matrix products."""
    return op in _FACTORS


def is_weighted(node: Node, op: str, activations: Set[Node]) -> bool:
    """Whether one of the factors of a product is no activation."""
    multiplies = op in _FACTORS or op in CONVOLUTIONS
    return multiplies and any(factor not in activations for factor in _factors(node, op))


def operands(node: Node, op: str, activations: Set[Node]) -> tuple[str, ...]:
    """The activations that are multiplied: factors of a product; query, key and value of an attention.

    An attention that computes these itself has none.
    """
    if op not in _FACTORS and (("attention" not in op) or _holds_weights(op)):
        return ()
    found = tuple(factor.name for factor in _factors(node, op) if factor in activations)
    return rows_first(str(node.args[0]), found) if op == "einsum" else found


def _holds_weights(op: str) -> bool:
    return "multi_head_attention" in op


def _factors(node: Node, op: str) -> list[Node]:
    default = _ATTENTION if "attention" in op else slice(0, 2)
    return list(_tensors(node.args))[_FACTORS.get(op, default)]


def is_linear(node: Node, op: str, activations: Set[Node]) -> bool:
    """Whether it multiplies an activation with one trained matrix, and does nothing else that would stay."""
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


def finish(node: Node, op: str, activations: Set[Node]) -> Finish | None:
    """The step of a linear layer that a node is: the addition of a bias."""
    if op not in ("linear", "addmm", "add"):
        return None
    if op == "linear":
        return "bias" if len(list(_tensors(node.args))) > 2 else None
    others = [source for source in node.all_input_nodes if source not in activations]
    alone = op == "addmm" or (len(node.all_input_nodes) == 2 and len(others) == 1)
    return "bias" if alone and any(_is_vector(source) for source in others) else None


def _is_vector(node: Node) -> bool:
    """Whether it has one number per feature: [d], or axes of length 1 before it."""
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
