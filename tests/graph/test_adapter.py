"""An adapter is checked when it is made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from backends import draw_parameters

from adapter_export.errors import AdapterError, TensorError
from adapter_export.graph.adapter import HEAD, Adapter, Head, Placement
from adapter_export.graph.cost import cost
from adapter_export.graph.graph import AdapterGraph, Node
from adapter_export.graph.kinds import BottleneckOptions, bottleneck, classification_head

GRAPH = bottleneck("h", BottleneckOptions())
WIDTHS = {"d": 8, "b": 2}
HEAD_WIDTHS = {"d": 8, "classes": 3}
SITES = ("layers.0.attention", "layers.0.ffn")
HEAD_PART = Head(classification_head(), HEAD_WIDTHS, ("one", "two", "three"))


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
    assert [owner for owner, _, _ in adapter().parts()] == [*SITES, HEAD]


def test_parameters_are_those_of_one_part_by_the_names_of_its_graph() -> None:
    one = adapter()
    assert set(one.parameters(SITES[1])) == set(GRAPH.parameters)
    np.testing.assert_array_equal(one.parameters(HEAD)["classifier.bias"], one.weights["head.classifier.bias"])


def test_the_cost_is_that_of_all_parts() -> None:
    expected = cost(GRAPH, WIDTHS) + cost(GRAPH, WIDTHS) + cost(HEAD_PART.graph, HEAD_WIDTHS)
    assert adapter().cost() == expected
    assert adapter().cost().parameters == sum(tensor.size for tensor in adapter().weights.values())


STRUCTURE = {
    "a name that no adapter may have": {"name": "../a"},
    "graphs and placements differ; found pfeiffer": {"graphs": {"bottleneck": GRAPH, "pfeiffer": GRAPH}},
    "graphs and placements differ; found other": {
        "placements": {SITES[0]: Placement("bottleneck", WIDTHS), SITES[1]: Placement("other", WIDTHS)}
    },
    "acts nowhere; expected a placement or a head": {"placements": {}, "graphs": {}, "head": None},
    "a site may not be called `head`": {"placements": {HEAD: Placement("bottleneck", WIDTHS)}},
    "labels and classes differ; found 2 labels; expected 3 different ones": {
        "head": replace(HEAD_PART, labels=("one", "two"))
    },
    "labels and classes differ; found 3 labels": {"head": replace(HEAD_PART, labels=("one", "one", "two"))},
    "`layers.0.attention`: a graph reads values that are not there; found hidden": {
        "graphs": {"bottleneck": classification_head("first")}
    },
    "`head`: a graph reads values that are not there; found h": {"head": replace(HEAD_PART, graph=GRAPH)},
    "`layers.0.attention`: a graph returns a wrong shape; found ['batch', 'tokens', 'b']": {
        "graphs": {
            "bottleneck": AdapterGraph(("h",), {"w": ("d", "b")}, (Node("linear", ("h",), "r", {"weight": "w"}),), "r")
        }
    },
}


@pytest.mark.parametrize("message", STRUCTURE)
def test_what_does_not_fit_together_is_refused(message: str) -> None:
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
