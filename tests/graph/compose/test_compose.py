"""Compositions at one site against their formulas, and unsupported compositions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from adapter_export.errors import AdapterError, UsageError
from adapter_export.graph.adapter import Adapter, Placement
from adapter_export.graph.compose import (
    COMPOSITION,
    STATIC,
    FusionOptions,
    adapter_fusion,
    average,
    stack,
    weighted_fusion,
)
from adapter_export.graph.compose.attention import at_temperature, temperature_of
from adapter_export.graph.compose.members import own_tensors
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds import BottleneckOptions, ia3_graph
from adapter_export.graph.kinds.bottleneck import Wiring, wired
from adapter_export.graph.slot_form import neutral_parameters, slot_form
from adapter_export.numerics.evaluate_adapter import BORROWED, evaluate_site
from adapter_export.sites.site import Norm

SITE, WIDTH = "layers.0.ffn", 6
NORM = Norm("layer", 1e-5, "w", "b")
Values = Mapping[str, np.ndarray]


def adapter(name: str, graph: AdapterGraph, seed: int, *, site: str = SITE, base: str = "base", b: int = 3) -> Adapter:
    widths = {symbol: {"d": WIDTH, "d_in": WIDTH}.get(symbol, b) for symbol in graph.symbols()}
    rng = np.random.default_rng(seed)
    shapes = graph.parameter_shapes(widths)
    weights = {f"{site}.{key}": rng.normal(0, 0.2, shape).astype(np.float32) for key, shape in shapes.items()}
    return Adapter(name, "custom", base, {"g": graph}, {site: Placement("g", widths)}, weights)


A = adapter("a", wired(Wiring(), BottleneckOptions()), 1)
B = adapter("b", wired(Wiring("u"), BottleneckOptions("relu", scaling="learned")), 2, b=5)
NORMED = adapter("normed", wired(Wiring("normed"), BottleneckOptions("tanh")), 3)
AT_Y = adapter("at_y", wired(Wiring("normed", "read", "y"), BottleneckOptions("silu")), 4)
IA3 = adapter("ia3", ia3_graph("h"), 5)
AT_U = adapter("at_u", ia3_graph("u"), 6)
ELSEWHERE = adapter("elsewhere", wired(Wiring(), BottleneckOptions()), 7, site="layers.1.ffn")
WIDE = replace(
    A,
    name="wide",
    placements={SITE: Placement("g", {"d": 2 * WIDTH, "b": 3})},
    weights={
        name: np.resize(tensor, [2 * WIDTH if size == WIDTH else size for size in tensor.shape])
        for name, tensor in A.weights.items()
    },
)
ON_H = (A, B, NORMED, IA3)


@pytest.fixture(scope="module")
def values() -> Values:
    rng = np.random.default_rng(0)
    drawn = {name: rng.standard_normal((2, 4, WIDTH)) for name in ("h", "x", "u")}
    tensors = {name: rng.normal(1, 0.2, WIDTH) for name in BORROWED}
    return {**drawn, **tensors, "y": normed(drawn["h"] + drawn["x"], tensors)}


def normed(value: np.ndarray, tensors: Values) -> np.ndarray:
    centred = value - value.mean(-1, keepdims=True)
    return centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5) * tensors[BORROWED[0]] + tensors[BORROWED[1]]


def at(one: Adapter, values: Values, site: str = SITE, **others: np.ndarray) -> np.ndarray:
    return evaluate_site(one, site, {**values, **others}, NORM)


def assert_same(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


def test_stacked_adapters_read_the_previous_result(values: Values) -> None:
    h = values["h"]
    for one in ON_H:
        h = at(one, values, h=h)
    assert_same(at(stack(*ON_H, name="s"), values), h)
    backwards = at(stack(*reversed(ON_H), name="s"), values)
    assert np.abs(backwards - h).max() > 0.01


@pytest.mark.parametrize("order", [(A, AT_Y, B), (AT_Y, A, B), (A, B, AT_Y)])
def test_adapters_on_h_act_before_adapters_on_y(values: Values, order: tuple[Adapter, ...]) -> None:
    h = at(B, values, h=at(A, values))
    wanted = at(AT_Y, values, h=h, y=normed(h + values["x"], values))
    assert_same(at(stack(*order, name="s"), values), wanted)


def test_an_average_is_the_sum_of_weighted_results(values: Values) -> None:
    shares = [0.1, 0.2, 0.4, 0.3]
    wanted = sum(share * at(one, values) for share, one in zip(shares, ON_H, strict=True))
    assert_same(at(average(*ON_H, name="m", weights=shares), values), wanted)
    named = {one.name: share for one, share in zip(ON_H, shares, strict=True)}
    assert_same(at(average(*ON_H, name="m", weights=named), values), wanted)


def test_averages_across_h_and_y_average_block_outputs(values: Values) -> None:
    of_a = normed(at(A, values) + values["x"], values)
    found = at(average(A, AT_Y, name="m", weights=[0.75, 0.25]), values)
    assert_same(found, 0.75 * of_a + 0.25 * at(AT_Y, values))


def test_a_member_that_does_not_act_returns_h(values: Values) -> None:
    mean = average(A, ELSEWHERE, name="m")
    assert list(mean.placements) == ["layers.0.ffn", "layers.1.ffn"]
    assert_same(at(mean, values), 0.5 * at(A, values) + 0.5 * values["h"])
    fused = weighted_fusion(A, ELSEWHERE, name="m", weights=[0.25, 0.9])
    assert_same(at(fused, values), values["h"] + 0.25 * (at(A, values) - values["h"]))
    assert_same(at(stack(A, ELSEWHERE, name="m"), values), at(A, values))


@pytest.mark.parametrize("residual", ["once", "literal"])
def test_a_weighted_fusion_adds_weighted_changes(values: Values, residual: str) -> None:
    shares, h = [1.5, -0.25, 0.5, 0.0], values["h"]
    whole = h if residual == "literal" else 0
    wanted = h + sum(share * (at(one, values) - h + whole) for share, one in zip(shares, ON_H, strict=True))
    assert_same(at(weighted_fusion(*ON_H, name="f", weights=shares, residual=residual), values), wanted)


def test_the_default_weights_are_equal(values: Values) -> None:
    fused = weighted_fusion(A, B, name="f")
    assert_same(at(fused, values), at(average(A, B, name="m"), values))
    np.testing.assert_array_equal(fused.weights["shared.weighted_fusion.mix.weights"], [[0.5, 0.5]])


@pytest.mark.parametrize("one", [A, B, NORMED, AT_Y, IA3, AT_U])
def test_average_and_stack_of_one_are_the_one(values: Values, one: Adapter) -> None:
    assert_same(at(average(one, name="m"), values), at(one, values))
    np.testing.assert_array_equal(at(stack(one, name="s"), values), at(one, values))


@pytest.mark.parametrize("one", ON_H)
def test_one_hot_weights_give_that_adapter(values: Values, one: Adapter) -> None:
    shares = {other.name: float(other is one) for other in ON_H}
    assert_same(at(weighted_fusion(*ON_H, name="f", weights=shares), values), at(one, values))


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(0))
    return powers / powers.sum(0)


def drawn(one: Adapter) -> Adapter:
    """With projections of the fusion of standard deviation 0.2."""
    rng = np.random.default_rng(9)
    fresh = {name: rng.normal(0, 0.2, one.weights[name].shape).astype(np.float32) for name in own_tensors(one)}
    return replace(one, weights={**one.weights, **fresh})


FLAGS = ("query", "key", "value", "query_before_norm", "residual_before", "value_before_softmax")


@pytest.mark.parametrize("flags", list(itertools.product((False, True), repeat=6)))
def test_a_fusion_by_attention_is_that_of_the_paper(values: Values, flags: tuple[bool, ...]) -> None:
    options = FusionOptions(**dict(zip(FLAGS, flags, strict=True)), temperature=2.0)
    fused, h = drawn(adapter_fusion(A, IA3, NORMED, name="f", options=options)), values["h"]
    own = {name.removeprefix(f"{SITE}.fusion."): tensor for name, tensor in fused.weights.items() if ".fusion." in name}
    residual = h if options.residual_before else 0
    added = [at(one, values) - h + residual for one in (A, IA3, NORMED)]
    query = h if options.query_before_norm else values["y"]
    query = query @ own["query.weight"] + own["query.bias"] if options.query else query
    keys = [one @ own["key.weight"] + own["key.bias"] if options.key else one for one in added]
    mixed = [one @ own["value.weight"] if options.value else one for one in added]
    shares = softmax(np.stack([(query * key).sum(-1, keepdims=True) for key in keys]) / 2)
    wanted = (shares * np.stack(mixed)).sum(0) + (0 if options.residual_before else h)
    assert_same(at(fused, values), wanted)
    assert set(own) == {
        f"{name}.{role}"
        for name in ("query", "key", "value")
        if getattr(options, name)
        for role in (("weight",) if name == "value" else ("weight", "bias"))
    }


def test_fusions_with_adapters_on_y_act_on_y(values: Values) -> None:
    fused = drawn(adapter_fusion(A, AT_Y, name="f", options=STATIC))
    own = {name.removeprefix(f"{SITE}.fusion."): tensor for name, tensor in fused.weights.items() if ".fusion." in name}
    y = values["y"]
    added = [normed(at(A, values) + values["x"], values) - y, at(AT_Y, values) - y]
    query = y @ own["query.weight"] + own["query.bias"]
    keys = [one @ own["key.weight"] + own["key.bias"] for one in added]
    shares = softmax(np.stack([(query * key).sum(-1, keepdims=True) for key in keys]))
    assert_same(at(fused, values), y + (shares * np.stack(added)).sum(0))


def test_single_fused_adapters_have_the_share_1(values: Values) -> None:
    assert_same(at(adapter_fusion(A, ELSEWHERE, name="f", options=STATIC), values), at(A, values))
    fused = drawn(adapter_fusion(A, name="f"))
    assert own_tensors(fused) == (f"{SITE}.fusion.value.weight",)
    value = fused.weights[f"{SITE}.fusion.value.weight"]
    assert_same(at(fused, values), values["h"] + (at(A, values) - values["h"]) @ value)


def test_a_fusion_starts_as_in_adapterhub() -> None:
    wide = 48
    members = [
        replace(
            one, placements={SITE: Placement("g", dict(one.placements[SITE].widths) | {"d": wide})}, weights=weights
        )
        for one in (A, NORMED)
        for weights in [
            {
                name: np.full([wide if size == WIDTH else size for size in tensor.shape], 0.1, np.float32)
                for name, tensor in one.weights.items()
            }
        ]
    ]
    own = adapter_fusion(*members, name="f").weights
    value, query = own[f"{SITE}.fusion.value.weight"], own[f"{SITE}.fusion.query.weight"]
    np.testing.assert_array_equal(value, np.where(np.eye(wide), 1, 1e-6).astype(np.float32))
    assert 0.018 < query.std() < 0.022
    assert not own[f"{SITE}.fusion.query.bias"].any()
    other = adapter_fusion(*members, name="f", options=FusionOptions(first_value="normal"), seed=1).weights
    assert 0.018 < other[f"{SITE}.fusion.value.weight"].std() < 0.022
    assert np.abs(other[f"{SITE}.fusion.query.weight"] - query).max() > 0.01


def test_temperature_changes_leave_those_of_members() -> None:
    inner = adapter_fusion(A, B, name="inner", options=FusionOptions(temperature=7.0))
    graph = adapter_fusion(inner, NORMED, name="outer", options=FusionOptions(temperature=3.0)).graphs["fusion"]
    found = at_temperature(graph, 1.5)
    assert temperature_of(graph) == 3.0
    assert temperature_of(found) == 1.5
    assert [node.attributes["temperature"] for node in found.nodes if node.op == "softmax_mix"] == [7.0, 1.5]
    assert temperature_of(A.graphs["g"]) == 1.0


def test_the_own_tensors_are_those_that_learn() -> None:
    assert own_tensors(stack(A, B, name="s")) == ()
    assert own_tensors(weighted_fusion(A, B, name="w")) == ("shared.weighted_fusion.mix.weights",)
    fused = adapter_fusion(A, weighted_fusion(A, B, name="w"), name="f", options=STATIC)
    assert own_tensors(fused) == tuple(
        f"{SITE}.fusion.{name}" for name in ("query.weight", "query.bias", "key.weight", "key.bias")
    )


@pytest.mark.parametrize("make", [stack, average, weighted_fusion, adapter_fusion])
@pytest.mark.parametrize("members", [ON_H, (A, AT_Y), (IA3, AT_Y), (AT_U,), (AT_Y,)])
def test_every_composition_can_lie_idle(values: Values, make, members: tuple[Adapter, ...]) -> None:
    """In the form that goes into slots."""
    made = make(*members, name="c")
    form = slot_form(made.graphs[made.placements[SITE].graph])
    widths = {**made.placements[SITE].widths, "d": WIDTH, "d_in": WIDTH}
    own = {
        f"{'shared.g' if name in form.shared else SITE}.{name}": t
        for name, t in neutral_parameters(form, widths).items()
    }
    idle = replace(made, graphs={"g": form}, placements={SITE: Placement("g", widths)}, weights=own)
    np.testing.assert_array_equal(at(idle, values), values[form.replaces])


def test_common_nodes_of_members_are_computed_once() -> None:
    other = adapter("other", wired(Wiring("normed"), BottleneckOptions("relu")), 8)
    ops = [node.op for node in average(NORMED, other, name="m").graphs["average"].nodes]
    assert ops.count("base_norm") == 1
    assert ops.count("linear") == 4


def test_parameters_have_the_label_of_their_member() -> None:
    made = weighted_fusion(replace(A, name="v1.2"), replace(B, name="mix"), replace(NORMED, name="h"), name="f")
    assert {name.removeprefix(f"{SITE}.").partition(".")[0] for name in made.weights} == {
        "v1_2",
        "member2",
        "h",
        "shared",
    }
    np.testing.assert_array_equal(made.weights[f"{SITE}.v1_2.down.weight"], A.weights[f"{SITE}.down.weight"])


def test_composition_record_lists_members_and_weights() -> None:
    record = average(A, B, name="m", weights=[0.25, 0.75]).training[COMPOSITION]
    assert record == {
        "type": "average",
        "weights": [0.25, 0.75],
        "members": [{"name": "a", "kind": "custom"}, {"name": "b", "kind": "custom"}],
    }


REFUSED = {
    "are different adapters, each with a name of its own; found none": lambda: stack(name="s"),
    "a name of its own; found a, a": lambda: average(A, A, name="m"),
    "on different bases": lambda: stack(A, replace(B, base="other"), name="s"),
    "`d` = 12 in `wide`, 6 before it": lambda: average(A, WIDE, name="m"),
    "`at_u` replaces `u`, `a` replaces `h`": lambda: stack(AT_U, A, name="s"),
    "add up to 1; found 1.2": lambda: average(A, B, name="m", weights=[0.5, 0.7]),
    "are shares, from 0 to 1; found `a`: -0.5, `b`: 1.5": lambda: average(A, B, name="m", weights=[-0.5, 1.5]),
    "not those of the members; found 1;": lambda: average(A, B, name="m", weights=[1.0]),
    "not those of the members; found none;": lambda: average(A, B, name="m", weights={}),
    "not those of the members; found `a`: 1, `c`: 0": lambda: weighted_fusion(A, B, name="f", weights={"a": 1, "c": 0}),
    "not those of the members; found nan, 1": lambda: weighted_fusion(A, B, name="f", weights=[float("nan"), 1]),
    "not those of the members; found 1e+40, 1": lambda: weighted_fusion(A, B, name="f", weights=[1e40, 1]),
    "no temperature of a softmax; found 0.0": lambda: FusionOptions(temperature=0.0),
    "no member of this name has a head; found `a`": lambda: stack(A, B, name="s", head="a"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_invalid_compositions_are_refused(message: str) -> None:
    with pytest.raises((AdapterError, UsageError)) as caught:
        REFUSED[message]()
    assert message in str(caught.value)
