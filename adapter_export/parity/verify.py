"""Verify a bundle by itself: its files, its graphs, and the golden vectors in every form of the graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from adapter_export.errors import NothingComparedError
from adapter_export.parity.outputs import Expectation, OnStep, Way, compare_outputs, stored
from adapter_export.parity.plan import Plan
from adapter_export.parity.report import Form, InvariantResult, OutputResult
from adapter_export.parity.trials import LEVEL, run_trials, trials
from adapter_export.runtime.bundle import Bundle


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
