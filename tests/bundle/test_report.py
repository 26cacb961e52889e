"""A report: its verdict, its coverage, and the failure that it names."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adapter_export.bundle import risks
from adapter_export.bundle.proof.compare_arrays import compare, missing
from adapter_export.bundle.proof.report_view import page
from adapter_export.bundle.report import Report, failures
from adapter_export.errors import NothingComparedError, ParityError
from adapter_export.format.check_report import ComparisonRecord, Finding, Measurement, Scope
from adapter_export.numerics.budget import Budget
from schemas import validate

BUDGET = Budget(0.1, "for tests")
ONES = np.ones((2, 3), np.float32)
GOOD = compare(ONES, ONES, BUDGET)
BAD = compare(ONES + 1, ONES, BUDGET)
NAN = compare(np.where(np.eye(2, 3, dtype=bool), np.float32(np.nan), ONES), ONES, BUDGET)
EMPTY = compare(ONES[:0], ONES[:0], BUDGET)


def output(comparison: ComparisonRecord, **place: object) -> Measurement:
    plain = {
        "kind": "output",
        "against": "golden",
        "adapter": "trec",
        "case": "batch2",
        "axes": {"batch": 2},
        "level": "none",
        "name": "hidden",
        "part": "all",
        "variant": "slots",
        "mixed": False,
    }
    return Measurement(**{**vars(comparison), **plain, **place})


def site(comparison: ComparisonRecord, name: str, adapter: str = "trec") -> Measurement:
    path = f"encoder.{name}"
    return output(comparison, kind="site", name=name, adapter=adapter, path=path, against="float64")


def report(*results: Measurement, invariants: tuple[Finding, ...] = ()) -> Report:
    measured = [Finding.measured(one.kind, str(at), "matches", [one], "") for at, one in enumerate(results)]
    return Report("my bundle", "sha256:0", None, None, "onnxruntime", "full", (*measured, *invariants))


@pytest.mark.parametrize("bad", [BAD, NAN, EMPTY, missing(BUDGET)])
def test_one_bad_comparison_fails_the_report(bad: ComparisonRecord) -> None:
    assert report(output(GOOD)).passed
    assert not report(output(GOOD), output(bad, case="other")).passed
    assert not report(output(GOOD), site(bad, "ffn")).passed


def test_a_broken_invariant_fails_the_report() -> None:
    held = Finding.tested("swap", "a → b → a", True, "bit for bit")
    assert report(output(GOOD), invariants=(held,)).passed
    assert not report(output(GOOD), invariants=(held, replace(held, status="failed"))).passed


@pytest.mark.parametrize(
    ("scope", "unverified", "summary", "style"),
    [
        ("full", 0, "passed", "passed"),
        ("full", 2, "passed (2 of 3 unverified)", "partial"),
        ("quick", 2, "passed (quick, 2 of 3 unverified)", "partial"),
        ("part", 0, "passed (partial)", "partial"),
        ("golden", 1, "passed (golden vectors only, 1 of 2 unverified)", "partial"),
    ],
)
def test_verdict_mentions_skipped_claims(scope: Scope, unverified: int, summary: str, style: str) -> None:
    skipped = tuple(Finding.unverified("constant", str(at), "a quick check") for at in range(unverified))
    found = replace(report(output(GOOD), invariants=skipped), scope=scope)
    document = found.to_json()
    validate(document, "check-report")
    assert (found.summary, document["summary"], document["scope"]) == (summary, summary, scope)
    assert f'<p class="verdict {style}">{summary}</p>' in page(found, date="today", command="check")
    wrong = replace(found, findings=(*found.findings, Finding.tested("swap", "a", False, "changed")))
    assert (wrong.summary, wrong.to_json()["summary"]) == ("failed", "failed")


def test_report_page_begins_with_coverage_and_risks() -> None:
    left = Finding.unverified("source", "a", "compared only with copies", where="adapters/a")
    found = replace(report(output(GOOD), invariants=(left,)), scope="full")
    body = page(found, date="today", command="check").partition("<h1>")[2]
    risk = body.index("adapters/a: compared only with copies. A risk only if")
    assert body.index('class="verdict partial"') < body.index("was compared with") < risk
    assert f"on this machine ({platform.system()} {platform.machine()}, " in body
    folded = body[body.index("<details>") : body.index("</details>")]
    assert "<summary>An error of at most 1 budget passes" in folded
    formula = "the same formula with their scale"
    assert body.count(formula) == folded.count(formula) == 1
    wrong = replace(found, findings=(*found.findings, Finding.tested("swap", "a", False, "changed")))
    assert "do not ship it" in page(wrong, date="today", command="check")


def test_every_risk_is_that_of_a_claim() -> None:
    files = [path for path in Path(risks.__file__).parent.rglob("*.py") if path.name != "risks.py"]
    sources = "".join(path.read_text("utf-8") for path in files)
    assert not [check for check in risks._RISKS if f'"{check}"' not in sources]


@pytest.mark.parametrize("results", [(), (output(EMPTY),), (output(missing(BUDGET)),), (site(GOOD, "ffn"),)])
def test_a_check_without_one_compared_output_is_an_error(results: tuple[Measurement, ...]) -> None:
    with pytest.raises(NothingComparedError, match="nothing was compared"):
        report(*results).require_compared()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (report(output(GOOD), output(BAD, adapter=None)), r"no adapter.*`batch2`.*`hidden`.*a deviation of 1.00e\+00"),
        (report(output(GOOD), site(NAN, "ffn")), "adapter `trec`.*site `ffn`.*2 NaN where the reference is finite"),
        (
            report(output(GOOD), invariants=(Finding.tested("swap", "a → b → a", False, "changed: x"),)),
            "changed: x",
        ),
    ],
)
def test_a_report_can_be_made_an_error(found: Report, words: str) -> None:
    with pytest.raises(ParityError, match=words):
        found.raise_for_failure()
    report(output(GOOD)).raise_for_failure()


def test_a_table_has_a_line_for_each_graph_and_adapter() -> None:
    found = report(output(GOOD), output(BAD, variant="bank"), output(GOOD, variant="bank", mixed=True)).table()
    assert [(row[0], row[1], row[-1]) for row in found.rows] == [
        ("slots", "trec", "passed"),
        ("bank", "trec", "failed"),
        ("bank", "trec, in mixed batches", "passed"),
    ]


def test_coverage_names_outputs_that_were_left_out() -> None:
    coverage = report(output(GOOD), output(EMPTY, name="extra"), site(GOOD, "ffn")).coverage()
    assert (coverage.planned, coverage.compared, coverage.elements) == (3, 2, 12)
    assert coverage.left_out == ("trec, batch2, none, against golden: extra",)


def test_failures_list_failing_and_passing_levels() -> None:
    levels = [output(BAD if level == "all" else GOOD, level=level) for level in ("none", "basic", "all")]
    (failure,) = failures(report(*levels))
    assert (failure.levels_failed, failure.levels_passed) == (("all",), ("none", "basic"))


def test_a_failure_names_the_first_case_and_its_worst_output() -> None:
    results = [
        output(GOOD, case="small"),
        output(BAD, case="middle"),
        output(NAN, case="middle", name="logits"),
        output(NAN, case="large", name="other"),
    ]
    (failure,) = failures(report(*results))
    assert (failure.case, failure.output) == ("middle", "logits")


def test_a_failure_names_the_first_site_of_its_own_adapter() -> None:
    sites = [site(GOOD, "first"), site(BAD, "second"), site(BAD, "third"), site(BAD, "zeroth", adapter="other")]
    trec, other = failures(report(output(BAD), *sites))
    assert trec.culprit is not None
    assert trec.culprit.name == "second"
    assert (other.adapter, other.output) == ("other", None)


def test_failure_command_can_be_pasted_into_a_shell() -> None:
    (failure,) = failures(report(output(BAD, adapter=None)))
    assert failure.command == "adapter-export check 'my bundle' --only base --case batch2"


def test_the_document_can_say_nan_inf_and_nothing() -> None:
    infinite = compare(np.full((2, 3), -np.inf, np.float32), ONES, BUDGET)
    found = report(output(NAN), output(infinite, case="b"), output(missing(BUDGET), case="c"), site(EMPTY, "ffn"))
    document = found.to_json()
    validate(document, "check-report")
    assert document["verdict"] == "failed"
    assert document["findings"][0]["measurements"][0]["worst"]["found"] == "nan"
    assert document["findings"][1]["measurements"][0]["worst"]["found"] == "-inf"
    assert document["findings"][2]["measurements"][0]["worst"] is None
