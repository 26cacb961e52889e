"""Replay golden batches: send the rows of each as one request, and compare each answer with that of the single row."""

from __future__ import annotations

import numpy as np
from golden_answers import Fault, differs, within

from adapter_export.errors import InputError
from adapter_export.format.golden_batches import GoldenBatchRow, read_golden_batches
from adapter_export.runtime import Bundle, Session
from adapter_export.runtime.answerer import Answerer, Row


def replay_batches(bundle: Bundle, session: Session) -> tuple[float, tuple[Fault, ...]] | None:
    """Return the largest deviation of a number as a part of the allowed one, and the rows that differ.

    The deviation is infinite if anything but a number differs. `None` if the bundle has no golden batches.
    """
    if bundle.manifest.golden_batches is None:
        return None
    worst, faults = 0.0, list[Fault]()
    for batch in read_golden_batches(bundle.folder / bundle.manifest.golden_batches).batches:
        names = [f"{batch.name}, row {at}" for at in range(len(batch.rows))]
        asked = [_row(bundle, one, name) for one, name in zip(batch.rows, names, strict=True)]
        try:
            answers = [found.document() for found in Answerer(session).answer(asked)]
        except InputError as error:
            worst = np.inf
            faults.append(Fault(batch.name, f"is refused: {error}"))
            continue
        for name, row, found in zip(names, batch.rows, answers, strict=True):
            said = {key: value for key, value in found.items() if key not in ("adapter", "task")}
            far, fault = differs(said, row.answer, row.absolute, row.decided)
            worst = max(worst, far)
            faults += [] if fault is None else [Fault(name, fault)]
    return float(worst), tuple(faults)


def _row(bundle: Bundle, row: GoldenBatchRow, name: str) -> Row:
    inputs = {record.name: row.array(record.name).astype(record.dtype) for record in bundle.manifest.inputs}
    context = None if row.context is None else within(row.context, _tokens(bundle, row))
    return Row(inputs, row.adapter, context=context, where=name)


def _tokens(bundle: Bundle, row: GoldenBatchRow) -> int:
    """The number of tokens that have logits: a decoder may have others than its encoder."""
    manifest = bundle.manifest
    output = next(record.output for record in manifest.adapters if record.name == row.adapter)
    axis = next(record.axes[1] for record in manifest.outputs if record.name == output)
    reads = next((record.name for record in manifest.inputs if axis in record.axes[1:]), manifest.inputs[0].name)
    return len(row.inputs[reads])
