"""What the bundle's outputs must be, stored or computed now, and what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from adapter_export.parity.allowance import Allowance
from adapter_export.parity.cases import Case
from adapter_export.parity.compare import Comparison, compare, missing, unexpected
from adapter_export.parity.failure import BASE
from adapter_export.parity.plan import Plan, Subject
from adapter_export.parity.report import Against, OutputResult, Part
from adapter_export.reference.budget import Budget
from adapter_export.reference.runner import Arrays, Runner, run

OnStep = Callable[[str], None]
"""Called after each step with what was done."""


@dataclass(frozen=True)
class Expectation:
    """What one run of the bundle must give.

    Attributes:
        against: where it comes from.
        subject: the base or the adapter to run.
        case: the inputs.
        outputs: the expected outputs.
        budgets: how far each may be off.
        logits: the outputs that hold one number per class.
    """

    against: Against
    subject: Subject
    case: Case
    outputs: Mapping[str, np.ndarray]
    budgets: Mapping[str, Budget]
    logits: frozenset[str]


def stored(plan: Plan) -> Iterator[Expectation]:
    """The golden vectors."""
    for subject in plan.subjects:
        for golden in subject.golden:
            logits = _logits(plan, subject)
            yield Expectation("golden", subject, golden.case, golden.outputs, golden.budgets, logits)


def computed(plan: Plan, runner: Runner, allowance: Allowance, on_step: OnStep) -> Iterator[Expectation]:
    """What the reference computes now; an output has one budget for all cases of an adapter."""
    for subject in plan.subjects:
        outputs = []
        for case in plan.cases:
            outputs.append(run(runner, case.arrays, subject.adapter, plan.base_outputs, subject.output))
            on_step(f"{subject.name or BASE}, {case.name}: reference")
        budgets = _budgets(outputs, allowance)
        for case, expected in zip(plan.cases, outputs, strict=True):
            yield Expectation("reference", subject, case, expected, budgets, _logits(plan, subject))


def _budgets(outputs: list[Arrays], allowance: Allowance) -> dict[str, Budget]:
    names = dict.fromkeys(name for found in outputs for name in found)
    return {name: allowance.budget(*(found[name] for found in outputs if name in found)) for name in names}


def _logits(plan: Plan, subject: Subject) -> frozenset[str]:
    """The outputs with one number per class: that of the adapter's classification, and what the base calls logits."""
    own = {subject.output} if subject.classifies else set()
    return frozenset({name for name in own | {"logits"} & set(plan.base_outputs) if name is not None})


def compare_outputs(found: Arrays, expectation: Expectation, level: str) -> Iterator[OutputResult]:
    """Compare every output that either side has."""
    case, subject = expectation.case, expectation.subject
    for output, part, comparison in _comparisons(found, expectation):
        yield OutputResult(expectation.against, subject.name, case.name, case.axes, level, output, part, comparison)


def _comparisons(found: Arrays, expectation: Expectation) -> Iterator[tuple[str, Part, Comparison]]:
    for name, value in expectation.outputs.items():
        budget = expectation.budgets[name]
        if name not in found:
            yield name, "all", missing(budget)
            continue
        for part, where in expectation.case.parts(value.shape):
            logits = name in expectation.logits
            yield name, part, compare(found[name], value, budget, where=where, logits=logits)
    for name in sorted(found.keys() - expectation.outputs.keys()):
        yield name, "all", unexpected(found[name])
