"""Colours of drawings and charts, for light and dark pages."""

from __future__ import annotations

BLUE, ORANGE, GREEN, GREY = "#54aeff", "#fb8f44", "#4ac26b", "#818b98"
"""Strokes of the base, and of a first and a second adapter, and everything else; readable on light and dark."""

STYLE = """
.ink { fill: #1f2328 } .soft { fill: #59636e } .line { stroke: #818b98; stroke-width: 1.5; fill: none }
.guide { stroke: #d1d9e0; stroke-width: 1; fill: none } .frozen { fill: #ddf4ff; stroke: #54aeff }
.k0 { fill: #fff1e5; stroke: #fb8f44 } .k1 { fill: #dafbe1; stroke: #4ac26b } .k2 { fill: #fbefff; stroke: #c297ff }
.k3 { fill: #fff8c5; stroke: #d4a72c } .k4 { fill: #ffebe9; stroke: #ff8182 } .k5 { fill: #d8f6f6; stroke: #3fb8b8 }
@media (prefers-color-scheme: dark) {
.ink { fill: #f0f6fc } .soft { fill: #9198a1 } .line { stroke: #7d8590 } .guide { stroke: #3d444d }
.frozen { fill: #0c2d6b; stroke: #388bfd }
.k0 { fill: #3d1e00; stroke: #db6d28 } .k1 { fill: #04260f; stroke: #2ea043 } .k2 { fill: #271052; stroke: #8957e5 }
.k3 { fill: #341a00; stroke: #bb8009 } .k4 { fill: #490202; stroke: #f85149 } .k5 { fill: #042c2c; stroke: #1b9e9e }
}
"""
"""Classes of SVG: text, lines, the base, and adapters by number."""
