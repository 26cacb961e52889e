"""The further graphs of a bundle on everything that its graph with slots is tried on, and on mixed batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from adapter_export.parity.cases import Case
from adapter_export.parity.graphs import Graph, open_graph
from adapter_export.parity.outputs import Expectation, OnStep, Way, compare_outputs
from adapter_export.parity.plan import Plan, Subject
from adapter_export.parity.report import Against, Form, OutputResult
from adapter_export.runtime.providers import Optimization

LEVEL: Optimization = "all"
"""The optimization level at which these graphs run: the one that clients have if they do not ask for another."""

Key = tuple[Against, str | None, str]
"""What is expected: against what, of which adapter, in which case."""


@dataclass(frozen=True)
class Trial:
    """One run of one graph.

    Attributes:
        form: the graph.
        path: its file.
        against: what is expected comes from there.
        case: the inputs.
        chosen: the adapter of each row of the batch; none for the base.
        mixed: whether the rows are to be looked at adapter by adapter.
    """

    form: Form
    path: str
    against: Against
    case: Case
    chosen: tuple[str | None, ...]
    mixed: bool = False

    def run(self, graph: Graph, expected: Mapping[Key, Expectation]) -> Iterator[OutputResult]:
        """Run, and compare each adapter's rows with what is expected of that adapter."""
        keys = [(self.against, name, self.case.name) for name in dict.fromkeys(self.chosen)]
        known = [expected[key] for key in keys if key in expected]
        names = dict.fromkeys(name for expectation in known for name in expectation.outputs)
        found = graph.run(self.case.arrays, self.chosen, list(names))
        for expectation in known:
            own = {name: found[name] for name in expectation.outputs if name in found}
            rows = np.array([name == expectation.subject.name for name in self.chosen]) if self.mixed else None
            yield from compare_outputs(own, expectation, Way(LEVEL, self.form, rows))


def trials(plan: Plan, *, referenced: bool) -> list[Trial]:
    """What to run, all of one graph together.

    Args:
        plan: what to check.
        referenced: whether there is a reference beside the golden vectors.
    """
    places = list(_places(plan, referenced))
    return [trial for form in plan.forms if form != "slots" for trial in _of_form(plan, form, places)]


def run_trials(plan: Plan, expectations: Sequence[Expectation], on_step: OnStep) -> Iterator[OutputResult]:
    """Run all; each graph is open for as long as it is needed."""
    expected = {(item.against, item.subject.name, item.case.name): item for item in expectations}
    referenced = any(item.against == "reference" for item in expectations)
    for (form, path), group in groupby(trials(plan, referenced=referenced), key=lambda trial: (trial.form, trial.path)):
        graph = open_graph(plan.folder, plan.manifest, form, path)
        for trial in group:
            yield from trial.run(graph, expected)
            on_step(f"{path}: {trial.case.name}")


def batch_size(case: Case) -> int:
    """The length of the first axis of the inputs."""
    return max((len(array) for array in case.arrays.values() if array.ndim), default=1)


def dealt(rows: Sequence[str | None], batch: int) -> list[tuple[str | None, ...]]:
    """Batches in which every row of a bank has its turn, beginning anew when they are used up."""
    return [tuple(rows[(start + at) % len(rows)] for at in range(batch)) for start in range(0, len(rows), batch)]


def _places(plan: Plan, referenced: bool) -> Iterator[tuple[Against, Subject, Case]]:
    for subject in plan.subjects:
        yield from (("golden", subject, golden.case) for golden in subject.golden)
        if referenced:
            yield from (("reference", subject, case) for case in plan.cases)


def _of_form(plan: Plan, form: Form, places: Sequence[tuple[Against, Subject, Case]]) -> Iterator[Trial]:
    if form == "baked":
        yield from (
            Trial(form, subject.record.baked, against, case, (subject.name,))
            for against, subject, case in places
            if subject.record is not None and subject.record.baked is not None
        )
        return
    path, bank = plan.manifest.graphs[form], plan.manifest.bank
    rows = None if form == "inputs" or bank is None else bank.rows
    for against, subject, case in places:
        if rows is None or subject.name in rows:
            yield Trial(form, path, against, case, (subject.name,) * batch_size(case))
    if rows is not None and plan.manifest.batch_invariant and form == "bank":
        yield from _mixed(plan, rows, path, places)


def _mixed(
    plan: Plan, rows: Sequence[str | None], path: str, places: Sequence[tuple[Against, Subject, Case]]
) -> Iterator[Trial]:
    """Batches of several rows, each through an adapter of its own; without those in which nobody is to be checked."""
    wanted = {subject.name for subject in plan.subjects}
    cases = {(against, case.name): case for against, _, case in places}
    for (against, _), case in cases.items():
        for chosen in dealt(rows, batch_size(case)):
            if len(chosen) > 1 and len(rows) > 1 and wanted & set(chosen):
                yield Trial("bank", path, against, case, chosen, mixed=True)
