"""Folding: nothing constant is left to compute, and nothing is folded that something else still reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from backends import draw_inputs, draw_parameters
from hypothesis import given
from random_graphs import WIDTHS as ANY_WIDTHS
from random_graphs import graphs
from tiers import examples

from adapter_export.errors import GraphError
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.kinds import KINDS, BottleneckOptions, bottleneck
from adapter_export.graph.slot_form import fold_weights, inference_form
from adapter_export.numerics.evaluate_adapter import evaluate

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


@pytest.mark.parametrize("options", [{"norm_after": True}, {"no_bias": True}, {}])
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
def test_factors_that_cannot_be_folded_stay(why: str) -> None:
    assert inference_form(STAYS[why]) == STAYS[why]
    assert_same_value(STAYS[why])


def test_a_graph_that_only_drops_out_becomes_empty() -> None:
    graph = AdapterGraph(("h",), {}, (Node("dropout", ("h",), "r", {}, {"rate": 0.5}),), "r")
    assert inference_form(graph) == AdapterGraph(("h",), {}, (), "h")


def test_a_factor_out_of_range_is_refused() -> None:
    graph = AdapterGraph(("h",), SQUARE, (UP, scale("up", "result", 3e38)), "result")
    with pytest.raises(GraphError, match="the factors of parameter `w` exceed the range of float32"):
        fold_weights(graph, {"w": np.full((8, 8), 2, np.float32)})


@given(graph=graphs())
@examples(200)
def test_folding_is_idempotent_and_drops_constants(graph: AdapterGraph) -> None:
    form = inference_form(graph)
    assert inference_form(form) == form
    assert not {"identity", "dropout", "drop_path", "phm_linear"} & set(ops(form))
    assert {name for name in form.parameters if name not in graph.parameters} <= {
        f"{node.output}.weight" for node in graph.nodes if node.op == "phm_linear"
    }
    assert set(fold_weights(graph, draw_parameters(graph, ANY_WIDTHS, np.random.default_rng(0)))) == set(
        form.parameters
    )


FACTOR = {
    "scale": scale("up", "s"),
    "learned_scale": Node("learned_scale", ("up",), "s", {"weight": "s"}),
    "scale_features": Node("scale_features", ("up",), "s", {"weight": "s"}),
    "keep_first_half": Node("keep_first_half", ("up",), "s"),
    "keep_second_half": Node("keep_second_half", ("up",), "s"),
}
FACTOR_SHAPE = {"learned_scale": (1,), "scale_features": ("d",)}
TAKERS = {
    "linear": (Node("linear", ("h",), "up", {"weight": "w", "bias": "b"}), {"w": ("d", "d"), "b": ("d",)}),
    "layer_norm": (
        Node("layer_norm", ("h",), "up", {"weight": "w", "bias": "b"}, {"epsilon": 1e-5}),
        {"w": ("d",), "b": ("d",)},
    ),
    "rms_norm": (Node("rms_norm", ("h",), "up", {"weight": "w"}, {"epsilon": 1e-5}), {"w": ("d",)}),
    "scale_features": (Node("scale_features", ("h",), "up", {"weight": "w"}), {"w": ("d",)}),
}


def behind(taker: str, factor: str) -> AdapterGraph:
    node, shapes = TAKERS[taker]
    own = {"s": FACTOR_SHAPE[factor]} if factor in FACTOR_SHAPE else {}
    return AdapterGraph(("h",), {**shapes, **own}, (node, FACTOR[factor]), "s")


@pytest.mark.parametrize("factor", FACTOR)
@pytest.mark.parametrize("taker", TAKERS)
def test_factors_are_folded_into_the_preceding_op(taker: str, factor: str) -> None:
    graph = behind(taker, factor)
    form = inference_form(graph)
    assert ops(form) == [taker]
    assert set(form.parameters) == set(TAKERS[taker][1])
    assert_same_value(graph)


@pytest.mark.parametrize("factor", FACTOR)
def test_factors_are_folded_into_the_following_product(factor: str) -> None:
    first = replace(FACTOR[factor], inputs=("h",))
    product = Node("linear", ("s",), "r", {"weight": "w", "bias": "b"})
    own = {"s": FACTOR_SHAPE[factor]} if factor in FACTOR_SHAPE else {}
    graph = AdapterGraph(("h",), {**own, "w": ("d", "b"), "b": ("b",)}, (first, product), "r")
    assert ops(inference_form(graph)) == ["linear"]
    rng = np.random.default_rng(0)
    parameters = draw_parameters(graph, WIDTHS, rng)
    np.testing.assert_array_equal(fold_weights(graph, parameters)["b"], parameters["b"])
    assert_same_value(graph)


def test_learned_factors_with_two_uses_are_folded_once() -> None:
    """h·s + (h @ W)·s: the second goes into W, the first stays, and so does its parameter."""
    nodes = (
        Node("learned_scale", ("h",), "a", {"weight": "s"}),
        UP,
        Node("learned_scale", ("up",), "b", {"weight": "s"}),
        Node("add", ("a", "b"), "r"),
    )
    graph = AdapterGraph(("h",), {**SQUARE, "s": (1,)}, nodes, "r")
    assert ops(inference_form(graph)) == ["learned_scale", "linear", "add"]
    assert_same_value(graph)


class TestShared:
    """Shared parameters stay shared: factors of one site are not folded into them."""

    def graph(self, *shared: str) -> AdapterGraph:
        factor = Node("learned_scale", ("up",), "r", {"weight": "s"})
        return AdapterGraph(("h",), {**SQUARE, "s": (1,)}, (UP, factor), "r", shared=shared)

    def test_a_factor_of_one_place_stays(self) -> None:
        assert inference_form(self.graph("w")) == self.graph("w")

    @pytest.mark.parametrize(("shared", "left"), [(("s",), ()), (("s", "w"), ("w",)), ((), ())])
    def test_a_factor_goes_where_nothing_differs_between_places(
        self, shared: tuple[str, ...], left: tuple[str]
    ) -> None:
        form = inference_form(self.graph(*shared))
        assert (ops(form), form.shared) == (["linear"], left)

    def test_constants_are_folded_into_shared_weights(self) -> None:
        graph = AdapterGraph(("h",), SQUARE, (UP, scale("up", "r")), "r", shared=("w",))
        assert (ops(inference_form(graph)), inference_form(graph).shared) == (["linear"], ("w",))


def test_weights_of_a_mix_are_not_folded() -> None:
    nodes = (Node("mix", ("h", "h"), "m", {"weights": "w"}), scale("m", "r"))
    graph = AdapterGraph(("h",), {"w": (1, 2)}, nodes, "r")
    assert inference_form(graph) == graph


PHM_ROLES = {"rule": "rule", "left": "down.left", "right": "down.right", "bias": "down.bias"}
PHM_SHAPES = {"rule": ("n", "n", "n"), "down.left": ("n", "p", "k"), "down.right": ("n", "k", "q"), "down.bias": ("b",)}
PHM_WIDTHS = {"d": 8, "b": 6, "n": 2, "p": 4, "k": 1, "q": 3}


class TestKroneckerProducts:
    """They are for training; at inference a projection is dense."""

    def graph(self, *shared: str) -> AdapterGraph:
        nodes = (Node("phm_linear", ("h",), "down", PHM_ROLES), scale("down", "r", 2.0))
        return AdapterGraph(("h",), PHM_SHAPES, nodes, "r", shared=shared)

    def test_the_weight_is_dense_and_takes_the_factor(self) -> None:
        form = inference_form(self.graph("rule"))
        assert ops(form) == ["linear"]
        assert (form.parameters, form.shared) == ({"down.weight": ("d", "b"), "down.bias": ("b",)}, ())
        rng = np.random.default_rng(0)
        parameters = draw_parameters(self.graph(), PHM_WIDTHS, rng)
        inputs = draw_inputs(self.graph(), 2, 3, 8, rng)
        found = evaluate(form, inputs, fold_weights(self.graph(), parameters))
        np.testing.assert_allclose(found, evaluate(self.graph(), inputs, parameters), rtol=0, atol=1e-6)

    def test_folded_weight_is_the_sum_of_kronecker_products(self) -> None:
        rng = np.random.default_rng(0)
        parameters = draw_parameters(self.graph(), PHM_WIDTHS, rng)
        rule, left, right = (parameters[name].astype(np.float64) for name in ("rule", "down.left", "down.right"))
        expected = 2 * sum(np.kron(one, a @ b) for one, a, b in zip(rule, left, right, strict=True))
        np.testing.assert_allclose(fold_weights(self.graph(), parameters)["down.weight"], expected, rtol=1e-6)

    def test_folding_keeps_fully_shared_weights_shared(self) -> None:
        assert inference_form(self.graph("rule", "down.left", "down.right")).shared == ("down.weight",)

    def test_the_name_of_another_parameter_is_not_taken(self) -> None:
        nodes = (*self.graph().nodes, Node("linear", ("r",), "up", {"weight": "down.weight"}))
        graph = AdapterGraph(("h",), {**PHM_SHAPES, "down.weight": ("b", "d")}, nodes, "up")
        assert set(inference_form(graph).parameters) == {"down.weight_", "down.bias", "down.weight"}
