"""Faults in the bank, and in the graph whose slots are inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from adapter_export.plugins.selftest.fault import Copy, Place, Plant, in_graph, kinds_of
from adapter_export.plugins.selftest.node_faults import (
    OTHER_ACTIVATIONS,
    add_number,
    in_node,
    insert_after,
    other_activation,
    scale_result,
)
from adapter_export.plugins.selftest.weight_faults import in_weight, replace_values, values_of


def _held(change: Callable[[np.ndarray, Sequence[int]], None]) -> Plant:
    """Change the rows of two adapters in a tensor of the bank."""

    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        bank, held = copy.manifest.bank, model.graph.initializers
        if bank is None or len(bank.rows) < 3:
            return None
        able = [one.name for one in bank.tensors if one.slot is not None and values_of(held[one.name]).any()]
        for at in copy.rng.permutation(len(able)):
            array = values_of(held[able[int(at)]])
            busy = [row for row in range(1, len(array)) if array[row].any()]
            if len(busy) < 2:
                continue
            before = array.tobytes()
            change(array, busy)
            if array.tobytes() != before:
                replace_values(held[able[int(at)]], array)
                return [able[int(at)], *(bank.rows[row] or "base" for row in busy[:2])]
        return None

    return in_graph(changed, "bank")


def _one_row_for_all(copy: Copy, model: ir.Model) -> list[Place] | None:
    bank = copy.manifest.bank
    if bank is None:
        return None
    value = next(one for one in model.graph.inputs if one.name == bank.ids)
    insert_after(value, ir.Node("", "Mul", [value, add_number(model, np.array(0, np.int64), "zero")]), model)
    return [bank.ids]


def _unsaid_row_for_all(copy: Copy) -> Sequence[Place] | None:
    found = in_graph(_one_row_for_all, "bank")(copy) if copy.manifest.batch_invariant else None
    if found is not None:
        copy.claim(replace(copy.manifest, batch_invariant=False))
    return found


BANK = kinds_of(
    "bank",
    {
        "two rows of the bank swapped": _held(lambda a, rows: a.__setitem__(list(rows[:2]), a[list(rows[1::-1])])),
        "a row of the bank off by a thousandth": _held(lambda a, rows: a.__setitem__(rows[0], a[rows[0]] * 1.001)),
        "a row of the bank zeroed": _held(lambda a, rows: a.__setitem__(rows[0], 0)),
        "the base row of the bank filled with an adapter": _held(lambda a, rows: a.__setitem__(0, a[rows[0]])),
        "one row for all": in_graph(_one_row_for_all, "bank"),
        "one row for all, recorded as not batch-invariant": _unsaid_row_for_all,
        "a weight of the base off in the bank": in_weight(lambda a, _: a * np.float32(1.001), rank=2, variant="bank"),
        "a product scaled by 1.01 in the bank": in_node(scale_result(1.01), "MatMul", "Gemm", variant="bank"),
    },
)
INPUTS = kinds_of(
    "inputs graph",
    {
        "a weight of the base off in `inputs`": in_weight(lambda a, _: a * np.float32(1.001), rank=2, variant="inputs"),
        "a product scaled by 1.01 in `inputs`": in_node(scale_result(1.01), "MatMul", "Gemm", variant="inputs"),
        "another activation in `inputs`": in_node(other_activation, *OTHER_ACTIVATIONS, variant="inputs"),
    },
)
