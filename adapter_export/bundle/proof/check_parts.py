"""Run golden parts in every graph of a bundle: they expose an adapter that is applied only partly."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from adapter_export.bundle.bundle_reader import Graph
from adapter_export.bundle.golden.golden_parts import GoldenParts
from adapter_export.bundle.golden.neighbours import MOST
from adapter_export.errors import quoted
from adapter_export.format.check_report import Finding
from adapter_export.format.manifest import AdapterRecord, PartRecord

CHECK = "golden parts"
"""Name of the check in reports."""

WEAK = "faults barely shown"
"""Name of the check for faults that move the golden outputs by less than twice their budget."""

_SHOWN = 5
"""Maximum number of faults named in a message."""


@dataclass(frozen=True)
class PartValue:
    """Value of one golden part of an adapter in one graph."""

    adapter: str
    file: str
    part: PartRecord
    value: float

    @property
    def ratio(self) -> float:
        """Absolute value divided by the limit; infinite for NaN."""
        size = abs(self.value)
        return math.inf if math.isnan(size) else size / (self.part.limit or math.ulp(0.0))


def part_values(graph: Graph, golden: Sequence[GoldenParts]) -> Iterator[PartValue]:
    """Run the golden parts of adapters in a graph, and yield the value of each part.

    Raises:
        RequestError: the graph cannot compute a case.
    """
    requests = [(case.arrays, (one.adapter,) * case.batch) for one in golden for case in one.cases]
    sizes = [sum(array.nbytes for array in outputs.values()) for one in golden for outputs in one.expected]
    results = graph.run_all(requests, max(sizes, default=0))
    for one in golden:
        values = one.values([next(results) for _ in one.cases])
        for part, value in zip(one.parts, values, strict=True):
            yield PartValue(one.adapter, graph.file, part, value)


def check_parts(values: Sequence[PartValue]) -> Iterator[Finding]:
    """Yield one finding per adapter: failed if a golden part exceeds its limit in any graph."""
    for adapter in dict.fromkeys(one.adapter for one in values):
        of_adapter = [one for one in values if one.adapter == adapter]
        wrong = [one for one in of_adapter if not one.ratio <= 1]
        if wrong:
            wrong.sort(key=lambda one: math.inf if math.isnan(one.value) else abs(one.value - 1))  # likeliest first
            shown = [f"`{one.part.fault}` in `{one.file}` ({one.value:.2g} of ±{one.part.limit:g})" for one in wrong]
            more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            detail = f"outputs move as with {', '.join(shown[:_SHOWN])}{more}"
        else:
            worst, faults = max(of_adapter, key=lambda one: one.ratio), {one.part.fault for one in of_adapter}
            detail = f"{len(faults)} faults ruled out; nearest: `{worst.part.fault}`, {worst.ratio:.2g} of its limit"
        yield Finding.tested(CHECK, adapter, not wrong, detail)


def check_separation(records: Sequence[AdapterRecord], names: Collection[str]) -> Iterator[Finding]:
    """Yield the separation of each named adapter, as measured when it was built.

    Faults that move the golden outputs by less than twice their budget are reported as unverified: an implementation
    that contains such a fault may pass.
    """
    for record in records:
        separation = record.golden.separation
        if separation is None or record.name not in names:
            continue
        least = f"the weakest fault, `{separation.fault}`, moves the outputs by {_times(separation.least)} the budget"
        near = separation.nearest
        other = "" if near is None else f"; `{near.adapter}` instead: {_times(near.separation)}"
        yield Finding.tested("separation", record.name, True, f"{least}{other}")
        if separation.weak:
            yield Finding.unverified(WEAK, record.name, f"less than twice the budget: {quoted(separation.weak)}")


def _times(separation: float) -> str:
    return f"{separation:.3g} times" if separation < MOST else f"over {MOST:,.0f} times"
