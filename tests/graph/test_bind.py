"""Binding puts the base's norm where a graph leaves it to the base."""

from __future__ import annotations

import numpy as np
import pytest
from backends import draw_inputs, draw_parameters

from adapter_export.errors import GraphError
from adapter_export.graph.graph import (
    BORROWED_BIAS,
    BORROWED_WEIGHT,
    AdapterGraph,
    Node,
    bind_base_norm,
    cost,
    interpret,
    needs_base_norm,
)
from adapter_export.graph.kinds import BottleneckOptions, bottleneck
from adapter_export.graph.numpy_lowering import LOWERINGS
from adapter_export.graph.slot_form import fold_weights, inference_form, neutral_parameters
from adapter_export.numerics.evaluate_adapter import evaluate
from adapter_export.sites.site import Norm

SUM = Node("add", ("h", "x"), "sum")
NORM = Node("base_norm", ("sum",), "normed")
UP = Node("linear", ("normed",), "up", {"weight": "w"})
GRAPH = AdapterGraph(("h", "x"), {"w": ("d", "d")}, (SUM, NORM, UP, Node("add", ("h", "up"), "result")), "result")
WIDTHS = {"d": 8}


def norm(kind: str, epsilon: float, *, bias: bool = True) -> Norm:
    return Norm(kind, epsilon, "norm.weight", "norm.bias" if bias else None)


def test_a_layer_norm_is_that_of_the_base() -> None:
    rng = np.random.default_rng(0)
    inputs, own = draw_inputs(GRAPH, 2, 3, 8, rng), draw_parameters(GRAPH, WIDTHS, rng)
    borrowed = {BORROWED_WEIGHT: rng.normal(0, 0.2, 8), BORROWED_BIAS: rng.normal(0, 0.2, 8)}
    total = (inputs["h"] + inputs["x"]).astype(np.float64)
    normal = (total - total.mean(-1, keepdims=True)) / np.sqrt(total.var(-1, keepdims=True) + 1e-12)
    expected = inputs["h"] + (normal * borrowed[BORROWED_WEIGHT] + borrowed[BORROWED_BIAS]) @ own["w"]
    found = evaluate(bind_base_norm(GRAPH, norm("layer", 1e-12)), inputs, {**own, **borrowed})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "bias", "op", "borrowed"),
    [
        ("layer", True, "layer_norm", {BORROWED_WEIGHT, BORROWED_BIAS}),
        ("layer", False, "layer_norm", {BORROWED_WEIGHT}),
        ("rms", True, "rms_norm", {BORROWED_WEIGHT}),
        ("rms", False, "rms_norm", {BORROWED_WEIGHT}),
    ],
)
def test_bound_graph_borrows_the_parameters_of_the_norm(kind: str, bias: bool, op: str, borrowed: set[str]) -> None:
    bound = bind_base_norm(GRAPH, norm(kind, 1e-6, bias=bias))
    assert [node.op for node in bound.nodes] == ["add", op, "linear", "add"]
    assert set(bound.parameters) - set(GRAPH.parameters) == borrowed
    assert bound.nodes[1].attributes == {"epsilon": 1e-6}
    assert not needs_base_norm(bound)


def test_missing_norm_is_bound_as_the_identity() -> None:
    bound = bind_base_norm(GRAPH, None)
    assert [node.op for node in bound.nodes] == ["add", "linear", "add"]
    assert bound.parameters == GRAPH.parameters


def test_a_norm_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(GraphError, match="a graph applies the base's norm, which could not be read"):
        bind_base_norm(GRAPH, norm("unknown", 1e-5))


def test_graphs_without_the_norm_of_the_base_stay_unchanged() -> None:
    graph = bottleneck("h", BottleneckOptions())
    assert bind_base_norm(graph, norm("unknown", 1e-5)) is graph
    assert not needs_base_norm(graph)


def test_borrowed_names_are_kept_free() -> None:
    nodes = (SUM, NORM, Node("linear", ("normed",), "up", {"weight": BORROWED_WEIGHT}))
    graph = AdapterGraph(("h", "x"), {BORROWED_WEIGHT: ("d", "d")}, nodes, "up")
    with pytest.raises(GraphError, match=r"kept for the base's norm; found base_norm\.weight"):
        bind_base_norm(graph, norm("rms", 1e-6))


def test_unbound_norm_cannot_be_evaluated() -> None:
    inputs = draw_inputs(GRAPH, 1, 2, 8, np.random.default_rng(0))
    with pytest.raises(GraphError, match=r"`normed`: an op is the base's own .* found `base_norm`"):
        interpret(GRAPH, LOWERINGS, inputs, {"w": np.zeros((8, 8))})


def test_norm_of_the_base_adds_no_parameters() -> None:
    assert cost(GRAPH, WIDTHS).parameters == 64


def test_no_factor_is_folded_into_the_base() -> None:
    scale = Node("scale", ("normed",), "scaled", {}, {"factor": 2.0})
    graph = AdapterGraph(("h", "x"), {}, (SUM, NORM, scale), "scaled")
    bound = bind_base_norm(graph, norm("layer", 1e-5))
    assert inference_form(bound) == bound
    parameters = {BORROWED_WEIGHT: np.full(8, 0.5, np.float32), BORROWED_BIAS: np.full(8, 0.25, np.float32)}
    assert all((fold_weights(bound, parameters)[name] == parameters[name]).all() for name in parameters)


def test_behind_the_norm_a_bottleneck_can_lie_idle() -> None:
    assert not neutral_parameters(GRAPH, WIDTHS)["w"].any()
