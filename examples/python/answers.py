"""Outputs to what a caller wants to see: one answer for each row, by the task of its adapter (docs/format.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from adapter_export.errors import RequestError
from adapter_export.graph.tasks import Task
from adapter_export.runtime import Request, Session
from adapter_export.runtime.answers import answer, document, own_classes
from adapter_export.runtime.texts import Asked, ReadText, TextReader, answered

Arrays = Mapping[str, np.ndarray]
Answer = dict[str, Any]
"""What `adapter_export.runtime.answers.document` gives; without a known task, and of the base, `outputs`."""


class Head(NamedTuple):
    """The adapter of a row as it was when the row was asked: its name, its task, and the output of its head."""

    adapter: str | None
    task: Task | None
    output: str | None


def head_of(session: Session, name: str | None) -> Head:
    """The head of an adapter; of none, nothing.

    Raises:
        RequestError: it is not loaded.
    """
    return Head(None, None, None) if name is None else Head(name, session.task(name), session.output(name))


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
    masks = inputs.get("attention_mask", [None] * len(names))
    rows = [{name: array[row] for name, array in outputs.items()} for row in range(len(names))]
    return [
        row_answer(session, head_of(session, name), row, mask)
        for name, row, mask in zip(names, rows, masks, strict=True)
    ]


def text_answers(
    reader: TextReader,
    texts: Sequence[Asked],
    names: Sequence[str | None],
    weights: Sequence[Mapping[str, float]] = (),
) -> list[Answer]:
    """Answer texts, each by an adapter of its own; the arguments are as of `answers`."""
    session, read = reader.session, reader.read(texts, adapters=names)
    heads = [head_of(session, one.adapter) for one in read]
    requests = [text_requests(reader, one) for one in read]
    if weights:
        given = list(weights) * len(read) if len(weights) == 1 else weights
        if len(given) != len(read):
            raise RequestError("give weights once, or once for each text", found=len(given), expected=len(read))
        found = [
            [session.run(row.inputs, row.adapter, weights=own) for row in rows]
            for rows, own in zip(requests, given, strict=True)
        ]
    else:
        outputs = iter(session.run_many([row for rows in requests for row in rows]))
        found = [[next(outputs) for _ in rows] for rows in requests]
    return [text_answer(session, *one) for one in zip(heads, read, found, strict=True)]


def text_requests(reader: TextReader, read: ReadText) -> list[Request]:
    """What runs for a text: a row, or one for each choice."""
    return [Request(reader.arrays([row]), read.adapter) for row in read.rows]


def text_answer(session: Session, head: Head, read: ReadText, outputs: Sequence[Arrays]) -> Answer:
    """The answer to a text from the outputs of its rows."""
    if head.task is None or head.output is None:
        return row_answer(session, head, {name: array[0] for name, array in outputs[0].items()})
    results = [own_classes(row[head.output][0]) for row in outputs]
    return {"adapter": head.adapter, **answered(read, results).document()}


def row_answer(session: Session, head: Head, outputs: Arrays, mask: np.ndarray | None = None) -> Answer:
    """The answer to a row from its outputs; without a task, the outputs that mean something for it."""
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
