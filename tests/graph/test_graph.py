"""A graph is checked when it is made; every fault has a message of its own that names the node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from adapter_export.errors import GraphError
from adapter_export.graph.graph import AdapterGraph, Node, resolve
from adapter_export.graph.kinds import BottleneckOptions, bottleneck, classification_head

DOWN = {"weight": "down.weight", "bias": "down.bias"}
SHAPES = {"down.weight": ("d", "b"), "down.bias": ("b",)}


def graph(
    *nodes: Node,
    inputs: tuple[str, ...] = ("h",),
    parameters: Mapping[str, tuple[Any, ...]] | None = None,
    result: str | None = None,
    **place: Any,
) -> AdapterGraph:
    return AdapterGraph(inputs, parameters or {}, nodes, result or nodes[-1].output, **place)


def linear(**changes: Any) -> Node:
    return replace(Node("linear", ("h",), "down", DOWN), **changes)


FAULTS = {
    "the result is not computed": lambda: graph(Node("relu", ("h",), "r"), result="y"),
    "node 1 (`relu`): a value is defined twice; found `r`": lambda: graph(
        Node("relu", ("h",), "r"), Node("relu", ("r",), "r")
    ),
    "node 0 (`relu`): a value is defined twice; found `h`": lambda: graph(Node("relu", ("h",), "h")),
    "unknown values are read; found v; expected only h, x, u, y (at a site) or only hidden, mask (in a head)": lambda: (
        graph(Node("relu", ("v",), "r"), inputs=("v",))
    ),
    "nothing that can be replaced; found `x`; expected u, h, y": lambda: graph(Node("relu", ("h",), "r"), replaces="x"),
    "computed after `h`, which the result replaces; found y; expected h, x, u": lambda: graph(
        Node("relu", ("y",), "r"), inputs=("y",)
    ),
    "computed after `u`, which the result replaces; found h; expected x, u": lambda: graph(
        Node("relu", ("h",), "r"), replaces="u"
    ),
    "a head replaces nothing and shares nothing": lambda: graph(
        Node("first_token", ("hidden",), "r"), inputs=("hidden",), replaces="y"
    ),
    "`shared` must be different parameters of the graph; found down.gain": lambda: graph(
        linear(), parameters=SHAPES, shared=("down.gain",)
    ),
    "`shared` must be different parameters of the graph; found down.bias, down.bias": lambda: graph(
        linear(), parameters=SHAPES, shared=("down.bias", "down.bias")
    ),
    "node 0 (`base_norm`): the base's norm is of width `d`": lambda: graph(
        Node("base_norm", ("u",), "r"), inputs=("u",)
    ),
    "unknown values are read; found h, hidden": lambda: graph(
        Node("add", ("h", "hidden"), "r"), inputs=("h", "hidden")
    ),
    "unknown values are read; found none": lambda: graph(Node("relu", ("h",), "r"), inputs=()),
    "an input is declared twice; found h, h": lambda: graph(Node("relu", ("h",), "r"), inputs=("h", "h")),
    "node 0 (`softmax`): unknown op": lambda: graph(Node("softmax", ("h",), "r")),
    "node 0 (`relu`): a value is read before it is defined; found x": lambda: graph(Node("relu", ("x",), "r")),
    "node 0 (`add`): wrong number of values read; found 1; expected 2": lambda: graph(Node("add", ("h",), "r")),
    "node 0 (`scale`): wrong attributes; found none; expected factor": lambda: graph(Node("scale", ("h",), "r")),
    "node 0 (`relu`): wrong attributes; found slope; expected none": lambda: graph(
        Node("relu", ("h",), "r", {}, {"slope": 0.1})
    ),
    "node 0 (`scale`): attribute `factor` is out of range; found nan": lambda: graph(
        Node("scale", ("h",), "r", {}, {"factor": float("nan")})
    ),
    "node 0 (`dropout`): attribute `rate` is out of range; found 1.0; expected 0 to below 1": lambda: graph(
        Node("dropout", ("h",), "r", {}, {"rate": 1.0})
    ),
    "node 0 (`linear`): wrong parameters; found bias; expected weight (and perhaps bias)": lambda: graph(
        linear(parameters={"bias": "down.bias"}), parameters=SHAPES
    ),
    "node 0 (`linear`): wrong parameters; found gain, weight": lambda: graph(
        linear(parameters={"weight": "down.weight", "gain": "down.bias"}), parameters=SHAPES
    ),
    "node 0 (`linear`): a parameter has no shape; found `down.bias`": lambda: graph(
        linear(), parameters={"down.weight": ("d", "b")}
    ),
    "node 0 (`linear`): parameter `down.weight` has a wrong shape; found ['b', 'd']; expected ['d', 'd']": lambda: (
        graph(linear(), parameters={"down.weight": ("b", "d"), "down.bias": ("b",)})
    ),
    "parameter `down.weight` has a wrong shape; found ['d']; expected ['d', 'out']": lambda: graph(
        linear(), parameters={"down.weight": ("d",), "down.bias": ("b",)}
    ),
    "parameter `down.bias` has a wrong shape; found ['c']; expected ['b']": lambda: graph(
        linear(), parameters={"down.weight": ("d", "b"), "down.bias": ("c",)}
    ),
    "parameter `down.weight` has a shape that no tensor can have; found ['d', 'tokens']": lambda: graph(
        linear(), parameters={"down.weight": ("d", "tokens"), "down.bias": ("tokens",)}
    ),
    "parameter `down.bias` has a shape that no tensor can have; found [0]": lambda: graph(
        linear(), parameters={"down.weight": ("d", 4), "down.bias": (0,)}
    ),
    "parameter `down.bias` has a shape that no tensor can have; found []": lambda: graph(
        linear(), parameters={"down.weight": ("d", 4), "down.bias": ()}
    ),
    "node 1 (`dot`): values of different shapes meet": lambda: graph(
        linear(), Node("dot", ("h", "down"), "r"), parameters=SHAPES
    ),
    "node 0 (`mix`): wrong number of values read; found 0; expected 1, 2, …": lambda: graph(
        Node("mix", (), "r", {"weights": "w"}), parameters={"w": (1, 1)}
    ),
    "node 0 (`mix`): parameter `w` has a wrong shape; found [1, 3]; expected [1, 1]": lambda: graph(
        Node("mix", ("h",), "r", {"weights": "w"}), parameters={"w": (1, 3)}
    ),
    "node 1 (`mix`): an op over tokens reads one value per token": lambda: graph(
        Node("first_token", ("hidden",), "f"),
        Node("mix", ("f",), "r", {"weights": "w"}),
        inputs=("hidden",),
        parameters={"w": (1, 1)},
    ),
    "node 0 (`softmax_mix`): wrong number of values read; found 3; expected 2, 4, …": lambda: graph(
        Node("softmax_mix", ("h", "h", "h"), "r", {}, {"temperature": 1.0})
    ),
    "node 0 (`softmax_mix`): a score is one number beside each value; found ('batch', 'tokens', 'd')": lambda: graph(
        Node("softmax_mix", ("h", "h"), "r", {}, {"temperature": 1.0})
    ),
    "node 0 (`softmax_mix`): attribute `temperature` is out of range; found 0.0": lambda: graph(
        Node("softmax_mix", ("h", "h"), "r", {}, {"temperature": 0.0})
    ),
    "node 0 (`gate`): a gate is one number per token; found ('batch', 'tokens', 'd')": lambda: graph(
        Node("gate", ("h", "h"), "r")
    ),
    "node 0 (`learned_scale`): parameter `w` has a wrong shape; found ['d']; expected [1]": lambda: graph(
        Node("learned_scale", ("h",), "r", {"weight": "w"}), parameters={"w": ("d",)}
    ),
    "node 0 (`phm_linear`): parameter `rule` has a wrong shape; found [2, 2, 3]; expected [2, 2, 2]": lambda: graph(
        Node("phm_linear", ("h",), "r", {role: role for role in ("rule", "left", "right", "bias")}),
        parameters={"rule": (2, 2, 3), "left": (2, 4, 1), "right": (2, 1, 4), "bias": ("d",)},
    ),
    "node 1 (`add`): values of different shapes meet": lambda: graph(
        linear(), Node("add", ("h", "down"), "r"), parameters=SHAPES
    ),
    "node 1 (`first_token`): an op over tokens reads one value per token": lambda: graph(
        Node("first_token", ("h",), "first"), Node("first_token", ("first",), "r")
    ),
    "node 1 (`mean_pool`): the mask does not cover the tokens": lambda: graph(
        Node("relu", ("hidden",), "m"), Node("mean_pool", ("hidden", "m"), "r"), inputs=("hidden",)
    ),
    "declared but never used; found down.bias": lambda: graph(
        linear(parameters={"weight": "down.weight"}), parameters=SHAPES
    ),
    "declared but never used; found x": lambda: graph(Node("relu", ("h",), "r"), inputs=("h", "x")),
    "declared but never used; found s": lambda: graph(
        Node("sigmoid", ("h",), "s"), Node("relu", ("h",), "r"), result="r"
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_malformed_graph_is_refused(message: str) -> None:
    with pytest.raises(GraphError) as caught:
        FAULTS[message]()
    assert message in str(caught.value)


def test_graph_without_ops_returns_its_input() -> None:
    assert AdapterGraph(("h",), {}, (), "h").shapes() == {"h": ("batch", "tokens", "d")}


def test_shapes_follow_the_ops() -> None:
    shapes = bottleneck("u", BottleneckOptions()).shapes()
    assert shapes["down"] == shapes["activated"] == ("batch", "tokens", "b")
    assert shapes["up"] == shapes["result"] == ("batch", "tokens", "d")
    assert classification_head().shapes()["logits"] == ("batch", "classes")


def test_symbols_are_listed_in_order_of_occurrence() -> None:
    assert bottleneck("h", BottleneckOptions()).symbols() == ("d", "b")
    assert bottleneck("u", BottleneckOptions()).symbols() == ("d_in", "b", "d")


def test_fixed_widths_may_stand_in_the_place_of_symbols() -> None:
    fixed = graph(linear(), parameters={"down.weight": ("d", 4), "down.bias": (4,)})
    assert fixed.parameter_shapes({"d": 8}) == {"down.weight": (8, 4), "down.bias": (4,)}


def test_head_graphs_are_distinguished_from_site_graphs() -> None:
    assert classification_head("first").reads_head_values()
    assert not bottleneck("u", BottleneckOptions()).reads_head_values()


def test_a_missing_width_is_named() -> None:
    with pytest.raises(GraphError, match="a width is not given; found d; expected `b`"):
        bottleneck("h", BottleneckOptions()).parameter_shapes({"d": 8})
    with pytest.raises(GraphError, match="found none"):
        resolve("b", {})
