"""Binding: `base_norm` in a graph is replaced by the norm of the base at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from adapter_export.errors import GraphError
from adapter_export.graph.graph import AdapterGraph, bypass

NormKind = Literal["layer", "rms", "unknown"]

BASE_NORM = "base_norm"
"""The op, and the prefix of the borrowed parameters."""

BORROWED_WEIGHT, BORROWED_BIAS = f"{BASE_NORM}.weight", f"{BASE_NORM}.bias"
"""The parameters [d] of a bound graph that are the base's tensors: no adapter holds them, no slot is made for them."""

_OPS = {"layer": "layer_norm", "rms": "rms_norm"}


def needs_base_norm(graph: AdapterGraph) -> bool:
    """Return whether the graph applies the base's own norm, so that it must be bound."""
    return any(node.op == BASE_NORM for node in graph.nodes)


def bind_base_norm(
    graph: AdapterGraph, kind: NormKind | None, epsilon: float = 1e-5, *, bias: bool = True
) -> AdapterGraph:
    """Replace `base_norm` by the base's norm, with the parameters `base_norm.weight` [d] and `base_norm.bias` [d].

    The caller supplies their tensors, ones where the norm has no weight. Without a `kind`, as in pre-norm bases without
    a norm between the residual sum and `y`, it is the identity. Raises `GraphError` if the base's norm is `unknown`, or
    the graph has a parameter of a borrowed name.
    """
    if not needs_base_norm(graph):
        return graph
    if kind is None:
        while (node := next((node for node in graph.nodes if node.op == BASE_NORM), None)) is not None:
            graph = bypass(graph, node)
        return graph
    if kind == "unknown":
        raise GraphError(
            "a graph applies the base's norm, which could not be read",
            found=f"`{BASE_NORM}`",
            expected="a layer norm or an RMS norm behind the residual sum",
            fix="give the base in a form that has the norm as one op, or choose a kind of adapter without it",
        )
    roles = {"weight": BORROWED_WEIGHT}
    if bias and kind == "layer":
        roles["bias"] = BORROWED_BIAS
    taken = sorted(set(roles.values()) & set(graph.parameters))
    if taken:
        fault = "a parameter has a name that is kept for the base's norm"
        raise GraphError(fault, found=", ".join(taken), fix="rename it")
    changes: dict[str, Any] = {"op": _OPS[kind], "parameters": roles, "attributes": {"epsilon": epsilon}}
    nodes = tuple(replace(node, **changes) if node.op == BASE_NORM else node for node in graph.nodes)
    return replace(graph, nodes=nodes, parameters={**graph.parameters, **dict.fromkeys(roles.values(), ("d",))})
