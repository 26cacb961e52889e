"""Shape rules: which shape an op returns, and which shapes it cannot read."""

from __future__ import annotations

from collections.abc import Mapping

from adapter_export.errors import GraphError
from adapter_export.graph.op_spec import Dim, Shape


def all_equal(inputs: tuple[Shape, ...], _: Mapping[str, Dim]) -> Shape:
    """Any number of values of one shape, which is returned."""
    if len(set(inputs)) != 1:
        raise GraphError(
            "values of different shapes meet", found=" and ".join(map(str, inputs)), expected="equal shapes"
        )
    return inputs[0]


def linear(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    """The last axis becomes `out`."""
    return (*inputs[0][:-1], dims["out"])


def one_number(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    """Values of one shape, whose last axis becomes 1."""
    return (*all_equal(inputs, dims)[:-1], 1)


def without_tokens(inputs: tuple[Shape, ...], _: Mapping[str, Dim]) -> Shape:
    """One value per token becomes one per row."""
    batch, _tokens, width = _three_axes(inputs[0])
    return (batch, width)


def masked(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    """One value per token and a mask [batch, tokens] become one value per row."""
    if inputs[1] != _three_axes(inputs[0])[:2]:
        raise GraphError("the mask does not cover the tokens", found=inputs[1], expected=inputs[0][:2])
    return without_tokens(inputs, dims)


def gated(inputs: tuple[Shape, ...], _: Mapping[str, Dim]) -> Shape:
    """One value per token, and one number per token."""
    batch, tokens, _width = _three_axes(inputs[0])
    if inputs[1] != (batch, tokens, 1):
        raise GraphError("a gate is one number per token", found=inputs[1], expected=(batch, tokens, 1))
    return inputs[0]


def equal_per_token(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    """Any number of values [batch, tokens, width] of one shape, which is returned."""
    _three_axes(inputs[0])
    return all_equal(inputs, dims)


def mixed_by_scores(inputs: tuple[Shape, ...], dims: Mapping[str, Dim]) -> Shape:
    """N scores with a last axis of 1, then N values of one shape, which is returned."""
    count = len(inputs) // 2
    value = all_equal(inputs[count:], dims)
    wrong = [shape for shape in inputs[:count] if shape != (*value[:-1], 1)]
    if wrong:
        raise GraphError("a score is one number beside each value", found=wrong[0], expected=(*value[:-1], 1))
    return value


def of_base_norm(inputs: tuple[Shape, ...], _: Mapping[str, Dim]) -> Shape:
    """What the base itself normalises there."""
    if inputs[0] != ("batch", "tokens", "d"):
        raise GraphError("the base's norm is of width `d`", found=inputs[0], expected="[batch, tokens, d]")
    return inputs[0]


def _three_axes(shape: Shape) -> tuple[Dim, Dim, Dim]:
    if len(shape) != 3:
        raise GraphError("an op over tokens reads one value per token", found=shape, expected="[batch, tokens, width]")
    return shape[0], shape[1], shape[2]
