"""An evaluation, and a comparison, as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from adapter_export.graph.tasks.metrics import Metric
from adapter_export.page import Markup, document, element, escaped, head, heat, interval, items, table
from adapter_export.plugins.lab.comparison import Comparison
from adapter_export.plugins.lab.evaluation import Calibration, Evaluation
from adapter_export.plugins.lab.scores import Score
from adapter_export.tables import Table, number_of
from adapter_export.version import __version__

_SIDE, _LEFT, _BASE = 260, 58, 44
"""Pixels of the calibration diagram: its square, and the margins for the scales."""

_MANY_CLASSES = 40


def page(evaluation: Evaluation) -> str:
    """Return the page."""
    return document(f"{evaluation.adapter} on {evaluation.data}", _parts(evaluation))


def _parts(evaluation: Evaluation) -> Iterator[str]:
    facts = (
        f"{number_of(evaluation.rows, 'row')} (sha256 {evaluation.sha256[:12]}…) answered by {evaluation.bundle}, "
        f"task {evaluation.task}, {evaluation.runtime}, adapter-export {__version__}."
    )
    remarks = " ".join(remark[:1].upper() + remark[1:] for remark in evaluation.remarks())
    yield element("p", f"{facts} {remarks}", "facts")
    if evaluation.gates or evaluation.training_record is not None:
        word = "passed" if evaluation.passed else "failed"
        yield element("p", word, word) + items(evaluation.faults())
    yield items(evaluation.notes, "note")
    yield table(_scores(evaluation))
    for each in list(evaluation.tables())[1:]:
        heading = head(str(each.title))
        if each.title == "confusion" and len(evaluation.classes) <= _MANY_CLASSES:
            yield heading + _confusion(evaluation)
        elif str(each.title).startswith("calibration") and evaluation.calibration is not None:
            yield heading + _reliability(evaluation.calibration) + table(replace(each, title=None))
        else:
            yield table(each)


def _scores(evaluation: Evaluation) -> Table:
    """Return the scores, each with its interval as a bar on the scale of the metric, if that has two ends."""
    bars = [bar(evaluation.scores[metric.name], metric.least, metric.most) for metric in evaluation.metrics]
    return _with_bars(replace(evaluation.table(), title="scores"), bars)


def _with_bars(plain: Table, bars: Sequence[Markup], heading: str = "", at: int = 3) -> Table:
    """Return a table with a further column of drawings."""
    columns, numbers = [*plain.columns], plain.numbers.ljust(len(plain.columns), "l")
    columns.insert(at, heading)
    rows = [(*row[:at], drawn, *row[at:]) for row, drawn in zip(plain.rows, bars, strict=True)]
    return Table(columns, rows, plain.title, numbers[:at] + "l" + numbers[at:])


def bar(score: Score, least: float, most: float) -> Markup:
    """Return a drawing of a score in its interval; empty without a value or with an unbounded scale."""
    if score.value is None or not np.isfinite([least, most]).all():
        return Markup()
    low, high = (score.value if end is None else end for end in (score.low, score.high))
    return interval(score.value, low, high, least, most, score)


def _confusion(evaluation: Evaluation) -> Markup:
    """Return the matrix, coloured by the share within each row."""
    counts, labels = np.array(evaluation.confusion), [scores.label for scores in evaluation.classes]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    rows = [(label, *row) for label, row in zip(labels, counts.tolist(), strict=True)]
    return heat(("right ↓, answered →", *labels), rows, shares.tolist())


def _reliability(calibration: Calibration) -> Markup:
    """Draw the share of right answers in each bin beside the line of perfect calibration."""
    bars = []
    for part in calibration.bins:
        left, width = _LEFT + part.low * _SIDE, (part.high - part.low) * _SIDE
        height = part.right * _SIDE
        title = f"{part.low:.1f} to {part.high:.1f}: {number_of(part.count, 'answer')}, {part.right:.1%} right"
        bars.append(
            f'<rect x="{left + 1:.1f}" y="{_SIDE - height:.1f}" width="{width - 2:.1f}" height="{height:.1f}"'
            f' class="blue" opacity=".7"><title>{escaped(title)}</title></rect>'
        )
    scale = "".join(
        f'<text x="{_LEFT + part * _SIDE:.0f}" y="{_SIDE + 16}" text-anchor="middle">{part:g}</text>'
        f'<text x="{_LEFT - 6}" y="{_SIDE - part * _SIDE + 4:.0f}" text-anchor="end">{part:g}</text>'
        for part in (0, 0.5, 1)
    )
    middle = _SIDE / 2
    return Markup(
        f'<svg width="{_SIDE + _LEFT + 10}" height="{_SIDE + _BASE}" viewBox="0 -6 {_SIDE + _LEFT + 10}'
        f' {_SIDE + _BASE + 6}" role="img" aria-label="reliability diagram">'
        f'<rect x="{_LEFT}" width="{_SIDE}" height="{_SIDE}" class="frame"/>{"".join(bars)}'
        f'<line x1="{_LEFT}" y1="{_SIDE}" x2="{_LEFT + _SIDE}" y2="0" class="ink" stroke-dasharray="4 4"/>'
        f'{scale}<text x="{_LEFT + middle:.0f}" y="{_SIDE + 36}" text-anchor="middle">probability of the answer</text>'
        f'<text transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">share right</text></svg>'
    )


def comparison_page(comparison: Comparison) -> str:
    """Return a page of a comparison."""
    names = [contestant.name for contestant in comparison.contestants]
    title = " and ".join(names) if len(names) == 2 else number_of(len(names), "contestant")
    return document(f"{title} on {comparison.setting.data}", _comparison_parts(comparison))


def _comparison_parts(comparison: Comparison) -> Iterator[str]:
    setting = comparison.setting
    facts = (
        f"{number_of(comparison.rows, 'row')} of {setting.data} (sha256 {setting.sha256[:12]}…), task {setting.task}, "
        f"{comparison.runtime}, adapter-export {__version__}."
    )
    yield element("p", facts, "facts")
    yield items(remark[:1].upper() + remark[1:] for remark in comparison.remarks())
    yield items(comparison.notes, "note")
    for metric in comparison.metrics:
        yield table(_side_by_side(comparison, metric))
    yield table(comparison.sizes())
    if comparison.contestants[0].latency is not None:
        yield table(_drawn_times(comparison))
    yield table(comparison.tests(comparison.metrics))
    yield head(str(comparison.agreement().title)) + _warm(comparison.agreement())
    for fusion in comparison.fusions:
        for each in fusion.tables():
            yield head(str(each.title)) + _warm(each)
    if comparison.differing:
        yield table(comparison.differing_table())


def _side_by_side(comparison: Comparison, metric: Metric) -> Table:
    """Return the scores, each with its interval as a bar; the bars share a scale as wide as all intervals."""
    scores = [contestant.scores[metric.name] for contestant in comparison.contestants]
    ends = [end for score in scores for end in (score.value, score.low, score.high) if end is not None]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    rows = [
        (contestant.name, score, score.interval)
        for contestant, score in zip(comparison.contestants, scores, strict=True)
    ]
    plain = Table(("contestant", "value", "95 % interval"), rows, metric.words, "lrr")
    return _with_bars(plain, [bar(score, low, high) for score in scores], f"{low:.4f} to {high:.4f}")


def _drawn_times(comparison: Comparison) -> Table:
    """Return the latencies, each with its quartiles as a bar."""
    times = [contestant.latency for contestant in comparison.contestants if contestant.latency is not None]
    most = max(time.high for time in times)
    bars = [
        interval(time.milliseconds, time.low, time.high, 0.0, most, f"{time.milliseconds:.3g} ms") for time in times
    ]
    return _with_bars(comparison.latencies(), bars)


def _warm(matrix: Table) -> Markup:
    """Return a table of shares on a colour scale; other cells have no colour."""
    return heat(matrix.columns, matrix.rows, [[_as_share(cell) for cell in row[1:]] for row in matrix.rows])


def _as_share(cell: object) -> float:
    try:
        return min(max(float(str(cell)), 0.0), 1.0)
    except ValueError:
        return 0.0
