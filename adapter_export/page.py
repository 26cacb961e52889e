"""HTML reports: self-contained pages without scripts, for screen and print."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from adapter_export.tables import Table, one_line

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2430; --soft: #5b6478; --line: #dfe3ea; --paper: #fff; --grey: #c3c9d6;
  --blue: #2f5fd0; --good: #0b6e4f; --bad: #b3261e; --note: #7a4f01 }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ec; --soft: #9ba5b8; --line: #343b4a; --paper: #14171e;
  --grey: #454d5e; --blue: #7fa3ff; --good: #58c79d; --bad: #ff8a80; --note: #e2b65c } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.verdict { font-size: 1.6rem; margin: .4rem 0 0 }
.facts { color: var(--soft); margin-top: .3rem }
.scroll { overflow-x: auto } details { color: var(--soft) } summary { cursor: pointer }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--soft) }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; text-align: left }
td { max-width: 40rem; overflow-wrap: break-word } td code { overflow-wrap: anywhere }
.right { text-align: right; white-space: nowrap }
.passed { color: var(--good); font-weight: 600 } .failed { color: var(--bad); font-weight: 600 }
.note { color: var(--note) } .partial { color: var(--note); font-weight: 600 }
code { font-size: .95em }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft) } svg .blue { fill: var(--blue) }
svg .grey { fill: var(--grey) } svg .frame { fill: none; stroke: var(--grey) } svg .ink { stroke: var(--ink) }
svg .mark { fill: var(--ink) }
@page { size: A4; margin: 12mm }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --grey: #bbb;
    --blue: #2f5fd0; --good: #0b6e4f; --bad: #b3261e; --note: #7a4f01 }
  body { max-width: none; margin: 0; padding: 0; font-size: 8pt; line-height: 1.3 } .scroll { overflow: visible }
  h1 { font-size: 13pt } h2 { font-size: 10pt; margin: 3mm 0 1mm; break-after: avoid } p, ul { margin: 1mm 0 }
  th, td { padding: .3mm 1.5mm } td { max-width: 110mm } tr, svg { break-inside: avoid }
  * { print-color-adjust: exact } }
"""
_NOTHING_LOADED = "default-src 'none'; style-src 'unsafe-inline'"
"""Content security policy under which a browser loads and executes nothing, even if a page quotes markup."""

_WIDE, _DARK = 180, 0.8
_VERDICTS = {"passed": ("passed",), "pass": ("passed",), "failed": ("failed",), "FAIL": ("failed",)}
_QUOTED = re.compile("`([^`]+)`")


class Markup(str):
    """Raw HTML; any other text is escaped."""


def document(title: str, parts: Iterable[str]) -> str:
    """Render a page from a title, which is escaped, and parts, which are HTML."""
    words, body = escaped(title), "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_NOTHING_LOADED}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{words}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{words}</h1>\n{body}\n</body>\n</html>\n"
    )


def escaped(value: object) -> Markup:
    """Escape a value for HTML, with invisible characters spelled out; `Markup` is returned unchanged."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(one_line(value)))


def prose(value: object) -> Markup:
    """Render a sentence of this package as HTML, with backticks as code."""
    return Markup(_QUOTED.sub(r"<code>\1</code>", escaped(value)))


def element(tag: str, content: object, style: str = "") -> Markup:
    """Render an element with a class of the style sheet, such as `facts`, `note`, `passed`, `partial` or `failed`."""
    named = f' class="{style}"' if style else ""
    return Markup(f"<{tag}{named}>{escaped(content)}</{tag}>")


def fold(title: str, content: object) -> Markup:
    """Render details that a reader opens with a click; print shows the title only."""
    return Markup(f"<details><summary>{escaped(title)}</summary>{element('p', content, 'facts')}</details>")


def head(title: str) -> Markup:
    """Render the heading of a section."""
    return element("h2", prose(title[:1].upper() + title[1:]))


def items(values: Iterable[object], style: str = "") -> Markup:
    """Render a list of sentences; empty without values."""
    entries = "".join(element("li", prose(value), style) for value in values)
    return Markup(f"<ul>{entries}</ul>" if entries else "")


def table(shown: Table) -> Markup:
    """Render a table that scrolls on narrow pages, with its title as the heading of a section."""
    right = [shown.numbers[at : at + 1] == "r" for at in range(len(shown.columns))]

    def line(tag: str, cells: Sequence[object]) -> str:
        styles = (
            " ".join([*(["right"] if side else []), *(_VERDICTS.get(str(cell), ()) if tag == "td" else ())])
            for cell, side in zip(cells, right, strict=True)
        )
        elements = (element(tag, cell, style) for cell, style in zip(cells, styles, strict=True))
        return f"<tr>{''.join(elements)}</tr>"

    rows = "".join(line("td", row) for row in shown.rows)
    heading = "" if shown.title is None else head(shown.title)
    columns = f"<thead>{line('th', shown.columns)}</thead>"
    return Markup(f'{heading}<div class="scroll"><table>{columns}<tbody>{rows}</tbody></table></div>')


def heat(columns: Sequence[str], rows: Sequence[Sequence[object]], shares: Sequence[Sequence[float]]) -> Markup:
    """Render a heat map: a table whose first column names the rows and whose other cells are coloured by share, 0 to 1.

    `columns` includes a heading for the names.
    """
    names = "".join(element("th", column, "right" if at else "") for at, column in enumerate(columns))
    lines = []
    for (name, *cells), row_shares in zip(rows, shares, strict=True):
        cells_of_row = "".join(
            f'<td class="right" style="background:rgb(47 95 208 / {share:.3f})'
            f'{";color:#fff" if share > _DARK else ""}">{escaped(cell)}</td>'
            for cell, share in zip(cells, row_shares, strict=True)
        )
        lines.append(f"<tr>{element('th', name)}{cells_of_row}</tr>")
    table = f"<table><thead><tr>{names}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return Markup(f'<div class="scroll">{table}</div>')


def interval(value: float, low: float, high: float, least: float, most: float, words: object) -> Markup:
    """Draw a number in its interval on a scale from `least` to `most`; `words` is the text alternative."""

    def at(number: float) -> float:
        return _WIDE * (min(max(number, least), most) - least) / ((most - least) or 1)

    start, length = at(low), max(at(high) - at(low), 1)
    return Markup(
        f'<svg width="{_WIDE}" height="14" role="img" aria-label="{escaped(words)}">'
        f'<rect y="6" width="{_WIDE}" height="2" class="grey"/>'
        f'<rect x="{start:.1f}" y="4" width="{length:.1f}" height="6" class="blue" opacity=".45"/>'
        f'<rect x="{start - 1:.1f}" y="2" width="2" height="10" class="blue"/>'
        f'<rect x="{start + length - 1:.1f}" y="2" width="2" height="10" class="blue"/>'
        f'<rect x="{at(value) - 1:.1f}" y="4" width="2" height="6" class="mark"/></svg>'
    )
