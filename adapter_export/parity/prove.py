"""Prove a bundle: run what was planned, compare all of it, and say what was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnxruntime as ort

from adapter_export.onnx.expose import with_site_outputs
from adapter_export.onnx.flow import flow_graph
from adapter_export.onnx.insert import site_norms
from adapter_export.onnx.numerics import numerics
from adapter_export.onnx.session import open_session
from adapter_export.parity.allowance import Allowance, Tolerance, stored_budgets
from adapter_export.parity.failure import BASE
from adapter_export.parity.graphs import read_graph
from adapter_export.parity.invariants import Run, check_row_order, check_swap, swaps
from adapter_export.parity.outputs import Expectation, OnStep, Way, compare_outputs, computed, stored
from adapter_export.parity.plan import LEVELS, Plan
from adapter_export.parity.report import InvariantResult, OutputResult, Report, SiteResult
from adapter_export.parity.rows import check_rows, row_steps
from adapter_export.parity.sites import SiteProbe
from adapter_export.parity.trials import run_trials, trials
from adapter_export.reference.amplification import DRAWS
from adapter_export.reference.budget import Budget
from adapter_export.reference.runner import Runner
from adapter_export.runtime.bundle import Bundle
from adapter_export.sites.extent import extent


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
        outputs += _by_slots(plan, expectations, on_step)
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


def _by_slots(plan: Plan, expectations: Sequence[Expectation], on_step: OnStep) -> Iterator[OutputResult]:
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
