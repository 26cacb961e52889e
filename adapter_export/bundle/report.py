"""The report of a check: results in their places, coverage, failures, one verdict."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from adapter_export.errors import NothingComparedError, ParityError, argument
from adapter_export.format.check_report import (
    REPORT_VERSION,
    AgreementsRecord,
    CheckReport,
    CoverageRecord,
    EffectRecord,
    FailureRecord,
    InvariantRecord,
    LocationRecord,
    NodeRecord,
    ObligationRecord,
    OutputRecord,
    SiteRecord,
    verdict,
)
from adapter_export.format.manifest import VariantName
from adapter_export.tables import Table

BASE = "base"
"""How the base without an adapter is called in `--only` and in tables."""


@dataclass(frozen=True)
class Report:
    """What a check of a bundle found, in the fields of `CheckReport`; what follows from them is computed."""

    bundle: str
    base: str
    against: str | None
    reference: str | None
    runtime: str
    outputs: tuple[OutputRecord, ...]
    sites: tuple[SiteRecord, ...]
    invariants: tuple[InvariantRecord, ...]
    agreements: AgreementsRecord | None = None
    effects: tuple[EffectRecord, ...] = ()
    digest: str | None = None
    ledger: tuple[ObligationRecord, ...] = ()
    nodes: tuple[NodeRecord, ...] = ()
    locations: tuple[LocationRecord, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether everything that was looked at is as it should be."""
        held = all(result.passed for result in (*self.comparisons(), *self.invariants))
        return held and all(owed.status != "failed" for owed in self.ledger)

    def raise_for_failure(self) -> None:
        """Raise an error for the first thing that failed, if anything did.

        Raises:
            ParityError: an output or a site is over its budget, or something else does not hold.
        """
        for result in self.comparisons():
            if not result.passed:
                over = result.compared and not result.absolute <= result.budget.absolute
                adapter = "no adapter" if result.adapter is None else f"adapter `{result.adapter}`"
                if isinstance(result, OutputRecord):
                    where = f"{adapter}, graph `{result.variant}`, case `{result.case}`, `{result.output}`"
                else:
                    where = f"{adapter}, case `{result.case}`, site `{result.site}`"
                raise ParityError(
                    where,
                    found=f"a deviation of {result.absolute:.2e}" if over else "; ".join(result.faults),
                    expected=f"at most {result.budget.reason}",
                )
        for check in self.invariants:
            if not check.passed:
                raise ParityError(f"`{check.subject}`, {check.name}", found=check.detail, expected="no difference")
        for owed in self.ledger:
            if owed.status == "failed":
                raise ParityError(owed.where, found=owed.detail, expected=owed.claim)

    def to_json(self) -> dict[str, Any]:
        """Return the document of `schemas/check-report.schema.json`; NaN and Inf are strings in it."""
        document = CheckReport(
            **{name: value for name, value in vars(self).items() if name != "locations"},
            version=REPORT_VERSION,
            verdict=verdict(self.passed),
            coverage=self.coverage(),
            failures=failures(self),
        )
        return {key: _plain(value) for key, value in asdict(document).items()}

    def table(self) -> Table:
        """Return a line for each graph and adapter."""
        return Table(
            ("graph", "adapter", "cases", "numbers", "error/budget", "verdict"),
            [
                (
                    one["variant"],
                    f"{one['adapter'] or BASE}{', in mixed batches' if one['mixed'] else ''}",
                    one["cases"],
                    f"{one['elements']:,}",
                    f"{one['worst']:.2g}",
                    verdict(not one["faults"]),
                )
                for one in verification(self)["golden"]
            ],
            self.bundle,
            numbers="llrrr",
        )

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def comparisons(self) -> Iterator[OutputRecord | SiteRecord]:
        """Return every comparison, those of outputs first."""
        yield from self.outputs
        yield from self.sites

    def coverage(self) -> CoverageRecord:
        """Return how much was looked at."""
        results = list(self.comparisons())
        return CoverageRecord(
            planned=len(results),
            compared=sum(result.compared > 0 for result in results),
            elements=sum(result.compared for result in results),
            left_out=tuple(result.place for result in results if not result.compared),
        )

    def require_compared(self) -> None:
        """Refuse a check that proves nothing.

        Raises:
            NothingComparedError: not one element of an output was compared.
        """
        if not any(result.compared for result in self.outputs):
            raise NothingComparedError(
                "nothing was compared",
                where=self.bundle,
                found=f"{len(self.outputs)} outputs without one comparable element",
                expected="at least one",
                fix=f"build the bundle again, or give {argument('against')}: the model that it was built from",
            )


def failures(report: Report) -> tuple[FailureRecord, ...]:
    """Return one failure for the base and for each adapter with a comparison that does not pass."""
    failed = [result.adapter for result in report.comparisons() if not result.passed]
    return tuple(_failure(report, adapter) for adapter in dict.fromkeys(failed))


def _failure(report: Report, adapter: str | None) -> FailureRecord:
    """Return the smallest case that fails, its worst output there, and the first site over its own budget."""
    outputs = [result for result in report.outputs if result.adapter == adapter and not result.passed]
    sites = [result for result in report.sites if result.adapter == adapter and not result.passed]
    worst: OutputRecord | None = None
    levels: dict[str, bool] = {}
    if outputs:
        smallest = min(outputs, key=lambda each: (math.prod(each.axes.values()), "_padded" in each.case))
        run = (smallest.case, smallest.variant, smallest.mixed)
        of_run = [each for each in report.outputs if (each.case, each.variant, each.mixed) == run]
        worst = max((each for each in of_run if each.adapter == adapter and not each.passed), key=_badness)
        output = (adapter, worst.against, worst.output)
        for each in of_run:
            if (each.adapter, each.against, each.output) == output:
                levels[each.level] = levels.get(each.level, True) and each.passed
    result = worst or sites[0]
    variant: VariantName = "slots" if worst is None else worst.variant
    options = {"against": report.against, "only": adapter or BASE, "case": result.case}
    options |= {} if variant == "slots" else {"variant": variant}
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]
    return FailureRecord(
        adapter=adapter,
        case=result.case,
        output=None if worst is None else worst.output,
        faults=result.faults,
        ratio=result.ratio,
        worst=result.worst,
        levels_failed=tuple(level for level, passed in levels.items() if not passed),
        levels_passed=tuple(level for level, passed in levels.items() if passed),
        culprit=sites[0] if sites else None,
        location=next((found for found in report.locations if found.adapter == adapter), None),
        command=shlex.join(["adapter-export", "check", report.bundle, *given]),
        variant=variant,
        mixed=worst is not None and worst.mixed,
        variants_failed=tuple(dict.fromkeys(each.variant for each in outputs)),
    )


def _badness(result: OutputRecord) -> tuple[int, float]:
    """NaN, Inf and wrong shapes before errors over the budget."""
    apart = sum(masks.only_found + masks.only_expected for masks in (result.nan, result.inf))
    return apart + (not result.compared), result.ratio


def _plain(value: Any) -> Any:
    """Return a value in JSON's own types; NaN and Inf, which JSON has not, as `nan`, `inf` and `-inf`."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def verification(report: Report) -> dict[str, Any]:
    """Return a report as the document of `verify`: each check, and the golden vectors by graph and adapter."""
    groups: dict[tuple[VariantName, str | None, bool], list[OutputRecord]] = {}
    for result in report.outputs:
        groups.setdefault((result.variant, result.adapter, result.mixed), []).append(result)
    return {
        "bundle": report.bundle,
        "passed": report.passed,
        "base": report.base,
        "runtime": report.runtime,
        "checks": [
            {"name": check.name, "subject": check.subject, "passed": check.passed, "detail": check.detail}
            for check in report.invariants
        ]
        + [
            {"name": "ledger", "subject": owed.where, "passed": False, "detail": owed.detail}
            for owed in report.ledger
            if owed.status == "failed" and owed.id.startswith(("manifest/", "golden/"))
        ],
        "golden": [
            {
                "variant": variant,
                "adapter": adapter,
                "mixed": mixed,
                "cases": len({result.case for result in results}),
                "elements": sum(result.compared for result in results),
                "worst": max(result.ratio for result in results),
                "faults": [f"{result.place}: {fault}" for result in results for fault in result.faults],
            }
            for (variant, adapter, mixed), results in groups.items()
        ],
    }
