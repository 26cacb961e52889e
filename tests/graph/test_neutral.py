"""Graphs with and without neutral parameters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from backends import draw_inputs

from adapter_export.errors import NotNeutralError
from adapter_export.graph.graph import SITE_VALUES, AdapterGraph, Node
from adapter_export.graph.kinds import KINDS, BottleneckOptions, bottleneck, classification_head
from adapter_export.graph.ops import ACTIVATIONS, POOLINGS
from adapter_export.graph.slot_form import NEUTRAL_WIDTH, neutral_parameters, neutral_widths
from adapter_export.numerics.evaluate_adapter import evaluate

WIDTHS = {"d": 8, "d_in": 8}
PRODUCT = Node("linear", ("h",), "p", {"weight": "w"})
SQUARE = {"w": ("d", "d")}


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer", "parallel"])
def test_a_published_kind_returns_h(kind: str, activation: str, norms: bool) -> None:
    options = BottleneckOptions(activation=activation, scaling=2.0, norm_before=norms, norm_after=norms)
    graph = KINDS[kind](options).graph
    widths = neutral_widths(graph, WIDTHS)
    parameters = neutral_parameters(graph, widths)
    inputs = draw_inputs(graph, 2, 3, 8, np.random.default_rng(0))
    np.testing.assert_array_equal(evaluate(graph, inputs, parameters), inputs["h"])
    assert widths["b"] == NEUTRAL_WIDTH == 1
    assert {name: tensor.shape for name, tensor in parameters.items()} == graph.parameter_shapes(widths)
    assert all(tensor.dtype == np.float32 and not tensor.any() for tensor in parameters.values())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_head_returns_zeros(pooling: str) -> None:
    graph = classification_head(pooling)
    parameters = neutral_parameters(graph, neutral_widths(graph, {"d": 8}))
    inputs = draw_inputs(graph, 2, 3, 8, np.random.default_rng(0))
    np.testing.assert_array_equal(evaluate(graph, inputs, parameters), np.zeros((2, 1)))


def test_a_head_that_pools_last_returns_zeros() -> None:
    nodes = (
        Node("linear", ("hidden",), "each", {"weight": "w"}),
        Node("mean_pool", ("each", "mask"), "result"),
    )
    graph = AdapterGraph(("hidden", "mask"), {"w": ("d", "classes")}, nodes, "result")
    assert not neutral_parameters(graph, {"d": 8, "classes": 1})["w"].any()


NOT_NEUTRAL = {
    "no residual": ("zero", AdapterGraph(("h",), SQUARE, (PRODUCT,), "p")),
    "h not read": (
        "zero",
        AdapterGraph(("u",), {"w": ("d_in", "d")}, (Node("linear", ("u",), "p", {"weight": "w"}),), "p"),
    ),
    "another residual": (
        "x",
        AdapterGraph(("h", "x"), SQUARE, (PRODUCT, Node("add", ("x", "p"), "r")), "r"),
    ),
    "a sum with what is not zero at zero": (
        "unknown",
        AdapterGraph(("h",), SQUARE, (PRODUCT, Node("sigmoid", ("p",), "s"), Node("add", ("h", "s"), "r")), "r"),
    ),
    "a gate on h": (
        "unknown",
        AdapterGraph(("h",), SQUARE, (PRODUCT, Node("sigmoid", ("p",), "s"), Node("multiply", ("h", "s"), "r")), "r"),
    ),
    "h through an activation": ("unknown", AdapterGraph(("h",), {}, (Node("gelu", ("h",), "r"),), "r")),
    "h twice": (
        "unknown",
        AdapterGraph(("h",), SQUARE, (PRODUCT, Node("add", ("h", "p"), "a"), Node("add", ("a", "h"), "r")), "r"),
    ),
}


@pytest.mark.parametrize("name", NOT_NEUTRAL)
def test_graphs_without_neutral_parameters_are_refused(name: str) -> None:
    found, graph = NOT_NEUTRAL[name]
    with pytest.raises(NotNeutralError) as caught:
        neutral_parameters(graph, WIDTHS)
    assert caught.value.found == f"{found} with all projections and norms at zero"
    assert "expected `h`" in str(caught.value)


def test_a_gated_bottleneck_can_lie_idle() -> None:
    """h + σ(G h)·U(f(D h)): half of nothing is nothing."""
    inner = bottleneck("h", BottleneckOptions())
    nodes = (
        *inner.nodes[:-1],
        Node("linear", ("h",), "g", {"weight": "gate"}),
        Node("sigmoid", ("g",), "s"),
        Node("multiply", ("s", "up"), "gated"),
        Node("add", ("gated", "h"), "result"),
    )
    graph = AdapterGraph(("h",), {**inner.parameters, "gate": ("d", "d")}, nodes, "result")
    inputs = draw_inputs(graph, 1, 2, 8, np.random.default_rng(0))
    neutral = neutral_parameters(graph, neutral_widths(graph, WIDTHS))
    np.testing.assert_array_equal(evaluate(graph, inputs, neutral), inputs["h"])


SCALED_SUM = (PRODUCT, Node("add", ("h", "p"), "sum"), Node("scale_features", ("sum",), "r", {"weight": "s"}))
LEARNED = (Node("gelu", ("h",), "g"), Node("learned_scale", ("g",), "p", {"weight": "s"}), Node("add", ("h", "p"), "r"))
PER_FEATURE = (LEARNED[0], replace(LEARNED[1], op="scale_features"), LEARNED[2])
ONES = {
    "a factor on h": (
        1,
        AdapterGraph(("h",), {"s": ("d",)}, (Node("scale_features", ("h",), "r", {"weight": "s"}),), "r"),
    ),
    "a factor on u": (
        1,
        AdapterGraph(("u",), {"s": (1,)}, (Node("learned_scale", ("u",), "r", {"weight": "s"}),), "r", "u"),
    ),
    "a factor on a sum": (1, AdapterGraph(("h",), {**SQUARE, "s": ("d",)}, SCALED_SUM, "r")),
    "a factor on what is not zero at zero": (0, AdapterGraph(("h",), {"s": (1,)}, LEARNED, "r")),
    "a factor for each feature of that": (0, AdapterGraph(("h",), {"s": ("d",)}, PER_FEATURE, "r")),
}


@pytest.mark.parametrize("name", ONES)
def test_neutral_learned_factors_are_one_or_zero(name: str) -> None:
    number, graph = ONES[name]
    inputs = draw_inputs(graph, 2, 3, 8, np.random.default_rng(0))
    neutral = neutral_parameters(graph, neutral_widths(graph, WIDTHS))
    assert (neutral["s"] == number).all()
    np.testing.assert_array_equal(evaluate(graph, inputs, neutral), inputs[graph.replaces])


@pytest.mark.parametrize("replaces", ["u", "h", "y"])
def test_neutral_parameters_return_the_replaced_value(replaces: str) -> None:
    width = SITE_VALUES[replaces][-1]
    nodes = (Node("linear", (replaces,), "p", {"weight": "w"}), Node("add", (replaces, "p"), "r"))
    graph = AdapterGraph((replaces,), {"w": (width, width)}, nodes, "r", replaces)
    inputs = draw_inputs(graph, 2, 3, 8, np.random.default_rng(0))
    neutral = neutral_parameters(graph, neutral_widths(graph, WIDTHS))
    np.testing.assert_array_equal(evaluate(graph, inputs, neutral), inputs[replaces])


def test_another_value_than_the_replaced_one_is_refused() -> None:
    nodes = (PRODUCT, Node("add", ("h", "p"), "r"))
    with pytest.raises(NotNeutralError, match=r"found h with .* expected `y`"):
        neutral_parameters(AdapterGraph(("h",), SQUARE, nodes, "r", "y"), WIDTHS)


@pytest.mark.parametrize(
    ("op", "inputs", "roles"),
    [
        ("mix", ("h", "x"), {"weights": (1, 2)}),
        ("rms_norm", ("h",), {"weight": ("d",)}),
        ("phm_linear", ("h",), {"rule": (2, 2, 2), "left": (2, 4, 1), "right": (2, 1, 4), "bias": ("d",)}),
    ],
)
def test_ops_with_parameters_give_zero(
    op: str, inputs: tuple[str, ...], roles: dict[str, tuple[int | str, ...]]
) -> None:
    attributes = {"epsilon": 1e-5} if op == "rms_norm" else {}
    nodes = (Node(op, inputs, "v", {role: role for role in roles}, attributes), Node("add", ("h", "v"), "r"))
    graph = AdapterGraph(inputs, roles, nodes, "r")
    values = draw_inputs(graph, 2, 3, 8, np.random.default_rng(0))
    neutral = neutral_parameters(graph, WIDTHS)
    assert not any(tensor.any() for tensor in neutral.values())
    np.testing.assert_array_equal(evaluate(graph, values, neutral), values["h"])


def test_shares_of_zeros_are_zero_and_shares_of_h_are_not_h() -> None:
    scores = (Node("linear", ("h",), "s", {"weight": "s"}), Node("linear", ("h",), "t", {"weight": "t"}))
    shapes = {"s": ("d", 1), "t": ("d", 1)}
    for values, found in ((("p", "p"), None), (("h", "h"), "unknown")):
        mixed = Node("softmax_mix", ("s", "t", *values), "m", {}, {"temperature": 1.0})
        nodes = (*scores, *([PRODUCT] if found is None else []), mixed, Node("add", ("h", "m"), "r"))
        graph = AdapterGraph(("h",), {**shapes, **(SQUARE if found is None else {})}, nodes, "r")
        if found is None:
            assert not neutral_parameters(graph, WIDTHS)["w"].any()
        else:
            with pytest.raises(NotNeutralError, match="found unknown"):
                neutral_parameters(graph, WIDTHS)
