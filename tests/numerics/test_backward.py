"""The NumPy gradients beside torch's autograd in float64, and beside finite differences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from backends import draw_inputs, draw_parameters, op_widths, single_op
from hypothesis import given
from published import OPTIONS, PUBLISHED
from published import WIDTHS as KIND_WIDTHS
from random_graphs import WIDTHS, graphs
from tiers import examples

from adapter_export.graph.graph import AdapterGraph, Node, interpret
from adapter_export.graph.kinds import BottleneckOptions, bottleneck, classification_head
from adapter_export.graph.ops import ACTIVATIONS, LOWERED, POOLINGS
from adapter_export.numerics.evaluate_adapter import evaluate, gradients
from adapter_export.torch_backend.torch_lowering import LOWERINGS

Arrays = dict[str, np.ndarray]
STEP = 1e-6

CONSTANT = {("last_token", "mask"), ("max_pool", "mask")}
"""The values that an op only compares with 0."""


def sample(graph: AdapterGraph, widths: dict[str, int], tokens: int = 7) -> tuple[Arrays, Arrays, np.ndarray]:
    """Inputs, parameters and a random gradient of the result, in float64.

    The mask has values between 0 and 1, and its rows do not sum to 1, where the mean has a kink.
    """
    rng = np.random.default_rng(0)
    inputs, parameters = draw_inputs(graph, 2, tokens, widths["d"], rng), draw_parameters(graph, widths, rng)
    if "mask" in inputs:
        inputs["mask"] = rng.uniform([[0.4], [0.01]], [[1.0], [0.1]], (2, tokens))
    inputs, parameters = ({k: v.astype(np.float64) for k, v in group.items()} for group in (inputs, parameters))
    return inputs, parameters, rng.standard_normal(evaluate(graph, inputs, parameters).shape)


def by_autograd(graph: AdapterGraph, inputs: Arrays, parameters: Arrays, gradient: np.ndarray) -> tuple[Arrays, Arrays]:
    leaves = [
        {name: torch.tensor(array, requires_grad=True) for name, array in group.items()}
        for group in (inputs, parameters)
    ]
    result = interpret(graph, LOWERINGS, *leaves)[graph.result]
    result.backward(torch.tensor(gradient))
    of_inputs, of_parameters = (
        {name: np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy() for name, leaf in group.items()}
        for group in leaves
    )
    return of_inputs, of_parameters


def by_differences(
    graph: AdapterGraph, inputs: Arrays, parameters: Arrays, gradient: np.ndarray
) -> tuple[Arrays, Arrays]:
    def loss() -> float:
        return float((evaluate(graph, inputs, parameters) * gradient).sum())

    def slopes(array: np.ndarray) -> Iterator[float]:
        for index in np.ndindex(array.shape):
            middle = array[index]
            array[index] = middle + STEP
            above = loss()
            array[index] = middle - STEP
            below = loss()
            array[index] = middle
            yield (above - below) / (2 * STEP)

    of_inputs, of_parameters = (
        {name: np.array(list(slopes(array))).reshape(array.shape) for name, array in group.items()}
        for group in (inputs, parameters)
    )
    return of_inputs, of_parameters


def assert_equal(found: tuple[Arrays, Arrays], expected: tuple[Arrays, Arrays], tolerance: float) -> None:
    for found_group, expected_group in zip(found, expected, strict=True):
        assert set(found_group) == set(expected_group)
        for name, array in expected_group.items():
            assert found_group[name].shape == array.shape
            scale = max(1.0, np.abs(array).max())
            np.testing.assert_allclose(found_group[name], array, rtol=0, atol=tolerance * scale, err_msg=name)


BY_INDEX = {"lookup", "one_hot", "scatter"}
"""Ops of whole numbers, which have no slope."""


def test_a_lookup_has_the_gradients_of_autograd() -> None:
    graph, widths = single_op("lookup"), op_widths(24, 6)
    rng = np.random.default_rng(0)
    parameters = {name: value.astype(np.float64) for name, value in draw_parameters(graph, widths, rng).items()}
    (table,) = parameters.values()
    inputs = {name: rng.integers(0, len(table), (2, 7)).astype(np.float64) for name in graph.inputs}
    gradient = rng.standard_normal(evaluate(graph, inputs, parameters).shape)
    found = gradients(graph, inputs, parameters, gradient)
    assert np.any(found[1]["weight"])
    assert_equal(found, by_autograd(graph, inputs, parameters, gradient), 1e-13)


@pytest.mark.parametrize("op", sorted({*LOWERED} - BY_INDEX))
def test_an_op_has_the_gradients_of_autograd(op: str) -> None:
    graph, widths = single_op(op), op_widths(24, 6)
    inputs, parameters, gradient = sample(graph, widths)
    found = gradients(graph, inputs, parameters, gradient)
    assert all(np.any(array) for group in found for name, array in group.items() if (op, name) not in CONSTANT)
    assert_equal(found, by_autograd(graph, inputs, parameters, gradient), 1e-13)


@pytest.mark.parametrize("op", sorted({*LOWERED} - BY_INDEX))
def test_an_op_has_the_gradients_of_finite_differences(op: str) -> None:
    graph = single_op(op)
    inputs, parameters, gradient = sample(graph, op_widths(4, 2), tokens=3)
    found = gradients(graph, inputs, parameters, gradient)
    assert_equal(found, by_differences(graph, inputs, parameters, gradient), 1e-8)


GRAPHS = {**PUBLISHED, **OPTIONS} | {
    activation: bottleneck("h", BottleneckOptions(activation=activation)) for activation in ACTIVATIONS
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_kind_has_the_gradients_of_autograd(name: str) -> None:
    graph = GRAPHS[name]
    inputs, parameters, gradient = sample(graph, KIND_WIDTHS)
    expected = by_autograd(graph, inputs, parameters, gradient)
    assert_equal(gradients(graph, inputs, parameters, gradient), expected, 1e-12)


@pytest.mark.parametrize("source", ["h", "u"])
def test_a_bottleneck_has_the_gradients_of_finite_differences(source: str) -> None:
    graph = bottleneck(source, BottleneckOptions(activation="gelu", scaling=1.5, norm_before=True, norm_after=True))
    inputs, parameters, gradient = sample(graph, {"d": 5, "d_in": 5, "b": 3}, tokens=2)
    expected = by_differences(graph, inputs, parameters, gradient)
    assert_equal(gradients(graph, inputs, parameters, gradient), expected, 1e-7)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_head_has_the_gradients_of_autograd(pooling: str) -> None:
    graph = classification_head(pooling)
    inputs, parameters, gradient = sample(graph, {"d": 8, "classes": 3})
    expected = by_autograd(graph, inputs, parameters, gradient)
    assert_equal(gradients(graph, inputs, parameters, gradient), expected, 1e-13)


def test_a_shared_weight_and_a_value_read_twice_collect_all_their_gradients() -> None:
    nodes = (
        Node("linear", ("h",), "a", {"weight": "w"}),
        Node("tanh", ("a",), "t"),
        Node("linear", ("t",), "b", {"weight": "w"}),
        Node("multiply", ("b", "b"), "square"),
        Node("add", ("square", "h"), "r"),
    )
    graph = AdapterGraph(("h",), {"w": ("d", "d")}, nodes, "r")
    inputs, parameters, gradient = sample(graph, {"d": 6})
    expected = by_autograd(graph, inputs, parameters, gradient)
    assert_equal(gradients(graph, inputs, parameters, gradient), expected, 1e-12)


def test_gradients_at_kinks_match_torch() -> None:
    for op, kink in (("relu", 0.0), ("leaky_relu", 0.0), ("relu6", 0.0), ("relu6", 6.0), ("elu", 0.0)):
        inputs, gradient = {"h": np.full((1, 1, 4), kink)}, np.ones((1, 1, 4))
        expected = by_autograd(single_op(op), inputs, {}, gradient)
        assert_equal(gradients(single_op(op), inputs, {}, gradient), expected, 0)


@given(graph=graphs())
@examples(200)
def test_random_graphs_have_the_gradients_of_autograd(graph: AdapterGraph) -> None:
    inputs, parameters, gradient = sample(graph, WIDTHS, tokens=3)
    expected = by_autograd(graph, inputs, parameters, gradient) if graph.nodes else ({graph.result: gradient}, {})
    assert_equal(gradients(graph, inputs, parameters, gradient), expected, 1e-9)
