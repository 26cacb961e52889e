"""Adapters at the sites of a base: graphs bound to its norms, and what they need that a site does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from adapter_export.dtypes import Array
from adapter_export.errors import AdapterError, GraphError, command
from adapter_export.graph.adapter import HEAD, Adapter
from adapter_export.graph.bind import BASE_NORM, BORROWED_BIAS, BORROWED_WEIGHT, bind_base_norm, needs_base_norm
from adapter_export.graph.graph import SITE_VALUES, AdapterGraph
from adapter_export.sites.site import SUBLAYERS, Norm, Site, SiteMap

BORROWED = (BORROWED_WEIGHT, BORROWED_BIAS)
"""The parameters of bound graphs that are the base's."""

_TAKES_TOKENS_TOGETHER = frozenset({"gate"})
"""The ops of sites that compute with all tokens of a text at once."""


def bound_to(graph: AdapterGraph, norm: Norm | None) -> AdapterGraph:
    """The graph as it is computed at a site with this norm before `y`; raises `GraphError` if it cannot be read."""
    if norm is None:
        return bind_base_norm(graph, None)
    return bind_base_norm(graph, norm.kind, norm.epsilon, bias=norm.bias is not None)


def borrowed(graph: AdapterGraph, values: Mapping[str, npt.ArrayLike], width: int) -> dict[str, Array]:
    """The base's tensors [d] for a bound graph, by their names in `BORROWED`, in float64; ones for a missing weight."""
    return {
        name: np.asarray(values.get(name, np.ones(width)), np.float64) for name in BORROWED if name in graph.parameters
    }


def check_fit(adapters: Sequence[Adapter], sites: SiteMap) -> None:
    """Compare adapters with the sites of a base.

    Raises `AdapterError`, listing all of them, where adapters act where the base has no site, read or replace what a
    site does not have, or have other widths.
    """
    known = {site.name: site for site in sites}
    faults = [fault for adapter in adapters for fault in _misfits(adapter, known, sites.width)]
    if faults:
        raise AdapterError(
            "adapters do not fit the base",
            found="; ".join(faults),
            expected=f"sites {_listed([site.name for site in sites.sublayers])} of width {sites.width}",
            fix="give the base that they were trained on; "
            f"{command('open_base(MODEL).sites', 'sites MODEL')} lists what a base has",
        )


def site_widths(site: Site) -> dict[str, int]:
    """The symbols of an adapter graph that a site fixes."""
    return {"d": site.width, "d_in": site.width_in}


def _misfits(adapter: Adapter, sites: Mapping[str, Site], width: int) -> Iterator[str]:
    for owner, graph, found in adapter.components():
        site = sites.get(owner)
        if site is None and owner != HEAD:
            yield f"`{adapter.name}` acts at `{owner}`, which the base does not have"
            continue
        fixed = {"d": width} if site is None else site_widths(site)
        for symbol in sorted(fixed.keys() & found.keys()):
            if found[symbol] != fixed[symbol]:
                yield f"`{adapter.name}` has `{symbol}` = {found[symbol]} at `{owner}`, the base {fixed[symbol]}"
        if site is not None:
            yield from (f"`{adapter.name}` {fault} `{owner}`" for fault in _missing(graph, site))
            try:
                graph.check_widths({**fixed, **found})
            except GraphError as error:
                yield f"`{adapter.name}` at `{owner}`: {error}"


def _missing(graph: AdapterGraph, site: Site) -> Iterator[str]:
    """The needs of a graph that a site does not meet."""
    there = {"u": site.u, "x": site.x, "h": site.h, "y": site.y}
    for name in dict.fromkeys((*graph.inputs, graph.replaces)):
        if there[name] is None:
            yield f"{'reads' if name in graph.inputs else 'replaces'} `{name}`, which is not there at"
    if site.role == "part" and graph.replaces == "u":
        yield "replaces `u`, which the parts of a fused layer read in common, at"
    if needs_base_norm(graph):
        if site.role not in SUBLAYERS:
            yield f"applies the base's norm (`{BASE_NORM}`), which is not there at"
        elif site.norm is not None and site.norm.kind == "unknown":
            yield f"applies the base's norm (`{BASE_NORM}`), which could not be read at"


def _listed(names: Sequence[str]) -> str:
    shown = [f"`{name}`" for name in names]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "…", *shown[-2:]])


def check_tokens(graph: AdapterGraph, site: Site, rank: int | None) -> None:
    """Refuse a graph that takes the tokens of a text together where the base has no axis of them, or another order.

    `rank` is the number of axes of what is replaced there, if known. Raises `AdapterError`.
    """
    mixing = sorted({node.op for node in graph.nodes} & _TAKES_TOKENS_TOGETHER)
    if mixing and (site.sequence_first or rank != len(SITE_VALUES["h"])):
        raise AdapterError(
            "a graph takes the tokens of a text together, and the base has "
            + ("tokens before batch there" if site.sequence_first else "those of all texts in one row there"),
            where=f"site `{site.name}`",
            found=", ".join(f"`{op}`" for op in mixing),
            expected="values [batch, tokens, width]",
            fix="export the base in another way, or choose an adapter without that",
        )
