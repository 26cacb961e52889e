"""Run golden parts in every graph of a bundle: they expose an adapter that is applied only partly."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from adapter_export.bundle.bundle_reader import Graph
from adapter_export.bundle.golden.golden_parts import GoldenParts
from adapter_export.bundle.golden.neighbours import MOST
from adapter_export.format.check_report import Finding
from adapter_export.format.manifest import AdapterRecord, PartRecord
from adapter_export.tables import number_of
from adapter_export.words import quoted

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
        # `ulp(0.0)` is the smallest positive number: a limit of 0 allows nothing
        return math.inf if math.isnan(size) else size / (self.part.limit or math.ulp(0.0))


def part_values(graph: Graph, golden: Sequence[GoldenParts]) -> Iterator[PartValue]:
    """Run the golden parts of adapters in a graph, and yield the value of each part.

    Raises:
        RequestError: the graph cannot compute a case.
    """
    requests = [
        (case.arrays, (golden_parts.adapter,) * case.batch) for golden_parts in golden for case in golden_parts.cases
    ]
    sizes = [
        sum(array.nbytes for array in outputs.values()) for golden_parts in golden for outputs in golden_parts.expected
    ]
    results = graph.run_all(requests, max(sizes, default=0))
    for golden_parts in golden:
        values = golden_parts.values([next(results) for _ in golden_parts.cases])
        for part, value in zip(golden_parts.parts, values, strict=True):
            yield PartValue(golden_parts.adapter, graph.file, part, value)


def check_parts(values: Sequence[PartValue]) -> Iterator[Finding]:
    """Yield one finding per adapter: failed if a golden part exceeds its limit in any graph."""
    for adapter in dict.fromkeys(measured.adapter for measured in values):
        of_adapter = [measured for measured in values if measured.adapter == adapter]
        wrong = [measured for measured in of_adapter if not measured.ratio <= 1]
        if wrong:
            # likeliest first: a part is near 1 with its fault
            wrong.sort(key=lambda measured: math.inf if math.isnan(measured.value) else abs(measured.value - 1))
            shown = [
                f"`{measured.part.fault}` in `{measured.file}` ({measured.value:.2g} of ±{measured.part.limit:g})"
                for measured in wrong
            ]
            more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            detail = f"outputs move as with {', '.join(shown[:_SHOWN])}{more}"
        else:
            worst = max(of_adapter, key=lambda measured: measured.ratio)
            faults = {measured.part.fault for measured in of_adapter}
            nearest = f"nearest: `{worst.part.fault}`, {worst.ratio:.2g} of its limit"
            detail = f"{number_of(len(faults), 'fault')} ruled out; {nearest}"
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
