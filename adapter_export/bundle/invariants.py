"""What must hold whatever a reference says: swapping leaves no trace, rows of a batch keep to themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations

import numpy as np

from adapter_export.bundle.compare import compare
from adapter_export.bundle.contents import MASK_BELOW, same_bits
from adapter_export.bundle.golden import Case, Golden
from adapter_export.bundle.report import BASE, InvariantResult
from adapter_export.dtypes import Weights
from adapter_export.errors import BaseModelError, RequestError
from adapter_export.format.manifest import MixRecord
from adapter_export.numerics.budget import Budget
from adapter_export.numerics.runner import Arrays

Run = Callable[[Mapping[str, np.ndarray], str | None], Arrays]
"""Runs a bundle: from inputs and the name of an adapter, or none for the base alone, to outputs."""

RunRows = Callable[[Mapping[str, np.ndarray], Sequence[str | None]], Arrays]
"""Runs a bank: from inputs and an adapter for each row to outputs."""

Budgets = Callable[[str | None, str, np.ndarray], Budget]
"""The budget for an output, from the adapter that gives it, its name and what is expected of it."""

_MOST_FOR_ALL_PAIRS = 5


def swaps(names: Sequence[str | None]) -> list[tuple[str | None, str | None]]:
    """Return the ordered pairs (A, B) to try A → B → A with: all, or for many adapters each with its neighbours."""
    if len(names) <= _MOST_FOR_ALL_PAIRS:
        return list(permutations(names, 2))
    ring = [(name, names[(index + 1) % len(names)]) for index, name in enumerate(names)]
    return [pair for first, second in ring for pair in ((first, second), (second, first))]


def check_swap(run: Run, case: Case, first: str | None, second: str | None) -> InvariantResult:
    """A → B → A: the second answer of A has the bits of the first."""
    before = run(case.arrays, first)
    run(case.arrays, second)
    after = run(case.arrays, first)
    changed = _changed(before, after)
    subject = f"{first or BASE} → {second or BASE} → {first or BASE}"
    detail = f"changed: {', '.join(changed)}" if changed else "every output, bit for bit"
    return InvariantResult("swap", subject, not changed and bool(before), detail)


def check_native(adapter: str, fed: Arrays, native: Arrays) -> InvariantResult:
    """An adapter that ONNX Runtime loads and activates gives the bits of its tensors that are fed one by one."""
    changed = _changed(fed, {name: value for name, value in native.items() if name in fed})
    detail = f"different: {', '.join(changed)}" if changed else "every output, bit for bit"
    return InvariantResult("active adapter", adapter, not changed and bool(fed), detail)


def _changed(before: Arrays, after: Arrays) -> list[str]:
    names = sorted(before.keys() | after.keys())
    return [name for name in names if not same_bits(before.get(name), after.get(name))]


def check_row_order(run: Run, case: Case, adapter: str | None, budgets: Budgets) -> InvariantResult:
    """The rows of the batch in reverse order give the same outputs in reverse order, within the budget."""
    rows = case.batch

    def has_rows(value: np.ndarray) -> bool:
        return value.ndim > 0 and len(value) == rows

    plain = run(case.arrays, adapter)
    arrays = {name: value[::-1].copy() if has_rows(value) else value for name, value in case.arrays.items()}
    reverse, compared, faults = run(arrays, adapter), 0, list[str]()
    for name, expected in plain.items():
        if has_rows(expected):
            compared += 1
            found = compare(reverse[name][::-1], expected, budgets(adapter, name, expected)).faults
            faults += [f"{name}: {'; '.join(found)}"] if found else []
    detail = "; ".join(faults) or f"every output of {rows} rows, within the budget"
    return InvariantResult("row order", adapter or BASE, bool(compared) and not faults, detail)


def check_apart(run: RunRows, case: Case, chosen: Sequence[str | None], budgets: Budgets) -> InvariantResult:
    """Every row of a mixed batch is what it is alone, within the budget."""
    together, compared, faults = run(case.arrays, chosen), 0, list[str]()
    for row, name in enumerate(chosen):
        alone = run({key: array[row : row + 1] for key, array in case.arrays.items()}, [name])
        for output, expected in alone.items():
            if len(together[output]) == len(chosen) and len(expected) == 1:
                compared += 1
                faults += _faults(output, together[output][row : row + 1], expected, name, budgets)
    detail = "; ".join(faults) or "each row as it is alone, within the budget"
    subject = ", ".join(name or BASE for name in chosen)
    return InvariantResult("rows of a batch", subject, bool(compared) and not faults, detail)


def _faults(output: str, found: np.ndarray, expected: np.ndarray, adapter: str | None, budgets: Budgets) -> list[str]:
    """Masked numbers are masked on both sides, and have no part in the scale of the budget."""
    hidden = expected < MASK_BELOW if expected.dtype.kind == "f" else np.zeros(expected.shape, bool)
    if found.shape == expected.shape and hidden.any():
        if not (found[hidden] < MASK_BELOW).all():
            return [f"{output}: a class that the adapter lacks is not masked"]
        found, expected = (np.where(hidden, np.zeros_like(side), side) for side in (found, expected))
    return [f"{output}: {fault}" for fault in compare(found, expected, budgets(adapter, output, expected)).faults]


def check_weights_apart(
    run: Callable[[Mapping[str, np.ndarray]], Arrays], record: MixRecord, tensors: Weights, golden: Golden
) -> None:
    """Hold that weights of one row leave the others alone: every second row has the adapter's, the others have zeros.

    Args:
        run: the graph with slots, from inputs and tensors to outputs.
        record: where the weights of a fusion go.
        tensors: the adapter's.
        golden: its golden vectors.

    Raises:
        BaseModelError: they act on other rows, as where tokens come before the batch and no shape says so.
    """
    for case, outputs in zip(golden.cases, golden.outputs, strict=True):
        for first in range(2) if case.batch > 1 else ():
            mask = (np.arange(case.batch) % 2 == first).astype(np.float32)[:, None]
            try:
                found = run({**case.arrays, **tensors, **{slot: mask * tensors[slot] for slot in record.slots}})
                own = {name: value for name, value in outputs.items() if len(value) == case.batch}
                results = [compare(found[name][first::2], own[name][first::2], golden.budgets[name]) for name in own]
                faults = [fault for result in results for fault in result.faults]
            except RequestError as error:
                faults = [str(error.found)]
            if faults:
                raise BaseModelError(
                    "has no batch as the first axis where a fusion acts, so that rows cannot have weights of their own",
                    found=faults[0],
                    fix="compose the adapters with fixed weights: `adapter-export compose average`",
                )
