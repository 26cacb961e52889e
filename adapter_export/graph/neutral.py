"""Neutral parameters: a graph returns what it replaces, so that its slots can lie idle in a shared ONNX graph.

Found by reasoning about the graph, not by a list of kinds: every linear and every norm is set to zero, and zero is
followed through the ops. What arrives at the result is the replaced value, or no parameters of this form are neutral.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import NotNeutralError
from adapter_export.graph.graph import AdapterGraph, Node

NEUTRAL_WIDTH = 1
"""The width of an idle bottleneck. Not 0: an empty tensor through `Gelu` kills onnxruntime 1.21 to 1.28 (SIGFPE)."""

_ZERO = "zero"
_UNKNOWN = "unknown"
_ZERO_KEEPING = frozenset(
    {"relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh", "leaky_relu", "scale", "first_token", "mean_pool"}
)
_ALWAYS_ZERO_WHEN_NEUTRAL = frozenset({"linear", "layer_norm", "rms_norm"})


def neutral_widths(graph: AdapterGraph, site_widths: Mapping[str, int]) -> dict[str, int]:
    """The narrowest widths: the site's own where the site gives them, 1 for everything else."""
    return {symbol: site_widths.get(symbol, NEUTRAL_WIDTH) for symbol in graph.symbols()}


def neutral_parameters(graph: AdapterGraph, widths: Mapping[str, int]) -> Weights:
    """Parameters for which a site's graph returns the value that it replaces, or a head's graph returns zeros.

    Raises:
        NotNeutralError: the graph has none; the message says what arrives at its result instead.
    """
    reached = _follow_zero(graph)[graph.result]
    wanted = _ZERO if graph.reads_head_values() else graph.replaces
    if reached != wanted:
        raise NotNeutralError(
            "an adapter graph has no neutral parameters",
            where=f"result `{graph.result}`",
            found=f"{reached} with all projections and norms at zero",
            expected=f"`{wanted}`",
            fix="build this adapter on its own",
        )
    shapes = graph.parameter_shapes(widths)
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def _follow_zero(graph: AdapterGraph) -> dict[str, str]:
    """What each value is when all parameters are zero: the name of a site value, zero, or unknown."""
    known = {name: name for name in graph.inputs}
    for node in graph.nodes:
        known[node.output] = _transfer(node, [known[name] for name in node.inputs])
    return known


def _transfer(node: Node, inputs: list[str]) -> str:
    if node.op in _ALWAYS_ZERO_WHEN_NEUTRAL:
        return _ZERO
    if node.op == "add" and _ZERO in inputs:
        return inputs[1] if inputs[0] == _ZERO else inputs[0]
    if node.op == "multiply":
        return _ZERO if _ZERO in inputs else _UNKNOWN
    if node.op in {"identity", "dropout"}:
        return inputs[0]
    return _ZERO if node.op in _ZERO_KEEPING and inputs[0] == _ZERO else _UNKNOWN
