"""LoRA, IA3 and NICE against their formulas in plain NumPy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from backends import draw_parameters

from adapter_export.errors import UsageError
from adapter_export.graph.kinds import (
    Ia3Options,
    Kind,
    LoraOptions,
    NiceOptions,
    ia3,
    ia3_graph,
    lora,
    lora_graph,
    nice,
)
from adapter_export.graph.kinds.coupling import nice_graph
from adapter_export.graph.slot_form import fold_weights, inference_form
from adapter_export.numerics.evaluate_adapter import evaluate
from adapter_export.sites.site import Site

RNG = np.random.default_rng(0)
WIDTHS = {"d": 10, "d_in": 6, "r": 3, "f": 4, "g": 2}


def linear(name: str, width: int = 10, width_in: int = 6) -> Site:
    return Site(name, "linear", int(name.split(".")[1]), width, width_in, "h")


LINEARS = [
    linear(f"layers.{layer}.{name}", 10, 24 if name == "ffn.down" else 10)
    for layer in (0, 1)
    for name in ("attention.query", "attention.key", "attention.value", "attention.output", "ffn.up", "ffn.down")
]


def draw() -> dict[str, np.ndarray]:
    return {"u": RNG.standard_normal((2, 3, 6)), "h": RNG.standard_normal((2, 3, 10))}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_lora_is_its_formula_before_and_after_folding(factor: float, bias: bool) -> None:
    graph, v = lora_graph(factor, bias=bias, dropout=0.4), draw()
    p = draw_parameters(graph, WIDTHS, RNG)
    product = v["u"] @ p["lora_A.weight"].astype(float) @ p["lora_B.weight"] + (p["lora_B.bias"] if bias else 0)
    expected = v["h"] + factor * product
    np.testing.assert_allclose(evaluate(graph, v, p), expected, rtol=1e-12)
    form = inference_form(graph)
    assert [node.op for node in form.nodes] == ["linear", "linear", "add"]
    np.testing.assert_allclose(evaluate(form, v, fold_weights(graph, p)), expected, rtol=1e-6)


def test_a_gate_stands_in_the_place_of_the_factor() -> None:
    graph, v = lora(LoraOptions(gate=True, alpha=32)).graph, draw()
    p = draw_parameters(graph, WIDTHS, RNG)
    gate = (1 / (1 + np.exp(-(v["u"] @ p["gate.weight"] + p["gate.bias"])))).mean(1, keepdims=True)
    expected = v["h"] + gate * (v["u"] @ p["lora_A.weight"].astype(float) @ p["lora_B.weight"])
    np.testing.assert_allclose(evaluate(graph, v, p), expected, rtol=1e-12)


def factors(kind: Kind) -> dict[str, tuple[int, float]]:
    """Rank and factor by site."""
    found = {}
    for site, part in kind.at(LINEARS):
        scales = [node.attributes["factor"] for node in part.graph.nodes if node.op == "scale"]
        found[site.name] = (part.widths_at(site)["r"], math.prod(scales))
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (8, 1.0)),
        ({"rank": 4}, (4, 1.0)),
        ({"rank": 4, "alpha": 16}, (4, 4.0)),
        ({"rank": 4, "alpha": 16, "rs_lora": True}, (4, 8.0)),
    ],
)
def test_the_factor_is_alpha_over_the_rank(options: dict[str, Any], expected: tuple[int, float]) -> None:
    names = [f"layers.{layer}.attention.{name}" for layer in (0, 1) for name in ("query", "value")]
    assert factors(lora(LoraOptions(**options))) == dict.fromkeys(names, expected)


def test_rank_and_alpha_may_differ_by_layer_name() -> None:
    options = LoraOptions(("query", "ffn.down"), rank={"ffn.down": 2, "default": 4}, alpha={"query": 1, "default": 8})
    found = factors(lora(replace(options, leave_out=(1,))))
    assert found == {"layers.0.attention.query": (4, 0.25), "layers.0.ffn.down": (2, 4.0)}
    assert lora(options).graphs.keys() == {"lora", "lora_2"}
    placement = lora(options).placements(LINEARS)["layers.0.ffn.down"]
    assert placement.widths == {"d_in": 24, "r": 2, "d": 10}


def test_names_end_at_a_dot() -> None:
    sites = [linear("layers.0.attention.query"), linear("layers.0.attention.prequery")]
    assert list(lora().placements(sites)) == ["layers.0.attention.query"]
    both = lora(LoraOptions(("attention.output",))).placements(LINEARS)
    assert list(both) == ["layers.0.attention.output", "layers.1.attention.output"]


@pytest.mark.parametrize("value", ["h", "u"])
def test_ia3_multiplies_features(value: str) -> None:
    graph, v = ia3_graph(value), draw()
    p = draw_parameters(graph, WIDTHS, RNG)
    assert graph.replaces == value
    np.testing.assert_allclose(evaluate(graph, v, p), v[value] * p["scaling.weight"], rtol=1e-12)


def test_ia3_scales_keys_values_and_the_last_ffn_input() -> None:
    found = {site.name: part.graph.replaces for site, part in ia3().at(LINEARS)}
    assert found == {
        f"layers.{layer}.{name}": replaced
        for layer in (0, 1)
        for name, replaced in (("attention.key", "h"), ("attention.value", "h"), ("ffn.down", "u"))
    }
    assert ia3().placements(LINEARS)["layers.1.ffn.down"].widths == {"d_in": 24}


@pytest.mark.parametrize("width", [10, 11])
def test_nice_couples_two_halves(width: int) -> None:
    graph = nice_graph("tanh")
    p = draw_parameters(graph, WIDTHS | {"d": width}, RNG)
    h, half = RNG.standard_normal((2, 3, width)), width // 2
    first, second = h[..., :half], h[..., half:]
    inner = np.tanh(second @ p["f_down.weight"][half:] + p["f_down.bias"])
    first = first + inner @ p["f_up.weight"][:, :half] + p["f_up.bias"][:half]
    inner = np.tanh(first @ p["g_down.weight"][:half] + p["g_down.bias"])
    second = second + inner @ p["g_up.weight"][:, half:] + p["g_up.bias"][half:]
    np.testing.assert_allclose(evaluate(graph, {"h": h}, p), np.concatenate([first, second], -1), rtol=1e-12)


def test_nice_takes_any_activation() -> None:
    assert "nice_mish" in nice(NiceOptions("mish")).graphs
    with pytest.raises(UsageError, match="unknown activation; found `swish`"):
        nice(NiceOptions("swish"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (LoraOptions(modules=()), "LoRA acts nowhere"),
        (LoraOptions(rank=0), "`rank` is too small; found 0"),
        (LoraOptions(rank={"value": 0}), "`rank` is too small; found 0"),
        (
            LoraOptions(alpha={"key": 2.0}),
            "a layer at which LoRA does not act; found `key`; expected `query`, `value`",
        ),
        (LoraOptions(alpha=math.inf), "the scaling is not a finite number"),
        (LoraOptions(dropout=1.0), "a dropout rate is a probability below 1"),
    ],
)
def test_options_of_lora_that_cannot_be_are_refused(options: LoraOptions, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        lora(options)


def test_ia3_refuses_empty_or_repeated_modules() -> None:
    with pytest.raises(UsageError, match="found neither"):
        ia3(Ia3Options((), ()))
    with pytest.raises(UsageError, match=r"found `ffn\.down` for both"):
        ia3(Ia3Options(modules=("ffn.down",)))
