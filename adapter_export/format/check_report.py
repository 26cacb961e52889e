"""Records of the reports of `check --json` and `check --self-test --json`; schemas `check-report` and `self-test`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from adapter_export.errors import FormatError, within
from adapter_export.format.manifest import VariantName
from adapter_export.format.records import (
    SEMVER,
    Count,
    NotEmpty,
    NotNegative,
    Positive,
    Sha256,
    record_from_json,
    version_checked,
)
from adapter_export.interval import Interval
from adapter_export.safe_io.documents import read_json

REPORT_VERSION = "1.0.0"
"""Version of the report format."""

Verdict = Literal["passed", "failed"]
Against = Literal["reference", "golden", "float64"]
Scope = Literal["full", "quick", "part", "golden"]
"""The scope of a check: the whole bundle; without most shapes, words and nodes; only selected adapters, graphs or
shapes; or, by `verify`, only golden vectors."""

Split = Literal["all", "tokens", "padding"]
Number = float | Literal["nan", "inf", "-inf"]
"""A number; NaN and infinities, which JSON lacks, are written by name."""

Cosine = Annotated[float, Interval(-1, 1)]

SELF_TEST_VERSION = "1.0.0"
"""Version of the format of self-test reports."""

FaultStatus = Literal["located", "found", "missed", "without effect", "not applicable"]


def verdict(passed: bool) -> Verdict:
    """Return the verdict."""
    return "passed" if passed else "failed"


@dataclass(frozen=True)
class BudgetRecord:
    """The allowed absolute error.

    Attributes:
        absolute: maximum |found - expected|.
        reason: derivation of the bound.
    """

    absolute: NotNegative
    reason: str


@dataclass(frozen=True)
class MasksRecord:
    """Positions of NaN or Inf, as counts of elements.

    Attributes:
        agree: on both sides.
        only_found: only in the candidate.
        only_expected: only in the reference.
    """

    agree: Count
    only_found: Count
    only_expected: Count


@dataclass(frozen=True)
class WorstRecord:
    """The element with the largest deviation from the reference.

    Attributes:
        index: index in the output.
        found: the candidate's value.
        expected: the reference's value.
        ulp: the number of representable values between the two; null for integers, NaN and Inf.
    """

    index: tuple[Count, ...]
    found: Number
    expected: Number
    ulp: Count | None


@dataclass(frozen=True)
class FlipRecord:
    """A row whose highest logit differs between the two sides.

    Attributes:
        row: the row, all axes but the last flattened.
        found: the candidate's class.
        expected: the reference's class.
        margin: difference of the two logits in the reference.
        within_budget: whether the budget explains the flip: margin at most twice the budget.
    """

    row: Count
    found: Count
    expected: Count
    margin: NotNegative
    within_budget: bool


@dataclass(frozen=True)
class TopClassRecord:
    """Agreement of the highest logit.

    Attributes:
        rows: number of compared rows.
        agree: rows in which both sides choose the same class.
        flips: the other rows.
    """

    rows: Count
    agree: Count
    flips: tuple[FlipRecord, ...]


@dataclass(frozen=True)
class ComparisonRecord:
    """Two arrays, element by element.

    Attributes:
        verdict: `passed` or `failed`.
        faults: reasons for a failure, one short clause each; empty if passed.
        elements: number of elements.
        compared: elements finite on both sides; the measures cover these.
        absolute: the largest |found - expected|.
        relative: the largest |found - expected| / max(|found|, |expected|), 0/0 counting as 0.
        ulp: the largest number of representable values between the two sides, large near zero; null for integers and
            where nothing was compared.
        cosine: of the two sides as vectors; null where one of them is zero.
        budget: the allowed absolute error.
        ratio: error over budget; 1 is the limit. The largest float64 marks an error where the budget is 0.
        nan, inf: where it stands.
        worst: the element that is furthest from the reference; null if there was nothing to compare.
        top_class: agreement of the highest logit; null for outputs that are not logits.
    """

    verdict: Verdict
    faults: tuple[str, ...]
    elements: Count
    compared: Count
    absolute: NotNegative
    relative: Annotated[float, Interval(0, 2)]
    ulp: Count | None
    cosine: Cosine | None
    budget: BudgetRecord
    ratio: NotNegative
    nan: MasksRecord
    inf: MasksRecord
    worst: WorstRecord | None
    top_class: TopClassRecord | None

    @property
    def passed(self) -> bool:
        """True if the candidate matches the reference."""
        return self.verdict == "passed"


@dataclass(frozen=True)
class WitnessRecord:
    """Distance of two sides that differ from the same operation in float64.

    Attributes:
        found: largest error of the candidate.
        expected: largest error of the reference.
    """

    found: NotNegative
    expected: NotNegative


@dataclass(frozen=True)
class NodeRecord:
    """The step of a graph that computes one value, on the reference's values, up to the next value that both have.

    Attributes:
        origin: the value in the reference.
        operators: operators of the step in the graph.
        line: source line of the step in torch; null if unknown.
        depth: number of nodes of the graph in the step.
        witness: deviation of both sides from float64; null if unknown.
        cumulative: the largest error of the value in a run of the whole graph; null without such a run.
    """

    origin: str
    operators: str
    line: str | None
    depth: Count
    witness: WitnessRecord | None
    cumulative: NotNegative | None


@dataclass(frozen=True)
class Measurement(ComparisonRecord):
    """Comparison of one array of one run with its reference: an output, an adapter's result at a site, or a node.

    Attributes:
        kind: the kind of value.
        name: the output; the site, or `head`; the value in the graph.
        against: the reference: the model, golden vectors, or a float64 evaluation of the site's inputs.
        adapter: the active adapter; null for the base.
        case: the name of the inputs.
        variant: the graph that ran.
        level: ONNX Runtime's optimization level.
        axes: the length of each dynamic axis of the inputs.
        part: `tokens` or `padding` for outputs with one row per token and inputs with padding.
        mixed: whether the batch mixed adapters; only the rows of this adapter are compared.
        path: the module path in the torch model; null if unknown.
        node: details of a node; null for outputs and sites.
    """

    kind: Literal["output", "site", "node"]
    name: str
    against: Against
    adapter: str | None
    case: str
    variant: VariantName
    level: Literal["none", "basic", "extended", "all"]
    axes: Mapping[str, Positive]
    part: Split = "all"
    mixed: bool = False
    path: str | None = None
    node: NodeRecord | None = None

    @property
    def place(self) -> str:
        """Location of the measurement, for messages."""
        adapter = self.adapter or "base"
        if self.kind != "output":
            graph = "" if self.kind == "site" else f", `{self.variant}`"
            return f"{adapter}, {self.case}{graph}: {self.kind} {self.name}"
        part = "" if self.part == "all" else f" ({self.part})"
        case = f"{self.case}, mixed" if self.mixed else self.case
        graph = self.level if self.variant == "slots" else f"`{self.variant}`"
        return f"{adapter}, {case}, {graph}, against {self.against}: {self.name}{part}"

    @property
    def badness(self) -> tuple[bool, int, float]:
        """Sort key: failures last, NaN, Inf and wrong shapes after them, then by error over budget."""
        apart = sum(masks.only_found + masks.only_expected for masks in (self.nan, self.inf))
        return not self.passed, apart + (not self.compared), self.ratio


@dataclass(frozen=True)
class LocationRecord:
    """The origin of a failure.

    Attributes:
        adapter, case, variant: of the failing output.
        nodes: number of graph values compared with the reference.
        node: the first node whose own error exceeds its budget; null if none does.
        guess: the kind of fault that explains the failure; null if no known fault does.
        detail: other findings: the optimization level, the float64 evaluation, accumulated rounding.
        repro: the folder with a reproduction; null if not requested.
    """

    adapter: str | None
    case: str
    variant: VariantName
    nodes: Count
    node: Measurement | None
    guess: str | None
    detail: tuple[str, ...]
    repro: str | None = None


@dataclass(frozen=True)
class FailureRecord:
    """A failing adapter or base.

    Attributes:
        adapter: the active adapter; null for the base.
        case: the smallest failing case.
        output: the worst output of that case; null if only a site fails.
        faults: reasons, one short clause each.
        ratio: error over budget; 1 is the limit.
        worst: the element with the largest deviation; null if nothing was compared.
        levels_failed: optimization levels at which the output fails.
        levels_passed: optimization levels at which it passes.
        culprit: the first site whose own error exceeds its budget.
        command: command that repeats this part of the check.
        variant: the first failing graph.
        mixed: whether the failure is in a mixed batch.
        variants_failed: all graphs in which an output of this adapter fails; empty if only a site fails.
        location: origin of the failure; null without a reference.
    """

    adapter: str | None
    case: str
    output: str | None
    faults: Annotated[tuple[str, ...], NotEmpty()]
    ratio: NotNegative
    worst: WorstRecord | None
    levels_failed: tuple[str, ...]
    levels_passed: tuple[str, ...]
    culprit: Measurement | None
    command: str
    variant: VariantName
    mixed: bool
    variants_failed: tuple[VariantName, ...]
    location: LocationRecord | None = None


@dataclass(frozen=True)
class AgreementRecord:
    """Agreement of one floating-point output, over all inputs.

    Attributes:
        adapter: the active adapter; null for the base.
        output: the name of the output.
        rows: number of compared rows; tokens, for an output with one row per token.
        agree: rows in which both sides choose the same class; null for outputs that are not logits.
        absolute: the largest difference of an element, excluding padding.
        scale: the largest absolute value of the output in float32.
        cosine: the smallest cosine similarity of a batch's output as a vector; null if one side is zero.
    """

    adapter: str | None
    output: str
    rows: Count
    agree: Count | None
    absolute: NotNegative
    scale: NotNegative
    cosine: Cosine | None


@dataclass(frozen=True)
class AgreementsRecord:
    """Agreement of the bundle with the base in float32.

    Attributes:
        original: program that computed the outputs in float32.
        inputs: inputs of both sides.
        results: every floating-point output of the base and every adapter.
    """

    original: str
    inputs: str
    results: tuple[AgreementRecord, ...]


@dataclass(frozen=True)
class EffectRecord:
    """Effect of an adapter on the base; the absence of an effect is not a fault, but probably unintended.

    Attributes:
        adapter: the adapter.
        output: the base output that changes most; null if the base has no floating-point output.
        change: relative change of that output: norm of the difference over norm of the base's output, over all golden
            vectors.
        beyond_rounding: whether an output changes by more than float32 rounding.
        sites: relative change of the replaced value at each site, on random values.
        idle: sites where the value is unchanged except for rounding.
    """

    adapter: str
    output: str | None
    change: NotNegative
    beyond_rounding: bool
    sites: Mapping[str, NotNegative]
    idle: tuple[str, ...]


Status = Literal["exact", "tested", "unverified", "failed"]
"""Status of a claim: proved for every input, tested on some inputs, not verified, or wrong."""


@dataclass(frozen=True)
class SpanRecord:
    """Coverage of one quantity.

    Attributes:
        what: the quantity, such as `words`, `positions`, `shapes`, `levels`, `runtimes` or `texts`.
        done: number tested.
        of: total number; null if infinite or unknown.
    """

    what: str
    done: Count
    of: Count | None


@dataclass(frozen=True)
class Finding:
    """The outcome of one claim about one subject.

    Attributes:
        check: the kind of claim, such as `swap`, `constant` or `output`.
        subject: the object of the claim. Reports on bundles of the same structure have the same `check` and `subject`.
        claim: the claim, a clause for readers.
        status: `exact` for all inputs, `tested` on the inputs counted in `coverage`, `unverified`, or `failed`.
        where: the file, and its tensor, node or key.
        detail: method and observation, the reason for no verification, or the fault.
        coverage: the tested quantities.
        ratio: the largest error over its budget; null if nothing was computed.
        measurements: the underlying comparisons.
    """

    check: str
    subject: str
    claim: str
    status: Status
    where: str
    detail: str
    coverage: tuple[SpanRecord, ...] = ()
    ratio: NotNegative | None = None
    measurements: tuple[Measurement, ...] = ()

    @classmethod
    def exact(cls, check: str, subject: str, passed: bool, detail: str, claim: str = "", where: str = "") -> Finding:
        """Return the outcome of a claim proved for every input."""
        claim, where = claim or f"{check}: {subject}", where or subject
        return cls(check, subject, claim, "exact" if passed else "failed", where, detail)

    @classmethod
    def tested(cls, check: str, subject: str, passed: bool, detail: str, claim: str = "", where: str = "") -> Finding:
        """Return the outcome of a claim tested on some inputs."""
        claim, where = claim or f"{check}: {subject}", where or subject
        return cls(check, subject, claim, "tested" if passed else "failed", where, detail)

    @classmethod
    def unverified(cls, check: str, subject: str, reason: str, claim: str = "", where: str = "") -> Finding:
        """Return an unverified claim with its reason."""
        return cls(check, subject, claim or f"{check}: {subject}", "unverified", where or subject, reason)

    @classmethod
    def measured(
        cls,
        check: str,
        subject: str,
        claim: str,
        measurements: Sequence[Measurement],
        detail: str,
        coverage: tuple[SpanRecord, ...] = (),
    ) -> Finding:
        """Return the outcome of measurements; `{ratio}` in `detail` is the largest error over its budget."""
        worst = max(measurements, key=lambda measurement: measurement.badness)
        status: Status = "tested" if any(measurement.compared for measurement in measurements) else "unverified"
        status = status if worst.passed else "failed"
        text = "; ".join(worst.faults) or detail.format(ratio=f"{worst.ratio:.2g}")
        return cls(check, subject, claim, status, worst.place, text, coverage, worst.ratio, tuple(measurements))

    @property
    def id(self) -> str:
        """Identifier of the claim and its subject, such as `swap/base-→-topic-→-base`."""
        return f"{self.check}/{self.subject}".replace(" ", "-")

    @property
    def passed(self) -> bool:
        """True unless the claim failed."""
        return self.status != "failed"


@dataclass(frozen=True)
class CoverageRecord:
    """Coverage of the comparisons.

    Attributes:
        planned: number of values to compare.
        compared: values with at least one compared element.
        elements: number of compared elements.
        left_out: locations of the other values.
    """

    planned: Count
    compared: Count
    elements: Count
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class CheckReport:
    """Report of a check. NaN and Inf, which JSON lacks, are written as strings.

    Attributes:
        version: the version of this format. A reader refuses another major version.
        bundle: the path of the bundle, as passed.
        base: the fingerprint of the bundle's base.
        against: the path of the reference model; null if only golden vectors were used.
        reference: program of the reference outputs, such as `torch 2.13.0 float32`.
        runtime: program of the bundle's outputs, such as `onnxruntime 1.32.0`.
        scope: the checked part of the bundle.
        verdict: `passed` or `failed`.
        summary: the verdict with the scope and the number of unverified claims, such as `passed (quick, 29 of 346
            unverified)`.
        coverage: coverage of the comparisons.
        findings: every claim with its status.
        failures: one for each adapter or base with a failed comparison.
        agreements: agreement of the bundle with the float32 base, for other precisions or if texts were passed; null
            otherwise. Not part of the verdict.
        effects: effect of each adapter that is more than a head. Not part of the verdict.
        digest: SHA-256 of the bundle's manifest, which contains those of all its files.
    """

    version: Annotated[str, SEMVER]
    bundle: str
    base: str
    against: str | None
    reference: str | None
    runtime: str
    scope: Scope
    verdict: Verdict
    summary: str
    coverage: CoverageRecord
    findings: tuple[Finding, ...]
    failures: tuple[FailureRecord, ...]
    agreements: AgreementsRecord | None
    effects: tuple[EffectRecord, ...]
    digest: Sha256 | None = None


def read_report(path: Path, digest: str) -> CheckReport:
    """Read an earlier report on a bundle by the digest of its manifest.

    Raises:
        FileError: the file cannot be read.
        FormatError: the file is not a report, or a report on another bundle; `VersionError` is a subclass.
    """
    document = read_json(path)
    with version_checked(document, REPORT_VERSION, path), within(path):
        report = record_from_json(CheckReport, document)
    if report.digest != digest:
        raise FormatError(
            "is a report on another bundle",
            where=path,
            found=f"manifest digest {report.digest or 'absent'}",
            expected=digest,
            fix="pass a report on this bundle",
        )
    return report


@dataclass(frozen=True)
class FaultRecord:
    """A kind of fault planted in a copy of the bundle.

    Attributes:
        name: the fault.
        area: the affected part of the bundle.
        status: `located` if the check failed and named one of the `places`; `found` if it failed; `missed` if it
            passed; `without effect` if it passed and every output is bit-identical; `not applicable` if the bundle
            cannot have this fault.
        places: names of the changed parts.
        detail: message of the check.
    """

    name: str
    area: str
    status: FaultStatus
    places: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class SelfTestReport:
    """Report of planted faults: how many of them a check finds and locates.

    Attributes:
        version: the version of this format. A reader refuses another major version.
        bundle: the path of the bundle, as passed.
        against: the path of the reference model; null if only golden vectors were used.
        seed: random seed of the places.
        faults: every kind of fault, in the order of planting.
    """

    version: Annotated[str, SEMVER]
    bundle: str
    against: str | None
    seed: int
    faults: tuple[FaultRecord, ...]
