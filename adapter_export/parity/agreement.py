"""How a bundle in another precision differs from the base in float32: not an error, but what the precision costs.

Parity is held against the reference of the same precision. What is found here has no budget and no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adapter_export.errors import NothingComparedError
from adapter_export.parity.cases import Case
from adapter_export.parity.failure import BASE
from adapter_export.parity.invariants import Run
from adapter_export.parity.measures import cosine
from adapter_export.parity.outputs import OnStep
from adapter_export.parity.plan import Plan, Subject
from adapter_export.parity.report import Agreement, Agreements, Report
from adapter_export.reference.runner import Arrays, Runner
from adapter_export.reference.runner import run as run_reference
from adapter_export.runtime.bundle import Bundle


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
