"""The record of an adapter's training, held to what the bundle answers on the very file that it was measured on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapter_export.numerics.judge import Judged
from adapter_export.practice.asked import Asked, Results, judge

_DRAWS = 16
_SLACK = 1e-6
"""What the sums of a metric round by: training may have taken them in float32."""

_PARTS = ("test", "validation")


@dataclass(frozen=True)
class Held:
    """Scores of a training record, and what the bundle gives on the same rows.

    Attributes:
        part: `test` or `validation`.
        scores: what the record says.
        found: what the bundle gives on the rows as training reads them, without repeated ones.
        low: the least that rounding explains, by metric.
        high: the most.
        uncertain: the lines of the rows whose answers rounding may change.
        passed: whether every score of the record lies in that range.
    """

    part: str
    scores: Mapping[str, float]
    found: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    uncertain: tuple[int, ...]
    passed: bool


def hold_record(
    training: Mapping[str, Any],
    sha256: str,
    columns: Mapping[str, str | None],
    asked: Asked,
    results: Results,
    allowed: float,
) -> tuple[Held | None, str | None]:
    """Compare the record with the results on a file, or return a note on why it cannot be held to them.

    What rounding explains is found by trying: results are moved by as much as the budget of the output allows, with
    random signs, and judged again; the range of the scores is taken twice as wide.

    Args:
        training: the adapter's record.
        sha256: that of the file.
        columns: that were read, by the names of the options.
        asked: all rows of the file.
        results: of the bundle.
        allowed: how far a result may be from that of the reference.
    """
    sources = training.get("data")
    known = {part: sources.get(part) for part in _PARTS} if isinstance(sources, Mapping) else {}
    files = {part: one for part, one in known.items() if isinstance(one, Mapping) and "sha256" in one}
    part = next((part for part, one in files.items() if one["sha256"] == sha256), None)
    scores = training.get(part) if part is not None else None
    if part is None or not isinstance(scores, Mapping):
        named = ", ".join(f"`{one.get('file')}` ({part})" for part, one in files.items())
        other = f"its scores were measured on {named}" if named else "it names no file that its scores were measured on"
        return None, f"the record of training cannot be held to these rows: {other}" if training else None
    settings = training.get("settings", {})
    others = [f"`{settings[name]}`" for name, column in columns.items() if settings.get(name, column) != column]
    if others:
        return None, f"the record of training cannot be held to these rows: it read the column {', '.join(others)}"
    rows = asked.different()
    if files[part].get("rows") not in (None, len(rows)):
        counts = f"{files[part]['rows']:,} rows of this very file, here {len(rows):,} are read"
        return None, f"the record of training cannot be held to these rows: it was measured on {counts}"
    asked, results = asked.only(rows, results)
    judged = judge(asked, results)
    found = _values(judged)
    recorded = {name: float(scores[name]) for name in found if isinstance(scores.get(name), int | float)}
    if not recorded:
        return None, "the record of training has none of these metrics"
    drawn, uncertain = [found], np.zeros(len(asked.rows), bool)
    for draw in range(_DRAWS):
        moved = judge(asked, _moved(results, allowed, np.random.default_rng(draw)))
        drawn.append(_values(moved))
        if not judged.numeric:
            uncertain |= [one != other for one, other in zip(judged.answers, moved.answers, strict=True)]
    low, high = {}, {}
    for name in recorded:
        values = [each[name] for each in drawn if not math.isnan(each[name])]
        low[name] = found[name] - 2 * (found[name] - min(values, default=math.nan)) - _SLACK
        high[name] = found[name] + 2 * (max(values, default=math.nan) - found[name]) + _SLACK
    return Held(
        part,
        recorded,
        {name: found[name] for name in recorded},
        low,
        high,
        tuple(row.line for row, may in zip(asked.rows, uncertain, strict=True) if may),
        all(low[name] <= value <= high[name] for name, value in recorded.items()),
    ), None


def _moved(results: Results, allowed: float, generator: np.random.Generator) -> Results:
    return [[result + allowed * generator.choice((-1.0, 1.0), np.shape(result)) for result in own] for own in results]


def _values(judged: Judged) -> dict[str, float]:
    measured = judged.measure(np.arange(judged.units))
    return {metric.name: float(value) for metric, value in zip(judged.metrics, measured, strict=True)}
