"""Properties of compositions with arbitrary members: any graph of the language that ends in a sum."""

from __future__ import annotations

import numpy as np
from backends import draw_parameters
from hypothesis import assume, given
from hypothesis import strategies as st
from random_graphs import WIDTHS, residual_graphs
from tiers import examples

from adapter_export.dtypes import Weights
from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.compose import STATIC, adapter_fusion, average, stack, weighted_fusion
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.slot_form import has_neutral_parameters, neutral_parameters
from adapter_export.numerics.evaluate_adapter import evaluate_site
from adapter_export.sites.site import Norm

SITE = "layers.0.ffn"
NORM = Norm("layer", 1e-5, "w", "b")


def adapter(name: str, graph: AdapterGraph, weights: Weights) -> Adapter:
    own = {symbol: WIDTHS[symbol] for symbol in graph.symbols()}
    tensors = {f"{SITE}.{key}": np.asarray(tensor, np.float32) for key, tensor in weights.items()}
    return Adapter(name, "any", "base", {"any": graph}, {SITE: Placement("any", own)}, tensors)


def random(name: str, graph: AdapterGraph, seed: int) -> Adapter:
    own = {symbol: WIDTHS[symbol] for symbol in graph.symbols()}
    return adapter(name, graph, draw_parameters(graph, own, np.random.default_rng(seed)))


def neutral(name: str, graph: AdapterGraph) -> Adapter:
    return adapter(name, graph, neutral_parameters(graph, WIDTHS))


def values() -> dict[str, np.ndarray]:
    """`y` follows from `h` and `x` by the base's norm, as in a base."""
    rng = np.random.default_rng(0)
    drawn = {name: rng.standard_normal((2, 3, WIDTHS["d"])) for name in ("h", "x", "u")}
    total = drawn["h"] + drawn["x"]
    centred = total - total.mean(-1, keepdims=True)
    tensors = {"base_norm.weight": rng.normal(1, 0.2, WIDTHS["d"]), "base_norm.bias": rng.normal(0, 0.2, WIDTHS["d"])}
    y = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5)
    return {**drawn, **tensors, "y": y * tensors["base_norm.weight"] + tensors["base_norm.bias"]}


VALUES = values()


def at(one: Adapter) -> np.ndarray:
    return evaluate_site(one, SITE, VALUES, NORM)


def same(found: np.ndarray, wanted: np.ndarray, *others: np.ndarray) -> None:
    """Up to the rounding of float64, and of subtracted values."""
    size = max(float(np.abs(each).max()) for each in (wanted, *others, VALUES["h"]))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11 * size)


@examples(60)
@given(residual_graphs())
def test_a_composition_of_one_is_the_one(graph: AdapterGraph) -> None:
    one = random("one", graph, 1)
    np.testing.assert_array_equal(at(stack(one, name="s")), at(one))
    for made in (average(one, name="m"), weighted_fusion(one, name="w"), adapter_fusion(one, name="f", options=STATIC)):
        same(at(made), at(one))


@examples(60)
@given(residual_graphs(), st.integers(0, 2))
def test_weights_of_one_and_zero_are_that_adapter(graph: AdapterGraph, chosen: int) -> None:
    members = [random(f"m{seed}", graph, seed) for seed in range(3)]
    shares = [float(number == chosen) for number in range(3)]
    results = [at(member) for member in members]
    for made in (
        weighted_fusion(*members, name="w", weights=shares),
        average(*members, name="m", weights=shares),
    ):
        same(at(made), results[chosen], *results)


@examples(60)
@given(residual_graphs(), st.integers(1, 3))
def test_a_composition_of_neutral_ones_is_the_base(graph: AdapterGraph, count: int) -> None:
    assume(has_neutral_parameters(graph))
    members = [neutral(f"n{number}", graph) for number in range(count)]
    np.testing.assert_array_equal(at(stack(*members, name="s")), VALUES[graph.replaces])
    for made in (average(*members, name="m"), weighted_fusion(*members, name="w", weights=[3.0] * count)):
        same(at(made), VALUES[graph.replaces])


@examples(60)
@given(residual_graphs())
def test_a_stack_with_a_neutral_one_is_the_other(graph: AdapterGraph) -> None:
    assume(has_neutral_parameters(graph))
    one, idle = random("one", graph, 1), neutral("idle", graph)
    same(at(stack(one, idle, name="s")), at(one))
    same(at(stack(idle, one, name="s")), at(one))
