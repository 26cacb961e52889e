"""Prove a bundle: run what was planned, compare all of it, and say what was found."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from adapter_export.bundle.cases import Allowance, Case, Tolerance, stored_budgets
from adapter_export.bundle.compare import cosine
from adapter_export.bundle.contents import read_graph
from adapter_export.bundle.outputs import Expectation, OnStep, Way, compare_outputs, computed, stored
from adapter_export.bundle.plan import LEVELS, Plan, Subject
from adapter_export.bundle.report import (
    BASE,
    Agreement,
    Agreements,
    Form,
    InvariantResult,
    OutputResult,
    Report,
    SiteResult,
)
from adapter_export.bundle.site_check import SiteProbe
from adapter_export.bundle.trials import (
    LEVEL,
    Run,
    check_row_order,
    check_rows,
    check_swap,
    row_steps,
    run_trials,
    swaps,
    trials,
)
from adapter_export.errors import NothingComparedError
from adapter_export.numerics.amplification import DRAWS
from adapter_export.numerics.budget import Budget, extent
from adapter_export.numerics.runner import Arrays, Runner
from adapter_export.numerics.runner import run as run_reference
from adapter_export.onnx_backend.base.numerics import numerics
from adapter_export.onnx_backend.graft.insert import site_norms, with_site_outputs
from adapter_export.onnx_backend.session import open_session
from adapter_export.onnx_backend.view.flow import flow_graph
from adapter_export.runtime.bundle import Bundle

# How a bundle in another precision differs from the base in float32: not an error, but what the precision costs.
#
# Parity is held against the reference of the same precision. What is found here has no budget and no verdict.


@dataclass(frozen=True)
class Original:
    """The base as it was before its precision was changed.

    Attributes:
        runner: runs it, with adapters.
        cases: what both sides are run on; a bundle that is not batch-invariant sees each case as one batch.
        inputs: what the cases are, for reports.
    """

    runner: Runner
    cases: Sequence[Case]
    inputs: str

    def steps(self, plan: Plan) -> int:
        """How many steps `with_agreements` takes."""
        return len(plan.subjects) * len(self.cases)


def with_agreements(report: Report, plan: Plan, original: Original, on_step: OnStep) -> Report:
    """Run the bundle and the base in float32 on the same inputs, and add what was found to a report.

    Raises:
        NothingComparedError: there are no inputs.
        InputError: one of the two cannot be run.
    """
    if not original.cases:
        raise NothingComparedError("there are no inputs to compare precisions on")
    run = Bundle.open(plan.folder).session().run
    found: list[Agreement] = []
    for subject in plan.subjects:
        found += _of_subject(subject, run, original, plan.base_outputs, on_step)
    return replace(report, agreements=Agreements(original.runner.description, original.inputs, tuple(found)))


def _of_subject(
    subject: Subject, run: Run, original: Original, base_outputs: Sequence[str], on_step: OnStep
) -> Iterator[Agreement]:
    pairs = []
    for case in original.cases:
        expected = run_reference(original.runner, case.arrays, subject.adapter, base_outputs, subject.output)
        pairs.append((case, run(case.arrays, subject.name), expected))
        on_step(f"{subject.name or BASE}, {case.name}: against float32")
    yield from _outputs(subject.name, pairs, subject.output if subject.classifies else None)


def _outputs(
    adapter: str | None, pairs: Sequence[tuple[Case, Arrays, Arrays]], logits: str | None
) -> Iterator[Agreement]:
    for name in pairs[0][2]:
        sides = [_real(case, found[name], expected[name]) for case, found, expected in pairs]
        if sides[0][1].dtype.kind == "f":
            yield _agreement(adapter, name, sides, is_logits=name == logits)


def _real(case: Case, found: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides without padding: [tokens, …] for an output with one row per token, else as they are."""
    if case.real is None or expected.shape[:2] != case.real.shape:
        return found, expected
    return found[case.real], expected[case.real]


def _agreement(
    adapter: str | None, name: str, sides: Sequence[tuple[np.ndarray, np.ndarray]], *, is_logits: bool
) -> Agreement:
    cosines = [cosine(found.ravel(), expected.ravel()) for found, expected in sides]
    agree = sum(int((found.argmax(-1) == expected.argmax(-1)).sum()) for found, expected in sides)
    return Agreement(
        adapter,
        name,
        rows=sum(math.prod(expected.shape[:-1]) if is_logits else len(expected) for _, expected in sides),
        agree=agree if is_logits else None,
        absolute=max(float(np.abs(found - expected).max(initial=0)) for found, expected in sides),
        scale=max(float(np.abs(expected).max(initial=0)) for _, expected in sides),
        cosine=min((value for value in cosines if value is not None), default=None),
    )


# Verify a bundle by itself: its files, its graphs, and the golden vectors in every form of the graph.


@dataclass(frozen=True)
class Finding:
    """The golden vectors of one adapter in one form of the graph.

    Attributes:
        form: the graph that ran.
        adapter: the adapter; none for the base alone.
        mixed: whether the rows of the batch ran through different adapters.
        cases: how many cases were run.
        elements: how many numbers were compared.
        worst: the largest deviation over what is allowed; above 1 it fails.
        faults: what is wrong, a place and a clause each.
    """

    form: Form
    adapter: str | None
    mixed: bool
    cases: int
    elements: int
    worst: float
    faults: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        bundle: its path, as it was given.
        base: the fingerprint of its base.
        runtime: what computed its outputs.
        checks: of files, graphs and adapters.
        findings: of golden vectors.
    """

    bundle: Path
    base: str
    runtime: str
    checks: tuple[InvariantResult, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether all of it is as it should be."""
        return all(check.passed for check in self.checks) and not any(finding.faults for finding in self.findings)


def verify_steps(plan: Plan) -> int:
    """How many steps `verify` takes."""
    golden = sum(len(subject.golden) for subject in plan.subjects)
    return golden * ("slots" in plan.forms) + len(trials(plan, referenced=False))


def verify(plan: Plan, on_step: OnStep) -> Verification:
    """Run the golden vectors; files, graphs and adapters were looked at when the plan was made.

    Args:
        plan: the bundle, as `plan_check` opened it.
        on_step: called after each of `verify_steps`.

    Raises:
        InputError: a graph cannot be run, or an adapter does not fit it.
        NothingComparedError: there were no numbers to compare.
    """
    expectations = list(stored(plan))
    results = [*_by_slots(plan, expectations, on_step), *run_trials(plan, expectations, on_step)]
    keys = dict.fromkeys((result.form, result.adapter, result.mixed) for result in results)
    findings = [_finding([r for r in results if (r.form, r.adapter, r.mixed) == key]) for key in keys]
    if not sum(finding.elements for finding in findings):
        raise NothingComparedError("nothing was compared", where=plan.folder, fix="build the bundle again")
    runtime = f"onnxruntime {ort.__version__}"
    return Verification(plan.folder, plan.manifest.base, runtime, plan.files, tuple(findings))


def _by_slots(plan: Plan, expectations: Sequence[Expectation], on_step: OnStep) -> Iterator[OutputResult]:
    if "slots" not in plan.forms:
        return
    session = Bundle.open(plan.folder, verify=False).session(optimization=LEVEL)
    for expectation in expectations:
        found = session.run(expectation.case.arrays, expectation.subject.name)
        yield from compare_outputs(found, expectation, Way(LEVEL))
        on_step(f"model with slots: {expectation.case.name}")


def _finding(results: Sequence[OutputResult]) -> Finding:
    first = results[0]
    return Finding(
        first.form,
        first.adapter,
        first.mixed,
        len({result.case for result in results}),
        sum(result.comparison.compared for result in results),
        max(result.comparison.ratio for result in results),
        tuple(f"{result.place}: {fault}" for result in results for fault in result.comparison.faults),
    )


@dataclass(frozen=True)
class Reference:
    """Another computation of what the bundle should compute.

    Attributes:
        path: the model, as it was given.
        runner: runs it.
    """

    path: str
    runner: Runner


def steps(plan: Plan, reference: Reference | None) -> int:
    """How many steps `prove` takes."""
    runs = len(plan.subjects) * len(plan.cases) if reference else 0
    disturbed = DRAWS * runs if reference and _allowance(plan).error(reference.runner) else 0
    golden = sum(len(subject.golden) for subject in plan.subjects)
    names = [subject.name for subject in plan.subjects]
    adapters = sum(name is not None for name in names)
    by_slots = len(LEVELS) * (runs + golden) + len(swaps(names)) + len(names) + adapters
    others = len(trials(plan, referenced=reference is not None)) + row_steps(plan)
    return runs + disturbed + ("slots" in plan.forms) * by_slots + others


def prove(plan: Plan, reference: Reference | None, on_step: OnStep) -> Report:
    """Run everything.

    Args:
        plan: what to run.
        reference: what to compare with; only the golden vectors if there is none.
        on_step: called after each of `steps`.

    Returns:
        What was found. A bundle that computes something else is no error but a report that does not pass.

    Raises:
        InputError: the bundle or the reference cannot be run.
    """
    model, allowance = _model(plan), _allowance(plan)
    expectations = list(stored(plan))
    if reference is not None:
        expectations += computed(plan, reference.runner, allowance, on_step)
    tolerance = Tolerance(allowance, stored_budgets(plan.manifest) | _measured(expectations))
    outputs: list[OutputResult] = []
    invariants, sites = [*plan.files], list[SiteResult]()
    if "slots" in plan.forms:
        run = Bundle.open(plan.folder).session().run
        outputs += _prove_by_slots(plan, expectations, on_step)
        invariants += _invariants(plan, run, tolerance, on_step)
        sites += _sites(plan, model, on_step)
    outputs += run_trials(plan, expectations, on_step)
    invariants += check_rows(plan, tolerance, on_step)
    return Report(
        bundle=str(plan.folder),
        base=plan.manifest.base,
        against=None if reference is None else reference.path,
        reference=None if reference is None else reference.runner.description,
        runtime=f"onnxruntime {ort.__version__}",
        outputs=tuple(outputs),
        sites=tuple(sites),
        invariants=tuple(invariants),
    )


def _measured(expectations: Sequence[Expectation]) -> dict[tuple[str | None, str], Budget]:
    """The budgets that the reference gives now, by adapter and output."""
    return {
        (item.subject.name, output): allowed
        for item in expectations
        if item.against == "reference"
        for output, allowed in item.budgets.items()
    }


def _model(plan: Plan) -> ir.Model:
    return read_graph(plan.folder / plan.manifest.graphs["slots"])


def _allowance(plan: Plan) -> Allowance:
    model = _model(plan)
    size, stored = extent(flow_graph(model)), numerics(model).stored
    return Allowance.of(size, plan.cases or (plan.probe,), stored)


def _prove_by_slots(plan: Plan, expectations: Sequence[Expectation], on_step: OnStep) -> Iterator[OutputResult]:
    """Every output of the graph with slots, at every level."""
    bundle = Bundle.open(plan.folder)
    for level in LEVELS:
        session = bundle.session(optimization=level)
        for expectation in expectations:
            found = session.run(expectation.case.arrays, expectation.subject.name)
            yield from compare_outputs(found, expectation, Way(level))
            on_step(f"{expectation.subject.name or BASE}, {expectation.case.name}: {level}")


def _invariants(plan: Plan, run: Run, tolerance: Tolerance, on_step: OnStep) -> Iterator[InvariantResult]:
    names = [subject.name for subject in plan.subjects]
    for first, second in swaps(names):
        yield check_swap(run, plan.probe, first, second)
        on_step(f"{first or BASE} → {second or BASE} → {first or BASE}")
    for name in names:
        yield check_row_order(run, plan.probe, name, tolerance)
        on_step(f"{name or BASE}: row order")


def _sites(plan: Plan, model: ir.Model, on_step: OnStep) -> Iterator[SiteResult]:
    session = open_session(with_site_outputs(model), plan.folder, optimize=False)
    probe = SiteProbe(session, plan.folder, plan.manifest, site_norms(model))
    for subject in plan.subjects:
        if subject.adapter is not None and subject.record is not None:
            yield from probe.check(plan.probe, subject.adapter, subject.record)
            on_step(f"{subject.name}: sites")
