"""Comparison of the recorded scores of a training with a bundle's scores on the same file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapter_export.errors import MissedGateError
from adapter_export.format.tabular.eval_data import EvalData
from adapter_export.graph.tasks.metrics import Judged
from adapter_export.plugins.lab.contest import Measured
from adapter_export.plugins.lab.eval_rows import Results, judge
from adapter_export.tables import number_of

_DRAWS = 16
_SLACK = 1e-6
"""Rounding of a metric's sums, which training may have computed in float32."""

_PARTS = ("test", "validation")
_SHOWN = 20


@dataclass(frozen=True)
class RecordCheck:
    """Scores of a training record, and those of the bundle on the same rows.

    Attributes:
        part: `test` or `validation`.
        scores: the recorded scores.
        found: the scores of the bundle on the rows as training reads them, without repeated ones.
        low: the least that rounding explains, by metric.
        high: the most.
        uncertain: the lines of the rows whose answers rounding may change.
        passed: true if every recorded score is within that range.
    """

    part: str
    scores: Mapping[str, float]
    found: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    uncertain: tuple[int, ...]
    passed: bool

    def remark(self) -> str:
        """Return the result as a sentence."""
        scores = ", ".join(f"{name} {value:.4f}" for name, value in self.scores.items())
        verdict = "confirmed" if self.passed else "contradicted"
        lines = [f"{line}" for line in self.uncertain[:_SHOWN]]
        more = ", …" if len(self.uncertain) > _SHOWN else ""
        may = f"; rounding may change the answers of lines {', '.join(lines)}{more}" if lines else ""
        return f"training record of this file ({self.part}: {scores}): {verdict}{may}."

    def faults(self, where: str) -> Iterator[MissedGateError]:
        """Yield an error for each recorded score outside its range."""
        for name, recorded in self.scores.items():
            if not self.low[name] <= recorded <= self.high[name]:
                yield MissedGateError(
                    f"`{name}` does not match the training record for this very file",
                    where=where,
                    found=f"{self.found[name]:.4f}, where rounding explains"
                    f" {self.low[name]:.4f} to {self.high[name]:.4f}",
                    expected=f"{recorded:.4f}",
                    fix="check the bundle against its model, and the tokenizer, labels and columns",
                )


def compare_with_training_record(
    training: Mapping[str, Any], data: EvalData, measured: Measured, allowed: float
) -> tuple[RecordCheck | None, str | None]:
    """Compare the record with the results on a file, or return a note that says why they are not comparable.

    The effect of rounding is found by trial: results are moved by the budget of the output, with random signs, and
    judged again; the range of the scores is taken twice as wide.

    Args:
        training: the adapter's record.
        data: the rows.
        measured: the results of the bundle on them.
        allowed: allowed deviation of a result from the reference.
    """
    if data.is_part or data.dimensions is not None:
        return None, None
    part, reason = _matching_part(training, data)
    if part is None:
        return None, f"training record not compared: {reason}" if training else None
    rows = measured.rows.distinct()
    counted = training["data"][part].get("rows")
    if counted not in (None, len(rows)):
        counts = f"{number_of(counted, 'row')} of this file, and {len(rows):,} are read here"
        return None, f"training record not compared: it was measured on {counts}"
    examples, results = measured.rows.only(rows, measured.results)
    judged = judge(examples, results)
    computed = _values(judged)
    scores = training[part]
    recorded = {name: float(scores[name]) for name in computed if isinstance(scores.get(name), int | float)}
    if not recorded:
        return None, "training record not compared: it has none of these metrics"
    drawn, uncertain = [computed], np.zeros(len(examples.rows), bool)
    for draw in range(_DRAWS):
        moved = judge(examples, _moved(results, allowed, np.random.default_rng(draw)))
        drawn.append(_values(moved))
        if not judged.numeric:
            uncertain |= [
                answer != moved_answer for answer, moved_answer in zip(judged.answers, moved.answers, strict=True)
            ]
    low, high = {}, {}
    for name in recorded:
        values = [each[name] for each in drawn if not math.isnan(each[name])]
        low[name] = computed[name] - 2 * (computed[name] - min(values, default=math.nan)) - _SLACK
        high[name] = computed[name] + 2 * (max(values, default=math.nan) - computed[name]) + _SLACK
    return RecordCheck(
        part,
        recorded,
        {name: computed[name] for name in recorded},
        low,
        high,
        tuple(row.line for row, may in zip(examples.rows, uncertain, strict=True) if may),
        all(low[name] <= value <= high[name] for name, value in recorded.items()),
    ), None


def _matching_part(training: Mapping[str, Any], data: EvalData) -> tuple[str | None, str]:
    """Return the part of the record that was measured on this file, or the reason why there is none."""
    sources = training.get("data")
    known = {part: sources.get(part) for part in _PARTS} if isinstance(sources, Mapping) else {}
    files = {part: source for part, source in known.items() if isinstance(source, Mapping) and "sha256" in source}
    part = next((part for part, source in files.items() if source["sha256"] == data.sha256), None)
    if part is None or not isinstance(training.get(part), Mapping):
        named = ", ".join(f"`{source.get('file')}` ({part})" for part, source in files.items())
        if named:
            return None, f"its scores were measured on {named}"
        return None, "it does not name the file of its scores"
    settings = training.get("settings", {})
    others = [f"`{settings[name]}`" for name, column in data.columns.items() if settings.get(name, column) != column]
    return (None, f"it read the column {', '.join(others)}") if others else (part, "")


def _moved(results: Results, allowed: float, generator: np.random.Generator) -> Results:
    return [[result + allowed * generator.choice((-1.0, 1.0), np.shape(result)) for result in row] for row in results]


def _values(judged: Judged) -> dict[str, float]:
    measured = judged.measure(np.arange(judged.units))
    return {metric.name: float(value) for metric, value in zip(judged.metrics, measured, strict=True)}
