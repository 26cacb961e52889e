"""Outputs to what a caller wants to see: one answer for each row, by the task of its adapter (docs/format.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adapter_export.errors import RequestError
from adapter_export.runtime import Session
from adapter_export.runtime.answers import answer, document, own_classes

Arrays = Mapping[str, np.ndarray]
Answer = dict[str, Any]
"""What `adapter_export.runtime.answers.document` gives; without a known task, and of the base, `outputs`."""


def answers(
    session: Session, inputs: Arrays, names: Sequence[str | None], weights: Sequence[Mapping[str, float]] = ()
) -> list[Answer]:
    """Run rows, each through an adapter or through the base alone.

    Args:
        session: the bundle's.
        inputs: those of the base.
        names: an adapter for each row.
        weights: of a fusion that runs all rows: once for all of them, or once for each.
    """
    given = weights[0] if len(weights) == 1 else weights or None
    same = len(set(names)) == 1
    outputs = session.run(inputs, names[0], weights=given) if same else session.run(inputs, adapters=list(names))
    return [{"adapter": name, **_answer(session, outputs, row, name, inputs)} for row, name in enumerate(names)]


def _answer(session: Session, outputs: Arrays, row: int, name: str | None, inputs: Arrays) -> Answer:
    output = None if name is None else session.output(name)
    task = None if name is None else session.task(name)
    if task is None or output is None:
        others = {session.output(each) for each in session.adapters} - {output}
        own = {key: array[row] for key, array in outputs.items() if key not in others}
        return {"outputs": {key: _listed(own_classes(row) if key == output else row) for key, row in own.items()}}
    result, mask = own_classes(outputs[output][row]), inputs.get("attention_mask")
    real = None if mask is None or result.ndim == 1 else mask[row].astype(bool)
    return document(answer(task, result, real))


def _listed(array: np.ndarray) -> list[Any]:
    if not np.isfinite(array).all():
        raise RequestError("an output is NaN or infinite", fix="hold the bundle against its golden vectors")
    listed: list[Any] = array.tolist()
    return listed
