"""Report of a check: findings, a summary and one verdict."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adapter_export.errors import NothingComparedError, ParityError
from adapter_export.format.check_report import (
    REPORT_VERSION,
    AgreementsRecord,
    CheckReport,
    CoverageRecord,
    EffectRecord,
    FailureRecord,
    Finding,
    LocationRecord,
    Measurement,
    Scope,
    verdict,
)
from adapter_export.tables import Described, Table, number_of
from adapter_export.words import Words, argument, worded

BASE = "base"
"""Name of the base without adapters, in `--only` and in tables."""

_SCOPE_WORDS: Mapping[Scope, str] = {"full": "", "quick": "quick", "part": "partial", "golden": "golden vectors only"}


@dataclass(frozen=True, repr=False)
class Report(Described):
    """Result of a check, in the fields of `CheckReport`; everything else is computed from `findings`."""

    bundle: str
    base: str
    against: str | None
    reference: str | None
    runtime: str
    scope: Scope
    findings: tuple[Finding, ...]
    agreements: AgreementsRecord | None = None
    effects: tuple[EffectRecord, ...] = ()
    digest: str | None = None
    locations: tuple[LocationRecord, ...] = ()

    def described(self) -> Mapping[str, object]:
        """Return the facts for `repr` and notebooks."""
        facts: dict[str, object] = {"bundle": self.bundle, "passed": self.passed, "runtime": self.runtime}
        return facts | {status: count for status, count in self.counts().items() if count}

    @property
    def passed(self) -> bool:
        """True if no claim failed."""
        return all(finding.passed for finding in self.findings)

    @property
    def is_full(self) -> bool:
        """True if no verifiable claim was skipped by choice."""
        return self.scope == "full"

    @property
    def summary(self) -> str:
        """Verdict in words: `failed`, or `passed` with the scope and the number of unverified claims."""
        if not self.passed:
            return verdict(False)
        count = self.counts()["unverified"]
        limits = [_SCOPE_WORDS[self.scope], f"{count} of {len(self.findings)} unverified" if count else ""]
        words = ", ".join(filter(None, limits))
        return f"{verdict(True)} ({words})" if words else verdict(True)

    @property
    def outputs(self) -> list[Measurement]:
        """Every output of every run."""
        return self._measurements("output")

    @property
    def sites(self) -> list[Measurement]:
        """Result of each adapter at each site, computed from the values that reach the site."""
        return self._measurements("site")

    @property
    def nodes(self) -> list[Measurement]:
        """Values of graphs whose step is wrong, or all compared values if requested."""
        return self._measurements("node")

    def _measurements(self, kind: str) -> list[Measurement]:
        measurements = (measurement for finding in self.findings for measurement in finding.measurements)
        return [measurement for measurement in measurements if measurement.kind == kind]

    def counts(self) -> Counter[str]:
        """Return the number of findings by status."""
        return Counter(finding.status for finding in self.findings)

    def raise_for_failure(self) -> None:
        """Raise an error for the first failed claim, if any; numeric errors come first.

        Raises:
            ParityError: an output or a site exceeds its budget, or another claim failed.
        """
        for result in (*self.outputs, *self.sites):
            if not result.passed:
                over = result.compared and not result.absolute <= result.budget.absolute
                adapter = "no adapter" if result.adapter is None else f"adapter `{result.adapter}`"
                where = f"{adapter}, case `{result.case}`, site `{result.name}`"
                if result.kind == "output":
                    where = f"{adapter}, graph `{result.variant}`, case `{result.case}`, `{result.name}`"
                raise ParityError(
                    where,
                    found=f"a deviation of {result.absolute:.2e}" if over else "; ".join(result.faults),
                    expected=f"at most {result.budget.reason}",
                )
        for finding in self.findings:
            if not finding.passed:
                raise ParityError(finding.where, found=finding.detail, expected=finding.claim)

    def to_json(self) -> dict[str, Any]:
        """Return the document of `schemas/check-report.schema.json`; NaN and Inf are strings in it."""
        document = CheckReport(
            **{name: value for name, value in vars(self).items() if name != "locations"},
            version=REPORT_VERSION,
            verdict=verdict(self.passed),
            summary=self.summary,
            coverage=self.coverage(),
            failures=failures(self),
        )
        return {key: _plain(value) for key, value in asdict(document).items()}

    def table(self) -> Table:
        """Return one row per adapter and graph: the worst over shapes and outputs."""
        groups: dict[tuple[str, str], list[Measurement]] = {}
        for measurement in self.outputs:
            way = ", in mixed batches" if measurement.mixed else ""
            groups.setdefault((measurement.variant, f"{measurement.adapter or BASE}{way}"), []).append(measurement)
        rows = [
            (
                *key,
                len({measurement.case for measurement in of_adapter}),
                f"{sum(measurement.compared for measurement in of_adapter):,}",
                f"{max(measurement.ratio for measurement in of_adapter):.2g}",
                verdict(all(measurement.passed for measurement in of_adapter)),
            )
            for key, of_adapter in groups.items()
        ]
        columns = ("graph", "adapter", "cases", "numbers", "error/budget", "verdict")
        return Table(columns, rows, self.bundle, numbers="llrrr", spare=("numbers", "cases"))

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def coverage(self) -> CoverageRecord:
        """Return the coverage of the comparisons."""
        results = [*self.outputs, *self.sites]
        return CoverageRecord(
            planned=len(results),
            compared=sum(result.compared > 0 for result in results),
            elements=sum(result.compared for result in results),
            left_out=tuple(result.place for result in results if not result.compared),
        )

    def require_compared(self) -> None:
        """Reject a check that proves nothing.

        Raises:
            NothingComparedError: no element of an output was compared.
        """
        outputs = self.outputs
        if not any(result.compared for result in outputs):
            raise NothingComparedError(
                "nothing was compared",
                where=self.bundle,
                found=f"{number_of(len(outputs), 'output')} without one comparable element",
                expected="at least one",
                fix="rebuild the bundle, or pass " + argument("against") + ": the model it was built from",
            )


def failures(report: Report) -> tuple[FailureRecord, ...]:
    """Return one failure for the base and for each adapter with a failed comparison."""
    outputs, sites = (
        [measurement for measurement in measurements if not measurement.passed]
        for measurements in (report.outputs, report.sites)
    )
    names = dict.fromkeys(measurement.adapter for measurement in (*outputs, *sites))
    return tuple(
        _failure(
            report,
            [output for output in outputs if output.adapter == name],
            [site for site in sites if site.adapter == name],
        )
        for name in names
    )


def _failure(report: Report, outputs: Sequence[Measurement], sites: Sequence[Measurement]) -> FailureRecord:
    """Return the smallest failing case, its worst output, and the first site over its budget."""
    worst: Measurement | None = None
    levels: dict[str, bool] = {}
    if outputs:
        smallest = min(outputs, key=lambda output: (math.prod(output.axes.values()), "_padded" in output.case))

        def run(measurement: Measurement) -> tuple[object, ...]:
            return measurement.case, measurement.variant, measurement.mixed

        worst = max((output for output in outputs if run(output) == run(smallest)), key=lambda output: output.badness)
        for measurement in report.outputs:
            if run(measurement) == run(worst) and (measurement.adapter, measurement.against, measurement.name) == (
                worst.adapter,
                worst.against,
                worst.name,
            ):
                levels[measurement.level] = levels.get(measurement.level, True) and measurement.passed
    result = worst or sites[0]
    options = {"against": report.against, "only": result.adapter or BASE, "case": result.case}
    options |= {} if result.variant == "slots" else {"variant": result.variant}
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]
    return FailureRecord(
        adapter=result.adapter,
        case=result.case,
        output=None if worst is None else worst.name,
        faults=result.faults,
        ratio=result.ratio,
        worst=result.worst,
        levels_failed=tuple(level for level, passed in levels.items() if not passed),
        levels_passed=tuple(level for level, passed in levels.items() if passed),
        culprit=sites[0] if sites else None,
        location=next((location for location in report.locations if location.adapter == result.adapter), None),
        command=shlex.join(["adapter-export", "check", report.bundle, *words]),
        variant=result.variant,
        mixed=result.mixed,
        variants_failed=tuple(dict.fromkeys(measurement.variant for measurement in outputs)),
    )


def unverified(findings: Sequence[Finding]) -> Mapping[str, Sequence[Finding]]:
    """Return the unverified claims, by reason."""
    by_reason: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.status == "unverified":
            by_reason.setdefault(finding.detail, []).append(finding)
    return by_reason


def _plain(value: Any) -> Any:
    """Return a value in JSON types; NaN and Inf, which JSON lacks, become `nan`, `inf` and `-inf`."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Words):  # a document is for callers in Python
        return worded(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
