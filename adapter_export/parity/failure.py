"""Why a check failed: per adapter the first case that fails, its worst output, the first site to blame, a command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from adapter_export.parity.compare import Comparison
from adapter_export.parity.report import Form, OutputResult, Report, SiteResult

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
