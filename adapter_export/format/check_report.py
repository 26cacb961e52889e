"""The reports of `check --json`, and of `check --self-test --json`, as records; schemas `check-report`, `self-test`."""

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
"""The version of the format of reports."""

Verdict = Literal["passed", "failed"]
Against = Literal["reference", "golden", "float64"]
Scope = Literal["full", "quick", "part", "golden"]
"""The scope of a check: all of the bundle; most shapes, words and nodes skipped; named adapters, graphs or shapes
only; or, by `verify`, golden vectors only."""

Split = Literal["all", "tokens", "padding"]
Number = float | Literal["nan", "inf", "-inf"]
"""A number; one that JSON cannot write is replaced by its name when the report is written."""

Cosine = Annotated[float, Interval(-1, 1)]

SELF_TEST_VERSION = "1.0.0"
"""The version of the format."""

FaultStatus = Literal["located", "found", "missed", "without effect", "not applicable"]


def verdict(passed: bool) -> Verdict:
    """Return the word for it."""
    return "passed" if passed else "failed"


@dataclass(frozen=True)
class BudgetRecord:
    """The allowed absolute error.

    Attributes:
        absolute: the allowed |found - expected|.
        reason: what it follows from.
    """

    absolute: NotNegative
    reason: str


@dataclass(frozen=True)
class MasksRecord:
    """Positions of NaN or Inf, as counts of elements.

    Attributes:
        agree: on both sides.
        only_found: in the candidate alone.
        only_expected: in the reference alone.
    """

    agree: Count
    only_found: Count
    only_expected: Count


@dataclass(frozen=True)
class WorstRecord:
    """The element that is furthest from the reference.

    Attributes:
        index: its place in the output.
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
    """A row in which the two sides choose different classes.

    Attributes:
        row: the row, all axes but the last flattened.
        found: the candidate's class.
        expected: the reference's class.
        margin: how far apart the two logits are in the reference.
        within_budget: whether the budget explains it: margin at most twice the budget.
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
        rows: how many rows were looked at.
        agree: in how many both sides choose the same class.
        flips: the other rows.
    """

    rows: Count
    agree: Count
    flips: tuple[FlipRecord, ...]


@dataclass(frozen=True)
class ComparisonRecord:
    """Two arrays, element by element.

    Attributes:
        verdict: whether it is as it should be.
        faults: why it does not pass, one short clause each; empty if it passes.
        elements: how many elements there were to compare.
        compared: how many were finite on both sides; the measures are over these.
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
        operators: what the graph computes it with.
        line: the line of source that computes it in torch; null if unknown.
        depth: number of nodes of the graph in the step.
        witness: distance of both sides from float64; null if unknown.
        cumulative: the largest error of the value when the whole graph runs; null where it did not.
    """

    origin: str
    operators: str
    line: str | None
    depth: Count
    witness: WitnessRecord | None
    cumulative: NotNegative | None


@dataclass(frozen=True)
class Measurement(ComparisonRecord):
    """One array of one run, compared with what it must be: an output, the result of an adapter at a site, or a node.

    Attributes:
        kind: the kind of value.
        name: the output; the site, or `head`; the value in the graph.
        against: what it was compared with: the model, golden vectors, or float64 on the values that arrive at a site.
        adapter: the active adapter; null for the base.
        case: the name of the inputs.
        variant: the graph that ran.
        level: ONNX Runtime's optimization level.
        axes: the length of each dynamic axis of the inputs.
        part: `tokens` and `padding` for one row per token and inputs with padding.
        mixed: whether the rows of the batch ran through different adapters; compared are those of this one.
        path: the module path in the torch model; null if unknown.
        node: how a node was computed; null for outputs and sites.
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
        """The place of the measurement, for messages."""
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
        """Order of measurements: failed ones last, of these NaN, Inf and wrong shapes, then by error over budget."""
        apart = sum(masks.only_found + masks.only_expected for masks in (self.nan, self.inf))
        return not self.passed, apart + (not self.compared), self.ratio


@dataclass(frozen=True)
class LocationRecord:
    """The origin of a failure.

    Attributes:
        adapter, case, variant: of the output that fails.
        nodes: how many values of the graph were compared with the reference's.
        node: the first whose own error is over its own budget; null if all are within theirs.
        guess: what kind of fault explains it; null if none that was tried does.
        detail: what else was found: the optimization level, what float64 says, rounding that adds up.
        repro: the folder that repeats it alone; null if none was asked for.
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
    """One adapter, or the base, that does not compute what it should.

    Attributes:
        adapter: the active adapter; null for the base alone.
        case: the smallest case that fails.
        output: the output that is worst there; null if only a site fails.
        faults: why it does not pass, one short clause each.
        ratio: error over budget; 1 is the limit.
        worst: the element that is furthest from the reference; null if there was nothing to compare.
        levels_failed: the optimization levels at which that output fails.
        levels_passed: those at which it passes.
        culprit: the first site whose own error is over its own budget.
        command: repeats this part of the check alone.
        variant: the first graph that fails.
        mixed: whether it does in a mixed batch.
        variants_failed: all graphs in which an output of this adapter fails; empty if only a site does.
        location: the node that it comes from, and what is known of it; null without a reference.
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
    """One output of floats, over all inputs.

    Attributes:
        adapter: the active adapter; null for the base alone.
        output: the name of the output.
        rows: how many were looked at; tokens, for an output with one row per token.
        agree: in how many of them both sides choose the same class; null for outputs that are not logits.
        absolute: the largest difference of an element, padding left out.
        scale: the largest absolute value of the output in float32.
        cosine: the smallest cosine of a batch's output as a vector; null where one side is zero.
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
        original: what computed the outputs in float32.
        inputs: what both sides were run on.
        results: every output of floats, of the base and of every adapter.
    """

    original: str
    inputs: str
    results: tuple[AgreementRecord, ...]


@dataclass(frozen=True)
class EffectRecord:
    """Effect of an adapter on the base; an adapter without one is no fault, but hardly meant.

    Attributes:
        adapter: the adapter.
        output: the output of the base that it changes most; null if the base has none of floats.
        change: how far it moves that output: the norm of the difference over the norm of the base's, over all golden
            vectors.
        beyond_rounding: whether an output changes by more than the rounding of float32 explains.
        sites: how far it moves what it replaces at each site, likewise, on drawn values.
        idle: the sites where it gives what it replaces, rounding aside.
    """

    adapter: str
    output: str | None
    change: NotNegative
    beyond_rounding: bool
    sites: Mapping[str, NotNegative]
    idle: tuple[str, ...]


Status = Literal["exact", "tested", "unverified", "failed"]
"""Status of a claim: verified for every input, verified on the inputs that were tried, not verified here, or wrong."""


@dataclass(frozen=True)
class SpanRecord:
    """Amount of something that was tried.

    Attributes:
        what: what is counted, such as `words`, `positions`, `shapes`, `levels`, `runtimes` or `texts`.
        done: how many were tried.
        of: how many there are; null where that has no end or is unknown.
    """

    what: str
    done: Count
    of: Count | None


@dataclass(frozen=True)
class Finding:
    """The outcome of one claim about one subject.

    Attributes:
        check: the kind of claim, such as `swap`, `constant` or `output`.
        subject: what it was verified for. `check` and `subject` are the same in every report on a bundle of this form.
        claim: what must hold, a clause for people.
        status: `exact` for all inputs, `tested` on those that `coverage` counts, `unverified`, or `failed`.
        where: the file, and in it the tensor, node or key.
        detail: how it was verified and what was seen, why it is unverified, or what is wrong.
        coverage: how much was tried.
        ratio: the largest error over its budget; null where nothing was computed.
        measurements: the comparisons that it follows from.
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
        """Return the outcome of a claim that, once seen to hold, holds for every input."""
        claim, where = claim or f"{check}: {subject}", where or subject
        return cls(check, subject, claim, "exact" if passed else "failed", where, detail)

    @classmethod
    def tested(cls, check: str, subject: str, passed: bool, detail: str, claim: str = "", where: str = "") -> Finding:
        """Return the outcome of a claim that was tried on some inputs."""
        claim, where = claim or f"{check}: {subject}", where or subject
        return cls(check, subject, claim, "tested" if passed else "failed", where, detail)

    @classmethod
    def unverified(cls, check: str, subject: str, reason: str, claim: str = "", where: str = "") -> Finding:
        """Return that a claim was not, or cannot be, verified here, and why."""
        return cls(check, subject, claim or f"{check}: {subject}", "unverified", where or subject, reason)

    @classmethod
    def measured(
        cls,
        check: str,
        subject: str,
        claim: str,
        found: Sequence[Measurement],
        detail: str,
        coverage: tuple[SpanRecord, ...] = (),
    ) -> Finding:
        """Return what follows from measurements; `{ratio}` in `detail` is the largest error over its budget."""
        worst = max(found, key=lambda one: one.badness)
        status: Status = "tested" if any(one.compared for one in found) else "unverified"
        status = status if worst.passed else "failed"
        said = "; ".join(worst.faults) or detail.format(ratio=f"{worst.ratio:.2g}")
        return cls(check, subject, claim, status, worst.place, said, coverage, worst.ratio, tuple(found))

    @property
    def id(self) -> str:
        """The name of the claim and its subject in one word, such as `swap/base-→-topic-→-base`."""
        return f"{self.check}/{self.subject}".replace(" ", "-")

    @property
    def passed(self) -> bool:
        """True unless the claim failed."""
        return self.status != "failed"


@dataclass(frozen=True)
class CoverageRecord:
    """Amount of values that were compared.

    Attributes:
        planned: the values that there were to compare.
        compared: those of which at least one element was compared.
        elements: the elements that were compared.
        left_out: the places of the others.
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
        bundle: the path of the bundle, as it was given.
        base: the fingerprint of the bundle's base.
        against: the path of the model that the reference comes from; null if only the golden vectors were used.
        reference: what computed the reference's outputs, such as `torch 2.13.0 float32`.
        runtime: what computed the bundle's outputs, such as `onnxruntime 1.32.0`.
        scope: how much of the bundle was checked.
        verdict: whether it is as it should be.
        summary: the verdict with the scope and the number of unverified claims, such as `passed (quick, 29 of 346
            unverified)`.
        coverage: how much was looked at.
        findings: every claim, and whether it is verified, unverified or wrong.
        failures: one per adapter, or the base, with a comparison that failed.
        agreements: how the bundle differs from the base in float32, where its precision is another or texts were given;
            null elsewhere. No part of the verdict.
        effects: what each adapter that is more than a head changes. No part of the verdict.
        digest: the sha256 of the bundle's manifest, which has those of all its files.
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
    """Read an earlier report on the bundle whose manifest has this digest.

    Raises:
        FileError: it cannot be read.
        FormatError: it is none, or one on another bundle; `VersionError` is a kind of it.
    """
    document = read_json(path)
    with version_checked(document, REPORT_VERSION, path), within(path):
        report = record_from_json(CheckReport, document)
    if report.digest != digest:
        raise FormatError(
            "is a report on another bundle",
            where=path,
            found=f"a manifest of digest {report.digest or 'that it does not say'}",
            expected=digest,
            fix="give a report on this bundle",
        )
    return report


@dataclass(frozen=True)
class FaultRecord:
    """One kind of fault that was planted in a copy of the bundle.

    Attributes:
        name: what is wrong.
        area: where.
        status: `located` if the check failed and named one of the `places`; `found` if it failed; `missed` if it
            passed; `without effect` if it passed and every output has the same bits as before; `not applicable` if
            there is nothing in the bundle that can be wrong in this way.
        places: the names of what was changed.
        detail: what the check said.
    """

    name: str
    area: str
    status: FaultStatus
    places: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class SelfTestReport:
    """Outcome of planted faults: those that a check finds and locates.

    Attributes:
        version: the version of this format. A reader refuses another major version.
        bundle: the path of the bundle, as it was given.
        against: the path of the model; null if only golden vectors were used.
        seed: what chose the places.
        faults: every kind, in the order in which they were planted.
    """

    version: Annotated[str, SEMVER]
    bundle: str
    against: str | None
    seed: int
    faults: tuple[FaultRecord, ...]
