"""Faults at some shapes only: an output of the base is multiplied by a factor if a condition on the shape is true."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from adapter_export.plugins.selftest.fault import Copy, Place, Plant, in_graph, kinds_of
from adapter_export.plugins.selftest.node_faults import add_number, in_mask, insert_after


def _of_shape(condition: str) -> Plant:
    """Plant a fault at the shapes that satisfy `condition`, one of those of `off_where`."""

    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        record = next((one for one in copy.manifest.inputs if one.role in ("ids", "mask") and len(one.axes) == 2), None)
        outputs = {one.name for one in copy.manifest.base_outputs if one.dtype == "float32"}
        mask = next((one.name for one in copy.manifest.inputs if one.role == "mask" and len(one.axes) == 2), None)
        if record is None or not outputs or (condition == "left" and mask is None):
            return None
        axis = record.axes[0 if condition in _OF_ROWS else 1]
        if not isinstance(axis, str):  # of fixed length
            return None
        value = next(one for one in model.graph.outputs if one.name in outputs)
        source = next(one for one in model.graph.inputs if one.name == (mask if condition == "left" else record.name))
        producer = value.producer()
        off_where(model, value, source, condition)
        smallest = {"even": 2, "long": 65, "rows": 4, "one": 1, "alone": 1}.get(condition)
        place = "padded_left" if smallest is None else f"{axis}{smallest}"
        return [place, *([] if producer is None else [producer.name or ""])]

    return in_graph(changed)


_OF_ROWS = ("rows", "alone")
"""Conditions on the number of rows of a batch, not of tokens."""


def off_where(model: ir.Model, old: ir.Value, source: ir.Value, condition: str) -> None:
    """Multiply a value by 1.01 where a condition on a source is true."""

    def number(value: object, name: str, dtype: type = np.int64) -> ir.Value:
        return add_number(model, np.array(value, dtype), name)

    if condition == "left":
        first = ir.Node("", "Gather", [source, number(0, "first")], [ir.AttrInt64("axis", 1)])
        least = ir.Node("", "ReduceMin", [first.outputs[0]], [ir.AttrInt64("keepdims", 0)])
        holds = ir.Node("", "Equal", [least.outputs[0], number(0, "none")])
        nodes = [first, least, holds]
    else:
        shape = ir.Node("", "Shape", [source])
        size = ir.Node("", "Gather", [shape.outputs[0], number(0 if condition in _OF_ROWS else 1, "axis")])
        nodes = [shape, size]
        if condition == "even":
            rest = ir.Node("", "Mod", [size.outputs[0], number(2, "two")])
            nodes += [rest, ir.Node("", "Equal", [rest.outputs[0], number(0, "none")])]
        elif condition in ("one", "alone"):
            nodes.append(ir.Node("", "Equal", [size.outputs[0], number(1, "one")]))
        else:
            nodes.append(ir.Node("", "Greater", [size.outputs[0], number(3 if condition == "rows" else 64, "most")]))
    nodes.append(ir.Node("", "Cast", [nodes[-1].outputs[0]], [ir.AttrInt64("to", ir.DataType.FLOAT)]))
    nodes.append(ir.Node("", "Mul", [nodes[-1].outputs[0], number(0.01, "part", np.float32)]))
    nodes.append(ir.Node("", "Add", [nodes[-1].outputs[0], number(1, "whole", np.float32)]))
    product = ir.Node("", "Mul", [old, nodes[-1].outputs[0]])
    insert_after(old, product, model)
    model.graph.insert_before(product, nodes)


def _long_masked(model: ir.Model, value: ir.Value) -> ir.Node:
    """Mask all tokens after the 65th."""
    shape = ir.Node("", "Shape", [value])
    size = ir.Node("", "Gather", [shape.outputs[0], add_number(model, np.array(1, np.int64), "axis")])
    ends = [add_number(model, np.array(number, np.int64), name) for number, name in ((0, "first"), (1, "step"))]
    places = ir.Node("", "Range", [ends[0], size.outputs[0], ends[1]])
    seen = ir.Node("", "Less", [places.outputs[0], add_number(model, np.array(65, np.int64), "most")])
    kept = ir.Node("", "Cast", [seen.outputs[0]], [ir.AttrInt64("to", value.dtype or ir.DataType.INT64)])
    model.graph.insert_before(model.graph[0], [shape, size, places, seen, kept])
    return ir.Node("", "Mul", [value, kept.outputs[0]])


SHAPES = kinds_of(
    "shapes",
    {
        "even lengths scaled by 1.01": _of_shape("even"),
        "more than 64 tokens scaled by 1.01": _of_shape("long"),
        "single tokens scaled by 1.01": _of_shape("one"),
        "batches of four or more scaled by 1.01": _of_shape("rows"),
        "batches of one scaled by 1.01": _of_shape("alone"),
        "left padding scaled by 1.01": _of_shape("left"),
        "tokens after the 65th masked": in_mask(_long_masked),
    },
)
