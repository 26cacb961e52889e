"""An adapter is checked when it is made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from backends import draw_parameters

from adapter_export.errors import AdapterError, GraphError, TensorError
from adapter_export.graph.adapter import HEAD, Adapter, Head, Placement
from adapter_export.graph.graph import AdapterGraph, Cost, Node, cost
from adapter_export.graph.kinds import BottleneckOptions, bottleneck, classification_head
from adapter_export.graph.tasks import Task

GRAPH = bottleneck("h", BottleneckOptions())
WIDTHS = {"d": 8, "b": 2}
HEAD_WIDTHS = {"d": 8, "classes": 3}
SITES = ("layers.0.attention", "layers.0.ffn")
HEAD_PART = Head(classification_head(), HEAD_WIDTHS, Task("single_label", ("one", "two", "three")))


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    parts = [*((site, GRAPH, WIDTHS) for site in SITES), (HEAD, HEAD_PART.graph, HEAD_WIDTHS)]
    return {
        f"{owner}.{name}": tensor
        for owner, graph, widths in parts
        for name, tensor in draw_parameters(graph, widths, rng).items()
    }


def adapter(**changes: Any) -> Adapter:
    placements = {site: Placement("bottleneck", WIDTHS) for site in SITES}
    values = {"placements": placements, "weights": weights(), "graphs": {"bottleneck": GRAPH}, "head": HEAD_PART}
    return Adapter(name="a", kind="houlsby", base="base", **{**values, **changes})


def test_parts_come_in_order_with_the_head_last() -> None:
    assert [owner for owner, _, _ in adapter().components()] == [*SITES, HEAD]


def test_parameters_are_those_of_one_part_by_the_names_of_its_graph() -> None:
    one = adapter()
    assert set(one.parameters(SITES[1])) == set(GRAPH.parameters)
    np.testing.assert_array_equal(one.parameters(HEAD)["classifier.bias"], one.weights["head.classifier.bias"])


def test_the_cost_is_that_of_all_parts() -> None:
    costs = [cost(GRAPH, WIDTHS), cost(GRAPH, WIDTHS), cost(HEAD_PART.graph, HEAD_WIDTHS)]
    parameters, accumulates = (
        sum(getattr(one, name) for one in costs) for name in ("parameters", "multiply_accumulates")
    )
    assert adapter().cost() == Cost(parameters, 4 * parameters, accumulates)
    assert adapter().cost().parameters == sum(tensor.size for tensor in adapter().weights.values())


STRUCTURE = {
    "a name that no adapter may have": {"name": "../a"},
    "graphs and placements differ; found pfeiffer": {"graphs": {"bottleneck": GRAPH, "pfeiffer": GRAPH}},
    "graphs and placements differ; found other": {
        "placements": {SITES[0]: Placement("bottleneck", WIDTHS), SITES[1]: Placement("other", WIDTHS)}
    },
    "acts nowhere; expected a placement, a head or a prefix": {"placements": {}, "graphs": {}, "head": None},
    "a site may not be called `head`": {"placements": {HEAD: Placement("bottleneck", WIDTHS)}},
    "labels and classes differ; found 2 labels; expected 3": {
        "head": replace(HEAD_PART, task=Task("single_label", ("one", "two")))
    },
    "a head for `ranking` gives another number of columns; found 3; expected 1": {
        "head": replace(HEAD_PART, task=Task("ranking"))
    },
    "`layers.0.attention`: a graph reads values that are not there; found hidden": {
        "graphs": {"bottleneck": classification_head("first")}
    },
    "`head`: a graph reads values that are not there; found h": {"head": replace(HEAD_PART, graph=GRAPH)},
    "head: a graph returns a wrong shape; found ['batch', 'classes']; expected [batch, tokens, classes]": {
        "head": replace(HEAD_PART, task=Task("token", ("one", "two", "three")))
    },
    "head: a graph returns a wrong shape; found ['batch', 'classes']; expected [batch, width]": {
        "head": replace(HEAD_PART, task=Task("embedding"))
    },
    "`layers.0.attention`: a graph returns a wrong shape; found ['batch', 'tokens', 'b']": {
        "graphs": {
            "bottleneck": AdapterGraph(("h",), {"w": ("d", "b")}, (Node("linear", ("h",), "r", {"weight": "w"}),), "r")
        }
    },
}


@pytest.mark.parametrize("message", STRUCTURE)
def test_inconsistent_adapters_are_refused(message: str) -> None:
    changes = dict(STRUCTURE[message])
    with pytest.raises(AdapterError) as caught:
        replace(adapter(), **changes)
    assert message in str(caught.value)


def broken(name: str, tensor: np.ndarray | None) -> dict[str, np.ndarray]:
    changed = {**weights(), name: tensor}
    return {key: value for key, value in changed.items() if value is not None}


BIAS = "layers.0.ffn.down.bias"
TENSORS = {
    f"`{BIAS}` is missing": broken(BIAS, None),
    "`stranger` is left over": broken("stranger", np.zeros(1, np.float32)),
    f"`{BIAS}` has shape [3], not [2]": broken(BIAS, np.zeros(3, np.float32)),
    f"`{BIAS}` is float64, not float32": broken(BIAS, np.zeros(2)),
    f"`{BIAS}` holds 1 NaN or Inf": broken(BIAS, np.array([0, np.nan], np.float32)),
    f"`{BIAS}` holds 2 NaN or Inf": broken(BIAS, np.array([np.inf, -np.inf], np.float32)),
}


@pytest.mark.parametrize("message", TENSORS)
def test_tensors_that_do_not_fit_are_refused(message: str) -> None:
    with pytest.raises(TensorError) as caught:
        adapter(weights=TENSORS[message])
    assert message in str(caught.value)


def test_all_faults_of_the_tensors_are_listed_at_once() -> None:
    with pytest.raises(TensorError) as caught:
        adapter(weights={"stranger": np.zeros(1, np.float32)})
    assert str(caught.value).count("is missing") == len(weights())
    assert "`stranger` is left over" in str(caught.value)


def test_a_width_of_zero_is_refused() -> None:
    empty = {**WIDTHS, "b": 0}
    tensors = {name: tensor for name, tensor in weights().items() if not name.startswith("head.")}
    tensors |= {
        f"{site}.{name}": np.zeros(shape, np.float32)
        for site in SITES
        for name, shape in GRAPH.parameter_shapes(empty).items()
    }
    with pytest.raises(TensorError, match="has an empty shape"):
        adapter(placements={site: Placement("bottleneck", empty) for site in SITES}, weights=tensors, head=None)


SHARING = replace(GRAPH, shared=("down.bias", "down.weight"))
COMMON = ("shared.bottleneck.down.bias", "shared.bottleneck.down.weight")


def sharing_weights() -> dict[str, np.ndarray]:
    """Parameters of two sites and the head; shared ones count once."""
    own = {name: tensor for name, tensor in weights().items() if ".down." not in name}
    return own | {f"shared.bottleneck.{name}": weights()[f"{SITES[0]}.{name}"] for name in SHARING.shared}


def sharing(**changes: Any) -> Adapter:
    return adapter(**{"graphs": {"bottleneck": SHARING}, "weights": sharing_weights(), **changes})


class TestShared:
    """Parameters shared by all sites of a graph are stored once."""

    def test_sites_share_parameters_under_plain_names(self) -> None:
        one = sharing()
        assert set(one.parameters(SITES[0])) == set(GRAPH.parameters)
        for name in SHARING.shared:
            assert one.parameters(SITES[0])[name] is one.parameters(SITES[1])[name]
        assert one.parameters(SITES[0])["up.bias"] is not one.parameters(SITES[1])["up.bias"]

    def test_shared_parameters_have_one_tensor_name(self) -> None:
        names = {site: sharing().tensor_names(site) for site in SITES}
        assert [names[SITES[1]][name] for name in SHARING.shared] == list(COMMON)
        assert names[SITES[1]]["up.bias"] == "layers.0.ffn.up.bias"
        assert set(sharing().tensor_shapes()) == {name for group in names.values() for name in group.values()} | {
            "head.classifier.weight",
            "head.classifier.bias",
        }

    def test_shared_parameters_are_counted_once(self) -> None:
        assert sharing().cost().parameters == adapter().cost().parameters - 8 * 2 - 2
        assert sharing().cost().multiply_accumulates == adapter().cost().multiply_accumulates

    def test_no_site_may_have_their_prefix(self) -> None:
        with pytest.raises(AdapterError, match="a site may not be called `shared`"):
            sharing(placements={"shared": Placement("bottleneck", WIDTHS)})

    def test_one_tensor_cannot_have_two_shapes(self) -> None:
        placements = {SITES[0]: Placement("bottleneck", WIDTHS), SITES[1]: Placement("bottleneck", {**WIDTHS, "b": 3})}
        with pytest.raises(AdapterError) as caught:
            sharing(placements=placements)
        assert "`shared.bottleneck.down.weight`: a shared tensor has different shapes" in str(caught.value)
        assert "found [8, 2] and [8, 3]" in str(caught.value)

    def test_missing_shared_parameters_are_refused(self) -> None:
        with pytest.raises(TensorError, match=r"`shared\.bottleneck\.down\.bias` is missing"):
            sharing(weights={name: tensor for name, tensor in sharing_weights().items() if name != COMMON[0]})


@pytest.mark.parametrize(
    ("replaces", "message"),
    [("y", None), ("h", None), ("u", "found ['batch', 'tokens', 'd']; expected ['batch', 'tokens', 'd_in']")],
)
def test_results_must_have_the_shape_of_the_replaced_value(replaces: str, message: str | None) -> None:
    source = "u" if replaces == "u" else "h"
    width = "d_in" if replaces == "u" else "d"
    nodes = (Node("linear", (source,), "r", {"weight": "w"}),)
    graph = AdapterGraph((source,), {"w": (width, "d")}, nodes, "r", replaces)
    placements = {SITES[0]: Placement("one", {"d": 2, "d_in": 2})}
    given = {"graphs": {"one": graph}, "placements": placements, "head": None}
    tensors = {f"{SITES[0]}.w": np.ones((2, 2), np.float32)}
    if message is None:
        assert adapter(**given, weights=tensors).parameters(SITES[0])["w"].shape == (2, 2)
    else:
        with pytest.raises(AdapterError) as caught:
            adapter(**given, weights=tensors)
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [({"p": 3}, "in = n·p is 8, not 6"), ({"q": 2}, "out = n·q is 6, not 4"), ({}, None)],
)
def test_widths_must_fit_each_other(changes: dict[str, int], fault: str | None) -> None:
    roles = {"rule": ("n", "n", "n"), "left": ("n", "p", "k"), "right": ("n", "k", "q"), "bias": ("b",)}
    nodes = (
        Node("phm_linear", ("h",), "v", {role: role for role in roles}),
        Node("linear", ("v",), "r", {"weight": "w"}),
    )
    graph = AdapterGraph(("h",), {**roles, "w": ("b", "d")}, nodes, "r")
    widths = {"d": 8, "b": 6, "n": 2, "p": 4, "k": 1, "q": 3, **changes}
    tensors = {
        f"{SITES[0]}.{name}": np.ones(shape, np.float32) for name, shape in graph.parameter_shapes(widths).items()
    }
    given = {"graphs": {"one": graph}, "placements": {SITES[0]: Placement("one", widths)}, "head": None}
    if fault is None:
        assert adapter(**given, weights=tensors).cost().multiply_accumulates == 8 * 6 + 6 * 8
    else:
        with pytest.raises(GraphError) as caught:
            adapter(**given, weights=tensors)
        assert str(caught.value) == (
            f"adapter `a`, `{SITES[0]}`, node 0 (`phm_linear`): widths do not fit; found {fault}."
        )


def test_a_file_holds_one_row_of_the_weights_of_a_mix() -> None:
    graph = AdapterGraph(("h", "x"), {"w": ("rows", 2)}, (Node("mix", ("h", "x"), "r", {"weights": "w"}),), "r")
    placements = {SITES[0]: Placement("one", {"rows": 3})}
    with pytest.raises(GraphError, match=r"node 0 \(`mix`\): widths do not fit; found rows is 3, not 1"):
        adapter(graphs={"one": graph}, placements=placements, weights={f"{SITES[0]}.w": np.ones((3, 2))}, head=None)


def test_a_width_that_no_parameter_has_is_left_to_the_base() -> None:
    """The width of the product's input is a fact of the base: 8 there, unknown here."""
    roles = {"rule": (2, 2, 2), "left": (2, 4, 1), "right": (2, 1, 3), "bias": (6,)}
    nodes = (
        Node("phm_linear", ("u",), "v", {role: role for role in roles}),
        Node("linear", ("v",), "w", {"weight": "w"}),
        Node("add", ("h", "w"), "r"),
    )
    graph = AdapterGraph(("u", "h"), {**roles, "w": (6, "d")}, nodes, "r")
    graph.check_widths({"d": 8})
    graph.check_widths({"d": 8, "d_in": 8})
    with pytest.raises(GraphError, match="in = n·p is 9, not 8"):
        graph.check_widths({"d": 8, "d_in": 9})
