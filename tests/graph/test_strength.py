"""Parameters by which an adapter is made stronger: the result moves along a straight line, or there are none."""

from __future__ import annotations

import numpy as np
import pytest
from hand_made_sites import encoder
from random_kinds import random_of_kind

from adapter_export.graph.compose import stack, weighted_fusion
from adapter_export.graph.graph import AdapterGraph, bind_base_norm
from adapter_export.graph.kinds import KINDS
from adapter_export.graph.kinds.linear import changed_layer_graph
from adapter_export.graph.slot_form import neutral_parameters, slot_form
from adapter_export.graph.strength_parameters import strength_parameters
from adapter_export.numerics.evaluate_adapter import evaluate

SITES = encoder()
WIDTHS = {"d": 16, "d_in": 16, "b": 4, "r": 2, "f": 4, "g": 4}


def moved(form: AdapterGraph, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the result at a strength, and the expected one."""
    graph, random = bind_base_norm(form, None), np.random.default_rng(0)
    shapes = form.parameter_shapes({symbol: WIDTHS.get(symbol, 3) for symbol in form.symbols()})
    own = {name: random.normal(0, 0.5, shape) for name, shape in shapes.items()}
    neutral = neutral_parameters(form, {symbol: WIDTHS.get(symbol, 3) for symbol in form.symbols()})
    values = {name: random.normal(size=(2, 3, 16)) for name in graph.inputs}
    chosen = strength_parameters(form)
    assert chosen
    other = {
        name: neutral[name].flat[0] + strength * (own[name] - neutral[name].flat[0]) if name in chosen else own[name]
        for name in own
    }
    whole, base = evaluate(graph, values, own), values[form.replaces]
    return evaluate(graph, values, other), base + strength * (whole - base)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "nice"])
@pytest.mark.parametrize("strength", [0.5, 0.0, -1.0, 3.0])
def test_every_kind_moves_along_a_line(name: str, strength: float) -> None:
    for graph in KINDS[name]().graphs.values():
        np.testing.assert_allclose(*moved(slot_form(graph), strength), rtol=0, atol=1e-12)


def test_scaled_layers_move_along_a_line() -> None:
    for options in ({"scale": True, "bias": True}, {"dense": True}, {"scale": True, "dense": True, "bias": True}):
        np.testing.assert_allclose(*moved(slot_form(changed_layer_graph(**options)), 0.5), rtol=0, atol=1e-12)


def test_stacked_updates_have_no_strength_parameters() -> None:
    assert strength_parameters(slot_form(KINDS["nice"]().graph)) is None
    a, b = (
        random_of_kind(name, KINDS["pfeiffer"]().with_widths(b=4), SITES, "f" * 64, seed=at)
        for at, name in enumerate("ab")
    )
    assert all(strength_parameters(slot_form(graph)) is None for graph in stack(a, b, name="s").graphs.values())
    fused = weighted_fusion(a, b, name="f").graphs.values()
    assert all(strength_parameters(slot_form(graph)) for graph in fused)
