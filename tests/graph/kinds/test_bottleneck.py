"""The published kinds against their formulas, written out with plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from backends import draw_inputs, draw_parameters

from adapter_export.errors import UsageError
from adapter_export.graph.kinds import (
    KINDS,
    BottleneckOptions,
    bottleneck,
    classification_head,
    houlsby,
    pfeiffer,
)
from adapter_export.graph.ops import ACTIVATIONS
from adapter_export.numerics.evaluate_adapter import evaluate

WIDTHS = {"d": 12, "d_in": 12, "b": 5}
RNG = np.random.default_rng(0)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


@pytest.mark.parametrize("source", ["h", "x", "u"])
def test_a_bottleneck_is_its_formula(source: str) -> None:
    graph = bottleneck(source, BottleneckOptions(activation="relu", scaling=0.5))
    p, values = draw_parameters(graph, WIDTHS, RNG), draw_inputs(graph, 2, 3, 12, RNG)
    inner = np.maximum(values[source].astype(float) @ p["down.weight"] + p["down.bias"], 0)
    expected = values["h"] + 0.5 * (inner @ p["up.weight"] + p["up.bias"])
    np.testing.assert_allclose(evaluate(graph, values, p), expected, rtol=1e-12, atol=1e-12)


def test_norms_stand_before_the_down_and_behind_the_up_projection() -> None:
    graph = bottleneck("h", BottleneckOptions(activation="tanh", scaling=3.0, norm_before=True, norm_after=True))
    p, values = draw_parameters(graph, WIDTHS, RNG), draw_inputs(graph, 2, 3, 12, RNG)
    h = values["h"].astype(float)
    normal = layer_norm(h, p["norm_before.weight"], p["norm_before.bias"])
    up = 3.0 * (np.tanh(normal @ p["down.weight"] + p["down.bias"]) @ p["up.weight"] + p["up.bias"])
    expected = h + layer_norm(up, p["norm_after.weight"], p["norm_after.bias"])
    np.testing.assert_allclose(evaluate(graph, values, p), expected, rtol=1e-12, atol=1e-12)


def test_mean_pooling_ignores_padding_and_accepts_empty_rows() -> None:
    graph = classification_head("mean")
    p = draw_parameters(graph, {"d": 12, "classes": 3}, RNG)
    hidden = RNG.standard_normal((2, 4, 12))
    mask = np.array([[1, 1, 0, 0], [0, 0, 0, 0]])
    logits = evaluate(graph, {"hidden": hidden, "mask": mask}, p)
    np.testing.assert_allclose(logits[0], hidden[0, :2].mean(0) @ p["classifier.weight"] + p["classifier.bias"])
    np.testing.assert_allclose(logits[1], p["classifier.bias"])


@pytest.mark.parametrize("pooling", ["last", "max", "weighted_mean"])
def test_pooling_reads_the_kept_tokens_wherever_the_padding_is(pooling: str) -> None:
    graph = classification_head(pooling)
    p = draw_parameters(graph, {"d": 12, "classes": 3}, RNG)
    hidden = RNG.standard_normal((4, 5, 12)) - 3.0  # below the zeros of masked tokens
    mask = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
    logits = evaluate(graph, {"hidden": hidden, "mask": mask}, p)
    for row, kept in enumerate(([0, 1, 2], [2, 3, 4], [1, 3])):
        tokens = hidden[row, kept]
        weights = np.arange(1.0, len(kept) + 1)
        pooled = {"last": tokens[-1], "max": tokens.max(0), "weighted_mean": weights @ tokens / weights.sum()}[pooling]
        np.testing.assert_allclose(logits[row], pooled @ p["classifier.weight"] + p["classifier.bias"])
    np.testing.assert_allclose(logits[3], p["classifier.bias"])


def test_first_pooling_reads_the_first_token() -> None:
    graph = classification_head("first")
    p = draw_parameters(graph, {"d": 12, "classes": 3}, RNG)
    hidden = RNG.standard_normal((2, 4, 12))
    expected = hidden[:, 0] @ p["classifier.weight"] + p["classifier.bias"]
    np.testing.assert_allclose(evaluate(graph, {"hidden": hidden}, p), expected)


def test_bottleneck_kinds_read_their_documented_inputs() -> None:
    assert KINDS["parallel"]().graph.inputs == ("h", "u")
    assert houlsby().graph.inputs == pfeiffer().graph.inputs == ("h",)


@pytest.mark.parametrize("kind", [name for name in KINDS if isinstance(KINDS[name].defaults, BottleneckOptions)])
def test_a_kind_makes_every_activation(kind: str) -> None:
    kinds = [KINDS[kind](BottleneckOptions(activation=activation)) for activation in ACTIVATIONS]
    names = {name for made in kinds for name in made.graphs}
    assert len(names) == len(ACTIVATIONS)


def test_folded_options_do_not_change_the_topology() -> None:
    assert houlsby(BottleneckOptions(scaling=2.0, dropout=0.1)).graphs.keys() == houlsby().graphs.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "swish"}, "unknown activation; found `swish`"),
        ({"dropout": 1.0}, "a dropout rate is a probability below 1; found 1.0"),
        ({"dropout": -0.1}, "a dropout rate is a probability below 1"),
        ({"dropout": float("nan")}, "a dropout rate is a probability below 1"),
        ({"scaling": float("nan")}, "the scaling is not a finite number; found nan"),
        ({"scaling": float("inf")}, "the scaling is not a finite number"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        houlsby(BottleneckOptions(**options))


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown pooling; found `median`; expected one of `mean`, `first`, `last`, "):
        classification_head("median")
