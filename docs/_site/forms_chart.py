"""`project/which-form.svg`: which form of the graph to choose, and what each costs, from `benchmarks/RESULTS.md`.

python docs/_site/forms_chart.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

from adapter_export.palette import ORANGE, STYLE

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
CHART = ROOT / "docs" / "project" / "which-form.svg"

_WIDTH, _ROW, _TOP, _HEAD = 1000, 76, 136, 74
_ZERO, _PERCENT, _MORE = 500, 9, 745
"""The x of 0 %, the pixels of 1 % of extra time, and the x of the last column."""

_STYLE = f"""{STYLE}
    text {{ font-family: system-ui, sans-serif; font-size: 15px }} .small, .head {{ font-size: 12.5px }}
    .form {{ font: 600 16px ui-monospace, monospace }} .head {{ font-weight: 600 }}
    .title {{ font-size: 17px; font-weight: 600 }}
    .short {{ fill: {ORANGE} }} .long {{ fill: {ORANGE}; opacity: .45 }}
"""


class Form(NamedTuple):
    """A row of the chart.

    Attributes:
        when: the case in which to choose the form.
        why: what decides.
        name: of the variant, or of the command.
        extra: the extra time of a call over the base's, in percent, at 1 × 16 and 1 × 128 tokens; empty if another
            comparison says more.
        more: what a further adapter, or the comparison, costs.
    """

    when: str
    why: str
    name: str
    extra: tuple[int, ...]
    more: tuple[str, str]


def chart() -> str:
    """Return the picture."""
    return "\n".join(_lines()) + "\n"


def forms() -> list[Form]:
    """Return the rows, with the figures of the last run of `make bench`."""
    costs = _table("Cost of each form of the graph")
    further = _table("A further adapter")
    resident = _table("Memory with many adapters")
    memory = {(row["way"], row["adapters"]): row["for each further one, MB"] for row in resident}
    mixed = {row["32 requests of, for how many adapters"]: row for row in _table("Requests for many adapters")}
    fan_out = _table("One text for 8 adapters")[0]

    def extra(column: str) -> tuple[int, ...]:
        return tuple(round(100 * (_number(costs[at][column]) - 1)) for at in (0, 2))

    loading, session = (round(_number(row["ms"])) for row in (further[0], further[2]))
    loaded = f"{_number(memory['one session, all loaded', '1,000']):.1f} MB and {loading} ms"
    baked = _number(memory["a session for each, adapter as constants", "8"])
    bank = _number(mixed["16 tokens, for 32"]["one run of the bank"])
    fanned = _number(fan_out["`fan_out`"])
    return [
        Form(
            "Each call has one adapter",
            "C, C++, C#, Rust, Python",
            "slots",
            extra("slots, adapter fed"),
            (f"a further adapter: {loaded}", "no new session"),
        ),
        Form(
            "Each call has one adapter",
            "Node, browsers, Java",
            "inputs",
            extra("required inputs"),
            (f"a further adapter: {loaded}", "no new session"),
        ),
        Form(
            "A batch mixes adapters",
            "each row names its own",
            "bank",
            extra("bank, one adapter"),
            (f"32 short requests: {bank:.2f} of the time", "of one by one"),
        ),
        Form(
            "One text goes to many adapters",
            "that act in the upper layers",
            "fanout",
            (),
            (f"8 adapters: {fanned:.2f} of the time", "of eight calls"),
        ),
        Form(
            "There is only one adapter",
            "a device, or a graph for another tool",
            "build --bake",
            extra("adapter as constants"),
            (f"a further adapter: {baked:.0f} MB and {session} ms", "another session"),
        ),
    ]


def _lines() -> Iterator[str]:
    rows = forms()
    height = _TOP + _ROW * len(rows) + 30
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="t">'
    yield '  <title id="t">Which form of the graph to choose, and what it costs</title>'
    yield f"  <style>{_STYLE}  </style>"
    yield _text(24, 34, "Which form of the graph to choose, and what it costs", "ink title")
    yield _text(24, _HEAD, "If …", "soft head") + _text(330, _HEAD, "choose", "soft head")
    yield _text(_ZERO, _HEAD, "extra time of a call", "soft head")
    for x, kind, words in ((_ZERO, "short", "1 × 16 tokens"), (_ZERO + 130, "long", "1 × 128")):
        yield f'  <rect class="{kind}" x="{x}" y="{_HEAD + 12}" width="11" height="11"/>'
        yield _text(x + 18, _HEAD + 22, words, "soft small")
    yield _text(_MORE, _HEAD, "with more adapters", "soft head")
    for at, row in enumerate(rows):
        y = _TOP + _ROW * at
        yield f'  <line class="guide" x1="20" x2="{_WIDTH - 20}" y1="{y - 20}" y2="{y - 20}"/>'
        yield _text(24, y + 14, row.when, "ink") + _text(24, y + 35, row.why, "soft small")
        yield f'  <rect class="frozen" x="330" y="{y - 3}" width="140" height="36" rx="8"/>'
        yield f'  <text class="ink form" x="400" y="{y + 21}" text-anchor="middle">{escape(row.name)}</text>'
        for number, (percent, kind) in enumerate(zip(row.extra, ("short", "long"), strict=False)):
            top = y - 2 + 20 * number
            yield f'  <rect class="{kind}" x="{_ZERO}" y="{top}" width="{max(1, percent) * _PERCENT}" height="16"/>'
            yield _text(_ZERO + max(1, percent) * _PERCENT + 6, top + 13, f"+{percent} %", "soft small")
        if not row.extra:
            yield _text(_ZERO, y + 21, "the lower layers run once per text", "soft small")
        yield _text(_MORE, y + 14, row.more[0], "soft small")
        yield _text(_MORE, y + 33, row.more[1], "soft small")
    setting = "all-MiniLM-L6-v2, Houlsby 64, float32, one thread; benchmarks/RESULTS.md"
    yield _text(24, height - 14, f"Extra time over the base without adapters. {setting}", "soft small")
    yield "</svg>"


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'  <text{named} x="{x:g}" y="{y:g}">{escape(words)}</text>'


def _table(heading: str) -> list[dict[str, str]]:
    """Return the rows of the first table below a heading of the results."""
    part = RESULTS.read_text("utf-8").partition(f"### {heading}\n")[2]
    lines = re.findall(r"^\|.*\|$", part.partition("\n###")[0], re.MULTILINE)
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [dict(zip(head, row, strict=True)) for row in rows]


def _number(cell: str) -> float:
    return float(cell.partition(" ")[0].replace(",", ""))


if __name__ == "__main__":
    CHART.write_text(chart(), encoding="utf-8")
