"""Colours and figures of the pictures that are drawn by hand: `idea.svg` and `serving.svg`.

    python docs/_site/pictures.py

writes them. The colours are those of `adapter_export.palette`. An element with `data-figure` gets a figure of the full
demo, from `project/demo-log.md`: `score trec`, or `weights trec`.
"""

from __future__ import annotations

import re
from pathlib import Path

from adapter_export.palette import BLUE, GREEN, GREY, ORANGE, STYLE
from adapter_export.tables import size

DOCS = Path(__file__).parents[1]
PICTURES = ("idea.svg", "serving.svg")
LOG = DOCS / "project" / "demo-log.md"

_FULL = "`make demo-full` trains"
_FLOAT = 4
"""Bytes of a parameter."""

_MORE = f"""
.frame {{ fill: #f6f8fa; stroke: #d1d9e0 }} .slot {{ fill: #ffffff; stroke: {GREY} }} .tip {{ fill: {GREY} }}
.empty {{ fill: none; stroke: {GREY}; stroke-dasharray: 3 3 }}
.new {{ fill: none; stroke: {BLUE}; stroke-dasharray: 5 4 }}
.to0 {{ stroke: {ORANGE}; stroke-width: 1.5; fill: none }} .tip0 {{ fill: {ORANGE} }}
.to1 {{ stroke: {GREEN}; stroke-width: 1.5; fill: none; stroke-dasharray: 5 4 }} .tip1 {{ fill: {GREEN} }}
.frame, .frozen, .slot, .new, .k0, .k1, .k2 {{ stroke-width: 1.5 }}
@media (prefers-color-scheme: dark) {{ .frame {{ fill: #151b23; stroke: #3d444d }} .slot {{ fill: #0d1117 }} }}
"""


def figures() -> dict[str, str]:
    """Return the figures of the full demo: the score of each adapter's example, and the size of its weights."""
    log = LOG.read_text("utf-8").partition(_FULL)[2]
    scores = re.findall(r"^(\w+) +\S.*? +\w+ +(0\.\d{3})$", log, re.MULTILINE)
    written = re.findall(r"^wrote demo/full/(\w+): .* ([\d,]+) parameters\.$", log, re.MULTILINE)
    first = dict(reversed(scores))  # the first example of each adapter
    weights = {f"weights {name}": size(_FLOAT * int(count.replace(",", ""))) for name, count in written}
    return weights | {f"score {name}": first[name].removeprefix("0") for name, _ in written}


def drawn(picture: str) -> str:
    """Return a picture with the colours of the palette and the figures of the demo.

    Raises:
        ValueError: the picture has a figure that the log does not have.
    """
    known = figures()

    def figure(match: re.Match[str]) -> str:
        if match[2] not in known:
            raise ValueError(f"{LOG} has no figure {match[2]!r}")
        return f"{match[1]}{known[match[2]]}"

    text = re.sub(r"<style>.*?</style>", lambda _: f"<style>{STYLE}{_MORE}</style>", picture, flags=re.DOTALL)
    return re.sub(r'(data-figure="([^"]+)"[^>]*>)[^<]*', figure, text)


if __name__ == "__main__":
    for name in PICTURES:
        (DOCS / name).write_text(drawn((DOCS / name).read_text("utf-8")), encoding="utf-8")
