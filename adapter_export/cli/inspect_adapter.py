"""An adapter folder as tables and as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from rich.table import Table

from adapter_export.cli.inspect_cells import MANY_LABELS, facts, label_list, short, task_name
from adapter_export.cli.output import size, table
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.cost import Cost, cost


def adapter_document(adapter: Adapter) -> dict[str, object]:
    """Its parts with what they cost, and where it came from."""
    return {
        "name": adapter.name,
        "kind": adapter.kind,
        "base": adapter.base,
        "task": None if adapter.head is None else adapter.head.task,
        "labels": None if adapter.head is None else list(adapter.head.labels) or None,
        "cost": asdict(adapter.cost()),
        "parts": [
            {
                "owner": owner,
                "widths": dict(widths),
                "ops": [node.op for node in graph.nodes],
                **asdict(cost(graph, widths)),
            }
            for owner, graph, widths in adapter.parts()
        ],
        "training": dict(adapter.training),
    }


def adapter_tables(adapter: Adapter) -> Iterator[Table]:
    """Its parts with what they cost, what it is for, and its training record."""
    rows = [
        (owner, _widths(widths), " → ".join(node.op for node in graph.nodes), *_cost_cells(cost(graph, widths)))
        for owner, graph, widths in adapter.parts()
    ]
    rows.append(("all", "", "", *_cost_cells(adapter.cost())))
    columns = ("site", "widths", "graph", "parameters", "bytes", "multiply-accumulates per token")
    yield table(None, columns, rows, numbers="lllrrr")
    labels = () if adapter.head is None else adapter.head.labels
    yield facts(
        ("base", short(adapter.base)),
        ("task", task_name(None if adapter.head is None else adapter.head.task)),
        ("labels", label_list(labels, many=len(labels))),
        ("size", size(adapter.cost().bytes)),
    )
    if adapter.training:
        yield table("training record", ("what", "value"), list(_flat(adapter.training)))


def _widths(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{symbol} {number}" for symbol, number in widths.items())


def _cost_cells(found: Cost) -> tuple[str, str, str]:
    return f"{found.parameters:,}", f"{found.bytes:,}", f"{found.multiply_accumulates:,}"


def _flat(document: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A record's numbers and words, one a line; long lists by their length."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and (
            len(value) > MANY_LABELS or any(isinstance(v, Mapping) for v in value)
        ):
            yield f"{prefix}{key}", f"{len(value)} entries"
        else:
            yield f"{prefix}{key}", str(value)
