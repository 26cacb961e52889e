"""`serving-load.svg`: requests per second and memory of each way to serve, from `project/serving-load.md`.

python docs/_site/load_chart.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from adapter_export.palette import BLUE, ORANGE, STYLE

DOCS = Path(__file__).parents[1]
TABLE, CHART = DOCS / "project" / "serving-load.md", DOCS / "serving-load.svg"

_WIDTH, _ROW, _TOP, _LABELS, _BAR = 920, 44, 92, 210, 250
_COLUMNS = (("requests per second", "speed", _LABELS), ("memory, MB", "memory", _LABELS + _BAR + 110))
_STYLE = f"""{STYLE}
    text {{ font-family: system-ui, sans-serif; font-size: 14px }} .head {{ font-size: 12.5px; font-weight: 600 }}
    .title {{ font-size: 17px; font-weight: 600 }} .speed {{ fill: {ORANGE} }} .memory {{ fill: {BLUE} }}
"""


def chart() -> str:
    """Return the picture."""
    return "\n".join(_lines()) + "\n"


def rows() -> list[dict[str, str]]:
    """Return the rows of the table."""
    lines = re.findall(r"^\|.*\|$", TABLE.read_text("utf-8").partition("<!-- load: end -->")[0], re.MULTILINE)
    names, _, *cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(names, row, strict=True)) for row in cells]


def _lines() -> Iterator[str]:
    measured = rows()
    height = _TOP + _ROW * len(measured) + 8
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="t">'
    yield '  <title id="t">Requests per second and memory of each way to serve</title>'
    yield f"  <style>{_STYLE}  </style>"
    yield _text(24, 34, "16 clients, 8 adapters, one thread", "ink title")
    for name, _, left in _COLUMNS:
        yield _text(left, 68, name, "soft head")
    most = {name: max(_number(row[name]) for row in measured) for name, _, _ in _COLUMNS}
    for at, row in enumerate(measured):
        y = _TOP + _ROW * at
        yield _text(24, y + 16, row[""].replace("`", ""), "ink")
        for name, kind, left in _COLUMNS:
            value = _number(row[name])
            width = max(1.0, _BAR * value / most[name])
            yield f'  <rect class="{kind}" x="{left}" y="{y}" width="{width:.0f}" height="22" rx="2"/>'
            yield _text(left + width + 8, y + 16, f"{value:,.0f}", "ink")
    yield "</svg>"


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'  <text class="{kind}" x="{x:g}" y="{y:g}">{escape(words)}</text>'


def _number(cell: str) -> float:
    return float(cell.partition(" ")[0].replace(",", ""))


if __name__ == "__main__":
    CHART.write_text(chart(), encoding="utf-8")
