"""What must hold whatever a reference says: swapping leaves no trace, rows do not depend on their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations

import numpy as np

from adapter_export.parity.cases import Case
from adapter_export.parity.compare import compare
from adapter_export.parity.report import InvariantResult
from adapter_export.reference.budget import Budget
from adapter_export.reference.runner import Arrays

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
