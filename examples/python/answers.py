"""Outputs to what a caller wants to see: one answer for each row, by what the adapter of the row is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adapter_export.errors import RequestError
from adapter_export.runtime import Session

Arrays = Mapping[str, np.ndarray]
Answer = dict[str, Any]
"""One of these, by what the row's adapter is for: `classes` of a text with their probabilities, the likeliest first;
`tokens`, the likeliest class of each, none for padding; `numbers` of a regression or an embedding; without a head the
`outputs` of the base.
"""


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
    if name is None or output is None:
        heads = {session.output(each) for each in session.adapters}
        return {"outputs": {key: _listed(array[row]) for key, array in outputs.items() if key not in heads}}
    result, labels = outputs[output][row], session.labels(name)
    if result.ndim == 1:
        return {"numbers": _listed(result)} if labels is None else {"classes": _classes(result, labels)}
    mask = inputs.get("attention_mask")
    real = np.ones(len(result), bool) if mask is None else mask[row].astype(bool)
    named = labels or [f"class {index}" for index in range(result.shape[-1])]
    lines = zip(result, real, strict=True)
    return {"tokens": [_classes(line, named)[0] if is_real else None for line, is_real in lines]}


def _classes(logits: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    own = np.array(_listed(logits[: len(labels)]))
    powers = np.exp(own - own.max())
    pairs = zip(labels, (powers / powers.sum()).tolist(), strict=True)
    ordered = sorted(pairs, key=lambda pair: pair[1], reverse=True)
    return [{"label": label, "probability": probability} for label, probability in ordered]


def _listed(array: np.ndarray) -> list[Any]:
    if not np.isfinite(array).all():
        raise RequestError("an output is NaN or infinite", fix="hold the bundle against its golden vectors")
    listed: list[Any] = array.tolist()
    return listed
