"""What the bundle's outputs must be, stored or computed now, and what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from adapter_export.bundle.cases import Allowance, Case
from adapter_export.bundle.compare import Comparison, compare, missing, unexpected
from adapter_export.bundle.golden import MASK_BELOW
from adapter_export.bundle.plan import Plan, Subject
from adapter_export.bundle.report import BASE, Against, Form, OutputResult, Part
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.amplification import moved_by_rounding
from adapter_export.numerics.budget import Budget
from adapter_export.numerics.runner import Arrays, Runner, run

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


@dataclass(frozen=True)
class Way:
    """How a bundle was run.

    Attributes:
        level: ONNX Runtime's optimization level.
        form: the graph.
        rows: the rows of the batch that ran through the adapter, [batch]; none if all did.
    """

    level: str
    form: Form = "slots"
    rows: npt.NDArray[np.bool_] | None = None

    def parts(self, case: Case, shape: tuple[int, ...]) -> Iterator[tuple[Part, npt.NDArray[np.bool_] | None]]:
        """The parts of an output to compare: of the adapter's own rows, those that are not empty."""
        for part, where in case.parts(shape):
            if self.rows is None:
                yield part, where
                continue
            own = np.broadcast_to(self.rows.reshape(-1, *(1,) * (len(shape) - 1)), shape)
            here = own if where is None else own & where
            if here.any():
                yield part, here


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
        budgets = _budgets(outputs, allowance, _moved(plan, subject, runner, allowance, on_step))
        for case, expected in zip(plan.cases, outputs, strict=True):
            yield Expectation("reference", subject, case, expected, budgets, _logits(plan, subject))


def _moved(plan: Plan, subject: Subject, runner: Runner, allowance: Allowance, on_step: OnStep) -> Mapping[str, float]:
    """How far errors of the size of rounding move the outputs of the reference."""
    step = allowance.error(runner)
    if step is None:
        return {}

    def compute(inputs: Mapping[str, np.ndarray], disturbed: Adapter) -> Arrays:
        found = run(runner, inputs, disturbed, plan.base_outputs, subject.output)
        on_step(f"{subject.name or BASE}: reference with errors")
        return found

    return moved_by_rounding(
        compute,
        [case.arrays for case in plan.cases],
        subject.adapter,
        sites=runner.sites,
        base=plan.manifest.base,
        step=step,
    )


def _budgets(outputs: list[Arrays], allowance: Allowance, moved: Mapping[str, float]) -> dict[str, Budget]:
    names = dict.fromkeys(name for found in outputs for name in found)
    return {
        name: allowance.budget(*(found[name] for found in outputs if name in found), moved=moved.get(name, 0.0))
        for name in names
    }


def _logits(plan: Plan, subject: Subject) -> frozenset[str]:
    """The outputs with one number per class: that of the adapter's classification, and what the base calls logits."""
    own = {subject.output} if subject.classifies else set()
    return frozenset({name for name in own | {"logits"} & set(plan.base_outputs) if name is not None})


def compare_outputs(found: Arrays, expectation: Expectation, way: Way) -> Iterator[OutputResult]:
    """Compare every output that either side has; in a mixed batch, every one that has a row for each of its rows."""
    case, subject, mixed = expectation.case, expectation.subject, way.rows is not None
    for output, part, comparison in _comparisons(found, expectation, way):
        yield OutputResult(
            expectation.against,
            subject.name,
            case.name,
            case.axes,
            way.level,
            output,
            part,
            comparison,
            form=way.form,
            mixed=mixed,
        )


def _comparisons(found: Arrays, expectation: Expectation, way: Way) -> Iterator[tuple[str, Part, Comparison]]:
    for name, value in expectation.outputs.items():
        budget = expectation.budgets[name]
        if name not in found:
            yield name, "all", missing(budget)
            continue
        if way.rows is not None and value.shape[:1] != way.rows.shape:
            continue
        for part, where in way.parts(expectation.case, value.shape):
            logits = name in expectation.logits
            if way.form == "bank":
                yield name, part, _compare_own(found[name], value, budget, where, logits=logits)
            else:
                yield name, part, compare(found[name], value, budget, where=where, logits=logits)
    for name in sorted(found.keys() - expectation.outputs.keys()):
        yield name, "all", unexpected(found[name])


def _compare_own(
    found: np.ndarray, expected: np.ndarray, budget: Budget, where: npt.NDArray[np.bool_] | None, *, logits: bool
) -> Comparison:
    """Compare what is an adapter's own of an output that is as wide as the widest of its bank; the rest is masked."""
    if not expected.ndim or found.shape[:-1] != expected.shape[:-1]:
        return compare(found, expected, budget, where=where, logits=logits)
    width = expected.shape[-1]
    own, rest = found[..., :width], found[..., width:]
    comparison = compare(own, expected, budget, where=where, logits=logits)
    rows = np.ones(rest.shape, bool) if where is None else np.broadcast_to(where[..., :1], rest.shape)
    if (rest[rows] < MASK_BELOW).all():
        return comparison
    return replace(comparison, faults=(*comparison.faults, "a class that the adapter lacks is not masked"))
