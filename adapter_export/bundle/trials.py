"""The further graphs of a bundle on everything that its graph with slots is tried on, and on mixed batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, permutations

import numpy as np

from adapter_export.bundle.cases import Case
from adapter_export.bundle.compare import compare
from adapter_export.bundle.contents import Graph, open_graph
from adapter_export.bundle.golden import MASK_BELOW
from adapter_export.bundle.outputs import Expectation, OnStep, Way, compare_outputs
from adapter_export.bundle.plan import Plan, Subject
from adapter_export.bundle.report import BASE, Against, Form, InvariantResult, OutputResult
from adapter_export.format.manifest import BankRecord
from adapter_export.numerics.budget import Budget
from adapter_export.numerics.runner import Arrays
from adapter_export.runtime.graphs import Optimization

# What must hold whatever a reference says: swapping leaves no trace, rows do not depend on their order.

Run = Callable[[Mapping[str, np.ndarray], str | None], Arrays]
"""Runs the bundle: from inputs and the name of an adapter, or none for the base alone, to outputs."""

Budgets = Callable[[str | None, str, np.ndarray], Budget]
"""The budget for an output, from the adapter that gives it, its name and what is expected of it."""

_MOST_FOR_ALL_PAIRS = 5


def swaps(names: Sequence[str | None]) -> list[tuple[str | None, str | None]]:
    """The ordered pairs (A, B) to try A → B → A with: all of them, or for many adapters each with its neighbours."""
    if len(names) <= _MOST_FOR_ALL_PAIRS:
        return list(permutations(names, 2))
    ring = [(name, names[(index + 1) % len(names)]) for index, name in enumerate(names)]
    return [pair for first, second in ring for pair in ((first, second), (second, first))]


def check_swap(run: Run, case: Case, first: str | None, second: str | None) -> InvariantResult:
    """A → B → A: the second answer of A has the bits of the first."""
    before = run(case.arrays, first)
    run(case.arrays, second)
    after = run(case.arrays, first)
    changed = [name for name in before.keys() | after.keys() if not _same_bits(before.get(name), after.get(name))]
    subject = f"{_name(first)} → {_name(second)} → {_name(first)}"
    detail = f"changed: {', '.join(sorted(changed))}" if changed else "every output, bit for bit"
    return InvariantResult("swap", subject, not changed and bool(before), detail)


def check_row_order(run: Run, case: Case, adapter: str | None, budgets: Budgets) -> InvariantResult:
    """The rows of the batch in reverse order give the same outputs in reverse order, within the budget."""
    rows = _batch(case)
    turned = {name: value[::-1].copy() if _has_rows(value, rows) else value for name, value in case.arrays.items()}
    plain, reverse = run(case.arrays, adapter), run(turned, adapter)
    results = dict(_row_order(plain, reverse, rows, lambda *output: budgets(adapter, *output)))
    bad = [f"{name}: {fault}" for name, fault in results.items() if fault]
    detail = "; ".join(bad) or f"every output of {rows} rows, within the budget"
    return InvariantResult("row order", _name(adapter), bool(results) and not bad, detail)


def _row_order(
    plain: Arrays, reverse: Arrays, rows: int, budget: Callable[[str, np.ndarray], Budget]
) -> Iterator[tuple[str, str]]:
    for name, expected in plain.items():
        if _has_rows(expected, rows):
            comparison = compare(reverse[name][::-1], expected, budget(name, expected))
            yield name, "; ".join(comparison.faults)


def _batch(case: Case) -> int:
    """The length of the first axis of the inputs."""
    return max((value.shape[0] for value in case.arrays.values() if value.ndim), default=0)


def _has_rows(value: np.ndarray, rows: int) -> bool:
    return value.ndim > 0 and value.shape[0] == rows


def _same_bits(first: np.ndarray | None, second: np.ndarray | None) -> bool:
    if first is None or second is None:
        return False
    return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())


def _name(adapter: str | None) -> str:
    return adapter or "base"


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


# What must hold of a bank whatever a reference says: rows stay apart.


def row_steps(plan: Plan) -> int:
    """How many steps `check_rows` takes."""
    bank = plan.manifest.bank
    return 0 if bank is None else len(_batches(plan, bank))


def check_rows(plan: Plan, budgets: Budgets, on_step: OnStep) -> Iterator[InvariantResult]:
    """Every row of a mixed batch is what it is alone."""
    bank, graphs = plan.manifest.bank, plan.manifest.graphs
    if bank is None:
        return
    batches = _batches(plan, bank)
    if batches:
        graph = open_graph(plan.folder, plan.manifest, "bank", graphs["bank"])
        for chosen in batches:
            yield _check_apart(graph, plan.probe, chosen, _outputs(plan), budgets)
            on_step("rows of a batch")


def _batches(plan: Plan, bank: BankRecord) -> list[tuple[str | None, ...]]:
    """The mixed batches to take apart, where rows do not depend on each other by themselves."""
    batch = batch_size(plan.probe)
    if "bank" not in plan.forms or not plan.manifest.batch_invariant or batch == 1:
        return []
    wanted = {subject.name for subject in plan.subjects}
    return [chosen for chosen in dealt(bank.rows, batch) if wanted & set(chosen)]


def _outputs(plan: Plan) -> list[str]:
    return [record.name for record in plan.manifest.outputs]


def _check_apart(
    graph: Graph, case: Case, chosen: Sequence[str | None], outputs: Sequence[str], budgets: Budgets
) -> InvariantResult:
    together = graph.run(case.arrays, chosen, outputs)
    faults, compared = [], 0
    for row, name in enumerate(chosen):
        alone = graph.run({key: array[row : row + 1] for key, array in case.arrays.items()}, [name], outputs)
        for output, expected in alone.items():
            if len(together[output]) == len(chosen) and len(expected) == 1:
                compared += 1
                faults += _faults(output, together[output][row : row + 1], expected, name, budgets)
    subject = ", ".join(name or BASE for name in chosen)
    detail = "; ".join(faults) or "each row as it is alone, within the budget"
    return InvariantResult("rows of a batch", subject, bool(compared) and not faults, detail)


def _faults(output: str, found: np.ndarray, expected: np.ndarray, adapter: str | None, budgets: Budgets) -> list[str]:
    """Masked numbers are masked on both sides, and have no part in the scale of the budget."""
    hidden = expected < MASK_BELOW if expected.dtype.kind == "f" else np.zeros(expected.shape, bool)
    if found.shape == expected.shape and hidden.any():
        if not (found[hidden] < MASK_BELOW).all():
            return [f"{output}: a class that the adapter lacks is not masked"]
        found, expected = (np.where(hidden, np.zeros_like(side), side) for side in (found, expected))
    return [f"{output}: {fault}" for fault in compare(found, expected, budgets(adapter, output, expected)).faults]
