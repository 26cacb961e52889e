"""A report as the JSON document of `schemas/check-report.schema.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from adapter_export.parity.compare import Comparison, Number, Worst
from adapter_export.parity.failure import Failure, failures
from adapter_export.parity.report import Agreements, OutputResult, Report, SiteResult

VERSION = "1.1.0"


def to_document(report: Report) -> dict[str, Any]:
    """The report as a JSON object; NaN and Inf, which JSON has not, are the strings `nan`, `inf`, `-inf`."""
    return {
        "version": VERSION,
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
        "failures": [_failure(failure) for failure in failures(report)],
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


def _failure(failure: Failure) -> dict[str, Any]:
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
