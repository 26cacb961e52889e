"""What a check found, as data: results in their places, coverage, one verdict."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from adapter_export.bundle.compare import Comparison
from adapter_export.errors import NothingComparedError, ParityError, argument
from adapter_export.format.check_report import REPORT_VERSION, AgreementsRecord, CoverageRecord
from adapter_export.tables import Table

Against = Literal["reference", "golden"]
Part = Literal["all", "tokens", "padding"]

Form = Literal["slots", "inputs", "bank", "baked"]
"""A graph of a bundle: one of its flavours, or one with an adapter baked in."""

FORMS: tuple[Form, ...] = ("slots", "inputs", "bank", "baked")
"""All of them, in the order in which they are checked."""


@dataclass(frozen=True)
class OutputResult:
    """One output of one run.

    Attributes:
        against: what it was compared with: a reference that ran now, or the golden vectors of the bundle.
        adapter: the active adapter; none for the base alone.
        case: the name of the inputs.
        axes: the length of each dynamic axis of the inputs.
        level: ONNX Runtime's optimization level.
        output: the name of the output.
        part: `tokens` and `padding` for an output with one row per token and inputs with padding, else `all`.
        comparison: what came out.
        flavour: the graph that ran.
        mixed: whether the rows of the batch ran through different adapters; compared are those of this one.
    """

    against: Against
    adapter: str | None
    case: str
    axes: Mapping[str, int]
    level: str
    output: str
    part: Part
    comparison: Comparison
    flavour: Form = "slots"
    mixed: bool = False

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        part = "" if self.part == "all" else f" ({self.part})"
        case = f"{self.case}, mixed" if self.mixed else self.case
        form = self.level if self.flavour == "slots" else f"`{self.flavour}`"
        return f"{self.adapter or 'base'}, {case}, {form}, against {self.against}: {self.output}{part}"


@dataclass(frozen=True)
class SiteResult:
    """What an adapter computes at one site, from the values that arrive there.

    The error is the site's own; what sites before it did wrong is in the values that arrive.

    Attributes:
        adapter: the active adapter.
        case: the name of the inputs.
        site: the site, or `head`.
        path: the module path in the torch model, if known.
        comparison: with the NumPy float64 reference on the same site values.
    """

    adapter: str
    case: str
    site: str
    path: str | None
    comparison: Comparison

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"{self.adapter}, {self.case}: site {self.site}"


@dataclass(frozen=True)
class InvariantResult:
    """Something that must hold whatever the reference says.

    Attributes:
        name: which one.
        subject: what it was tried on.
        passed: whether it held.
        detail: what was seen.
    """

    name: str
    subject: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Report:
    """A whole check.

    Attributes:
        bundle: its path, as it was given.
        base: the fingerprint of the bundle's base.
        against: the path of the model that the reference comes from; none if only the golden vectors were used.
        reference: what computed its outputs, such as `torch 2.13.0 float32`.
        runtime: what computed the bundle's outputs.
        outputs: every output of every run.
        sites: every adapter at every site.
        invariants: everything else.
        agreements: how the bundle differs from the base in float32, where that was asked for; no part of the verdict.
    """

    bundle: str
    base: str
    against: str | None
    reference: str | None
    runtime: str
    outputs: tuple[OutputResult, ...]
    sites: tuple[SiteResult, ...]
    invariants: tuple[InvariantResult, ...]
    agreements: AgreementsRecord | None = None

    @property
    def passed(self) -> bool:
        """Whether everything that was looked at is as it should be."""
        compared = all(result.comparison.passed for result in self.comparisons())
        return compared and all(invariant.passed for invariant in self.invariants)

    def raise_for_failure(self) -> None:
        """Raise an error for the first thing that failed, if anything did.

        Raises:
            ParityError: an output or a site is over its budget, or something else does not hold.
        """
        for result in self.comparisons():
            if not result.comparison.passed:
                measured, allowed = result.comparison.measures.absolute, result.comparison.budget
                over = result.comparison.compared and not measured <= allowed.absolute
                adapter = "no adapter" if result.adapter is None else f"adapter `{result.adapter}`"
                where = f"`{result.output}`" if isinstance(result, OutputResult) else f"site `{result.site}`"
                graph = f", graph `{result.flavour}`" if isinstance(result, OutputResult) else ""
                raise ParityError(
                    f"{adapter}{graph}, case `{result.case}`, {where}",
                    found=f"a deviation of {measured:.2e}" if over else "; ".join(result.comparison.faults),
                    expected=f"at most {allowed.reason}",
                )
        for check in self.invariants:
            if not check.passed:
                raise ParityError(f"`{check.subject}`, {check.name}", found=check.detail, expected="no difference")

    def to_json(self) -> dict[str, Any]:
        """Return the document of `schemas/check-report.schema.json`."""
        return to_document(self)

    def table(self) -> Table:
        """Return a line for each graph and adapter."""
        return Table(
            ("graph", "adapter", "cases", "numbers", "error/budget", "verdict"),
            [
                (
                    one["flavour"],
                    f"{one['adapter'] or BASE}{', in mixed batches' if one['mixed'] else ''}",
                    one["cases"],
                    f"{one['elements']:,}",
                    f"{one['worst']:.2g}",
                    _verdict(not one["faults"]),
                )
                for one in verification(self)["golden"]
            ],
            self.bundle,
            numbers="llrrr",
        )

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def comparisons(self) -> Iterator[OutputResult | SiteResult]:
        """Every comparison, those of outputs first."""
        yield from self.outputs
        yield from self.sites

    def coverage(self) -> CoverageRecord:
        """How much was looked at."""
        results = list(self.comparisons())
        return CoverageRecord(
            planned=len(results),
            compared=sum(result.comparison.compared > 0 for result in results),
            elements=sum(result.comparison.compared for result in results),
            left_out=tuple(result.place for result in results if not result.comparison.compared),
        )

    def require_compared(self) -> None:
        """Refuse a check that proves nothing.

        Raises:
            NothingComparedError: not one element of an output was compared.
        """
        if not any(result.comparison.compared for result in self.outputs):
            raise NothingComparedError(
                "nothing was compared",
                where=self.bundle,
                found=f"{len(self.outputs)} outputs without one comparable element",
                expected="at least one",
                fix=f"build the bundle again, or give {argument('against')}: the model that it was built from",
            )


# Why a check failed: per adapter the first case that fails, its worst output, the first site to blame, a command.

BASE = "base"
"""How the base without an adapter is called in `--only` and in tables."""


@dataclass(frozen=True)
class Failure:
    """One adapter, or the base, that does not compute what it should.

    Attributes:
        adapter: the adapter; none for the base alone.
        case: the first case that fails.
        output: the output that is worst there; none if all outputs pass and only a site fails.
        comparison: of that output, or of the site.
        levels_failed: the optimization levels at which that output fails in that case.
        levels_passed: those at which it passes.
        culprit: the first site whose own error is over its own budget; none if no site's is, so that the error comes
            from the base, the head, or from rounding that adds up.
        command: repeats this part of the check alone.
        flavour: the first graph that fails.
        mixed: whether it does in a mixed batch.
        flavours_failed: all graphs in which something of this adapter fails.
    """

    adapter: str | None
    case: str
    output: str | None
    comparison: Comparison
    levels_failed: tuple[str, ...]
    levels_passed: tuple[str, ...]
    culprit: SiteResult | None
    command: str
    flavour: Form = "slots"
    mixed: bool = False
    flavours_failed: tuple[Form, ...] = ()


def failures(report: Report) -> tuple[Failure, ...]:
    """Return one failure for the base and for each adapter with a comparison that does not pass."""
    failed = [result.adapter for result in report.comparisons() if not result.comparison.passed]
    return tuple(_failure(report, adapter) for adapter in dict.fromkeys(failed))


def _failure(report: Report, adapter: str | None) -> Failure:
    outputs = [result for result in report.outputs if result.adapter == adapter and not result.comparison.passed]
    sites = [result for result in report.sites if result.adapter == adapter and not result.comparison.passed]
    if not outputs:
        site = sites[0]
        command = _command(report, adapter, site.case, "slots")
        return Failure(adapter, site.case, None, site.comparison, (), (), site, command)
    first = outputs[0]

    def same_run(result: OutputResult) -> bool:
        return (result.case, result.flavour, result.mixed) == (first.case, first.flavour, first.mixed)

    worst = max(filter(same_run, outputs), key=_badness)
    alike = [
        result
        for result in report.outputs
        if same_run(result) and result.adapter == adapter
        if (result.against, result.output) == (worst.against, worst.output)
    ]
    levels = tuple(dict.fromkeys(result.level for result in alike))
    bad = {result.level for result in alike if not result.comparison.passed}
    return Failure(
        adapter,
        first.case,
        worst.output,
        worst.comparison,
        levels_failed=tuple(level for level in levels if level in bad),
        levels_passed=tuple(level for level in levels if level not in bad),
        culprit=sites[0] if sites else None,
        command=_command(report, adapter, first.case, first.flavour),
        flavour=first.flavour,
        mixed=first.mixed,
        flavours_failed=tuple(dict.fromkeys(result.flavour for result in outputs)),
    )


def _badness(result: OutputResult) -> tuple[int, float]:
    """NaN, Inf and wrong shapes before errors over the budget."""
    comparison = result.comparison
    return comparison.nan.differ + comparison.inf.differ + (not comparison.compared), comparison.ratio


def _command(report: Report, adapter: str | None, case: str, flavour: Form) -> str:
    options = {"against": report.against, "only": adapter or BASE, "case": case}
    options |= {} if flavour == "slots" else {"flavour": flavour}
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]
    return shlex.join(["adapter-export", "check", report.bundle, *given])


# Reports as JSON: `schemas/check-report.schema.json`, and that of `verify`.


def to_document(report: Report) -> dict[str, Any]:
    """Return the report as a JSON object; NaN and Inf, which JSON has not, are the strings `nan`, `inf`, `-inf`."""
    document = _plain(
        {
            "version": REPORT_VERSION,
            "bundle": report.bundle,
            "base": report.base,
            "against": report.against,
            "reference": report.reference,
            "runtime": report.runtime,
            "verdict": _verdict(report.passed),
            "coverage": asdict(report.coverage()),
            "outputs": [_result(result) for result in report.outputs],
            "sites": [_result(result) for result in report.sites],
            "invariants": [
                {"name": one.name, "subject": one.subject, "verdict": _verdict(one.passed), "detail": one.detail}
                for one in report.invariants
            ],
            "failures": [_failure_document(failure) for failure in failures(report)],
            "agreements": None if report.agreements is None else asdict(report.agreements),
        }
    )
    assert isinstance(document, dict)
    return document


def _result(result: OutputResult | SiteResult) -> dict[str, Any]:
    """One comparison in its place, without levels of nesting."""
    comparison = asdict(result.comparison)
    measures = comparison.pop("measures")
    place = {key: value for key, value in vars(result).items() if key != "comparison"}
    verdict = {"verdict": _verdict(result.comparison.passed), "ratio": result.comparison.ratio}
    return {**place, **verdict, **comparison, **measures}


def _failure_document(failure: Failure) -> dict[str, Any]:
    comparison = asdict(failure.comparison)
    place = {key: value for key, value in vars(failure).items() if key not in ("comparison", "culprit")}
    culprit = None if failure.culprit is None else _result(failure.culprit)
    return {**place, "faults": comparison["faults"], "worst": comparison["worst"], "culprit": culprit}


def _plain(value: Any) -> Any:
    """JSON's own types."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _verdict(passed: bool) -> str:
    return "passed" if passed else "failed"


def verification(report: Report) -> dict[str, Any]:
    """Return a report as the document of `verify`: each check, and the golden vectors by graph and adapter."""
    groups: dict[tuple[Form, str | None, bool], list[OutputResult]] = {}
    for result in report.outputs:
        groups.setdefault((result.flavour, result.adapter, result.mixed), []).append(result)
    return {
        "bundle": report.bundle,
        "passed": report.passed,
        "base": report.base,
        "runtime": report.runtime,
        "checks": [asdict(invariant) for invariant in report.invariants],
        "golden": [
            {
                "flavour": flavour,
                "adapter": adapter,
                "mixed": mixed,
                "cases": len({result.case for result in results}),
                "elements": sum(result.comparison.compared for result in results),
                "worst": max(result.comparison.ratio for result in results),
                "faults": [f"{result.place}: {fault}" for result in results for fault in result.comparison.faults],
            }
            for (flavour, adapter, mixed), results in groups.items()
        ],
    }
