"""The walk that all lowerings share."""

from __future__ import annotations

from adapter_export.graph.graph import AdapterGraph, Node, interpret


def test_nodes_receive_their_inputs_in_order() -> None:
    """A lowering into text shows who was called with what."""
    nodes = (
        Node("linear", ("x",), "a", {"weight": "w", "bias": "b"}),
        Node("scale", ("a",), "s", {}, {"factor": 2.0}),
        Node("add", ("s", "h"), "r"),
    )
    graph = AdapterGraph(("h", "x"), {"w": ("d", "d"), "b": ("d",)}, nodes, "r")
    text = {
        "linear": lambda node, values, owned: f"{values[0]}@{owned['weight']}+{owned['bias']}",
        "scale": lambda node, values, owned: f"{node.attributes['factor']}*({values[0]})",
        "add": lambda node, values, owned: f"{values[0]}+{values[1]}",
    }
    values = interpret(graph, text, {"h": "H", "x": "X", "u": "unread"}, {"w": "W", "b": "B"})
    assert values == {"h": "H", "x": "X", "a": "X@W+B", "s": "2.0*(X@W+B)", "r": "2.0*(X@W+B)+H"}
