"""What must hold of a bank and a mixture whatever a reference says: rows stay apart, shares add up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from adapter_export.format.manifest import BankRecord
from adapter_export.onnx.golden import MASK_BELOW
from adapter_export.parity.cases import Case
from adapter_export.parity.compare import compare
from adapter_export.parity.failure import BASE
from adapter_export.parity.graphs import Graph, open_graph
from adapter_export.parity.invariants import Budgets
from adapter_export.parity.outputs import OnStep
from adapter_export.parity.plan import Plan
from adapter_export.parity.report import InvariantResult
from adapter_export.parity.trials import batch_size, dealt


def row_steps(plan: Plan) -> int:
    """How many steps `check_rows` takes."""
    bank = plan.manifest.bank
    return 0 if bank is None else len(_batches(plan, bank)) + len(_twice(plan, bank))


def check_rows(plan: Plan, budgets: Budgets, on_step: OnStep) -> Iterator[InvariantResult]:
    """Every row of a mixed batch is what it is alone, and two shares of one adapter are that adapter."""
    bank, graphs = plan.manifest.bank, plan.manifest.graphs
    if bank is None:
        return
    batches, twice = _batches(plan, bank), _twice(plan, bank)
    if batches:
        graph = open_graph(plan.folder, plan.manifest, "bank", graphs["bank"])
        for chosen in batches:
            yield _check_apart(graph, plan.probe, chosen, _outputs(plan), budgets)
            on_step("rows of a batch")
    if twice:
        graph = open_graph(plan.folder, plan.manifest, "mixture", graphs["mixture"])
        for name in twice:
            yield _check_shares(graph, plan.probe, name, bank, _outputs(plan), budgets)
            on_step(f"{name or BASE}: shares")


def _batches(plan: Plan, bank: BankRecord) -> list[tuple[str | None, ...]]:
    """The mixed batches to take apart, where rows do not depend on each other by themselves."""
    batch = batch_size(plan.probe)
    if "bank" not in plan.forms or not plan.manifest.batch_invariant or batch == 1:
        return []
    wanted = {subject.name for subject in plan.subjects}
    return [chosen for chosen in dealt(bank.rows, batch) if wanted & set(chosen)]


def _twice(plan: Plan, bank: BankRecord) -> list[str | None]:
    if "mixture" not in plan.forms:
        return []
    return [subject.name for subject in plan.subjects if subject.name in bank.rows]


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


def _check_shares(
    graph: Graph, case: Case, name: str | None, bank: BankRecord, outputs: Sequence[str], budgets: Budgets
) -> InvariantResult:
    expected = graph.run(case.arrays, [name] * batch_size(case), outputs)
    found = graph.run_one_twice(case.arrays, name, bank, outputs)
    faults = [fault for output in outputs for fault in _faults(output, found[output], expected[output], name, budgets)]
    detail = "; ".join(faults) or "a quarter and three quarters of it are the whole, within the budget"
    return InvariantResult("shares", name or BASE, bool(outputs) and not faults, detail)


def _faults(output: str, found: np.ndarray, expected: np.ndarray, adapter: str | None, budgets: Budgets) -> list[str]:
    """Masked numbers are masked on both sides, and have no part in the scale of the budget."""
    hidden = expected < MASK_BELOW if expected.dtype.kind == "f" else np.zeros(expected.shape, bool)
    if found.shape == expected.shape and hidden.any():
        if not (found[hidden] < MASK_BELOW).all():
            return [f"{output}: a class that the adapter lacks is not masked"]
        found, expected = (np.where(hidden, np.zeros_like(side), side) for side in (found, expected))
    return [f"{output}: {fault}" for fault in compare(found, expected, budgets(adapter, output, expected)).faults]
