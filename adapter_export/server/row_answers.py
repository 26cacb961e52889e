"""Outputs to what a caller wants to see: one answer for each row, by the task of its adapter (docs/format.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adapter_export.errors import RequestError
from adapter_export.runtime import Request, Session
from adapter_export.runtime.answers import Head, answer, document, own_classes
from adapter_export.runtime.text_reader import ReadText, TextReader, answered, own_tokens

Arrays = Mapping[str, np.ndarray]
Answer = dict[str, Any]
"""What `adapter_export.runtime.answers.document` gives; without a known task, and of the base, `outputs`."""


def text_requests(reader: TextReader, read: ReadText, strength: float) -> list[Request]:
    """Return what runs for a text: a row, or one for each choice."""
    return [Request(reader.arrays([row]), read.adapter, strength) for row in read.rows]


def text_answer(reader: TextReader, head: Head, read: ReadText, outputs: Sequence[Arrays]) -> Answer:
    """Return the answer to a text from the outputs of its rows."""
    if head.task is None or head.output is None:
        return row_answer(reader.session, head, {name: array[0] for name, array in outputs[0].items()})
    pairs = zip(outputs, read.rows, strict=True)
    results = [own_tokens(own_classes(found[head.output][0]), row, reader) for found, row in pairs]
    return {"adapter": head.adapter, **answered(read, results).document()}


def row_answer(session: Session, head: Head, outputs: Arrays, mask: np.ndarray | None = None) -> Answer:
    """Return the answer to a row from its outputs; without a task, the outputs that mean something for it."""
    if head.task is None or head.output is None:
        others = {session.output(each) for each in session.adapters} - {head.output}
        own = {name: array for name, array in outputs.items() if name not in others}
        listed = {name: _listed(own_classes(row) if name == head.output else row) for name, row in own.items()}
        return {"adapter": head.adapter, "outputs": listed}
    result = own_classes(outputs[head.output])
    real = None if mask is None or result.ndim == 1 else np.asarray(mask).astype(bool)
    return {"adapter": head.adapter, **document(answer(head.task, result, real))}


def _listed(array: np.ndarray) -> list[Any]:
    if not np.isfinite(array).all():
        raise RequestError("an output is NaN or infinite", fix="hold the bundle against its golden vectors")
    listed: list[Any] = array.tolist()
    return listed
