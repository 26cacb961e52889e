"""Uses of a torch base's weights in order of evaluation, as the program computes with them."""

from __future__ import annotations

from collections.abc import Iterator, Set
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from adapter_export.errors import BaseModelError
from adapter_export.numerics.weight_match import StoredRows, WeightUse
from adapter_export.sites.view import FlowNode
from adapter_export.torch_backend.base.torch_base import TorchBase

_REPEATED = frozenset({"expand", "reshape", "view", "unsqueeze"})
"""Ops that repeat or reshape a vector for each row of a batch, whose number is unknown here."""


def trained_weights(base: TorchBase) -> list[WeightUse]:
    """Return each use of a parameter by a node that computes activations.

    A value computed only from parameters, such as the factor `1 + w` of a norm, counts as one weight.
    """
    parameters = set(base.program.graph_signature.parameters)
    seen = {node.name: node for node in base.flow.nodes}
    activations = {node for node in base.flat.graph.nodes if node.op == "placeholder" or node.name in seen}
    return [
        use
        for node in base.flat.graph.nodes
        if node.name in seen
        for use in _uses(base.flat, node, seen[node.name], activations, parameters)
    ]


def _uses(
    flat: fx.GraphModule, node: fx.Node, seen: FlowNode, activations: Set[fx.Node], parameters: Set[str]
) -> Iterator[WeightUse]:
    constants = [source for source in node.all_input_nodes if source not in activations]
    for source in sorted(constants, key=lambda each: -_rank(each)):  # a matrix before its bias
        names = sorted(_leaves(source) & parameters)
        if names:
            in_first = seen.kind == "product" and seen.op != "linear" and _rank(source) > 1
            yield _use(flat, source, " and ".join(names), in_first=in_first)


def _rank(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else 0


def _leaves(node: fx.Node) -> set[str]:
    """Return the names of the tensors that a constant is computed from."""
    if node.op == "get_attr":
        return {str(node.target)}
    return set().union(*map(_leaves, node.all_input_nodes))


def _use(flat: fx.GraphModule, source: fx.Node, name: str, *, in_first: bool) -> WeightUse:
    shape = _folded(flat, source).shape
    vector = max(shape, default=1) == shape.numel()
    width = None if vector else shape[-2 if in_first else -1]

    def read(start: int, end: int) -> StoredRows:
        tensor = _folded(flat, source).detach()
        turned = tensor.mT if in_first and not vector else tensor
        rows = turned.reshape(-1, width or 1)[start:end]
        return StoredRows(rows.float().numpy(), np.zeros((1, 1), np.float32))

    return WeightUse(name, shape.numel() // (width or 1), width, read)


def _folded(flat: fx.GraphModule, node: fx.Node) -> Tensor:
    """Compute a constant; a vector that is repeated for each row counts once."""
    if node.op == "get_attr":
        found: Tensor = attrgetter(str(node.target))(flat)
        return found
    known = all(isinstance(source.meta.get("val"), Tensor) for source in node.all_input_nodes)
    if not known and getattr(node.target, "__name__", "").partition(".")[0] in _REPEATED:
        return _folded(flat, node.all_input_nodes[0])
    if not known or not callable(node.target):
        raise BaseModelError(
            "uses a weight in a way that cannot be compared",
            where=f"`{node.name}`",
            found=f"`{node.target}`",
            expected="a weight that does not depend on the lengths of the inputs",
        )

    def value(argument: fx.Node) -> Any:
        return _folded(flat, argument)

    with torch.no_grad():
        result: Tensor = node.target(*fx.map_arg(node.args, value), **fx.map_arg(node.kwargs, value))
    return result
