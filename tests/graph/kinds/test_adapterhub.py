"""AdapterHub's configurations against its formulas in plain NumPy, in post-norm and pre-norm bases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from backends import draw_inputs, draw_parameters

from adapter_export.errors import UsageError
from adapter_export.graph.graph import BORROWED_BIAS, BORROWED_WEIGHT, bind_base_norm
from adapter_export.graph.kinds import KINDS, BottleneckConfig, bottleneck_config
from adapter_export.graph.kinds.kind import Component
from adapter_export.graph.ops import activation_named
from adapter_export.numerics.evaluate_adapter import evaluate
from adapter_export.sites.site import Norm, Site

D, B, N, BASE_EPSILON = 12, 8, 4, 1e-12
WIDTHS = {"d": D, "d_in": D, "b": B, "n": N, "k": 2, "p": D // N, "q": B // N}
RNG = np.random.default_rng(0)

Parameters = dict[str, np.ndarray]

INNER: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scaling": 4.0},
    "learned": {"scaling": "learned", "ln_before": True},
    "channel": {"scaling": "channel", "use_gating": True},
    "gated": {"use_gating": True, "ln_before": True, "scaling": 0.5},
    "trained with noise": {"dropout": 0.3, "stochastic_depth": 0.2},
    "phm": {"phm_layer": True, "use_gating": True},
    "phm with own rules": {"phm_layer": True, "shared_phm_rule": False, "scaling": "learned"},
}


def config(**changes: Any) -> BottleneckConfig:
    return BottleneckConfig(
        **{"mh_adapter": False, "output_adapter": True, "reduction_factor": D / B, "non_linearity": "swish", **changes}
    )


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * weight + bias


def project(p: Parameters, name: str, x: np.ndarray, given: BottleneckConfig) -> np.ndarray:
    if not given.phm_layer:
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]
    rule = p["rule" if given.shared_phm_rule else f"{name}.rule"]
    factors = p[f"{name}.left"] @ p[f"{name}.right"]
    weight = sum(np.kron(rule[i], factors[i]) for i in range(given.phm_dim))
    return x @ weight + p[f"{name}.bias"]


def up(p: Parameters, read: np.ndarray, given: BottleneckConfig) -> np.ndarray:
    """§2.3 without residual and last norm."""
    z = layer_norm(read, p["norm_before.weight"], p["norm_before.bias"], 1e-5) if given.ln_before else read
    inner = project(p, "down", z, given)
    value = project(p, "up", inner / (1 + np.exp(-inner)), given)
    value = value * (p["scaling.weight"] if isinstance(given.scaling, str) else given.scaling)
    if given.use_gating:
        gate = 1 / (1 + np.exp(-(read @ p["gate.weight"] + p["gate.bias"])))
        value = value * gate.mean(1, keepdims=True)
    return value


def block_output(given: BottleneckConfig, p: Parameters, h: np.ndarray, x: np.ndarray, norm: Any) -> np.ndarray:
    """The steps after the sublayer: §2.2 to §2.6; `norm` is `None` in a pre-norm base."""
    base_norm = norm or (lambda value: value)
    if given.is_parallel:
        o = up(p, x, given)
        if given.ln_after:
            o = layer_norm(o, p["norm_after.weight"], p["norm_after.bias"], 1e-5)
        return base_norm(o + h + x) if given.original_ln_after else o + h
    residual = h if given.residual_before_ln is True else None
    if given.original_ln_before:
        h = h + x
        if given.residual_before_ln == "post_add":
            residual = h
        h = base_norm(h)
    if residual is None:
        residual = h
    o = up(p, h, given)
    if given.adapter_residual_before_ln:
        o = o + residual
    if given.ln_after:
        o = layer_norm(o, p["norm_after.weight"], p["norm_after.bias"], 1e-5)
    if not given.adapter_residual_before_ln:
        o = o + residual
    return base_norm(o + x) if given.original_ln_after else o


def wirings() -> Iterator[dict[str, Any]]:
    flags = (False, True)
    for before, after, inside, ln_after, beside in itertools.product(flags, repeat=5):
        for residual in (True, False, "post_add"):
            if residual != "post_add" or before:
                yield {
                    "original_ln_before": before,
                    "original_ln_after": after,
                    "adapter_residual_before_ln": inside,
                    "ln_after": ln_after,
                    "is_parallel": beside,
                    "residual_before_ln": residual,
                }


@pytest.mark.parametrize("post_norm", [True, False], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("inner", INNER)
def test_every_configuration_is_its_formula(inner: str, post_norm: bool) -> None:
    weight, bias = RNG.normal(1, 0.2, D), RNG.normal(0, 0.2, D)
    norm = (lambda value: layer_norm(value, weight, bias, BASE_EPSILON)) if post_norm else None
    for wiring in wirings():
        given = config(**INNER[inner], **wiring)
        (part,) = bottleneck_config(given).components
        p = {name: tensor.astype(float) for name, tensor in draw_parameters(part.graph, WIDTHS, RNG).items()}
        h, x = RNG.standard_normal((2, 2, 3, D))
        y = (norm or np.asarray)(h + x)
        bound = bind_base_norm(part.graph, Norm("layer", BASE_EPSILON, "weight", "bias") if post_norm else None)
        borrowed = {BORROWED_WEIGHT: weight, BORROWED_BIAS: bias}
        owned = p | {name: borrowed[name] for name in bound.parameters if name in borrowed}
        found = evaluate(bound, {"h": h, "x": x, "u": x, "y": y}, owned)
        if part.graph.replaces == "h":
            found = (norm or np.asarray)(found + x)
        expected = block_output(given, p, h, x, norm)
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11, err_msg=str(wiring))


def test_topologies_have_names_of_their_own() -> None:
    """But a constant or learned factor is folded away, as noise is, and rules shared or not give the same weights."""
    graphs = {}
    for wiring in wirings():
        for inner in ({}, {"ln_before": True}, {"use_gating": True}, {"phm_layer": True}):
            (part,) = bottleneck_config(config(**wiring, **inner)).components
            assert graphs.setdefault(part.graph_name, part.graph) == part.graph, part.graph_name


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("seq_bn", {"original_ln_before": True, "non_linearity": "relu", "reduction_factor": 16}),
        ("double_seq_bn", {"mh_adapter": True, "reduction_factor": 16}),
        (
            "par_bn",
            {
                "is_parallel": True,
                "scaling": 4.0,
                "non_linearity": "relu",
                "reduction_factor": 2,
                "init_weights": "mam_adapter",
            },
        ),
        (
            "scaled_par_bn",
            {
                "is_parallel": True,
                "scaling": "learned",
                "non_linearity": "relu",
                "reduction_factor": 2,
                "init_weights": "mam_adapter",
            },
        ),
        (
            "adapter_plus",
            {
                "original_ln_before": True,
                "original_ln_after": False,
                "residual_before_ln": False,
                "scaling": "channel",
                "stochastic_depth": 0.1,
                "non_linearity": "gelu",
                "reduction_factor": 96,
                "init_weights": "houlsby",
            },
        ),
        ("compacter", {"mh_adapter": True, "phm_layer": True, "non_linearity": "gelu", "reduction_factor": 32}),
        (
            "compacter++",
            {"original_ln_before": True, "phm_layer": True, "non_linearity": "gelu", "reduction_factor": 32},
        ),
    ],
)
def test_the_named_kinds_are_their_configurations(name: str, changes: dict[str, Any]) -> None:
    """`adapter_config.py` of adapters 1.3: what each class changes."""
    assert KINDS[name]() == bottleneck_config(config(**changes), name)


def test_bottleneck_config_has_every_field_of_adapterhub() -> None:
    """The keys of an `adapter_config.json` that adapters 1.3 writes."""
    keys = """adapter_residual_before_ln cross_adapter dropout factorized_phm_W factorized_phm_rule
        hypercomplex_nonlinearity init_weights init_weights_seed inv_adapter inv_adapter_reduction_factor is_parallel
        learn_phm leave_out ln_after ln_before mh_adapter non_linearity original_ln_after original_ln_before
        output_adapter phm_bias phm_c_init phm_dim phm_init_range phm_layer phm_rank reduction_factor residual_before_ln
        scaling shared_W_phm shared_phm_rule stochastic_depth use_gating"""
    assert {field.name for field in fields(BottleneckConfig)} == set(keys.split())


SITES = [
    Site("embeddings", "embeddings", None, 96, 96, "h"),
    *(Site(f"layers.{layer}.{role}", role, layer, 96, 96, "h") for layer in range(3) for role in ("attention", "ffn")),
]


def bottlenecks(given: BottleneckConfig) -> dict[str, int]:
    return {site: placement.widths["b"] for site, placement in bottleneck_config(given).placements(SITES).items()}


def test_the_reduction_factor_may_differ_by_layer() -> None:
    factors = {"0": 8, "2": 0.5, "default": 16}
    assert bottlenecks(config(reduction_factor=factors)) == {"layers.0.ffn": 12, "layers.1.ffn": 6, "layers.2.ffn": 192}
    assert bottlenecks(config(reduction_factor=1000))["layers.0.ffn"] == 1
    assert bottlenecks(config(reduction_factor=7))["layers.0.ffn"] == 13
    with pytest.raises(UsageError, match="layer 1 has no reduction factor"):
        bottlenecks(config(reduction_factor={"0": 8, "2": 2}))
    with pytest.raises(UsageError, match="not a layer; found `first`"):
        bottlenecks(config(reduction_factor={"first": 8}))
    with pytest.raises(UsageError, match="not a positive number; found 0"):
        bottlenecks(config(reduction_factor=0))


def test_layers_are_left_out_and_places_chosen() -> None:
    assert list(bottlenecks(config(leave_out=[0, 2]))) == ["layers.1.ffn"]
    assert list(bottlenecks(config(mh_adapter=True, output_adapter=False, leave_out=[1]))) == [
        "layers.0.attention",
        "layers.2.attention",
    ]


def test_an_invertible_adapter_stands_after_the_embeddings() -> None:
    kind = bottleneck_config(config(inv_adapter="nice", inv_adapter_reduction_factor=2, reduction_factor=16))
    placements = kind.placements(SITES)
    assert list(placements) == ["embeddings", "layers.0.ffn", "layers.1.ffn", "layers.2.ffn"]
    assert placements["embeddings"].widths == {"d": 96, "f": 24, "g": 24}
    alone = config(output_adapter=False, inv_adapter="nice", inv_adapter_reduction_factor=2)
    assert list(bottleneck_config(alone).placements(SITES)) == ["embeddings"]


def test_blocks_of_kronecker_products_divide_the_widths() -> None:
    part = parts_of(phm_layer=True, reduction_factor=8, phm_rank=3)
    assert part.widths_at(SITES[1]) == {"n": 4, "p": 24, "k": 3, "q": 3, "b": 12, "d": 96} | {}
    with pytest.raises(UsageError, match="the width `b` cannot be cut into equal blocks; found 6; expected a multiple"):
        parts_of(phm_layer=True, reduction_factor=16).widths_at(SITES[1])
    with pytest.raises(UsageError, match="the width `d` cannot be cut"):
        parts_of(phm_layer=True, phm_dim=5).widths_at(SITES[1])


def parts_of(**changes: Any) -> Component:
    (part,) = bottleneck_config(config(**changes)).components
    return part


def test_rules_and_factors_are_shared_as_the_configuration_says() -> None:
    assert parts_of(phm_layer=True).graph.shared == ("rule",)
    assert parts_of(phm_layer=True, shared_phm_rule=False).graph.shared == ()
    shared = parts_of(phm_layer=True, shared_W_phm=True).graph.shared
    assert set(shared) == {"rule", "down.left", "down.right", "up.left", "up.right"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inv_adapter": "glow", "inv_adapter_reduction_factor": 2.0}, "found `inv_adapter`: `glow`"),
        ({"inv_adapter": "nice"}, "has no `inv_adapter_reduction_factor`"),
        ({"output_adapter": False}, "acts nowhere"),
        ({"init_weights": "lucky"}, "unknown `init_weights`"),
        ({"residual_before_ln": "post_add"}, "nothing is added before the adapter"),
        ({"residual_before_ln": "later"}, "unknown `residual_before_ln`; found `later`"),
        ({"scaling": "large"}, "unknown scaling; found `large`"),
        ({"scaling": math.nan}, "the scaling is not a finite number"),
        ({"dropout": 1.0}, "a dropout rate is a probability below 1"),
        ({"stochastic_depth": -0.5}, "a drop path rate is a probability below 1"),
        ({"non_linearity": "xielu"}, "an activation that has no op here; found `xielu`"),
    ],
)
def test_unsupported_configurations_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bottleneck_config(config(**changes))


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("GELU_new", "gelu_tanh"),
        ("gelu", "gelu"),
        ("swish", "silu"),
        ("linear", "identity"),
        ("relu2", "relu_squared"),
        ("LeakyReLU", "leaky_relu"),
    ],
)
def test_adapterhub_activation_names_are_mapped(name: str, op: str) -> None:
    assert activation_named(name) == op


def test_kinds_declare_the_inputs_of_their_graph() -> None:
    assert KINDS["seq_bn"]().graph.inputs == ("h", "x")
    assert KINDS["par_bn"]().graph.inputs == ("h", "x")
    assert KINDS["adapter_plus"]().graph.inputs == ("y",)
    assert draw_inputs(KINDS["seq_bn"]().graph, 1, 2, D, RNG).keys() == {"h", "x"}
