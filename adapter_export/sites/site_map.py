"""Sites that a person gives, beside or instead of those that are found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from adapter_export.errors import NoSitesError, UsageError
from adapter_export.sites.discover import (
    block_output,
    discover,
    embeddings_site,
    follower_of,
    path_of,
    stream_values,
    with_calls,
)
from adapter_export.sites.index import FlowIndex, is_stream
from adapter_export.sites.linear import is_sequence_first, linear_sites
from adapter_export.sites.site import SUBLAYERS, Norm, Role, Site, SiteMap
from adapter_export.sites.view import FlowGraph, FlowNode

View = Literal["torch", "onnx"]
"""The graph in which values are named: FX nodes of a torch base, or values of an ONNX graph."""


SITE_MAP_KEY = "site_map"
"""Where the settings in a training record say which site map an adapter was trained with: its digest."""


@dataclass(frozen=True)
class SiteValues:
    """The names of a site's values in one view, as in `Site`.

    A sublayer has `h`, `x` and `u`; its `y` is found where it is not given. A linear layer has `h` and `u`, the
    embeddings have `h`.
    """

    h: str
    x: str | None = None
    u: str | None = None
    y: str | None = None


@dataclass(frozen=True)
class GivenSite:
    """A site as a person gives it: what it is, and its values in each view."""

    role: Role
    layer: int | None
    values: Mapping[View, SiteValues]
    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    blocks: int = 1


@dataclass(frozen=True)
class GivenSites:
    """A site map.

    Attributes:
        source: where it is from, for messages.
        digest: of its contents, `sha256:<hex>`.
        sites: the sites by name; none leaves out a site that was found.
        final: the final hidden state in each view; where it is missing, the one that was found.
    """

    source: str
    digest: str
    sites: Mapping[str, GivenSite | None]
    final: Mapping[View, str]


def sites_of(flow: FlowGraph, view: View, given: GivenSites | None = None) -> SiteMap:
    """The sites of a base: those that are found, overridden and completed by those that are given.

    The linear layers inside a sublayer that is given are found inside it; one that is left out takes them along. Where
    nothing is found, those that are given are all; `final` must then be among them.

    Raises:
        NoSitesError: nothing is found, and a site map does not say it all.
        UsageError: the site map does not fit the graph.
    """
    if given is None:
        return discover(flow)
    found = _found(flow, given.final.get(view))
    streams = tuple(dict.fromkeys(site.x for site in found.sublayers if site.x is not None))
    check = _Check(given.source, view, FlowIndex(flow), streams)
    chosen = {site.name: site for site in found.sites}
    for name in given.sites:
        if given.sites[name] is None and name not in chosen:
            raise check.unfit(name, "nothing was found there", f"one of {', '.join(found_names(found))}")
    named = {name: check.site(name, site) for name, site in given.sites.items() if site is not None}
    replaced = tuple(f"{name}." for name in given.sites)
    chosen = {name: site for name, site in chosen.items() if name not in given.sites and not name.startswith(replaced)}
    ends = stream_values(site for site in (*chosen.values(), *named.values()) if site.role in SUBLAYERS)
    known = {site.h for site in (*chosen.values(), *named.values()) if site.role == "linear"}
    for site in named.values():
        inside = linear_sites(check.index, site, ends - {site.h}) if site.role in SUBLAYERS else ()
        chosen |= {inner.name: inner for inner in inside if inner.h not in known}
    chosen |= named
    check.final(found.final)
    check.differ(chosen.values())
    if all(site.role not in SUBLAYERS for site in chosen.values()):
        raise check.unfit("sites", "every site is left out", "at least one site")
    ordered = sorted(chosen.values(), key=lambda site: (check.index.position(site.h), site.role in SUBLAYERS))
    return SiteMap(tuple(with_calls(check.index, ordered)), found.final, flow.width(found.final) or 0)


def found_names(sites: SiteMap) -> list[str]:
    """The names of the sublayers, or a word for none."""
    return [site.name for site in sites.sublayers] or ["no site"]


def _found(flow: FlowGraph, final: str | None) -> SiteMap:
    try:
        found = discover(flow)
    except NoSitesError:
        if final is None:
            raise
        return SiteMap((), final, 0)
    return found if final is None else SiteMap(found.sites, final, found.width)


@dataclass(frozen=True)
class _Check:
    """Holds what is given against a graph."""

    source: str
    view: View
    index: FlowIndex
    streams: tuple[str, ...]

    def unfit(self, place: str, found: object, expected: str) -> UsageError:
        return UsageError(
            "the site map does not fit the base",
            where=f"{self.source}, `{place}`, view `{self.view}`",
            found=found,
            expected=expected,
            fix="see the names with `adapter-export sites MODEL --json`",
        )

    def site(self, name: str, given: GivenSite) -> Site:
        """The site as this graph has it."""
        values = given.values.get(self.view)
        if values is None:
            raise self.unfit(name, "no values in this view", f"`{self.view}` with `h` and `x`")
        for key in ("h", "x", "u", "y"):
            if getattr(values, key) is not None:
                self._stream(f"{name}.{key}", getattr(values, key))
        start = values.u if given.role == "linear" else values.x
        if start is None:
            return self._embeddings(name, given, values)
        self._computed(name, given.role, values)
        nodes = [self.index.nodes[at] for at in self.index.between(start, values.h)]
        site = Site(
            name=name,
            role=given.role,
            layer=given.layer,
            width=self._width(values.h),
            width_in=self._width(values.u or values.h),
            h=values.h,
            x=None,
            u=values.u,
            y=None,
            norm=None,
            residual=None,
            path=path_of(nodes),
            followed_by="",
            parts=given.parts,
            sequence_first=given.role == "linear" and is_sequence_first(self.index, start, self.streams),
            blocks=given.blocks,
        )
        self._parts(site)
        return site if given.role == "linear" else self._sublayer(site, values)

    def _sublayer(self, site: Site, values: SiteValues) -> Site:
        """The site with what a sublayer has more than a linear layer."""
        add = self._reader(site.name, values.h)
        y, norm = block_output(self.index, add.outputs[0], ends=values.u != values.x)
        if values.y not in (None, y):
            y, norm = values.y, None if values.y == add.outputs[0] else Norm("unknown", 0.0, None, None)
        follower = follower_of(self.index, add.outputs[0])
        return replace(site, x=values.x, y=y, norm=norm, residual=add.name, followed_by=follower)

    def _embeddings(self, name: str, given: GivenSite, values: SiteValues) -> Site:
        if given.role != "embeddings":
            raise self.unfit(name, "`h` alone", "`u`, what it reads, as well")
        return embeddings_site(self.index, name, values.h)

    def _parts(self, site: Site) -> None:
        """The parts of a fused layer are slices of its output that have nothing in common."""
        if site.parts and site.width % site.blocks:
            raise self.unfit(f"{site.name}.blocks", site.blocks, f"a number that divides {site.width}")
        before = 0
        for name, (start, end) in sorted(site.parts.items(), key=lambda part: part[1]):
            if not before <= start < end <= site.width // site.blocks:
                expected = f"slices of 0–{site.width // site.blocks}, none within another"
                raise self.unfit(f"{site.name}.parts.{name}", f"{start}–{end}", expected)
            before = end

    def _width(self, value: str) -> int:
        width = self.index.flow.width(value)
        assert width is not None  # a stream has a known width
        return width

    def final(self, value: str) -> None:
        """The final hidden state must be [batch, tokens, d]."""
        self._stream("final", value)
        if self.index.flow.rank(value) != 3:
            raise self.unfit("final", self._shape(value), "the shape [batch, tokens, width]")

    def differ(self, sites: Iterable[Site]) -> None:
        """Two sites may not be one value: the second adapter would act on what the first one made.

        A sublayer's output may be that of its last linear layer.
        """
        taken: dict[tuple[str, bool], str] = {}
        for site in sites:
            key = site.h, site.role == "linear"
            if key in taken:
                raise self.unfit(f"{site.name}.h", f"`{site.h}`, which `{taken[key]}` has", "a value of its own")
            taken[key] = site.name

    def _stream(self, place: str, value: str) -> None:
        flow = self.index.flow
        known = {name for node in self.index.nodes for name in (*node.inputs, *node.outputs)}
        if value not in known:
            raise self.unfit(place, f"`{value}`, which is not in the graph", "a value on the way to a result")
        if not is_stream(flow, value):
            raise self.unfit(place, self._shape(value), "[batch, tokens, width] or [tokens, width], the width a number")

    def _computed(self, name: str, role: Role, values: SiteValues) -> None:
        depends, alike = self.index.ancestry.depends, self.index.flow.alike
        pairs = [("h", "u")] if role == "linear" else [("h", "x"), ("h", "u"), ("u", "x")]
        for late, early in [*pairs, ("y", "h")] if values.y is not None else pairs:
            one, other = getattr(values, late), getattr(values, early)
            if not depends(one, on=other) or (late in ("h", "y") and one == other):
                raise self.unfit(f"{name}.{late}", f"`{one}`", f"a value that is computed from `{early}`, `{other}`")
            if role != "linear" and not alike(one, other):
                raise self.unfit(f"{name}.{late}", self._shape(one), f"the shape of `{early}`, {self._shape(other)}")

    def _reader(self, name: str, h: str) -> FlowNode:
        if self.index.producer(h) is None or not self.index.readers(h):
            raise self.unfit(f"{name}.h", f"`{h}`, an input or a last result", "a value that is computed and read")
        return self.index.readers(h)[0]

    def _shape(self, value: str) -> str:
        shape = self.index.flow.shapes.get(value)
        return f"`{value}` of unknown shape" if shape is None else f"`{value}` of shape {list(shape)}"
