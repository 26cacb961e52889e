"""Cells and small tables that several inspections show."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from adapter_export.cli.output import table
from adapter_export.format.manifest import InputRecord, OutputRecord

_SHORT_FINGERPRINT = 19
MANY_LABELS = 8
"""How many labels a cell shows."""


def signature(inputs: Sequence[InputRecord], outputs: Sequence[OutputRecord]) -> Table:
    """What a graph takes and gives."""
    rows = [("in", one.name, one.dtype, axes(one.axes), _role(one)) for one in inputs]
    rows += [("out", one.name, one.dtype, axes(one.axes), "") for one in outputs]
    return table("inputs and outputs", ("", "name", "type", "shape", "meaning"), rows)


def _role(record: InputRecord) -> str:
    return f"ids below {record.limit}" if record.role == "ids" and record.limit else record.role


def axes(lengths: Sequence[int | str]) -> str:
    """A shape."""
    return f"[{', '.join(str(axis) for axis in lengths)}]"


def facts(*rows: tuple[str, str]) -> Table:
    """Facts by name."""
    return table(None, ("what", "value"), rows)


def task_name(task: str | None) -> str:
    """A task in words."""
    return "no head" if task is None else task.replace("_", " ")


def label_list(labels: Sequence[str] | None, many: int = MANY_LABELS) -> str:
    """The first labels, and how many there are."""
    if not labels:
        return "none"
    more = f", … {len(labels)} in all" if len(labels) > many else ""
    return ", ".join(labels[:many]) + more


def short(fingerprint: str) -> str:
    """The beginning of a fingerprint."""
    return f"{fingerprint[:_SHORT_FINGERPRINT]}…"
