"""An evaluation as one HTML page that needs no network and no other file."""

from __future__ import annotations

import html
from collections.abc import Iterator

import numpy as np

from adapter_export.practice.evaluate import Calibration, Evaluation, Score
from adapter_export.tables import Table
from adapter_export.version import __version__

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2430; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.facts { color: #626b7f; margin-top: .3rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } caption { text-align: left; color: #626b7f }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e4e7ee; vertical-align: top }
td { max-width: 28rem; overflow-wrap: anywhere }
.passed { color: #0b6e4f; font-weight: 600 } .failed { color: #b3261e; font-weight: 600 }
li.note { color: #7a4f01 } svg text { font: 12px system-ui, sans-serif; fill: #626b7f }
"""
_SIDE, _LEFT, _BASE = 260, 44, 28
"""Of the drawing of the calibration, in pixels: its square, and the margins that hold the scales."""

_BLUE, _GREY = "#2f5fd0", "#c3c9d6"
_MANY_CLASSES = 40
_WIDE = 180


def page(found: Evaluation) -> str:
    """Return the page."""
    title = html.escape(f"{found.adapter} on {found.data}")
    parts = "\n".join(_parts(found))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{parts}\n</body>\n</html>\n"
    )


def _parts(found: Evaluation) -> Iterator[str]:
    facts = (
        f"{found.rows:,} rows (sha256 {found.sha256[:12]}…) answered by {found.bundle}, task {found.task}, "
        f"{found.runtime}, adapter-export {__version__}."
    )
    remarks = " ".join(remark[:1].upper() + remark[1:] for remark in found.remarks())
    yield f'<p class="facts">{html.escape(facts)} {html.escape(remarks)}</p>'
    if found.gates or found.held is not None:
        word = "passed" if found.passed else "failed"
        faults = "".join(f"<li>{html.escape(str(fault))}</li>" for fault in found.faults())
        yield f'<p class="{word}">{word}</p><ul>{faults}</ul>'
    if found.notes:
        yield "<ul>" + "".join(f'<li class="note">{html.escape(note)}</li>' for note in found.notes) + "</ul>"
    yield "<h2>Scores</h2>" + _scores(found)
    for table in list(found.tables())[1:]:
        heading = table.title or ""
        drawn = ""
        if heading == "confusion" and found.confusion is not None:
            drawn = _confusion(found)
        elif heading.startswith("calibration") and found.calibration is not None:
            drawn = _reliability(found.calibration)
        plain = Table(table.columns, table.rows, numbers=table.numbers)._repr_html_()
        shown = drawn or plain if heading == "confusion" else drawn + plain
        yield f'<h2>{html.escape(heading[:1].upper() + heading[1:])}</h2><div class="scroll">{shown}</div>'


def _scores(found: Evaluation) -> str:
    """The scores, each with its interval as a bar on the scale of the metric, where that ends."""
    other = {} if found.versus is None else found.versus.scores
    rows = []
    for metric in found.metrics:
        score = found.scores[metric.name]
        bounded = np.isfinite(metric.least) and np.isfinite(metric.most)
        bar = _bar(score, metric.least, metric.most) if bounded else ""
        cells = [f"<td>{metric.words}</td>", *(_right(one) for one in (score, score.interval)), f"<td>{bar}</td>"]
        rows.append("<tr>" + "".join(cells + ([_right(other[metric.name])] if other else [])) + "</tr>")
    columns = ["metric", "value", "95 % interval", "", *(["reference"] if other else [])]
    head = "".join(f"<th>{column}</th>" for column in columns)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _right(value: object) -> str:
    return f'<td style="text-align:right">{html.escape(str(value))}</td>'


def _bar(score: Score, least: float, most: float) -> str:
    if score.value is None:
        return ""

    def at(value: float) -> float:
        return _WIDE * (value - least) / (most - least)

    low, high = (at(score.value if end is None else end) for end in (score.low, score.high))
    return (
        f'<svg width="{_WIDE}" height="14" role="img" aria-label="{html.escape(str(score))}">'
        f'<rect y="6" width="{_WIDE}" height="2" fill="{_GREY}"/>'
        f'<rect x="{low:.1f}" y="4" width="{max(high - low, 1):.1f}" height="6" fill="{_BLUE}" opacity=".35"/>'
        f'<circle cx="{at(score.value):.1f}" cy="7" r="4" fill="{_BLUE}"/></svg>'
    )


def _confusion(found: Evaluation) -> str:
    """The matrix with the share of each row as the depth of its colour."""
    counts, labels = np.array(found.confusion), [html.escape(one.label) for one in found.classes]
    if len(labels) > _MANY_CLASSES:
        return ""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    head = "".join(f"<th>{label}</th>" for label in labels)
    rows = []
    for label, row, own in zip(labels, counts, shares, strict=True):
        cells = "".join(
            f'<td style="text-align:right;background:rgb(47 95 208 / {share:.3f});'
            f'color:{"#fff" if share > 0.5 else "inherit"}">{count}</td>'
            for count, share in zip(row, own, strict=True)
        )
        rows.append(f'<tr><th style="text-align:left">{label}</th>{cells}</tr>')
    return f"<table><caption>right ↓, answered →</caption><tr><th></th>{head}</tr>{''.join(rows)}</table>"


def _reliability(found: Calibration) -> str:
    """Bars of what is right in each bin, beside the line where probabilities mean what they say."""
    bars = []
    for one in found.bins:
        left, width = _LEFT + one.low * _SIDE, (one.high - one.low) * _SIDE
        height = one.right * _SIDE
        title = f"{one.low:.1f} to {one.high:.1f}: {one.count:,} answers, {one.right:.1%} right"
        bars.append(
            f'<rect x="{left + 1:.1f}" y="{_SIDE - height:.1f}" width="{width - 2:.1f}" height="{height:.1f}"'
            f' fill="{_BLUE}" opacity=".7"><title>{title}</title></rect>'
        )
    scale = "".join(
        f'<text x="{_LEFT + part * _SIDE:.0f}" y="{_SIDE + 16}" text-anchor="middle">{part:g}</text>'
        f'<text x="{_LEFT - 6}" y="{_SIDE - part * _SIDE + 4:.0f}" text-anchor="end">{part:g}</text>'
        for part in (0, 0.5, 1)
    )
    return (
        f'<svg width="{_SIDE + _LEFT + 10}" height="{_SIDE + _BASE}" viewBox="0 -6 {_SIDE + _LEFT + 10}'
        f' {_SIDE + _BASE + 6}" role="img" aria-label="reliability diagram">'
        f'<rect x="{_LEFT}" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="{_GREY}"/>{"".join(bars)}'
        f'<line x1="{_LEFT}" y1="{_SIDE}" x2="{_LEFT + _SIDE}" y2="0" stroke="#1f2430" stroke-dasharray="4 4"/>'
        f"{scale}</svg>"
    )
