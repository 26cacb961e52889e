"""Complete check of a small correct bundle."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from chromium import QUIET
from clients import tool
from counted import Counted
from small_bundle import Built

from adapter_export.bundle.proof.proof_plan import LEVELS, Reference, plan_check
from adapter_export.bundle.proof.prove import prove
from adapter_export.bundle.proof.report_view import page
from adapter_export.bundle.report import Report, failures
from adapter_export.errors import UsageError
from adapter_export.format.check_report import SpanRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.sample_inputs import padding_of
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.onnx_runner import CutRunner
from schemas import validate


def run(built: Built, *, reference: bool, only: tuple[str, ...] = (), cases: tuple[str, ...] = ()) -> Report:
    plan = plan_check(built.folder, only=only, cases=cases)
    against = Reference(str(built.model), CutRunner(built.base)) if reference else None
    counted = Counted()
    report = prove(plan, against, reporter=counted)
    assert counted.ended, "the progress bar must end where the work ends"
    return report


@pytest.fixture(scope="module")
def report(built: Built) -> Report:
    return run(built, reference=True)


def test_a_good_bundle_passes(report: Report) -> None:
    assert report.passed
    assert failures(report) == ()
    report.require_compared()


def test_check_compares_every_output_at_every_shape_and_level(report: Report) -> None:
    of = [result for result in report.outputs if result.against == "reference"]
    found = {(one.adapter, one.case, one.variant, one.level, one.name) for one in of if not one.mixed}
    graphs = [*(("slots", level) for level in LEVELS), ("inputs", "all"), ("bank", "all")]
    core = {one.case for one in of if one.level == "none"}
    assert len(core) == 11
    expected = {
        (adapter, case, variant, level, output)
        for variant, level in graphs
        for case in ({one.case for one in of} if (variant, level) == ("slots", "all") else core)
        for adapter in (None, "topic", "tone", "mood")
        for output in (("hidden",) if adapter is None else ("hidden", "logits"))
    }
    assert found == expected


def test_shapes_cover_all_pairs_of_batch_length_and_padding(report: Report) -> None:
    shapes = {
        (one.case, *one.axes.values(), padding_of(one.case), one.level)
        for one in report.outputs
        if one.against == "reference" and one.variant == "slots"
    }
    batches, lengths, paddings = (1, 2, 3, 5), (1, 2, 7, 12, 64, 65), ("none", "right", "left", "holes")
    able = [
        one
        for one in product(batches, lengths, paddings)
        if one[1] >= {"none": 1, "right": 2, "left": 2, "holes": 3}[one[2]]
    ]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        wanted = {(one[first], one[second]) for one in able}
        assert wanted == {(one[1 + first], one[1 + second]) for one in shapes if one[-1] == "all"}
    core = [one for one in shapes if one[-1] == "none"]
    assert [{one[at] for one in core} for at in (1, 2, 3)] == [set(batches), set(lengths), set(paddings)]


def test_check_covers_and_reports_the_whole_vocabulary(report: Report) -> None:
    found = {owed.id: owed for owed in report.findings if owed.id.startswith("shape/")}
    assert found["shape/words/ids"].status == "tested"
    assert found["shape/words/ids"].coverage == (SpanRecord("words", 20, 20),)
    assert SpanRecord("pairs of shapes", 60, 60) in found["shape/matrix"].coverage


def test_a_brief_check_leaves_out_words_and_all_but_the_core(built: Built) -> None:
    report = prove(plan_check(built.folder, only=("base",), brief=True), Reference("m", CutRunner(built.base)))
    assert report.passed
    assert len({one.case for one in report.outputs}) == 11
    assert not [owed for owed in report.findings if owed.id.startswith("shape/words")]


class WrongBase(CutRunner):
    """A reference with a fault at some inputs only, so that the bundle seems wrong."""

    keeps_weights = False

    def __init__(self, base: OnnxBase, fault: str) -> None:
        super().__init__(base)
        self.fault = fault

    def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None = None) -> dict[str, np.ndarray]:
        ids, mask = inputs["ids"], inputs["mask"]
        outputs = super().run(inputs, adapter)
        off = {
            "even lengths": ids.shape[1] % 2 == 0,
            "more than 65 tokens": ids.shape[1] > 64,
            "four rows": len(ids) >= 4,
            "padding on the left": not mask[:, 0].all(),
            "a word": (ids == 7)[..., None],
        }[self.fault]
        return {**outputs, "hidden": outputs["hidden"] * np.where(off, np.float32(1.01), np.float32(1))}


def test_cases_outside_the_core_have_a_budget_for_amplification(built: Built) -> None:
    """The reference changes by more than the formula's budget, like MiniLM after a single token."""

    class Moving(WrongBase):
        keeps_weights = True

        def run(self, inputs: dict[str, np.ndarray], adapter: Adapter | None = None) -> dict[str, np.ndarray]:
            outputs = CutRunner.run(self, inputs, adapter)
            if inputs["ids"].shape != (5, 64):
                return outputs
            shifts = {None: 2e-4} | {"rounding": 1e-3 * float(np.sign(_first(adapter)))}
            return {**outputs, "hidden": outputs["hidden"] + np.float32(shifts[adapter and adapter.name])}

    runner = Moving(built.base, "")
    plan = plan_check(built.folder, only=("base",), variants=("slots",))
    plan = replace(plan, cases=tuple(case for case in plan.cases if case.batch in (1, 5)))
    report = prove(plan, Reference("other.onnx", runner))
    (case,) = [one for one in report.outputs if tuple(one.axes.values()) == (5, 64) and one.part == "tokens"]
    assert 1e-4 < case.absolute < case.budget.absolute
    assert "move the reference" in case.budget.reason


def _first(adapter: Adapter | None) -> float:
    """Return the sign of an error."""
    return 0.0 if adapter is None else float(next(iter(adapter.weights.values())).ravel()[0]) - 1


@pytest.mark.parametrize(
    ("fault", "smallest"),
    [
        ("even lengths", "batch1_tokens2"),
        ("more than 65 tokens", "batch1_tokens65"),
        ("four rows", "batch4_tokens1"),
        ("padding on the left", "batch1_tokens2_padded_left"),
        ("a word", None),
    ],
)
def test_a_fault_of_some_shapes_is_named_by_the_smallest(built: Built, fault: str, smallest: str | None) -> None:
    reference = Reference("other.onnx", WrongBase(built.base, fault))
    report = prove(plan_check(built.folder, only=("base",), variants=("slots",)), reference)
    assert not report.passed
    if smallest is not None:
        (failure,) = failures(report)
        assert failure.case == smallest
        assert failure.levels_failed == LEVELS
        assert failure.command.endswith(f"--case {smallest}")
        again = prove(plan_check(built.folder, only=("base",), cases=(smallest,)), reference)
        assert {one.case for one in again.outputs} == {smallest}
        assert not again.passed
    words = next(owed for owed in report.findings if owed.id == "shape/words/ids")
    assert ("only word 7 of `ids`" in words.detail) == (fault == "a word")


def test_padding_is_compared_on_its_own(report: Report) -> None:
    parts = {
        (result.name, result.part): result.elements
        for result in report.outputs
        if result.case == "batch3_tokens7_padded" and result.adapter == "topic" and result.variant == "slots"
    }
    assert parts[("hidden", "tokens")] + parts[("hidden", "padding")] == 3 * 7 * 16
    assert set(parts) == {("hidden", "tokens"), ("hidden", "padding"), ("logits", "all")}


def test_check_compares_every_planned_output_and_site(report: Report) -> None:
    coverage = report.coverage()
    assert coverage.compared == coverage.planned == len(report.outputs) + len(report.sites)
    assert coverage.elements == sum(result.elements for result in (*report.outputs, *report.sites))


def test_every_adapter_is_checked_at_every_site_and_its_head(report: Report) -> None:
    sites = ["layers.0.attention", "layers.0.ffn", "layers.1.attention", "layers.1.ffn", "head"]
    for adapter in ("topic", "tone", "mood"):
        assert [result.name for result in report.sites if result.adapter == adapter] == sites


def test_idle_sites_return_h_itself(report: Report) -> None:
    idle = [result for result in report.sites if result.adapter == "tone" and result.name.endswith("attention")]
    assert [(result.budget.absolute, result.ulp) for result in idle] == [(0, 0), (0, 0)]


def test_every_pair_is_swapped(report: Report) -> None:
    swaps = [result.subject for result in report.findings if result.check == "swap"]
    assert len(swaps) == len(set(swaps)) == 4 * 3
    assert "base → topic → base" in swaps
    assert "topic → tone → topic" in swaps


def test_report_document_follows_its_schema(report: Report) -> None:
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    validate(document, "check-report")
    assert document["verdict"] == "passed"
    assert document["coverage"]["compared"] == report.coverage().compared
    assert next(one for one in document["findings"] if one["check"] == "output")["measurements"][0]["budget"]["reason"]


def test_report_page_lists_coverage_and_escapes_names(report: Report) -> None:
    named = replace(report, bundle="<script>b</script>")
    text = page(named, date="2026-01-02", command="check <b>")
    assert "<script" not in text
    assert "check &lt;b&gt;" in text
    for words in ("2026-01-02", "words (model.onnx: ids)", "pairs of shapes", "none, basic, all", report.base):
        assert words in text
    assert ">attention</th>" in text  # a row of the map of sites


@pytest.mark.extended
def test_the_page_prints_on_two_sheets(report: Report, tmp_path: Path) -> None:
    file, printed = tmp_path / "page.html", tmp_path / "page.pdf"
    file.write_text(page(report, date="2026-01-02", command="adapter-export check bundle"), "utf-8")
    words = [tool("chromium", "chromium"), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--no-pdf-header-footer"]
    subprocess.run([*words, f"--print-to-pdf={printed}", file.as_uri()], check=True, capture_output=True, timeout=120)
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed.read_bytes())) <= 2


def test_check_compares_golden_vectors_without_a_reference(built: Built) -> None:
    report = run(built, reference=False)
    assert report.passed
    assert {result.against for result in report.outputs} == {"golden"}
    assert len(report.sites) == 15
    validate(report.to_json(), "check-report")


def test_a_part_can_be_checked_alone(built: Built) -> None:
    report = run(built, reference=True, only=("tone",), cases=("batch3_tokens7_padded",))
    assert report.passed
    assert {(result.adapter, result.case) for result in report.outputs} == {("tone", "batch3_tokens7_padded")}
    base = run(built, reference=False, only=("base",))
    assert {result.adapter for result in base.outputs} == {None}


@pytest.mark.parametrize(("only", "cases"), [(("nobody",), ()), ((), ("batch9_words9",)), ((), ("batch0_tokens1",))])
def test_unknown_adapters_and_cases_are_refused(built: Built, only: tuple[str, ...], cases: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="unknown"):
        plan_check(built.folder, only=only, cases=cases)


@pytest.mark.extended
def test_check_runs_without_torch(built: Built) -> None:
    code = """
import sys
sys.modules["torch"] = None  # importing it fails
from pathlib import Path
from adapter_export.bundle.proof.proof_plan import plan_check
from adapter_export.bundle.proof.prove import prove
report = prove(plan_check(Path(sys.argv[1])), None)
sys.exit(0 if report.passed else 1)
"""
    done = subprocess.run([sys.executable, "-c", code, str(built.folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class OffByALittle(CutRunner):
    """A reference with one output changed, in place of a bundle with a fault there."""

    def __init__(self, base: OnnxBase, change: str) -> None:
        super().__init__(base)
        self.change = change

    def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None = None) -> dict[str, np.ndarray]:
        outputs = super().run(inputs, adapter)
        if self.change == "extra":
            del outputs["hidden"]
        elif self.change == "missing":
            outputs["pooled"] = np.ones(1, np.float32)
        elif self.change == "nan":
            outputs["hidden"] = outputs["hidden"].copy()
            outputs["hidden"][0, 0, 0] = np.nan
        elif self.change == "dtype":
            outputs["hidden"] = outputs["hidden"].astype(np.float64)
        elif self.change == "scale":
            outputs["hidden"] = outputs["hidden"] * np.float32(1.001)
        return outputs


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("extra", "the reference has no such output"),
        ("missing", "the output is missing"),
        ("nan", "1 NaN of the reference are missing"),
        ("dtype", "the type is float32, not float64"),
        ("scale", "exceeds the budget"),
    ],
)
def test_outputs_that_differ_from_the_reference_fail(built: Built, change: str, fault: str) -> None:
    reference = Reference("other.onnx", OffByALittle(built.base, change))
    report = prove(plan_check(built.folder, only=("base",), brief=True), reference)
    assert not report.passed
    (failure,) = failures(report)
    assert fault in failure.faults[0]
    assert failure.case == "batch1_tokens1"
    assert failure.levels_failed == LEVELS
    assert failure.command == (
        f"adapter-export check {built.folder} --against other.onnx --only base --case batch1_tokens1"
    )
    validate(json.loads(json.dumps(report.to_json(), allow_nan=False)), "check-report")


def test_a_live_model_that_differs_at_a_length_fails(built: Built) -> None:
    runner = CutRunner(built.base)

    def live(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = runner.run(inputs, None)
        off = np.float32(0.5 if inputs["ids"].shape[1] == 65 else 0)
        return {name: value + off for name, value in outputs.items()}

    reference, counted = Reference("folder", runner, live=live), Counted()
    plan = plan_check(built.folder, only=("base",))
    report = prove(plan, reference, reporter=counted)
    assert counted.ended
    failed = [(one.check, one.subject) for one in report.findings if not one.passed]
    assert failed
    assert all(name == "live model" and "tokens65" in case for name, case in failed)
    assert len([one for one in report.findings if one.check == "live model"]) == len(plan.cases)
    (line,) = {one.detail for one in report.findings if one.subject == "batch1_tokens65"}
    assert "tokens 65: `hidden`: the largest error 0.5 exceeds the budget" in line
