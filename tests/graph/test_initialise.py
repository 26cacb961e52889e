"""Initial weights: distributions and effects."""

from __future__ import annotations

import math

import numpy as np
import pytest
from backends import draw_inputs

from adapter_export.errors import UsageError
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.initialise import HEAD_STD, SCHEMES, SMALL_STD, initialise
from adapter_export.graph.kinds import (
    KINDS,
    BottleneckOptions,
    bottleneck,
    classification_head,
    ia3_graph,
    lora_graph,
)
from adapter_export.graph.kinds.coupling import nice_graph
from adapter_export.numerics.evaluate_adapter import evaluate

WIDTHS = {"d": 384, "d_in": 384, "b": 64}
ZERO_UP = ("zero_up", "kaiming_zero_up")
TRUNCATED_STD = 0.8796256610342398
"""Standard deviation of a standard normal truncated at ±2: √(1 − 4·φ(2)/(2Φ(2) − 1))."""


def drawn(graph: AdapterGraph, scheme: str, seed: int = 0) -> dict[str, np.ndarray]:
    return initialise(graph, WIDTHS, scheme, np.random.default_rng(seed))


def deviation_from_h(graph: AdapterGraph, scheme: str) -> float:
    inputs = draw_inputs(graph, 2, 16, 384, np.random.default_rng(1))
    return float(np.abs(evaluate(graph, inputs, drawn(graph, scheme)) - inputs["h"]).max())


@pytest.mark.parametrize("name", ["down.weight", "up.weight"])
def test_small_normal_is_truncated_at_two_deviations(name: str) -> None:
    weight = drawn(bottleneck("h", BottleneckOptions()), "small_normal")[name].astype(np.float64)
    assert np.abs(weight).max() == pytest.approx(2 * SMALL_STD, rel=1e-3)
    assert weight.std() == pytest.approx(TRUNCATED_STD * SMALL_STD, rel=0.02)
    assert weight.mean() == pytest.approx(0, abs=5 * SMALL_STD / math.sqrt(weight.size))
    # one deviation contains (Φ(1) − Φ(−1)) / (Φ(2) − Φ(−2)) of a normal truncated at two: 0.6827/0.9545
    assert (np.abs(weight) < SMALL_STD).mean() == pytest.approx(0.7152, abs=0.01)


def test_kaiming_is_uniform_within_the_inverse_root_of_its_inputs() -> None:
    weight = drawn(bottleneck("h", BottleneckOptions()), "kaiming_zero_up")["down.weight"].astype(np.float64)
    bound = 1 / math.sqrt(384)
    assert np.abs(weight).max() == pytest.approx(bound, rel=1e-3)
    assert np.abs(weight).max() <= bound * (1 + 1e-7)
    assert weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    counts, _ = np.histogram(weight, bins=8, range=(-bound, bound))
    np.testing.assert_allclose(counts / weight.size, 1 / 8, atol=0.01)


def test_normal_has_no_bounds() -> None:
    weight = drawn(bottleneck("h", BottleneckOptions()), "normal")["up.weight"].astype(np.float64)
    assert weight.std() == pytest.approx(0.02, rel=0.02)
    assert (np.abs(weight) > 0.04).mean() == pytest.approx(0.0455, abs=0.005)


@pytest.mark.parametrize("scheme", ["small_normal", "normal"])
def test_factors_of_kronecker_products_are_glorots_and_rules_small(scheme: str) -> None:
    """adapters 1.3: each slice of a factor has variance 2/(rows + columns); the rule's depends on who owns it."""
    widths = {"d": 2048, "b": 1024, "n": 4, "k": 1, "p": 512, "q": 256}
    for shared, std in ((True, 1e-4), (False, 1e-2)):
        graph = bottleneck("h", BottleneckOptions(phm_dim=4, phm_shared_rule=shared))
        tensors = initialise(graph, widths, scheme, np.random.default_rng(0))
        assert tensors["down.left"].std() == pytest.approx(math.sqrt(2 / 513), rel=0.05)
        assert tensors["up.right"].std() == pytest.approx(math.sqrt(2 / 513), rel=0.05)
        assert tensors["down.right"].std() == pytest.approx(math.sqrt(2 / 257), rel=0.05)
        assert tensors["rule" if shared else "up.rule"].std() == pytest.approx(std, rel=0.2)
        assert not tensors["down.bias"].any()


def test_learned_factors_start_at_one_and_gates_half_open() -> None:
    options = BottleneckOptions(scaling="channel", gate=True)
    tensors = drawn(bottleneck("h", options), "normal")
    assert (tensors["scaling.weight"] == 1).all()
    assert tensors["gate.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert not tensors["gate.bias"].any()
    tensors = drawn(bottleneck("h", options), "small_normal")
    assert np.abs(tensors["gate.weight"]).max() == pytest.approx(1 / math.sqrt(384), rel=0.02)
    assert (drawn(ia3_graph(), "normal")["scaling.weight"] == 1).all()


@pytest.mark.parametrize("scheme", ZERO_UP)
@pytest.mark.parametrize(
    "graph",
    [
        bottleneck("h", BottleneckOptions(scaling="channel", gate=True, drop_path=0.1, norm_after=True)),
        bottleneck("h", BottleneckOptions(scaling="learned", gate=True)),
        lora_graph(4.0, bias=True, gate=True),
        nice_graph("relu"),
    ],
)
def test_zero_up_starts_at_h_through_gates_factors_and_halves(graph: AdapterGraph, scheme: str) -> None:
    widths = {**WIDTHS, "r": 8, "f": 8, "g": 8}
    tensors = initialise(graph, widths, scheme, np.random.default_rng(0))
    inputs = draw_inputs(graph, 2, 16, 384, np.random.default_rng(1))
    assert np.array_equal(evaluate(graph, inputs, tensors), inputs["h"])
    assert sum(tensor.any() for tensor in tensors.values()) >= 2


def test_zero_up_makes_a_kronecker_product_zero() -> None:
    graph = bottleneck("h", BottleneckOptions(phm_dim=4))
    widths = {"d": 384, "b": 64, "n": 4, "k": 1, "p": 96, "q": 16}
    tensors = initialise(graph, widths, "zero_up", np.random.default_rng(0))
    assert {name for name, tensor in tensors.items() if not tensor.any()} == {"up.right", "down.bias", "up.bias"}
    inputs = draw_inputs(graph, 2, 16, 384, np.random.default_rng(1))
    assert np.array_equal(evaluate(graph, inputs, tensors), inputs["h"])


def test_heads_are_initialized_normally_under_every_scheme() -> None:
    graph = classification_head()
    for scheme in SCHEMES:
        head = initialise(graph, {"d": 4096, "classes": 16}, scheme, np.random.default_rng(0))
        weight = head["classifier.weight"].astype(np.float64)
        assert weight.std() == pytest.approx(HEAD_STD, rel=0.02)
        assert weight.mean() == pytest.approx(0, abs=5 * HEAD_STD / math.sqrt(weight.size))
        assert (np.abs(weight) > 2 * HEAD_STD).mean() == pytest.approx(0.0455, abs=0.005)
        assert not head["classifier.bias"].any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_norms_start_at_one_and_biases_at_zero(scheme: str) -> None:
    tensors = drawn(bottleneck("h", BottleneckOptions(norm_before=True, norm_after=True)), scheme)
    assert all((tensors[f"{norm}.weight"] == 1).all() for norm in ("norm_before", "norm_after"))
    assert not any(tensor.any() for name, tensor in tensors.items() if name.endswith("bias"))
    assert all(tensor.dtype == np.float32 for tensor in tensors.values())


@pytest.mark.parametrize("scheme", ZERO_UP)
@pytest.mark.parametrize("options", [{}, {"norm_before": True, "norm_after": True}, {"scaling": 3.0, "dropout": 0.1}])
@pytest.mark.parametrize("kind", ["houlsby", "pfeiffer", "parallel"])
def test_zero_up_starts_at_exactly_h(kind: str, options: dict[str, float], scheme: str) -> None:
    graph = KINDS[kind](BottleneckOptions(**options)).graph
    assert deviation_from_h(graph, scheme) == 0
    assert drawn(graph, scheme)["down.weight"].all()


def test_small_normal_starts_near_h_but_differs() -> None:
    """h of deviation 1, 384 wide: D h has deviation 0.01·0.88·√384 = 0.17, U of 64 of them at most 0.01·8·0.17."""
    deviation = deviation_from_h(bottleneck("h", BottleneckOptions(activation="relu")), "small_normal")
    assert 0.001 < deviation < 0.05


def test_closing_projections_are_found_through_sums() -> None:
    """h + LN(2·A(gelu(C h)) + B h): A and B close, C does not."""
    nodes = (
        Node("linear", ("h",), "c", {"weight": "C"}),
        Node("gelu", ("c",), "g"),
        Node("linear", ("g",), "a", {"weight": "A"}),
        Node("scale", ("a",), "twice", {}, {"factor": 2.0}),
        Node("linear", ("h",), "b", {"weight": "B"}),
        Node("add", ("twice", "b"), "sum"),
        Node("layer_norm", ("sum",), "normal", {"weight": "n", "bias": "m"}, {"epsilon": 1e-5}),
        Node("add", ("h", "normal"), "result"),
    )
    parameters = {**dict.fromkeys("ABC", ("d", "d")), "n": ("d",), "m": ("d",)}
    graph = AdapterGraph(("h",), parameters, nodes, "result")
    tensors = drawn(graph, "zero_up")
    assert {name for name in "ABC" if tensors[name].any()} == {"C"}
    assert deviation_from_h(graph, "zero_up") == 0


def test_a_product_behind_an_activation_does_not_close() -> None:
    nodes = (Node("linear", ("h",), "a", {"weight": "w"}), Node("tanh", ("a",), "t"), Node("add", ("h", "t"), "r"))
    assert drawn(AdapterGraph(("h",), {"w": ("d", "d")}, nodes, "r"), "zero_up")["w"].any()


def test_equal_seeds_give_equal_weights() -> None:
    graph = bottleneck("h", BottleneckOptions())
    first, again, other = (drawn(graph, "small_normal", seed) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["up.weight"], other["up.weight"])


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(
        UsageError, match="unknown initialisation; found `xavier`; expected small_normal, normal, zero_up"
    ):
        drawn(bottleneck("h", BottleneckOptions()), "xavier")
