"""How a bundle in another precision differs from the base in float32: not an error, but what the precision costs.

A check compares with the reference of the same precision. What is found here has no budget and no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from adapter_export.bundle.compare import cosine
from adapter_export.bundle.golden import Case, OnStep
from adapter_export.bundle.opened import OpenedBundle
from adapter_export.bundle.report import BASE
from adapter_export.errors import NothingComparedError
from adapter_export.format.check_report import AgreementRecord, AgreementsRecord
from adapter_export.graph.tasks import LABELLED
from adapter_export.numerics.runner import Runner, run

Sides = list[tuple[np.ndarray, np.ndarray]]
"""An output of the bundle and of the base, case by case."""


@dataclass(frozen=True)
class Original:
    """The base as it was before its precision was changed, and what both sides are run on; `inputs` is for people.

    A bundle that is not batch-invariant sees each case as one batch.
    """

    runner: Runner
    cases: Sequence[Case]
    inputs: str


def agreements(
    bundle: OpenedBundle, names: Sequence[str | None], original: Original, on_step: OnStep
) -> AgreementsRecord:
    """Run the bundle and the base in float32 on the same inputs, and return how far they are apart.

    Raises:
        NothingComparedError: there are no inputs.
        InputError: one of the two cannot be run.
    """
    if not original.cases:
        raise NothingComparedError("there are no inputs to compare precisions on")
    found = tuple(each for name in names for each in _of_adapter(bundle, name, original, on_step))
    return AgreementsRecord(original.runner.description, original.inputs, found)


def _of_adapter(
    bundle: OpenedBundle, name: str | None, original: Original, on_step: OnStep
) -> Iterator[AgreementRecord]:
    session, record = bundle.runtime_session(), None if name is None else bundle.record(name)
    output, adapter = (None, None) if record is None else (record.output, bundle.source(record.name))
    sides: dict[str, Sides] = {}
    for case in original.cases:
        expected = run(original.runner, case.arrays, adapter, bundle.base_outputs, output)
        found = session.run(case.arrays, name)
        for each, value in expected.items():
            pair = (found[each], value)
            if case.real is not None and value.shape[:2] == case.real.shape:  # padding is nobody's result
                pair = (found[each][case.real], value[case.real])
            sides.setdefault(each, []).append(pair)
        on_step(f"{name or BASE}, {case.name}: against float32")
    for each, pairs in sides.items():
        if pairs[0][1].dtype.kind == "f":
            is_logits = record is not None and record.task in LABELLED and each == output
            yield _agreement(name, each, pairs, is_logits=is_logits)


def _agreement(adapter: str | None, name: str, sides: Sides, *, is_logits: bool) -> AgreementRecord:
    cosines = [cosine(found.ravel(), expected.ravel()) for found, expected in sides]
    agree = sum(int((found.argmax(-1) == expected.argmax(-1)).sum()) for found, expected in sides)
    return AgreementRecord(
        adapter,
        name,
        rows=sum(math.prod(expected.shape[:-1]) if is_logits else len(expected) for _, expected in sides),
        agree=agree if is_logits else None,
        absolute=max(float(np.abs(found - expected).max(initial=0)) for found, expected in sides),
        scale=max(float(np.abs(expected).max(initial=0)) for _, expected in sides),
        cosine=min((value for value in cosines if value is not None), default=None),
    )
