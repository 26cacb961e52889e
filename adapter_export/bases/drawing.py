"""Placement map as SVG: the base from top to bottom, a column per adapter, a box at each of its sites."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.etree import ElementTree as ET

from adapter_export.graph.adapter import HEAD, Adapter
from adapter_export.graph.graph import SITE_VALUES, cost
from adapter_export.palette import STYLE
from adapter_export.sites.site import SiteName
from adapter_export.tables import number_of, size

_BASE_WIDTHS = {symbol for shape in SITE_VALUES.values() for symbol in shape}


@dataclass(frozen=True)
class SiteRow:
    """A site or `head`, with its layer (empty outside layers) and its name in it.

    A sublayer adds to the residual stream; a linear layer inside one does not.
    """

    name: str
    layer: str
    place: str
    is_sublayer: bool


@dataclass(frozen=True)
class Cell:
    """One adapter at one place: its widths or number of classes, in a short and a long text."""

    text: str
    detail: str


@dataclass(frozen=True)
class Column:
    """One adapter."""

    name: str
    kind: str
    parameters: int
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Block:
    """Rows of a layer, or of several equal layers; `more` is the note on equal layers for a cell's details."""

    label: str
    rows: tuple[SiteRow, ...]
    more: str = ""


@dataclass(frozen=True)
class PlacementMap:
    """Places in the order of the base, and the adapters."""

    title: str
    rows: tuple[SiteRow, ...]
    columns: tuple[Column, ...]

    def blocks(self) -> Iterator[Block]:
        """Yield the layers from the bottom up; three or more consecutive layers with equal adapters form one block."""
        layers = [tuple(rows) for _, rows in groupby(self.rows, key=lambda row: row.layer)]
        for _, alike in groupby(layers, key=self._signature):
            run = tuple(alike)
            if len(run) >= _FOLDED and run[0][0].layer:
                yield Block(
                    f"{_layer_name(run[0][0], 's')}–{_number(run[-1][0])}",
                    run[0],
                    f"; the same in {number_of(len(run), 'layer')}",
                )
            else:
                yield from (Block(_layer_name(rows[0]), rows) for rows in run)

    def _signature(self, rows: Sequence[SiteRow]) -> object:
        """Return a value that is equal for layers that are drawn the same."""
        cells = [[cell and cell.text for cell in (one.cells.get(row.name) for one in self.columns)] for row in rows]
        return rows[0].layer.removesuffix(_number(rows[0])), [(row.place, row.is_sublayer) for row in rows], cells


def placement_map(
    title: str, sites: Iterable[str], adapters: Sequence[tuple[str, Adapter]], always: Iterable[str]
) -> PlacementMap:
    """Arrange adapters, with their names, over the sites; sites in `always` get a row even without adapters."""
    wanted = {*always, *(site for _, adapter in adapters for site in adapter.placements)}
    names = [site for site in sites if site in wanted]
    names += [HEAD] * any(adapter.head is not None for _, adapter in adapters)
    return PlacementMap(title, tuple(map(_row, names)), tuple(_column(*pair) for pair in adapters))


def _row(name: str) -> SiteRow:
    parts = SiteName.parse(name)
    return SiteRow(name, parts.block, parts.part, parts.layer is None or "." not in parts.part)


def _column(name: str, adapter: Adapter) -> Column:
    cells = {}
    for owner, graph, widths in adapter.components():
        own_widths = {symbol: width for symbol, width in widths.items() if symbol not in _BASE_WIDTHS}
        ops = " → ".join(node.op for node in graph.nodes)
        listed = [", ".join(f"{symbol} {width}" for symbol, width in own_widths.items())] if own_widths else []
        count = number_of(cost(graph, widths).parameters, "parameter")
        detail = "; ".join([f"{name} at {owner}: {ops}", *listed, count])
        cells[owner] = Cell("·".join(map(str, own_widths.values())), detail)
    return Column(name, adapter.kind, adapter.cost().parameters, cells)


_FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
_COLOURS = 6
_MARGIN, _TITLE = 20, 34
_ROW, _BOX, _GAP = 22, 18, 10
_CHARACTER = 6.6
"""Approximate width of a letter at 12 px."""
_WIDE, _NARROW, _FEW = 112, 46, 6
"""Column widths for few and for many columns."""
_INDENT = 16
_FOLDED = 3
"""Minimum number of layers at which equal layers are drawn once."""


def draw(what: PlacementMap) -> str:
    """Return the drawing as SVG text; tooltips describe the adapter in each box."""
    return ET.tostring(_Drawing(what).svg(), encoding="unicode", xml_declaration=False) + "\n"


class _Drawing:
    """Measures, then draws from the top down."""

    def __init__(self, what: PlacementMap) -> None:
        self._what = what
        kinds = dict.fromkeys(column.kind for column in what.columns)
        self._colours = {kind: f"k{number % _COLOURS}" for number, kind in enumerate(kinds)}
        longest = max((_width(column.name) for column in what.columns), default=0)
        self._is_wide = len(what.columns) <= _FEW and longest <= _WIDE
        cells = max((_width(cell.text) for column in what.columns for cell in column.cells.values()), default=0)
        self._column = max(_WIDE if self._is_wide else _NARROW, cells + 16)
        layers = max((_width(block.label) for block in what.blocks()), default=0)
        self._stream = _MARGIN + layers + 14
        self._box = self._stream + 16
        self._box_width = max((_width(row.place) + _indent(row) for row in what.rows), default=0) + 20
        self._first = self._box + self._box_width + 28
        self._top = _MARGIN + _TITLE + (44 if self._is_wide else longest + 16)
        self._width = max(
            self._first + len(what.columns) * self._column + _MARGIN, _MARGIN * 2 + _width(what.title) * 1.4
        )

    def svg(self) -> ET.Element:
        what = self._what
        root = ET.Element(
            "svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "font-family": _FONT, "font-size": "12"}
        )
        acts = (
            f"{column.name} ({column.kind}) acts at {number_of(len(column.cells), 'place')}" for column in what.columns
        )
        ET.SubElement(root, "title").text = what.title
        ET.SubElement(root, "desc").text = "; ".join(acts) or "no adapters"
        ET.SubElement(root, "style").text = STYLE
        _text(root, _MARGIN, _MARGIN + 14, what.title, "ink", size=16, weight="600")
        for index, column in enumerate(what.columns):
            x, y = self._middle(index), self._top - 12
            if self._is_wide:
                _text(root, x, y - 16, column.name, "ink", anchor="middle", weight="600")
                _text(root, x, y, column.kind, "soft", anchor="middle", size=11)
            else:
                _text(root, x + 4, y, column.name, "ink", rotated=True)
        end = self._rows(root, self._top)
        end = self._legend(root, self._totals(root, end)) if what.columns else end + _MARGIN
        root.set("viewBox", f"0 0 {self._width:.0f} {end:.0f}")
        root.set("width", f"{self._width:.0f}")
        root.set("height", f"{end:.0f}")
        return root

    def _middle(self, index: int) -> float:
        return self._first + (index + 0.5) * self._column

    def _rows(self, root: ET.Element, y: float) -> float:
        stream = _path(root, "line", "")
        start = y
        for index, block in enumerate(self._what.blocks()):
            y += _GAP if index else 0
            if block.label:
                _text(root, self._stream - 14, y + 15, block.label, "soft", anchor="end")
            for row in block.rows:
                self._row(root, row, y + _ROW / 2, block.more)
                y += _ROW
        stream.set("d", f"M{self._stream:.1f} {start - 6:.1f} V{y + 4:.1f}")
        return y

    def _row(self, root: ET.Element, row: SiteRow, middle: float, more: str) -> None:
        left = self._box + _indent(row)
        acting = [index for index, column in enumerate(self._what.columns) if row.name in column.cells]
        if acting:
            right = self._box + self._box_width
            _path(root, "guide", f"M{right:.1f} {middle:.1f} H{self._middle(acting[-1]):.1f}")
        if row.is_sublayer:
            _path(root, "line", f"M{self._stream:.1f} {middle:.1f} H{left:.1f}")
        _rect(root, left, middle, self._box_width - _indent(row), "frozen" if row.name != HEAD else "guide")
        _text(root, left + 8, middle + 4, row.place, "ink" if row.is_sublayer else "soft")
        for index in acting:
            column = self._what.columns[index]
            cell = column.cells[row.name]
            width = min(self._column - 10, max(30, _width(cell.text) + 12))
            group = ET.SubElement(root, "g")
            ET.SubElement(group, "title").text = cell.detail + more
            _rect(group, self._middle(index) - width / 2, middle, width, self._colours[column.kind])
            _text(group, self._middle(index), middle + 4, cell.text, "ink", anchor="middle", size=11)

    def _totals(self, root: ET.Element, y: float) -> float:
        y += _GAP + 14
        _text(root, self._first - 28, y, "in float32", "soft", anchor="end", size=11)
        for index, column in enumerate(self._what.columns):
            total, letters = size(column.parameters * 4), 11 if self._is_wide else 9.5
            _text(root, self._middle(index), y, total, "soft", anchor="middle", size=letters)
        return y + _MARGIN

    def _legend(self, root: ET.Element, y: float) -> float:
        """Draw the colour of each kind, and explain the numbers."""
        x: float = _MARGIN
        for kind, colour in self._colours.items():
            if x + 34 + _width(kind) > self._width - _MARGIN and x > _MARGIN:
                x, y = _MARGIN, y + _ROW
            _rect(root, x, y + 4, 16, colour, height=12)
            _text(root, x + 22, y + 8, kind, "soft")
            x += 40 + _width(kind)
        _text(root, _MARGIN, y + 30, "numbers: widths of the adapter; at the head, classes", "soft", size=11)
        return y + 30 + _MARGIN


def _layer_name(row: SiteRow, plural: str = "") -> str:
    """Return `layer 3` for `layers.3`, `decoder layer 3` for `decoder.layers.3`."""
    before, _, number = row.layer.rpartition("layers.")
    return f"{before.replace('.', ' ')}layer{plural} {number}" if number else row.layer


def _number(row: SiteRow) -> str:
    """Return `3` for `decoder.layers.3`, and an empty string outside layers."""
    return row.layer.rpartition("layers.")[2] if "layers." in row.layer else ""


def _indent(row: SiteRow) -> int:
    return 0 if row.is_sublayer else _INDENT


def _width(text: str) -> float:
    return len(text) * _CHARACTER


def _text(
    parent: ET.Element,
    x: float,
    y: float,
    text: str,
    style: str,
    *,
    anchor: str = "start",
    size: float = 12,
    weight: str = "400",
    rotated: bool = False,
) -> None:
    element = ET.SubElement(parent, "text", {"class": style, "x": f"{x:.1f}", "y": f"{y:.1f}"})
    element.text = text
    usual = {"text-anchor": "start", "font-size": "12", "font-weight": "400"}
    for name, value in zip(usual, (anchor, f"{size:g}", weight), strict=True):
        if value != usual[name]:
            element.set(name, value)
    if rotated:
        element.set("transform", f"rotate(-90 {x:.1f} {y:.1f})")


def _rect(parent: ET.Element, x: float, middle: float, width: float, style: str, height: float = _BOX) -> None:
    lengths = {"x": x, "y": middle - height / 2, "width": width}
    place = {name: f"{length:.1f}" for name, length in lengths.items()}
    ET.SubElement(parent, "rect", {"class": style, **place, "height": f"{height:g}", "rx": "4"})


def _path(parent: ET.Element, style: str, path: str) -> ET.Element:
    return ET.SubElement(parent, "path", {"class": style, "d": path})
