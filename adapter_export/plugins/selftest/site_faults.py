"""Faults at sites and in slots of the graph."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import onnx_ir as ir

from adapter_export.format.manifest import SlotRecord
from adapter_export.format.tensors import read_tensors
from adapter_export.onnx_backend.rewrite.insert import result_of, site_values
from adapter_export.onnx_backend.rewrite.surgery import NODE_SITE_KEY
from adapter_export.plugins.selftest.fault import Copy, Place, Plant, in_graph, kinds_of
from adapter_export.plugins.selftest.node_faults import (
    OTHER_ACTIVATIONS,
    insert_after,
    scale_result,
    skip_node,
    times,
)
from adapter_export.plugins.selftest.shape_faults import off_where
from adapter_export.plugins.selftest.weight_faults import replace_values, values_of


def _skip_site(copy: Copy, model: ir.Model) -> list[Place] | None:
    shown = site_values(model)
    chosen = copy.choose(
        [(site, at) for site, values in shown.items() for at in ("h", "u", "y") if result_of(at) in values]
    )
    if chosen is None:
        return None
    site, at = chosen
    values = {value.name: value for node in model.graph for value in node.outputs}
    values |= {value.name: value for value in model.graph.inputs}
    old, kept = values[shown[site][result_of(at)]], values[shown[site][at]]
    for node, index in list(old.uses()):
        node.replace_input_with(index, kept)
    return None if old.is_graph_output() else [site]


def alike_slots(copy: Copy) -> list[tuple[SlotRecord, SlotRecord]]:
    """Return pairs of slots with the same shape and purpose, at two sites."""
    return [
        (one, other)
        for one, other in combinations(copy.manifest.slots, 2)
        if one.axes == other.axes and one.neutral == other.neutral and one.site != other.site
    ]


def _exchange_slots(copy: Copy, model: ir.Model) -> list[Place] | None:
    pair = copy.choose(alike_slots(copy))
    if pair is None:
        return None
    values = {value.name: value for value in model.graph.inputs}
    one, other = (values[slot.name] for slot in pair)
    first, second = list(one.uses()), list(other.uses())
    for node, index in first:
        node.replace_input_with(index, other)
    for node, index in second:
        node.replace_input_with(index, one)
    return [*(slot.name for slot in pair), *(slot.site for slot in pair)]


def _slot_value(change: Callable[[ir.Model, ir.Value], ir.Node | None]) -> Plant:
    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        slot = copy.choose(_busy_slots(copy))
        if slot is None:
            return None
        value = next(one for one in model.graph.inputs if one.name == slot)
        node = change(model, value)
        if node is not None:
            insert_after(value, node, model)
        return [slot, next(one.site for one in copy.manifest.slots if one.name == slot)]

    return in_graph(changed)


def _busy_slots(copy: Copy) -> list[str]:
    """Return slots that an adapter fills with values that have an effect."""
    found: dict[str, None] = {}
    for record in copy.manifest.adapters:
        tensors = read_tensors(copy.folder / record.safetensors)
        for slot in copy.manifest.slots:
            tensor = tensors[slot.name]
            if tensor.size > 1 and (tensor != slot.neutral_value).any():
                found[slot.name] = None
    return list(found)


def _default(_: ir.Model, value: ir.Value) -> None:
    replace_values(value, values_of(value) + np.float32(1e-3))


_ACTIVATIONS = (*OTHER_ACTIVATIONS, "LeakyRelu", "Elu", "Softplus", "HardSwish", "Mish")


def _in_site(change: Callable[[ir.Model, ir.Node], bool], *types: str) -> Plant:
    """Change one node of the given types that belongs to an adapter's site, not to a head."""

    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        sites = {slot.site for slot in copy.manifest.slots} - {"head", "shared"}
        own = [
            node for node in model.graph if node.op_type in types and node.metadata_props.get(NODE_SITE_KEY) in sites
        ]
        for at in copy.rng.permutation(len(own)):
            node = own[int(at)]
            site = node.metadata_props[NODE_SITE_KEY]
            if change(model, node):
                return [site, node.outputs[0].name or ""]
        return None

    return in_graph(changed)


def _at_even_lengths(model: ir.Model, node: ir.Node) -> bool:
    """Scale a node's result [batch, tokens, width] at even numbers of tokens."""
    off_where(model, node.outputs[0], node.outputs[0], "even")
    return True


SITES = kinds_of(
    "sites",
    {
        "a site removed": in_graph(_skip_site),
        "the slots of two sites swapped": in_graph(_exchange_slots),
        "a slot ignored": _slot_value(times(0)),
        "a slot scaled by 1.001": _slot_value(times(1.001)),
        "a default that is not neutral": _slot_value(_default),
        "an activation removed from an adapter": _in_site(skip_node, *_ACTIVATIONS),
        "an adapter's activation scaled by 1.01 at even lengths": _in_site(_at_even_lengths, *_ACTIVATIONS),
        "a product scaled by 1.001 in an adapter": _in_site(scale_result(1.001), "MatMul", "Gemm"),
    },
)
