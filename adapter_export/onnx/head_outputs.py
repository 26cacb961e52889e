"""The outputs of an exported graph that heads fill, and which head fills which."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from adapter_export.graph.adapter import HEAD, Adapter
from adapter_export.graph.ops import Dim
from adapter_export.graph.tasks import HeadOutput
from adapter_export.onnx.slots import Part, SlotPlan, first_free, topology_key
from adapter_export.reference.runner import head_output


@dataclass(frozen=True)
class HeadSum:
    """Heads that give one output: their results are added up, those of idle ones are zeros.

    Attributes:
        output: its name in the graph.
        result: what it holds.
        width: its last axis: a number if the base fixes it, else a symbol that each adapter gives a number.
        parts: the heads.
    """

    output: str
    result: HeadOutput
    width: Dim
    parts: tuple[Part, ...]


def head_sums(plan: SlotPlan, base_outputs: Collection[str]) -> tuple[HeadSum, ...]:
    """The outputs of all heads of a plan.

    Heads of one result share an output. One of its own has each head that gives something while it lies idle, and have
    those whose results are of different fixed widths: adding those up would be wrong. A second output of one result is
    called `logits_2`, and so on.

    Args:
        plan: what goes into the graph.
        base_outputs: the names of the base's outputs.
    """
    groups: dict[tuple[HeadOutput, Dim | None, str], list[Part]] = {}
    for part in plan.at(HEAD):
        width = part.result_width
        apart = "" if part.gives_zeros_idle else part.graph_name
        groups.setdefault((part.result, width if isinstance(width, int) else None, apart), []).append(part)
    taken = set(base_outputs)
    sums = []
    for (result, _, _), parts in groups.items():
        name = first_free(head_output(base_outputs, result), taken)
        taken.add(name)
        sums.append(HeadSum(name, result, parts[0].result_width, tuple(parts)))
    return tuple(sums)


def adapter_output(sums: Iterable[HeadSum], adapter: Adapter | None) -> str | None:
    """The output that holds the result of an adapter's head; none without a head."""
    if adapter is None or adapter.head is None:
        return None
    key = topology_key(adapter.head.graph)
    return next(found.output for found in sums if key in {part.key for part in found.parts})


def head_graphs(sums: Iterable[HeadSum]) -> Mapping[str, str]:
    """The output of each topology of head, by the name of its graph."""
    return {part.graph_name: found.output for found in sums for part in found.parts}
