"""Comparison of a bank, row by row, with the graph with slots of the same base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adapter_export.format.manifest import BankRecord
from adapter_export.graph.adapter import Adapter
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.rewrite.bank_graph import bank_rows, bank_tensors, insert_bank
from adapter_export.onnx_backend.rewrite.fanout import cut_bank
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import head_sums, plan_slots, slot_tensors
from adapter_export.runtime.graphs import run_session

Inputs = Mapping[str, np.ndarray]


def assert_rows_are_those_of_slots(
    base: OnnxBase, adapters: Sequence[Adapter], inputs: Inputs, *, tolerance: float, mixed: bool = True
) -> None:
    """Compare every row of a batch with the same single row in the graph with slots.

    Args:
        base: the base.
        adapters: adapters of the bank, after the base.
        inputs: a batch; each adapter is tried in each row.
        tolerance: maximum difference, relative to the largest value of an output.
        mixed: whether the rows of one run have different adapters, each compared with its single run.
    """
    plan = plan_slots(adapters, base.sites)
    slots = open_session(insert_slots(base, plan), base.folder)
    tensors = [{}, *(slot_tensors(plan, adapter) for adapter in adapters)]
    alone = [run_session(slots, {**inputs, **each}) for each in tensors]
    rows = bank_rows(plan, head_sums(plan, [record.name for record in base.outputs]), adapters)
    bank = open_session(insert_bank(base, plan, rows), base.folder)
    count, batch = len(tensors), len(next(iter(inputs.values())))
    for start in range(count):
        ids = (start + np.arange(batch) * mixed) % count
        expected = {name: np.stack([alone[at][name][row] for row, at in enumerate(ids)]) for name in alone[0]}
        _assert_close(run_session(bank, {**inputs, "adapter_ids": ids}), expected, tolerance, f"bank {ids}")
    assert_all_differ(alone)


def assert_fans_out(base: OnnxBase, adapters: Sequence[Adapter], inputs: Inputs, *, tolerance: float) -> None:
    """Compare each row of a batch with every adapter, sharing the lower part, with the bank with as many rows.

    Args:
        base: the base.
        adapters: adapters of the bank, after the base.
        inputs: a batch.
        tolerance: as of `assert_rows_are_those_of_slots`.
    """
    plan = plan_slots(adapters, base.sites)
    heads = head_sums(plan, [record.name for record in base.outputs])
    held = bank_rows(plan, heads, adapters)
    bank = insert_bank(base, plan, held)
    cut = cut_bank(bank, BankRecord("adapter_ids", held.names, True, bank_tensors(plan, heads)))
    texts, count = len(next(iter(inputs.values()))), len(held.names)
    rows, ids = np.tile(np.arange(texts), count)[::-1], np.repeat(np.arange(count), texts)
    expected = run_session(
        open_session(bank, base.folder), {**{name: array[rows] for name, array in inputs.items()}, "adapter_ids": ids}
    )
    below = run_session(open_session(cut.prefix, base.folder), inputs)
    assert below.keys() == {value.name for value in cut.values}
    products = [{node.name for node in model.graph if node.op_type in ("MatMul", "Gemm", "Conv")} for model in
                (bank, cut.prefix, cut.upper)]  # fmt: skip
    assert products[0] == products[1] | products[2]
    assert not products[1] & products[2]  # nothing is computed twice
    assert len(products[1]) > len(products[2])
    upper = open_session(cut.upper, base.folder)
    found = run_session(upper, {**inputs, **below, "adapter_ids": ids, "input_rows": rows})
    _assert_close(found, expected, tolerance, "fanout")


def assert_all_differ(results: Sequence[Inputs]) -> None:
    """That no two of them are nearly the same: else rows that change places would not be seen."""
    for at, one in enumerate(results):
        for other in results[:at]:
            assert any(np.abs(one[name] - other[name]).max() > 1e-3 * np.abs(one[name]).max() for name in one)


def _assert_close(found: Inputs, expected: Inputs, tolerance: float, what: str) -> None:
    for name, value in expected.items():
        allowed = tolerance * np.abs(value).max()
        np.testing.assert_allclose(found[name], value, rtol=0, atol=allowed, err_msg=f"{what}: {name}")
