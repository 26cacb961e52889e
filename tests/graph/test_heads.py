"""The usual heads: formulas by hand, shapes, and errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from heads import heads

from adapter_export.errors import UsageError
from adapter_export.graph.heads import HeadOptions, classification_head, head_graph, make_head
from adapter_export.graph.tasks import ProblemType, head_result
from adapter_export.numerics.evaluate_adapter import evaluate

D, B, T = 6, 3, 5
RNG = np.random.default_rng(0)
HIDDEN = RNG.standard_normal((B, T, D))
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0]])
MEAN = np.stack([rows[kept == 1].mean(0) for rows, kept in zip(HIDDEN, MASK, strict=True)])
READ = {"hidden": HIDDEN, "mask": MASK}


def draw(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {name: RNG.normal(0, 0.2, shape) for name, shape in shapes.items()}


def result(head_: Any, weights: Mapping[str, np.ndarray]) -> np.ndarray:
    return evaluate(head_.graph, READ, weights)


@pytest.mark.parametrize("name", heads(D))
def test_the_result_is_that_of_the_task(name: str) -> None:
    head = heads(D)[name]
    assert head_result(head.graph.shapes()[head.graph.result]) == head.output == head.task.output
    found = result(head, draw(head.graph.parameter_shapes(head.widths)))
    assert found.shape[:-1] == ((B, T) if head.task.type == "token" else (B,))


def test_head_of_adapterhub_equals_its_formula() -> None:
    head = make_head(width=D, labels="abc", options=HeadOptions("first", dense=1, dropout=0.1))
    w = draw(head.graph.parameter_shapes(head.widths))
    dense = np.tanh(HIDDEN[:, 0] @ w["dense_1.weight"] + w["dense_1.bias"])
    np.testing.assert_allclose(result(head, w), dense @ w["classifier.weight"] + w["classifier.bias"], atol=1e-12)


def test_regression_head_with_two_dense_layers_equals_its_formula() -> None:
    head = make_head("regression", width=D, numbers=2, hidden=4, options=HeadOptions(dense=2, activation="relu"))
    assert head.widths == {"d": D, "e1": 4, "e2": 4, "classes": 2}
    w = draw(head.graph.parameter_shapes(head.widths))
    value = MEAN
    for layer in ("dense_1", "dense_2"):
        value = np.maximum(value @ w[f"{layer}.weight"] + w[f"{layer}.bias"], 0)
    np.testing.assert_allclose(result(head, w), value @ w["classifier.weight"] + w["classifier.bias"], atol=1e-12)


def test_token_head_equals_its_formula() -> None:
    head = make_head("token", width=D, labels="ab")
    w = draw(head.graph.parameter_shapes(head.widths))
    np.testing.assert_allclose(result(head, w), HIDDEN @ w["classifier.weight"] + w["classifier.bias"], atol=1e-12)


def test_an_embedding_without_parameters_is_the_mean_on_the_unit_sphere() -> None:
    head = make_head("embedding", width=D, options=HeadOptions(l2_normalise=True))
    assert head.graph.parameters == {}
    np.testing.assert_allclose(result(head, {}), MEAN / np.linalg.norm(MEAN, axis=-1, keepdims=True), atol=1e-12)


def test_a_projected_embedding_has_the_width_that_is_asked_for() -> None:
    head = make_head("embedding", width=D, numbers=4, options=HeadOptions("first", projection=True))
    w = draw(head.graph.parameter_shapes(head.widths))
    np.testing.assert_allclose(
        result(head, w), HIDDEN[:, 0] @ w["projection.weight"] + w["projection.bias"], atol=1e-12
    )


def test_classification_and_regression_have_one_graph() -> None:
    assert head_graph("single_label") == head_graph("regression") == classification_head()


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("guess", {}, "unknown problem type; found `guess`"),
        ("regression", {"pooling": "median"}, "unknown pooling"),
        ("regression", {"activation": "swish"}, "unknown activation"),
        ("regression", {"dense": -1}, "a number of dense layers"),
        ("regression", {"dropout": 1.0}, "a dropout rate"),
        ("regression", {"projection": True}, "only an embedding is projected or normalised"),
        ("token", {"l2_normalise": True}, "only an embedding"),
    ],
)
def test_invalid_heads_are_refused(task: ProblemType, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        head_graph(task, HeadOptions(**options))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("batch", "classes"), "logits"),
        (("batch", "tokens", "classes"), "token_logits"),
        (("batch", "d"), "embedding"),
        (("batch", 7), "embedding"),
        (("batch", "tokens"), None),
        (("batch", "tokens", "d"), "token_embeddings"),
        (("classes",), None),
    ],
)
def test_result_kind_follows_from_the_shape(shape: tuple[Any, ...], expected: str | None) -> None:
    assert head_result(shape) == expected
