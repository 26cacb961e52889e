"""What a check found, as data: results in their places, coverage, one verdict."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from adapter_export.bundle.compare import Comparison, Number, Worst
from adapter_export.errors import NothingComparedError
from adapter_export.format.check_report import REPORT_VERSION

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
        form: the graph that ran.
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
    form: Form = "slots"
    mixed: bool = False

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        part = "" if self.part == "all" else f" ({self.part})"
        case = f"{self.case}, mixed" if self.mixed else self.case
        form = self.level if self.form == "slots" else f"`{self.form}`"
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
class Agreement:
    """One output, or the logits, over all inputs.

    Attributes:
        adapter: the active adapter; none for the base alone.
        output: the name of the output.
        rows: how many were looked at; tokens, for an output with one row per token.
        agree: in how many of them both sides choose the same class; none for outputs that are not logits.
        absolute: the largest difference of an element, padding left out.
        scale: the largest absolute value of the output in float32.
        cosine: the smallest cosine of a batch's output as a vector; none where one side is zero.
    """

    adapter: str | None
    output: str
    rows: int
    agree: int | None
    absolute: float
    scale: float
    cosine: float | None


@dataclass(frozen=True)
class Agreements:
    """What was found.

    Attributes:
        original: what computed the outputs in float32.
        inputs: what the inputs were: random ids of many shapes, or texts.
        results: every output of the base and of every adapter.
    """

    original: str
    inputs: str
    results: tuple[Agreement, ...]


@dataclass(frozen=True)
class Coverage:
    """How much was looked at.

    Attributes:
        planned: the values that there were to compare.
        compared: those of which at least one element was compared.
        elements: the elements that were compared.
        left_out: the places of the others.
    """

    planned: int
    compared: int
    elements: int
    left_out: tuple[str, ...]


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
    agreements: Agreements | None = None

    @property
    def passed(self) -> bool:
        """Whether everything that was looked at is as it should be."""
        compared = all(result.comparison.passed for result in self.comparisons())
        return compared and all(invariant.passed for invariant in self.invariants)

    def comparisons(self) -> Iterator[OutputResult | SiteResult]:
        """Every comparison, those of outputs first."""
        yield from self.outputs
        yield from self.sites

    def coverage(self) -> Coverage:
        """How much was looked at."""
        results = list(self.comparisons())
        return Coverage(
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
                fix="build the bundle again, or give `--against` with the model that it was built from",
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
        form: the first graph that fails.
        mixed: whether it does in a mixed batch.
        forms_failed: all graphs in which something of this adapter fails.
    """

    adapter: str | None
    case: str
    output: str | None
    comparison: Comparison
    levels_failed: tuple[str, ...]
    levels_passed: tuple[str, ...]
    culprit: SiteResult | None
    command: str
    form: Form = "slots"
    mixed: bool = False
    forms_failed: tuple[Form, ...] = ()


def failures(report: Report) -> tuple[Failure, ...]:
    """One failure for the base and for each adapter with a comparison that does not pass."""
    failed = [result.adapter for result in report.comparisons() if not result.comparison.passed]
    return tuple(_failure(report, adapter) for adapter in dict.fromkeys(failed))


def _failure(report: Report, adapter: str | None) -> Failure:
    outputs = [result for result in report.outputs if result.adapter == adapter and not result.comparison.passed]
    sites = [result for result in report.sites if result.adapter == adapter and not result.comparison.passed]
    if not outputs:
        return _of_site(report, sites[0])
    first = outputs[0]
    worst = max((result for result in outputs if _run(result) == _run(first)), key=_badness)
    levels_failed, levels_passed = _levels(report, worst)
    return Failure(
        adapter,
        first.case,
        worst.output,
        worst.comparison,
        levels_failed,
        levels_passed,
        sites[0] if sites else None,
        _command(report, adapter, first.case, first.form),
        first.form,
        first.mixed,
        tuple(dict.fromkeys(result.form for result in outputs)),
    )


def _run(result: OutputResult) -> tuple[str, str, bool]:
    return result.case, result.form, result.mixed


def _of_site(report: Report, site: SiteResult) -> Failure:
    command = _command(report, site.adapter, site.case, "slots")
    return Failure(site.adapter, site.case, None, site.comparison, (), (), site, command)


def _badness(result: OutputResult) -> tuple[int, float]:
    """NaN, Inf and wrong shapes before errors over the budget."""
    comparison = result.comparison
    return comparison.nan.differ + comparison.inf.differ + (not comparison.compared), comparison.ratio


def _levels(report: Report, failed: OutputResult) -> tuple[tuple[str, ...], tuple[str, ...]]:
    alike = [result for result in report.outputs if _what(result) == _what(failed)]
    bad = {result.level for result in alike if not result.comparison.passed}
    levels = tuple(dict.fromkeys(result.level for result in alike))
    return tuple(level for level in levels if level in bad), tuple(level for level in levels if level not in bad)


def _what(result: OutputResult) -> tuple[str | bool | None, ...]:
    return result.against, result.adapter, result.case, result.output, result.form, result.mixed


def _command(report: Report, adapter: str | None, case: str, form: Form) -> str:
    against = [] if report.against is None else ["--against", report.against]
    only = ["--only", adapter or BASE, "--case", case, *([] if form == "slots" else ["--flavour", form])]
    return shlex.join(["adapter-export", "check", report.bundle, *against, *only])


# A report as the JSON document of `schemas/check-report.schema.json`.


def to_document(report: Report) -> dict[str, Any]:
    """The report as a JSON object; NaN and Inf, which JSON has not, are the strings `nan`, `inf`, `-inf`."""
    return {
        "version": REPORT_VERSION,
        "bundle": report.bundle,
        "base": report.base,
        "against": report.against,
        "reference": report.reference,
        "runtime": report.runtime,
        "verdict": _verdict(report.passed),
        "coverage": {**asdict(report.coverage()), "left_out": list(report.coverage().left_out)},
        "outputs": [_output(result) for result in report.outputs],
        "sites": [_site(result) for result in report.sites],
        "invariants": [
            {"name": item.name, "subject": item.subject, "verdict": _verdict(item.passed), "detail": item.detail}
            for item in report.invariants
        ],
        "failures": [_document_failure(failure) for failure in failures(report)],
        "agreements": None if report.agreements is None else _agreements(report.agreements),
    }


def _agreements(found: Agreements) -> dict[str, Any]:
    return asdict(found) | {"results": [asdict(result) for result in found.results]}


def _output(result: OutputResult) -> dict[str, Any]:
    place = {
        "against": result.against,
        "adapter": result.adapter,
        "case": result.case,
        "axes": dict(result.axes),
        "level": result.level,
        "output": result.output,
        "part": result.part,
        "flavour": result.form,
        "mixed": result.mixed,
    }
    return place | _comparison(result.comparison)


def _site(result: SiteResult) -> dict[str, Any]:
    place = {"adapter": result.adapter, "case": result.case, "site": result.site, "path": result.path}
    return place | _comparison(result.comparison)


def _document_failure(failure: Failure) -> dict[str, Any]:
    return {
        "adapter": failure.adapter,
        "case": failure.case,
        "output": failure.output,
        "faults": list(failure.comparison.faults),
        "worst": None if failure.comparison.worst is None else _worst(failure.comparison.worst),
        "levels_failed": list(failure.levels_failed),
        "levels_passed": list(failure.levels_passed),
        "culprit": None if failure.culprit is None else _site(failure.culprit),
        "command": failure.command,
        "flavour": failure.form,
        "mixed": failure.mixed,
        "flavours_failed": list(failure.forms_failed),
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "verdict": _verdict(comparison.passed),
        "faults": list(comparison.faults),
        "elements": comparison.elements,
        "compared": comparison.compared,
        "absolute": comparison.measures.absolute,
        "relative": comparison.measures.relative,
        "ulp": comparison.measures.ulp,
        "cosine": comparison.measures.cosine,
        "budget": asdict(comparison.budget),
        "ratio": comparison.ratio,
        "nan": asdict(comparison.nan),
        "inf": asdict(comparison.inf),
        "worst": None if comparison.worst is None else _worst(comparison.worst),
        "top_class": None if comparison.top_class is None else _top_class(asdict(comparison.top_class)),
    }


def _top_class(top_class: Mapping[str, Any]) -> dict[str, Any]:
    return {**top_class, "flips": list(top_class["flips"])}


def _worst(worst: Worst) -> dict[str, Any]:
    values = {"found": _number(worst.found), "expected": _number(worst.expected)}
    return {"index": list(worst.index), **values, "ulp": worst.ulp}


def _number(value: Number) -> Number | str:
    return value if math.isfinite(value) else str(float(value))


def _verdict(passed: bool) -> str:
    return "passed" if passed else "failed"
