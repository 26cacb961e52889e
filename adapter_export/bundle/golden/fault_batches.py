"""Fault batches: runs of one case with many sets of tensors, as rows of one batch in the graph with a bank.

A run of one set reads all weights for a few tokens; in a batch, all sets share one pass over the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adapter_export.bundle.bundle_reader import Graph, OpenedBundle
from adapter_export.bundle.golden.golden_vectors import Case, case_of
from adapter_export.dtypes import Weights
from adapter_export.errors import RequestError
from adapter_export.format.axes import estimated_elements
from adapter_export.format.manifest import BankRecord, InputRecord, Manifest
from adapter_export.numerics.runner import Arrays
from adapter_export.runtime.bank import RowLayout

_BYTES = 2**28
"""Maximum bytes of the tensors, and of the outputs, of a batch: each batch reads all weights."""

_MOST_ELEMENTS = 2**19
"""Maximum elements of all outputs with one set. Larger cases have many tokens, whose computation takes longer than
reading the weights, and memory for activations."""


def run_sets(bundle: OpenedBundle, case: Case, sets: Sequence[Weights]) -> list[Arrays] | None:
    """Return the outputs of a case with each set of slot tensors, in the form of golden data.

    `None` without a bank whose rows are independent and may be narrower, with heads, whose outputs differ in width, for
    large outputs, and for sets that the graph rejects.
    """
    bank = bundle.manifest.bank
    if bank is None or not _is_shared(bundle, bank, case):
        return None
    outputs = sum(estimated_elements(record, case.axes) for record in bundle.manifest.outputs)
    if outputs > _MOST_ELEMENTS:
        return None
    of_set = max(sum(tensor.nbytes for tensor in sets[0].values()), outputs * np.dtype(np.float32).itemsize)
    step = max(1, _BYTES // of_set)
    try:
        return [
            outputs
            for start in range(0, len(sets), step)
            for outputs in _run_batch(bundle, bank, case, sets[start : start + step])
        ]
    except RequestError:
        return None


def _is_shared(bundle: OpenedBundle, bank: BankRecord, case: Case) -> bool:
    manifest = bundle.manifest
    plain = not manifest.heads and manifest.checksums is None and all(each.mix is None for each in manifest.adapters)
    is_whole = has_rows(manifest) and case.real is None
    return manifest.batch_invariant and bank.fillable and "bank" in manifest.graphs and is_whole and plain


def has_rows(manifest: Manifest) -> bool:
    """Return whether the first axis of all inputs and outputs is the batch."""
    axes = [record.axes for record in manifest.inputs] + [record.axes for record in manifest.outputs]
    rows = {each[0] if each else None for each in axes}
    return len(rows) == 1 and isinstance(next(iter(rows)), str)


def first_row(case: Case, outputs: Arrays, inputs: Sequence[InputRecord]) -> tuple[Case, Arrays]:
    """Return a case and its expected outputs without the rows of the batch behind the first."""
    arrays, expected = ({name: array[:1] for name, array in of.items()} for of in (case.arrays, outputs))
    return case_of(case.name, arrays, inputs, case.seeds), expected


def _run_batch(bundle: OpenedBundle, bank: BankRecord, case: Case, sets: Sequence[Weights]) -> list[Arrays]:
    manifest, count = bundle.manifest, len(sets)
    layout = RowLayout(manifest.slots, manifest.heads, bank.tensors)
    arrays = {name: np.concatenate([array] * count) for name, array in case.arrays.items()}
    ids = np.arange(1, count + 1).repeat(case.batch)  # row 0 of a bank is the base
    graph = Graph(bundle, "bank", manifest.graphs["bank"])
    outputs = graph.compute(graph.file, {**arrays, **layout.stacked([(each, None) for each in sets]), bank.ids: ids})
    shares = {record.name: np.split(outputs[record.name], count) for record in manifest.outputs}
    return [bundle.stored({name: parts[at] for name, parts in shares.items()}) for at in range(count)]
