"""Site maps: user-defined sites that complete or override detected ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from adapter_export.errors import NoSitesError, UsageError
from adapter_export.sites.coverage import coverage_of
from adapter_export.sites.discover import (
    block_output,
    discover,
    embeddings_site,
    follower_of,
    path_of,
    stream_values,
    with_calls,
)
from adapter_export.sites.linear_layers import is_sequence_first, linear_sites, outside_sites
from adapter_export.sites.lookups import lookup_sites
from adapter_export.sites.site import SUBLAYERS, Norm, Role, Site, SiteMap
from adapter_export.sites.streams import source_of, whole_sum
from adapter_export.sites.view import FlowGraph, FlowIndex, is_stream
from adapter_export.words import argument, command

View = Literal["torch", "onnx"]
"""Graph of value names: FX nodes of a torch base, or values of an ONNX graph."""

SITE_MAP_KEY = "site_map"
"""Key of the site map's digest in the settings of a training record."""


@dataclass(frozen=True)
class SiteValues:
    """Names of a site's values in one view, as in `Site`; a sublayer's `y` defaults to the detected one."""

    h: str
    x: str | None = None
    u: str | None = None
    y: str | None = None


@dataclass(frozen=True)
class GivenSite:
    """A user-defined site: its role, and its values in each view."""

    role: Role
    layer: int | None
    values: Mapping[View, SiteValues]
    parts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    blocks: int = 1


@dataclass(frozen=True)
class GivenSites:
    """A site map; `None` removes a detected site, and `final` overrides the final hidden state.

    `source` names it in messages; `digest` is `sha256:<hex>` of the contents.
    """

    source: str
    digest: str
    sites: Mapping[str, GivenSite | None]
    final: Mapping[View, str]


def sites_of(flow: FlowGraph, view: View, given_sites: GivenSites | None = None) -> SiteMap:
    """Return the sites of a base: the detected ones, overridden and completed by the site map.

    Linear layers of a user-defined sublayer are detected inside it, and removed with it. Without detected sites, the
    site map must define all, including `final`.

    Raises:
        NoSitesError: no sites are detected, and the site map is incomplete.
        UsageError: the site map does not fit the graph.
    """
    if given_sites is None:
        return discover(flow)
    final = given_sites.final.get(view)
    try:
        detected = discover(flow)
    except NoSitesError:
        if final is None:
            raise
        detected = SiteMap((), final, 0)
    final = final or detected.final
    streams = tuple(dict.fromkeys(site.x for site in detected.sublayers if site.x is not None))
    check = _Check(given_sites.source, view, FlowIndex(flow), streams)
    names = {site.name for site in detected.sites}
    for name in given_sites.sites:
        if given_sites.sites[name] is None and name not in names:
            known = ", ".join(site.name for site in detected.sublayers) or "no site"
            raise check.unfit(name, "no such detected site", f"one of {known}")
    named = {name: check.site(name, site) for name, site in given_sites.sites.items() if site is not None}
    replaced = tuple(f"{name}." for name in given_sites.sites)
    inside = [site for site in detected.sites if not site.is_outside]
    chosen = {
        site.name: site for site in inside if site.name not in given_sites.sites and not site.name.startswith(replaced)
    }
    ends = stream_values(site for site in (*chosen.values(), *named.values()) if site.role in SUBLAYERS)
    linear = {site.h for site in (*chosen.values(), *named.values()) if site.role == "linear"}
    for site in named.values():
        source = None if site.x is None else source_of(check.index, site.x, site.h)
        layers = () if source is None else linear_sites(check.index, site, ends - {site.h}, source)
        chosen |= {inner.name: inner for inner in layers if inner.h not in linear}
    chosen |= named
    within = [*chosen.values(), *(site for site in inside if site.name not in chosen)]  # removed sites are nowhere
    outside = (*outside_sites(check.index, within), *lookup_sites(check.index, [site.name for site in within]))
    chosen |= {site.name: site for site in outside if site.name not in given_sites.sites}
    check.stream("final", final)
    if flow.rank(final) != 3:
        raise check.unfit("final", check.shape(final), "the shape [batch, tokens, width]")
    check.differ(chosen.values())
    if all(site.role not in SUBLAYERS for site in chosen.values()):
        raise check.unfit("sites", "all sites are removed", "at least one site")
    ordered = sorted(
        chosen.values(),
        key=lambda site: (check.index.position(site.h), site.role != "lookup", site.role in SUBLAYERS),
    )
    sublayers = [site for site in ordered if site.role in SUBLAYERS]
    left_out = [
        site for site in detected.sublayers if given_sites.sites.get(site.name, site) is None
    ]  # removed by the user
    covered = replace(coverage_of(check.index, [*sublayers, *left_out], final), found=len(sublayers))
    return SiteMap(tuple(with_calls(check.index, ordered)), final, flow.width(final) or 0, covered)


def check_complete(sites: SiteMap, site_map: GivenSites | None) -> None:
    """Reject incomplete coverage of a base, unless there is a site map, which states the user's intent."""
    if site_map is not None or sites.coverage.is_complete:
        return
    unplaced = "; ".join(f"{', '.join(each.layers[:4])}: {each.reason}" for each in sites.coverage.unplaced[:3])
    raise NoSitesError(
        "some sublayers of this base have no site, so that adapters and heads would act only on a part of it",
        found=f"{sites.coverage}; not placed: {unplaced}",
        expected="each layer with weights in one sublayer, in the embeddings, or after the final hidden state",
        fix="if this is intended, write a site map with "
        + command("open_base(MODEL).sites.write_site_map(PATH)", "sites MODEL --write-site-map sites.json")
        + ", correct it, and pass it as "
        + argument("site_map"),
    )


@dataclass(frozen=True)
class _Check:
    """Checks a site map against a graph."""

    source: str
    view: View
    index: FlowIndex
    streams: tuple[str, ...]

    def unfit(self, place: str, value: object, expected: str) -> UsageError:
        return UsageError(
            "the site map does not fit the base",
            where=f"{self.source}, `{place}`, view `{self.view}`",
            found=value,
            expected=expected,
            fix="list the names with " + command("open_base(MODEL).sites", "sites MODEL --json"),
        )

    def shape(self, value: str) -> str:
        shape = self.index.flow.shapes.get(value)
        return f"`{value}` of unknown shape" if shape is None else f"`{value}` of shape {list(shape)}"

    def stream(self, place: str, value: str) -> None:
        """Reject names other than values [batch, tokens, width] or [tokens, width] of the graph."""
        if all(value not in (*node.inputs, *node.outputs) for node in self.index.nodes):
            raise self.unfit(place, f"`{value}`, which is not in the graph", "a value that a result depends on")
        if not is_stream(self.index.flow, value):
            raise self.unfit(place, self.shape(value), "[batch, tokens, width] or [tokens, width], the width a number")

    def differ(self, sites: Iterable[Site]) -> None:
        """Reject sites with equal values: the second adapter would act on the result of the first.

        A sublayer's output may be that of its last linear layer.
        """
        names_by_value: dict[tuple[str, bool], str] = {}
        for site in sites:
            key = site.h, site.role in ("linear", "lookup")
            if key in names_by_value:
                raise self.unfit(
                    f"{site.name}.h", f"`{site.h}`, also used by `{names_by_value[key]}`", "a unique value"
                )
            names_by_value[key] = site.name

    def site(self, name: str, given_site: GivenSite) -> Site:
        """Return the site in this graph."""
        values, index = given_site.values.get(self.view), self.index
        if values is None:
            raise self.unfit(name, "no values in this view", f"`{self.view}` with `h` and `x`")
        for key in ("h", "x", "u", "y"):
            if getattr(values, key) is not None:
                self.stream(f"{name}.{key}", getattr(values, key))
        start = values.u if given_site.role == "linear" else values.x
        if start is None:
            if given_site.role != "embeddings":
                raise self.unfit(name, "only `h`", "also its input `u`")
            return embeddings_site(index, name, values.h)
        source = start if given_site.role == "linear" else source_of(index, start, values.h) or start
        if source != start:  # a stage starts here, and its `x` is a shortcut that the sublayer does not read
            values = replace(values, u=None)
        self._computed(name, given_site.role, values, source == start)
        width, width_in = (index.flow.width(value) or 0 for value in (values.h, values.u or values.h))
        if given_site.parts and width % given_site.blocks:
            raise self.unfit(f"{name}.blocks", given_site.blocks, f"a number that divides {width}")
        before = 0
        for part, (start_at, end) in sorted(given_site.parts.items(), key=lambda item: item[1]):
            if not before <= start_at < end <= width // given_site.blocks:
                expected = f"slices of 0–{width // given_site.blocks}, none within another"
                raise self.unfit(f"{name}.parts.{part}", f"{start_at}–{end}", expected)
            before = end
        site = Site(
            name=name,
            role=given_site.role,
            layer=given_site.layer,
            width=width,
            width_in=width_in,
            h=values.h,
            u=values.u,
            path=path_of([index.nodes[at] for at in index.between(source, values.h)]),
            parts=given_site.parts,
            sequence_first=given_site.role == "linear" and is_sequence_first(index, start, self.streams),
            blocks=given_site.blocks,
        )
        if given_site.role == "linear":
            return site
        if index.producer(values.h) is None or not index.readers(values.h):
            shown = f"`{values.h}`, an input or a last result"
            raise self.unfit(f"{name}.h", shown, "a value that is computed and read")
        add = index.readers(values.h)[0]
        total = whole_sum(index, start, add.outputs[0])
        y, norm = block_output(index, total, ends=values.u != values.x)
        if values.y not in (None, y):
            y, norm = values.y, None if values.y == total else Norm("unknown", 0.0, None, None)
        follower = follower_of(index, total)
        return replace(site, x=values.x, y=y, norm=norm, residual=add.name, followed_by=follower)

    def _computed(self, name: str, role: Role, values: SiteValues, from_x: bool) -> None:
        """Reject values that are not computed from each other, or have different shapes."""
        depends, alike = self.index.ancestry.depends, self.index.flow.alike
        pairs = [("h", "u")] if role == "linear" else [("h", "x"), ("h", "u"), ("u", "x")] if from_x else []
        for late, early in [*pairs, ("y", "h")] if values.y is not None else pairs:
            after, before = getattr(values, late), getattr(values, early)
            if not depends(after, on=before) or (late in ("h", "y") and after == before):
                raise self.unfit(f"{name}.{late}", f"`{after}`", f"a value that is computed from `{early}`, `{before}`")
            if role != "linear" and not alike(after, before):
                raise self.unfit(f"{name}.{late}", self.shape(after), f"the shape of `{early}`, {self.shape(before)}")
