"""Adapters evaluated where they act."""

from __future__ import annotations

import numpy as np
import pytest
from backends import draw_parameters

from adapter_export.errors import AdapterError
from adapter_export.graph.adapter import Adapter, Head, Placement
from adapter_export.graph.kinds import BottleneckOptions, bottleneck, classification_head
from adapter_export.graph.tasks import Task
from adapter_export.numerics.evaluate_adapter import evaluate, evaluate_head, evaluate_site, site_scale

GRAPH = bottleneck("h", BottleneckOptions(activation="relu", scaling=2.0))
RNG = np.random.default_rng(0)
WEIGHTS = {
    **{f"layers.0.ffn.{name}": tensor for name, tensor in draw_parameters(GRAPH, {"d": 8, "b": 2}, RNG).items()},
    **{f"layers.1.ffn.{name}": tensor for name, tensor in draw_parameters(GRAPH, {"d": 8, "b": 3}, RNG).items()},
}
ADAPTER = Adapter(
    "a",
    "pfeiffer",
    "base",
    {"bottleneck": GRAPH},
    {f"layers.{layer}.ffn": Placement("bottleneck", {"d": 8, "b": 2 + layer}) for layer in (0, 1)},
    WEIGHTS,
)
HEAD = Adapter(
    "b",
    "custom",
    "base",
    {},
    {},
    {f"head.{k}": v for k, v in draw_parameters(classification_head(), {"d": 8, "classes": 2}, RNG).items()},
    Head(classification_head(), {"d": 8, "classes": 2}, Task("single_label", ("no", "yes"))),
)


def test_a_site_has_its_own_weights() -> None:
    h = RNG.standard_normal((2, 3, 8)).astype(np.float32)
    inner = np.maximum(h.astype(float) @ WEIGHTS["layers.1.ffn.down.weight"] + WEIGHTS["layers.1.ffn.down.bias"], 0)
    expected = h + 2.0 * (inner @ WEIGHTS["layers.1.ffn.up.weight"] + WEIGHTS["layers.1.ffn.up.bias"])
    found = evaluate_site(ADAPTER, "layers.1.ffn", {"h": h, "x": h, "u": h})
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


def test_a_site_without_the_adapter_is_named() -> None:
    with pytest.raises(AdapterError, match=r"found `layers\.9\.ffn`; expected layers\.0\.ffn, layers\.1\.ffn"):
        evaluate_site(ADAPTER, "layers.9.ffn", {})


def test_a_head_takes_an_integer_mask() -> None:
    hidden, mask = RNG.standard_normal((2, 3, 8)), np.array([[1, 1, 0], [1, 0, 0]])
    pooled = np.stack([hidden[0, :2].mean(0), hidden[1, 0]])
    expected = pooled @ HEAD.weights["head.classifier.weight"] + HEAD.weights["head.classifier.bias"]
    np.testing.assert_allclose(evaluate_head(HEAD, hidden, mask), expected, rtol=1e-13, atol=1e-13)


def test_an_adapter_without_a_head_is_named() -> None:
    with pytest.raises(AdapterError, match="adapter `a`: has no head"):
        evaluate_head(ADAPTER, np.zeros((1, 1, 8)), np.ones((1, 1)))


def test_inputs_are_not_changed() -> None:
    h = RNG.standard_normal((1, 2, 8))
    before = h.copy()
    evaluate(GRAPH, {"h": h}, ADAPTER.parameters("layers.0.ffn"))
    np.testing.assert_array_equal(h, before)


def test_the_scale_at_a_site_is_that_of_its_result() -> None:
    h = RNG.standard_normal((2, 3, 8)).astype(np.float32)
    assert (
        site_scale(ADAPTER, "layers.1.ffn", {"h": h}) == np.abs(evaluate_site(ADAPTER, "layers.1.ffn", {"h": h})).max()
    )
