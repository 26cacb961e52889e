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
from adapter_export.tables import Table
from adapter_export.version import __version__

_SIDE, _LEFT, _BASE = 260, 58, 44
"""Pixels of the calibration diagram: its square, and the margins for the scales."""

_MANY_CLASSES = 40


def page(found: Evaluation) -> str:
    """Return the page."""
    return document(f"{found.adapter} on {found.data}", _parts(found))


def _parts(found: Evaluation) -> Iterator[str]:
    facts = (
        f"{found.rows:,} rows (sha256 {found.sha256[:12]}…) answered by {found.bundle}, task {found.task}, "
        f"{found.runtime}, adapter-export {__version__}."
    )
    remarks = " ".join(remark[:1].upper() + remark[1:] for remark in found.remarks())
    yield element("p", f"{facts} {remarks}", "facts")
    if found.gates or found.training_record is not None:
        word = "passed" if found.passed else "failed"
        yield element("p", word, word) + items(found.faults())
    yield items(found.notes, "note")
    yield table(_scores(found))
    for each in list(found.tables())[1:]:
        heading = head(str(each.title))
        if each.title == "confusion" and len(found.classes) <= _MANY_CLASSES:
            yield heading + _confusion(found)
        elif str(each.title).startswith("calibration") and found.calibration is not None:
            yield heading + _reliability(found.calibration) + table(replace(each, title=None))
        else:
            yield table(each)


def _scores(found: Evaluation) -> Table:
    """Return the scores, each with its interval as a bar on the scale of the metric, if that has two ends."""
    bars = [bar(found.scores[metric.name], metric.least, metric.most) for metric in found.metrics]
    return _with_bars(replace(found.table(), title="scores"), bars)


def _with_bars(found: Table, bars: Sequence[Markup], heading: str = "", at: int = 3) -> Table:
    """Return a table with a further column of drawings."""
    columns, numbers = [*found.columns], found.numbers.ljust(len(found.columns), "l")
    columns.insert(at, heading)
    rows = [(*row[:at], drawn, *row[at:]) for row, drawn in zip(found.rows, bars, strict=True)]
    return Table(columns, rows, found.title, numbers[:at] + "l" + numbers[at:])


def bar(score: Score, least: float, most: float) -> Markup:
    """Return a drawing of a score in its interval; empty without a value or with an unbounded scale."""
    if score.value is None or not np.isfinite([least, most]).all():
        return Markup()
    low, high = (score.value if end is None else end for end in (score.low, score.high))
    return interval(score.value, low, high, least, most, score)


def _confusion(found: Evaluation) -> Markup:
    """Return the matrix, coloured by the share within each row."""
    counts, labels = np.array(found.confusion), [one.label for one in found.classes]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    rows = [(label, *row) for label, row in zip(labels, counts.tolist(), strict=True)]
    return heat(("right ↓, answered →", *labels), rows, shares.tolist())


def _reliability(found: Calibration) -> Markup:
    """Draw the share of right answers in each bin beside the line of perfect calibration."""
    bars = []
    for one in found.bins:
        left, width = _LEFT + one.low * _SIDE, (one.high - one.low) * _SIDE
        height = one.right * _SIDE
        title = f"{one.low:.1f} to {one.high:.1f}: {one.count:,} answers, {one.right:.1%} right"
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


def comparison_page(found: Comparison) -> str:
    """Return a page of a comparison."""
    names = [one.name for one in found.contestants]
    title = " and ".join(names) if len(names) == 2 else f"{len(names):,} contestants"
    return document(f"{title} on {found.setting.data}", _comparison_parts(found))


def _comparison_parts(found: Comparison) -> Iterator[str]:
    setting = found.setting
    facts = (
        f"{found.rows:,} rows of {setting.data} (sha256 {setting.sha256[:12]}…), task {setting.task}, {found.runtime}, "
        f"adapter-export {__version__}."
    )
    yield element("p", facts, "facts")
    yield items(remark[:1].upper() + remark[1:] for remark in found.remarks())
    yield items(found.notes, "note")
    for metric in found.metrics:
        yield table(_side_by_side(found, metric))
    yield table(found.sizes())
    if found.contestants[0].latency is not None:
        yield table(_drawn_times(found))
    yield table(found.tests(found.metrics))
    yield head(str(found.agreement().title)) + _warm(found.agreement())
    for fusion in found.fusions:
        for each in fusion.tables():
            yield head(str(each.title)) + _warm(each)
    if found.differing:
        yield table(found.differing_table())


def _side_by_side(found: Comparison, metric: Metric) -> Table:
    """Return the scores, each with its interval as a bar; the bars share a scale as wide as all intervals."""
    scores = [one.scores[metric.name] for one in found.contestants]
    ends = [end for score in scores for end in (score.value, score.low, score.high) if end is not None]
    low, high = min(ends, default=0.0), max(ends, default=0.0)
    rows = [(one.name, score, score.interval) for one, score in zip(found.contestants, scores, strict=True)]
    plain = Table(("contestant", "value", "95 % interval"), rows, metric.words, "lrr")
    return _with_bars(plain, [bar(score, low, high) for score in scores], f"{low:.4f} to {high:.4f}")


def _drawn_times(found: Comparison) -> Table:
    """Return the latencies, each with its quartiles as a bar."""
    times = [one.latency for one in found.contestants if one.latency is not None]
    most = max(time.high for time in times)
    bars = [
        interval(time.milliseconds, time.low, time.high, 0.0, most, f"{time.milliseconds:.3g} ms") for time in times
    ]
    return _with_bars(found.latencies(), bars)


def _warm(found: Table) -> Markup:
    """Return a table of shares on a colour scale; other cells have no colour."""
    return heat(found.columns, found.rows, [[_as_share(cell) for cell in row[1:]] for row in found.rows])


def _as_share(cell: object) -> float:
    try:
        return min(max(float(str(cell)), 0.0), 1.0)
    except ValueError:
        return 0.0
