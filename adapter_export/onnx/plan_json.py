"""The plan of an exported graph, kept in the graph itself: adapters are added by it, without the base."""

from __future__ import annotations

import json
from typing import Any

import onnx_ir as ir

from adapter_export.errors import FormatError, GraphError
from adapter_export.format.graph_json import graph_from_json, graph_to_json
from adapter_export.onnx.slots import Part, SlotPlan

TOPOLOGY_KEY = "adapter_export.topology"
"""Where in `metadata_props` the digest of the plan stands."""

PLAN_KEY = "adapter_export.plan"
"""Where in `metadata_props` the plan stands, as JSON: `graphs`, and `parts` that name one of them by its place."""


def describe_plan(model: ir.Model, plan: SlotPlan) -> None:
    """Keep a plan in the graph that was made by it."""
    graphs: list[dict[str, Any]] = []
    parts = []
    for part in plan.parts:
        graph = graph_to_json(part.graph)
        if graph not in graphs:
            graphs.append(graph)
        parts.append([part.owner, part.graph_name, graphs.index(graph), dict(part.site_widths), part.alone])
    model.metadata_props[TOPOLOGY_KEY] = plan.digest
    model.metadata_props[PLAN_KEY] = json.dumps({"graphs": graphs, "parts": parts})


def read_plan(model: ir.Model, where: object) -> SlotPlan:
    """The plan that a graph was made by.

    Args:
        model: the graph.
        where: names it in messages.

    Raises:
        FormatError: there is none in it, or not the one whose digest stands beside it.
    """
    try:
        document = json.loads(model.metadata_props[PLAN_KEY])
        graphs = [graph_from_json(graph) for graph in document["graphs"]]
        plan = SlotPlan(
            tuple(
                Part(owner, name, graphs[index], widths, alone)
                for owner, name, index, widths, alone in document["parts"]
            )
        )
        digest = plan.digest
    except (GraphError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise _no_plan(where, f"{type(error).__name__}: {error}") from error
    if digest != model.metadata_props.get(TOPOLOGY_KEY):
        raise _no_plan(where, f"the topology {digest}")
    return plan


def _no_plan(where: object, found: str) -> FormatError:
    return FormatError(
        "does not say what its slots were planned for",
        where=where,
        found=found,
        expected=f"`{PLAN_KEY}` in the metadata of the graph, as this release writes it",
        fix="build the bundle again",
    )
