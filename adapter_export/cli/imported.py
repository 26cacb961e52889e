"""What commands that make an adapter without training say at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter_export.cli.output import emit_json, say, warn

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter


def report_adapter(
    adapter: Adapter, notes: Sequence[str], output: Path, as_json: bool, facts: Mapping[str, Any] | None = None
) -> None:
    """Say what was written, and warn of what was done on the way; `facts` is what the document says beside that."""
    for note in notes:
        warn(f"{note}.")
    parameters = adapter.cost().parameters
    if as_json:
        emit_json(
            {
                "adapter": str(output),
                "name": adapter.name,
                "kind": adapter.kind,
                "parameters": parameters,
                "sites": list(adapter.placements),
                "task": None if adapter.head is None else adapter.head.task,
                "labels": None if adapter.head is None else list(adapter.head.labels) or None,
                "notes": list(notes),
                **(facts or {}),
            }
        )
        return
    head = "" if adapter.head is None else f", a head for {adapter.head.task.replace('_', ' ')}"
    places = f"{len(adapter.placements)} sites{head}"
    say(f"wrote {output}: `{adapter.name}`, {adapter.kind}, {places}, {parameters:,} parameters.")
    say(f"Next: adapter-export build MODEL --adapters {output} -o bundle")
