"""Neutral parameters: a graph returns what it replaces, so that its slots can lie idle in a shared ONNX graph.

Found by reasoning about the graph, not by a list of kinds: every projection and every norm is set to zero, learned
factors to one or to zero, and what is zero and what is a site value is followed through the ops. What arrives at the
result is the replaced value, or no parameters of this form are neutral.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import NotNeutralError
from adapter_export.graph.graph import AdapterGraph, Node

NEUTRAL_WIDTH = 1
"""The width of an idle bottleneck. Not 0: an empty tensor through `Gelu` kills onnxruntime 1.21 to 1.28 (SIGFPE)."""

NEUTRAL_NORM_WIDTH = 2
"""The width of an idle bottleneck that is normalised: onnxruntime 1.21 refuses to normalise over one feature."""

_ZERO = "zero"
_UNKNOWN = "unknown"
_ZERO_KEEPING = frozenset(
    {"relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh", "leaky_relu", "relu6", "relu_squared", "mish", "elu"}
    | {"scale", "learned_scale", "scale_features", "keep_first_half", "keep_second_half", "gate"}
    | {"l2_normalise", "first_token", "mean_pool"}
)
"""Ops that return zero where their first value is zero."""

_ZERO_WITH_ZERO_PARAMETERS = frozenset(
    {"linear", "phm_linear", "layer_norm", "rms_norm", "mix", "learned_scale", "scale_features"}
)
_ZERO_WITH_ANY_ZERO = frozenset({"multiply", "dot"})
_PASSING = frozenset({"identity", "dropout", "drop_path"})

_TAME = frozenset({"sigmoid", "tanh", "relu6", "l2_normalise", "layer_norm", "rms_norm"})
"""Ops whose result stays within bounds whatever they read."""

_PRODUCTS = frozenset({"multiply", "dot", "gate"})

_ONES = (frozenset({"scale_features", "learned_scale"}), frozenset({"scale_features"}), frozenset[str]())
"""Which learned factors are one, tried in this order, and then each of those per feature alone; the others are zero."""


def neutral_widths(graph: AdapterGraph, site_widths: Mapping[str, int]) -> dict[str, int]:
    """The narrowest widths: the site's own where the site gives them, 1 for all else, 2 for what is normalised."""
    normed = {graph.dimensions(node)["in"] for node in graph.nodes if node.op in {"layer_norm", "rms_norm"}}
    narrowest = {symbol: NEUTRAL_NORM_WIDTH if symbol in normed else NEUTRAL_WIDTH for symbol in graph.symbols()}
    return {symbol: site_widths.get(symbol, width) for symbol, width in narrowest.items()}


def neutral_parameters(graph: AdapterGraph, widths: Mapping[str, int]) -> Weights:
    """Parameters for which a site's graph returns the value that it replaces, or a head's graph returns zeros.

    Raises:
        NotNeutralError: the graph has none; the message says what arrives at its result instead.
    """
    ones = _neutral_ones(graph)
    if ones is None:
        reached = _follow(graph, _parameters_of(graph, _ONES[-1]))[graph.result]
        raise NotNeutralError(
            "an adapter graph has no neutral parameters",
            where=f"result `{graph.result}`",
            found=f"{reached} with all projections and norms at zero",
            expected=f"`{_wanted(graph)}`",
            fix="take its `slot_form`, which has a switch",
        )
    shapes = graph.parameter_shapes(widths)
    return {name: (np.ones if name in ones else np.zeros)(shape, np.float32) for name, shape in shapes.items()}


def has_neutral_parameters(graph: AdapterGraph) -> bool:
    """Whether `neutral_parameters` finds some."""
    return _neutral_ones(graph) is not None


def degree_idle(graph: AdapterGraph) -> int:
    """The highest power of the site values that is computed where all projections and norms are zero."""
    zero = _follow(graph, _parameters_of(graph, frozenset({"scale_features"})))
    degrees = dict.fromkeys(graph.inputs, 1)
    for node in graph.nodes:
        read = [degrees[name] for name in node.inputs]
        degree = sum(read) if node.op in _PRODUCTS else 2 * read[0] if node.op == "relu_squared" else max(read)
        degrees[node.output] = 0 if zero[node.output] == _ZERO or node.op in _TAME else degree
    return max(degrees.values())


def _wanted(graph: AdapterGraph) -> str:
    return _ZERO if graph.reads_head_values() else graph.replaces


def _neutral_ones(graph: AdapterGraph) -> frozenset[str] | None:
    """The parameters that are one where the others are zero and the graph is neutral; none if it never is."""
    choices = [_parameters_of(graph, ops) for ops in _ONES]
    choices += [frozenset({name}) for name in sorted(_parameters_of(graph, frozenset({"scale_features"})))]
    return next((ones for ones in choices if _follow(graph, ones)[graph.result] == _wanted(graph)), None)


def _parameters_of(graph: AdapterGraph, ops: frozenset[str]) -> frozenset[str]:
    """Those that nothing but these ops use."""
    inside, outside = (
        {name for node in graph.nodes if (node.op in ops) is wanted for name in node.parameters.values()}
        for wanted in (True, False)
    )
    return frozenset(inside - outside)


def _follow(graph: AdapterGraph, ones: frozenset[str]) -> dict[str, str]:
    """What each value is when the other parameters are zero: the name of a site value, zero, or unknown."""
    known = {name: name for name in graph.inputs}
    for node in graph.nodes:
        known[node.output] = _transfer(node, [known[name] for name in node.inputs], ones)
    return known


def _transfer(node: Node, inputs: list[str], ones: frozenset[str]) -> str:
    if node.op in _PASSING or (node.parameters and set(node.parameters.values()) <= ones):
        return inputs[0]
    if node.op in _ZERO_WITH_ZERO_PARAMETERS or (node.op in _ZERO_WITH_ANY_ZERO and _ZERO in inputs):
        return _ZERO
    if node.op == "add" and _ZERO in inputs:
        return inputs[1] if inputs[0] == _ZERO else inputs[0]
    if node.op == "softmax_mix":
        return _ZERO if set(inputs[len(inputs) // 2 :]) == {_ZERO} else _UNKNOWN
    return _ZERO if node.op in _ZERO_KEEPING and inputs[0] == _ZERO else _UNKNOWN
