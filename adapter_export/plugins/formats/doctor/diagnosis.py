"""Result of a diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from adapter_export.errors import MistakeError
from adapter_export.tables import Described, Table, html_of, number_of
from adapter_export.words import worded

Severity = Literal["broken", "caution"]
"""A `broken` adapter does not work here; a `caution` is about other tools, or about the use of the adapter."""

Reads = Literal["all", "part", "none", "refuses", "not asked"]
"""Share of an adapter's tensors that a tool loads without an error."""


@dataclass(frozen=True)
class Cause:
    """One cause of a failure, or one reason for care.

    Attributes:
        name: name of the cause, such as `untrained`.
        severity: whether the adapter is broken.
        found: the measurement.
        expected: the accepted values.
        reason: reason why it matters.
        fix: an imperative clause.
    """

    name: str
    severity: Severity
    found: str
    expected: str
    reason: str
    fix: str


@dataclass(frozen=True)
class SiteGroup:
    """Sites of one name in all layers, with the same graph.

    Attributes:
        place: name without layer, such as `attention.query`.
        sites: number of sites.
        kind: the graph, such as `lora` or `bottleneck`.
        rank: rank, or width of a bottleneck.
        scale: factor that is applied to the update.
        formula: how the factor is computed.
        least: smallest relative change.
        most: largest relative change.
        of: what changes: the `weight` (Frobenius norm), or the `value` at the site on random inputs.
        zero: number of sites whose update is exactly zero.
    """

    place: str
    sites: int
    kind: str
    rank: int | None
    scale: float | None
    formula: str | None
    least: float
    most: float
    of: Literal["weight", "value"]
    zero: int


@dataclass(frozen=True)
class ToolReading:
    """Result of loading an adapter with a tool.

    Attributes:
        tool: its name.
        reads: the share of tensors that it loads.
        ignored: tensors that it ignores without an error.
        reason: why it ignores or refuses them.
        scale: factor that it applies, where it differs.
        missing: tensors that it expects and the file lacks.
    """

    tool: str
    reads: Reads
    ignored: tuple[str, ...] = ()
    reason: str = ""
    scale: str | None = None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Diagnosis(Described):
    """Diagnosis of an adapter for a base; `print` and notebooks show it.

    Attributes:
        adapter: name of the adapter.
        library: library that wrote it.
        kind: its type in that library, such as `LORA`.
        tensors: number of tensors in its file.
        fits: whether `import` accepts it.
        groups: groups of sites; empty if it does not fit.
        head: description of its head, if any.
        tools: what other tools make of it.
        causes: causes of failures, and reasons for care.
        notes: notes of the import.
    """

    adapter: str
    library: str
    kind: str | None
    tensors: int
    fits: bool
    groups: tuple[SiteGroup, ...] = ()
    head: str | None = None
    tools: tuple[ToolReading, ...] = ()
    causes: tuple[Cause, ...] = ()
    notes: tuple[str, ...] = field(default=(), repr=False)

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        facts = {"adapter": self.adapter, "library": self.library, "fits": self.fits, "passed": self.passed}
        return {**facts, "sites": self.sites, "idle": self.idle, "causes": [cause.name for cause in self.causes]}

    @property
    def sites(self) -> int:
        """Number of sites at which it acts."""
        return sum(group.sites for group in self.groups)

    @property
    def idle(self) -> int:
        """Number of sites whose update is exactly zero."""
        return sum(group.zero for group in self.groups)

    @property
    def passed(self) -> bool:
        """True if it fits and changes the base."""
        return self.fits and not any(cause.severity == "broken" for cause in self.causes)

    @property
    def verdict(self) -> str:
        """The diagnosis in one sentence."""
        broken = [cause.name for cause in self.causes if cause.severity == "broken"]
        if not self.fits:
            return f"does not fit this base: {', '.join(broken)}"
        if broken:
            return f"fits this base, but is broken: {', '.join(broken)}"
        elsewhere = "the final hidden state, by its head" if self.head else "what all tokens attend to, by its prefix"
        where = number_of(self.sites - self.idle, "site") if self.groups else elsewhere
        cautions = number_of(len(self.causes), "caution")
        return f"fits this base and changes {where}" + (f"; {cautions}" if self.causes else "")

    def raise_for_failure(self) -> None:
        """Raise `MistakeError` if it does not fit, or does nothing."""
        broken = next((cause for cause in self.causes if cause.severity == "broken"), None)
        if broken is not None:
            raise MistakeError(
                f"adapter `{self.adapter}` does not work: {broken.name}",
                found=broken.found,
                expected=broken.expected or None,
                fix=broken.fix or None,
            )

    def site_table(self) -> Table:
        """Return a row for each group of sites."""
        rows = [
            (
                group.place,
                group.sites,
                group.kind,
                "–" if group.rank is None else group.rank,
                "–" if group.scale is None else f"{group.scale:.4g}",
                _range(group),
                f"{group.zero} of {group.sites}",
            )
            for group in self.groups
        ]
        columns = ("where", "sites", "type", "rank", "scale", "change", "zero")
        return Table(columns, rows, numbers="lrlrrrr", spare=("sites",))

    def tool_table(self) -> Table:
        """Return a row for each tool."""
        rows = [
            (each.tool, self._share(each), "; ".join(filter(None, (each.reason, each.scale)))) for each in self.tools
        ]
        return Table(("tool", "loads", "why"), rows)

    def _share(self, reading: ToolReading) -> str:
        if reading.reads in ("refuses", "not asked"):
            return reading.reads
        return f"{self.tensors - len(reading.ignored)} of {self.tensors}"

    def cause_table(self) -> Table:
        """Return a row for each cause."""
        rows = [(each.name, each.severity, each.found, each.expected, each.reason, each.fix) for each in self.causes]
        return Table(("cause", "severity", "found", "expected", "why", "what to do"), rows, spare=("why", "expected"))

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        causes = [{name: worded(value, "shell") for name, value in asdict(cause).items()} for cause in self.causes]
        facts = {**asdict(self), "causes": causes, "passed": self.passed, "verdict": self.verdict}
        return {**facts, "notes": [worded(note, "shell") for note in self.notes]}

    def __str__(self) -> str:
        tables = [self.site_table()] if self.groups else []
        tables += [table for table in (self.tool_table(), self.cause_table()) if table.rows]
        return "\n\n".join([f"adapter `{self.adapter}`: {self.verdict}", *map(str, tables)])

    def _repr_html_(self) -> str:
        tables = (self.site_table(), self.tool_table(), self.cause_table())
        sentence = f"adapter `{self.adapter}`: {self.verdict}"
        return html_of(Table(("diagnosis",), [(sentence,)])) + "".join(t._repr_html_() for t in tables if t.rows)


def _range(group: SiteGroup) -> str:
    least, most = f"{group.least:.2g}", f"{group.most:.2g}"
    mark = "" if group.of == "weight" else " of value"
    return (most if least == most else f"{least}–{most}") + mark
