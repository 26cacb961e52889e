"""Folding: nothing constant is left to compute, and nothing is folded that something else still reads."""

from __future__ import annotations

import numpy as np
import pytest
from backends import draw_inputs, draw_parameters
from hypothesis import given, settings
from random_graphs import WIDTHS as ANY_WIDTHS
from random_graphs import graphs

from adapter_export.errors import GraphError
from adapter_export.graph.fold import fold_weights, inference_form
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.kinds import KINDS, BottleneckOptions, bottleneck
from adapter_export.reference.evaluate import evaluate

WIDTHS = {"d": 8, "d_in": 8, "b": 3}
SQUARE = {"w": ("d", "d")}
UP = Node("linear", ("h",), "up", {"weight": "w"})


def scale(source: str, output: str, factor: float = 1.7) -> Node:
    return Node("scale", (source,), output, {}, {"factor": factor})


def ops(graph: AdapterGraph) -> list[str]:
    return [node.op for node in graph.nodes]


def assert_same_value(graph: AdapterGraph) -> None:
    """Within the one rounding that a folded weight takes."""
    rng = np.random.default_rng(0)
    inputs, parameters = draw_inputs(graph, 2, 3, 8, rng), draw_parameters(graph, WIDTHS, rng)
    found = evaluate(inference_form(graph), inputs, fold_weights(graph, parameters))
    np.testing.assert_allclose(found, evaluate(graph, inputs, parameters), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"norm_after": True}, {"bias": False}, {}])
@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer", "parallel"])
def test_a_published_kind_is_left_without_factor_and_dropout(kind: str, options: dict[str, bool]) -> None:
    graph = KINDS[kind](BottleneckOptions(activation="identity", scaling=1.7, dropout=0.3, **options)).graph
    assert {"scale", "dropout", "identity"} <= set(ops(graph))
    assert not {"scale", "dropout", "identity"} & set(ops(inference_form(graph)))
    assert_same_value(graph)


def test_the_factor_goes_into_weight_and_bias() -> None:
    graph = bottleneck("h", BottleneckOptions(scaling=4.0))
    parameters = draw_parameters(graph, WIDTHS, np.random.default_rng(0))
    folded = fold_weights(graph, parameters)
    for name in ("up.weight", "up.bias"):
        np.testing.assert_array_equal(folded[name], 4 * parameters[name])
    for name in ("down.weight", "down.bias"):
        np.testing.assert_array_equal(folded[name], parameters[name])
    assert all(tensor.dtype == np.float32 for tensor in folded.values())


def test_several_factors_are_rounded_once() -> None:
    graph = AdapterGraph(("h",), SQUARE, (UP, scale("up", "a", 1 / 3), scale("a", "b", 3.0)), "b")
    parameters = {"w": np.full((8, 8), 0.1, np.float32)}
    assert ops(inference_form(graph)) == ["linear"]
    np.testing.assert_array_equal(fold_weights(graph, parameters)["w"], parameters["w"])


def test_a_factor_behind_dropout_is_folded() -> None:
    nodes = (UP, Node("dropout", ("up",), "dropped", {}, {"rate": 0.5}), scale("dropped", "result"))
    graph = AdapterGraph(("h",), SQUARE, nodes, "result")
    assert ops(inference_form(graph)) == ["linear"]
    assert_same_value(graph)


STAYS = {
    "another node reads the product": AdapterGraph(
        ("h",), SQUARE, (UP, scale("up", "s"), Node("add", ("up", "s"), "result")), "result"
    ),
    "the weight is shared": AdapterGraph(
        ("h",),
        SQUARE,
        (UP, Node("linear", ("h",), "twin", {"weight": "w"}), scale("up", "s"), Node("add", ("twin", "s"), "result")),
        "result",
    ),
    "weight and bias are shared by one node": AdapterGraph(
        ("h",),
        {"v": ("d",)},
        (Node("layer_norm", ("h",), "n", {"weight": "v", "bias": "v"}, {"epsilon": 1e-5}), scale("n", "result")),
        "result",
    ),
    "there is no product": AdapterGraph(("h",), {}, (scale("h", "result"),), "result"),
    "an activation lies between": AdapterGraph(
        ("h",), SQUARE, (UP, Node("gelu", ("up",), "g"), scale("g", "result")), "result"
    ),
}


@pytest.mark.parametrize("why", STAYS)
def test_a_factor_stays_where(why: str) -> None:
    assert inference_form(STAYS[why]) == STAYS[why]
    assert_same_value(STAYS[why])


def test_a_graph_that_only_drops_out_becomes_empty() -> None:
    graph = AdapterGraph(("h",), {}, (Node("dropout", ("h",), "r", {}, {"rate": 0.5}),), "r")
    assert inference_form(graph) == AdapterGraph(("h",), {}, (), "h")


def test_a_factor_out_of_range_is_refused() -> None:
    graph = AdapterGraph(("h",), SQUARE, (UP, scale("up", "result", 3e38)), "result")
    with pytest.raises(GraphError, match="the factors behind parameter `w` take it out of the range of float32"):
        fold_weights(graph, {"w": np.full((8, 8), 2, np.float32)})


@given(graph=graphs())
@settings(deadline=None, max_examples=200)
def test_the_form_is_final(graph: AdapterGraph) -> None:
    form = inference_form(graph)
    assert inference_form(form) == form
    assert not {"identity", "dropout", "drop_path", "phm_linear"} & set(ops(form))
    assert {name for name in form.parameters if name not in graph.parameters} <= {
        f"{node.output}.weight" for node in graph.nodes if node.op == "phm_linear"
    }
    assert set(fold_weights(graph, draw_parameters(graph, ANY_WIDTHS, np.random.default_rng(0)))) == set(
        form.parameters
    )
