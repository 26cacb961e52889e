"""Graphs without neutral parameters get a switch: exactly the replaced value when idle, the result when active."""

from __future__ import annotations

import numpy as np
import pytest
from backends import draw_inputs, draw_parameters
from hypothesis import given
from random_graphs import WIDTHS, graphs
from tiers import examples

from adapter_export.errors import NotNeutralError
from adapter_export.graph.graph import SITE_VALUES, AdapterGraph, Node
from adapter_export.graph.slot_form import (
    degree_idle,
    has_neutral_parameters,
    inference_form,
    neutral_parameters,
    neutral_widths,
    slot_form,
    slot_weights,
)
from adapter_export.numerics.evaluate_adapter import evaluate

PRODUCT = Node("linear", ("h",), "p", {"weight": "w"})
SQUARE = {"w": ("d", "d")}
SITE_WIDTHS = {name: WIDTHS[name] for name in ("d", "d_in")}


def values_of(graph: AdapterGraph, seed: int = 0) -> dict[str, np.ndarray]:
    return draw_inputs(graph, 2, 3, WIDTHS["d"], np.random.default_rng(seed))


def loses_the_residual() -> AdapterGraph:
    return AdapterGraph(("h",), SQUARE, (PRODUCT, Node("gelu", ("p",), "g")), "g")


def replaces_without_reading() -> AdapterGraph:
    node = Node("linear", ("x",), "p", {"weight": "w"})
    return AdapterGraph(("x",), SQUARE, (node,), "p", "y")


@examples(300)
@given(graphs())
def test_any_graph_of_a_site_lies_idle_or_is_refused(graph: AdapterGraph) -> None:
    """Idle it returns the replaced value bit for bit; active it computes the graph."""
    if graph.reads_head_values() or graph.shapes()[graph.result] != SITE_VALUES[graph.replaces]:
        return
    try:
        form = slot_form(graph)
    except NotNeutralError:
        assert degree_idle(inference_form(graph)) > 2
        return
    assert slot_form(form) == form
    values = values_of(form)
    idle = neutral_parameters(form, neutral_widths(form, SITE_WIDTHS))
    np.testing.assert_array_equal(evaluate(form, values, idle), values[form.replaces])
    parameters = draw_parameters(graph, {name: WIDTHS[name] for name in graph.symbols()}, np.random.default_rng(1))
    wanted = evaluate(graph, values, parameters)
    found = evaluate(form, values, slot_weights(graph, parameters, SITE_WIDTHS))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5 * max(1.0, float(np.abs(wanted).max())))


@pytest.mark.parametrize("graph", [loses_the_residual(), replaces_without_reading()])
def test_an_active_switch_is_exact(graph: AdapterGraph) -> None:
    """With float32 weights nothing is rounded, although the kept value is a million times larger."""
    form = slot_form(graph)
    values = {name: value * 1e6 for name, value in values_of(form).items()}
    weights = {"w": np.random.default_rng(1).normal(0, 0.2, (8, 8)).astype(np.float32)}
    found = evaluate(form, values, slot_weights(graph, weights, SITE_WIDTHS))
    np.testing.assert_array_equal(found, evaluate(graph, values, weights))


def test_graphs_with_neutral_parameters_get_no_switch() -> None:
    graph = AdapterGraph(("h",), SQUARE, (PRODUCT, Node("add", ("h", "p"), "r")), "r")
    assert slot_form(graph) == graph
    assert not has_neutral_parameters(loses_the_residual())
    assert list(slot_form(loses_the_residual()).parameters) == ["w", "switch.keep", "switch.use"]


def test_a_factor_of_one_more_projection_is_saved() -> None:
    """Behind a projection `use` goes into its weights."""
    graph = AdapterGraph(("h",), SQUARE, (PRODUCT,), "p")
    assert list(slot_form(graph).parameters) == ["w", "switch.keep"]


def test_kept_factors_stay_separate_from_the_switch() -> None:
    """`use` goes into the factor of `gelu(h)`, which must be zero where `keep` is one."""
    nodes = (Node("gelu", ("h",), "g"), Node("scale_features", ("g",), "r", {"weight": "w"}))
    form = slot_form(AdapterGraph(("h",), {"w": ("d",)}, nodes, "r"))
    assert list(form.parameters) == ["w", "switch.keep"]
    assert slot_form(form) == form
    idle = neutral_parameters(form, SITE_WIDTHS)
    assert not idle["w"].any()
    assert (idle["switch.keep"] == 1).all()


def test_taken_names_are_avoided() -> None:
    nodes = (Node("linear", ("h",), "kept", {"weight": "switch.keep"}), Node("gelu", ("kept",), "switched"))
    form = slot_form(AdapterGraph(("h",), {"switch.keep": ("d", "d")}, nodes, "switched"))
    assert list(form.parameters) == ["switch.keep", "switch.keep_", "switch.use"]
    assert form.result == "switched_"


@pytest.mark.parametrize(
    ("nodes", "degree"),
    [
        ((Node("multiply", ("h", "x"), "r"),), 2),
        ((Node("relu_squared", ("h",), "s"), Node("multiply", ("s", "x"), "r")), 3),
        ((Node("relu_squared", ("h",), "s"), Node("tanh", ("s",), "t"), Node("multiply", ("t", "x"), "r")), 2),
        ((Node("sigmoid", ("h",), "s"), Node("multiply", ("x", "s"), "r")), 1),
        ((Node("dot", ("h", "x"), "s"), Node("softmax_mix", ("s", "h"), "r", {}, {"temperature": 1.0})), 2),
    ],
)
def test_powers_of_idle_graphs_are_counted(nodes: tuple[Node, ...], degree: int) -> None:
    inputs = tuple(name for name in ("h", "x") if any(name in node.inputs for node in nodes))
    graph = AdapterGraph(inputs, {}, nodes, "r")
    assert degree_idle(graph) == degree
    if degree > 2:
        with pytest.raises(NotNeutralError, match=f"a power of {degree} of the base's values"):
            slot_form(graph)
