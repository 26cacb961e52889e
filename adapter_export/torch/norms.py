"""The norms of an FX graph: which kind each is, and the names of its trained tensors."""

from __future__ import annotations

from typing import Any

from torch import finfo
from torch._ops import OpOverload
from torch.fx import Node

from adapter_export.sites.site import Norm

_LAYER = ("layer_norm", "native_layer_norm")
_RMS = ("rms_norm", "_fused_rms_norm")
NORMS = (*_LAYER, *_RMS)
"""The operators, named without namespace and overload."""


def norm_of(node: Node, op: str) -> Norm | None:
    """The norm that a node is; none for any other node. Tensors have the names of the module's attributes."""
    if op not in NORMS:
        return None
    given = _arguments(node)
    weight, bias = given.get("weight"), given.get("bias")
    if len(given["normalized_shape"]) != 1 or not all(_is_trained(tensor) for tensor in (weight, bias)):
        return Norm("unknown", 0.0, None, None)
    return Norm("layer" if op in _LAYER else "rms", _epsilon(node, given.get("eps"), op), _name(weight), _name(bias))


def _arguments(node: Node) -> dict[str, Any]:
    """The arguments of a call by their names in the operator's schema."""
    assert isinstance(node.target, OpOverload)  # norms are operators of torch in every exported program
    names = [argument.name for argument in node.target._schema.arguments]
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _epsilon(node: Node, given: float | None, op: str) -> float:
    """What is given, or torch's default: 1e-5 for a layer norm, and for an RMS norm the resolution of the type."""
    if given is not None:
        return given
    return 1e-5 if op in _LAYER else finfo(node.all_input_nodes[0].meta["val"].dtype).eps


def _is_trained(argument: object) -> bool:
    return argument is None or (isinstance(argument, Node) and argument.op == "get_attr")


def _name(argument: object) -> str | None:
    return str(argument.target) if isinstance(argument, Node) else None
