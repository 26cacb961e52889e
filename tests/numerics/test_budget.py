"""The allowed deviation: its size, its growth, and its description."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from adapter_export.errors import UsageError
from adapter_export.graph.graph import AdapterGraph, Node, interpret
from adapter_export.graph.kinds import BottleneckOptions, bottleneck, classification_head
from adapter_export.graph.numpy_lowering import LOWERINGS
from adapter_export.numerics.budget import ACCUMULATION, ROUNDING, budget, graph_budget
from adapter_export.numerics.evaluate_adapter import evaluate, rounding_scale

MINILM = {"inner": 1536, "depth": 36}
MINILM_DEVIATION = 2.2e-6
"""Measured once in units of the scale: torch float32 against float64, a random adapter of std 0.2 at every site."""


@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0])
def test_minilm_is_held_to_1e_5_of_its_scale(scale: float) -> None:
    allowed = budget("float32", scale=scale, **MINILM).absolute
    assert 2 * MINILM_DEVIATION * scale < allowed <= 1e-5 * max(1.0, scale)


def test_budget_equals_its_formula() -> None:
    epsilon = float(np.finfo(np.float32).eps)
    expected = 3.0 * math.sqrt(8) * (ROUNDING * epsilon + ACCUMULATION * math.sqrt(100) * epsilon)
    assert budget("float32", inner=100, depth=8, scale=3.0).absolute == pytest.approx(expected, rel=1e-12)


def test_half_precision_adds_up_in_single() -> None:
    half = budget("float16", inner=1024, depth=1, scale=1.0).absolute
    assert half == pytest.approx(ROUNDING * 2**-10 + ACCUMULATION * 32 * 2**-23, rel=1e-12)


def test_budget_is_zero_at_scale_zero() -> None:
    assert budget("float32", inner=64, depth=2, scale=0.0).absolute == 0


def test_the_reason_gives_every_number() -> None:
    found = budget("float32", scale=2.5, **MINILM)
    assert found.reason == (
        "2.5e-05 = scale 2.5 · √36 products · (3 roundings in float32 + 0.28·√1536 terms added in float32)"
    )


@pytest.mark.parametrize(
    "changes",
    [{"inner": 0}, {"depth": 0}, {"scale": -1.0}, {"scale": math.nan}, {"scale": math.inf}, {"dtype": "int8"}],
)
def test_numbers_without_a_budget_are_refused(changes: dict[str, Any]) -> None:
    numbers = {"dtype": "float32", "inner": 1, "depth": 1, "scale": 1.0, **changes}
    with pytest.raises(UsageError, match="no budget for"):
        budget(numbers.pop("dtype"), **numbers)


def test_a_graph_counts_its_products_and_norms() -> None:
    widths = {"d": 384, "b": 64}
    plain = bottleneck("h", BottleneckOptions())
    norms = bottleneck("h", BottleneckOptions(norm_before=True, norm_after=True))
    assert graph_budget("float32", plain, widths, scale=1.0) == budget("float32", inner=384, depth=2, scale=1.0)
    assert graph_budget("float32", norms, widths, scale=1.0) == budget("float32", inner=384, depth=4, scale=1.0)


def test_pooling_adds_up_tokens() -> None:
    found = graph_budget("float32", classification_head(), {"d": 8, "classes": 2}, scale=1.0, tokens=500)
    assert found == budget("float32", inner=500, depth=2, scale=1.0)


def one(op: str, *inputs: str, parameters: dict[str, tuple[int | str, ...]] | None = None, **numbers: float) -> Node:
    return Node(op, inputs, "result", {role: role for role in parameters or {}}, numbers)


PHM = {"rule": (4, 4, 4), "left": (4, "p", 3), "right": (4, 3, "q"), "bias": ("b",)}


@pytest.mark.parametrize(
    ("node", "parameters", "inner", "depth"),
    [
        (one("dot", "h", "h"), {}, 384, 1),
        (one("l2_normalise", "h"), {}, 384, 1),
        (one("rms_norm", "h", parameters={"weight": ("d",)}, epsilon=1e-5), {"weight": ("d",)}, 384, 1),
        (one("mix", "h", "h", "h", parameters={"weights": (1, 3)}), {"weights": (1, 3)}, 3, 1),
        (one("phm_linear", "h", parameters=PHM), PHM, 384, 3),
        (one("scale_features", "h", parameters={"weight": ("d",)}), {"weight": ("d",)}, 1, 1),
    ],
)
def test_sums_are_counted_op_by_op(
    node: Node, parameters: dict[str, tuple[int | str, ...]], inner: int, depth: int
) -> None:
    graph = AdapterGraph(("h",), parameters, (node,), "result")
    found = graph_budget("float32", graph, {"d": 384, "p": 96, "q": 16, "b": 64}, scale=1.0)
    assert found == budget("float32", inner=inner, depth=depth, scale=1.0)


def fusion(temperature: float) -> AdapterGraph:
    """Attention over `h` and `x`, with scores h·h and h·x."""
    nodes = (
        Node("dot", ("h", "h"), "s"),
        Node("dot", ("h", "x"), "t"),
        Node("softmax_mix", ("s", "t", "h", "x"), "result", {}, {"temperature": temperature}),
    )
    return AdapterGraph(("h", "x"), {}, nodes, "result")


def test_the_scale_of_a_mixture_is_that_of_its_scores() -> None:
    """Scores 101 and 99 at temperature 1 give shares of which e² times as much is one as the other, of 1 and −1."""
    inputs = {"h": np.array([[[10.0, 1.0]]]), "x": np.array([[[10.0, -1.0]]])}
    share = 1 / (1 + math.exp(-2))
    assert rounding_scale(fusion(1.0), inputs, {}) == pytest.approx(101 * 4 * share * (1 - share))
    assert rounding_scale(fusion(0.01), inputs, {}) == pytest.approx(10)
    assert rounding_scale(bottleneck("h", BottleneckOptions()), {"h": np.zeros((1, 1, 2))}, ZEROS) == 0


ZEROS = {
    "down.weight": np.zeros((2, 1)),
    "down.bias": np.zeros(1),
    "up.weight": np.zeros((1, 2)),
    "up.bias": np.zeros(2),
}


@pytest.mark.parametrize("width", [16, 384, 4096])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 50.0])
def test_budget_bounds_the_rounding_of_sharp_mixtures(width: int, temperature: float) -> None:
    """Scores of some hundreds or thousands, whose rounding moves the shares by far more than eps."""
    rng = np.random.default_rng(width)
    inputs = {name: rng.standard_normal((3, 64, width)).astype(np.float32) for name in ("h", "x")}
    graph = fusion(temperature)
    expected = evaluate(graph, inputs, {})
    scale = rounding_scale(graph, inputs, {})
    found = interpret(graph, LOWERINGS, inputs, {})["result"]
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= graph_budget("float32", graph, {"d": width}, scale=scale).absolute
