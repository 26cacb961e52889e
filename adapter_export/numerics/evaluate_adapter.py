"""Adapters at the sites of a base: fit, values and gradients in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from adapter_export.dtypes import Array
from adapter_export.errors import AdapterError, GraphError
from adapter_export.graph.adapter import HEAD, Adapter
from adapter_export.graph.graph import (
    BASE_NORM,
    BORROWED_BIAS,
    BORROWED_WEIGHT,
    SITE_VALUES,
    AdapterGraph,
    Node,
    bind_base_norm,
    interpret,
    needs_base_norm,
)
from adapter_export.graph.numpy_lowering import BACKWARD, LOWERINGS, shares_of
from adapter_export.graph.ops import INDEX_BASE, OPS
from adapter_export.sites.site import SUBLAYERS, Norm, Site, SiteMap
from adapter_export.words import command, quoted

BORROWED = (BORROWED_WEIGHT, BORROWED_BIAS)
"""The parameters of bound graphs that are the base's."""


def borrowed(graph: AdapterGraph, values: Mapping[str, npt.ArrayLike], width: int) -> dict[str, Array]:
    """Return the base's tensors [d] of a bound graph by their `BORROWED` names in float64; a missing weight is ones."""
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
            fix="pass the base that they were trained on; "
            + command("open_base(MODEL).sites", "sites MODEL")
            + " lists the sites of a base",
        )


def site_widths(site: Site) -> dict[str, int]:
    """Return the symbols of an adapter graph that a site fixes."""
    return {"d": site.width, "d_in": site.width_in}


def _misfits(adapter: Adapter, sites: Mapping[str, Site], width: int) -> Iterator[str]:
    for owner, graph, widths in adapter.components():
        site = sites.get(owner)
        if site is None and owner != HEAD:
            yield f"`{adapter.name}` acts at `{owner}`, which the base does not have"
            continue
        fixed = {"d": width} if site is None else site_widths(site)
        for symbol in sorted(fixed.keys() & widths.keys()):
            if widths[symbol] != fixed[symbol]:
                yield f"`{adapter.name}` has `{symbol}` = {widths[symbol]} at `{owner}`, the base {fixed[symbol]}"
        if site is not None:
            yield from (f"`{adapter.name}` {fault} `{owner}`" for fault in _missing(graph, site))
            try:
                graph.check_widths({**fixed, **widths})
            except GraphError as error:
                yield f"`{adapter.name}` at `{owner}`: {error}"


def _missing(graph: AdapterGraph, site: Site) -> Iterator[str]:
    """Yield the needs of a graph that a site does not meet."""
    values = {"u": site.u, "x": site.x, "h": site.h, "y": site.y}
    for name in dict.fromkeys((*graph.inputs, graph.replaces)):
        if values[name] is None:
            yield f"{'reads' if name in graph.inputs else 'replaces'} `{name}`, which does not exist at"
    if graph.reads_ids and site.role != "lookup":
        yield "looks up ids, which its `u` is not, at"
    if site.role == "lookup" and (graph.replaces == "u" or ("u" in graph.inputs and not graph.reads_ids)):
        yield "takes ids for activations at"
    if site.role == "part" and graph.replaces == "u":
        yield "replaces `u`, which the parts of a fused layer read in common, at"
    if needs_base_norm(graph):
        if site.role not in SUBLAYERS:
            yield f"applies the base's norm (`{BASE_NORM}`), which does not exist at"
        elif site.norm is not None and site.norm.kind == "unknown":
            yield f"applies the base's norm (`{BASE_NORM}`), which could not be read at"


def _listed(names: Sequence[str]) -> str:
    shown = [f"`{name}`" for name in names]
    return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "…", *shown[-2:]])


def check_tokens(graph: AdapterGraph, site: Site, rank: int | None) -> None:
    """Refuse a graph that takes the tokens of a text together where the base has no axis of them, or another order.

    `rank` is the number of axes of the replaced value, if known. Raises `AdapterError`.
    """
    mixing = sorted({node.op for node in graph.nodes if OPS[node.op].mixes_tokens})
    if mixing and (site.sequence_first or rank != len(SITE_VALUES["h"])):
        raise AdapterError(
            "a graph takes the tokens of a text together, and the base has "
            + ("tokens before batch there" if site.sequence_first else "those of all texts in one row there"),
            where=f"site `{site.name}`",
            found=quoted(mixing),
            expected="values [batch, tokens, width]",
            fix="export the base in another way, or choose an adapter without that",
        )


Named = dict[str, Array]


def evaluate(
    graph: AdapterGraph, inputs: Mapping[str, npt.ArrayLike], parameters: Mapping[str, npt.ArrayLike]
) -> Array:
    """Return the float64 result of a graph for its inputs, such as `h` [batch, tokens, d], and tensors."""
    return values_of(graph, inputs, parameters)[graph.result]


def rounding_scale(
    graph: AdapterGraph, inputs: Mapping[str, npt.ArrayLike], parameters: Mapping[str, npt.ArrayLike]
) -> float:
    """Return the scale to which the rounding errors of a graph's result are relative: `scale` of `graph_budget`.

    It is the largest absolute value of the result, or of the values that errors of a `softmax_mix` are relative to.
    """
    values = values_of(graph, inputs, parameters)
    mixes = [_scale_of_mix(node, values) for node in graph.nodes if node.op == "softmax_mix"]
    return max([_largest(values[graph.result]), *mixes])


def _scale_of_mix(node: Node, values: Named) -> float:
    """Return the scale of a mix.

    An error δ of score i, relative to the largest score, moves Σ p·v by pᵢ·(vᵢ − Σ p·v)·δ/temperature.
    """
    count, temperature = len(node.inputs) // 2, node.attributes["temperature"]
    scores, mixed = (tuple(values[name] for name in names) for names in (node.inputs[:count], node.inputs[count:]))
    shares = shares_of(scores, temperature)
    moved = sum(share * np.abs(value - values[node.output]) for share, value in zip(shares, mixed, strict=True))
    return max(map(_largest, scores)) / temperature * _largest(moved)


def _largest(array: Array) -> float:
    """Return the largest magnitude of the finite elements; a comparison reports all others."""
    return float(np.abs(array[np.isfinite(array)]).max(initial=0))


def gradients(
    graph: AdapterGraph,
    inputs: Mapping[str, npt.ArrayLike],
    parameters: Mapping[str, npt.ArrayLike],
    gradient: npt.ArrayLike,
) -> tuple[Named, Named]:
    """Return the float64 gradients of Σ gradient·result for each input of the graph and each parameter."""
    values = values_of(graph, inputs, parameters)
    of_values = {name: np.zeros_like(value) for name, value in values.items()}
    of_parameters = {name: np.zeros_like(value) for name, value in _float64(parameters).items()}
    of_values[graph.result] += np.asarray(gradient, np.float64)
    for node in reversed(graph.nodes):
        read = tuple(values[name] for name in node.inputs)
        owned = {role: np.asarray(parameters[name], np.float64) for role, name in node.parameters.items()}
        of_read, of_owned = BACKWARD[node.op](node, read, owned, of_values[node.output])
        for name, part in zip(node.inputs, of_read, strict=True):
            of_values[name] += part
        for role, part in of_owned.items():
            of_parameters[node.parameters[role]] += part
    return {name: of_values[name] for name in graph.inputs}, of_parameters


def evaluate_site(adapter: Adapter, site: str, values: Mapping[str, npt.ArrayLike], norm: Norm | None = None) -> Array:
    """Return the value with which an adapter replaces `u`, `h` or `y` at a site, in float64.

    `values` are those that its graph reads, [batch, tokens, width], and, where it applies the base's norm, the norm's
    tensors by their names in `BORROWED`; `norm` is the one before the site's `y`.

    Raises:
        AdapterError: the adapter does not act at this site.
        GraphError: its graph applies the base's norm, which could not be read.
    """
    return evaluate(*_at_site(adapter, site, values, norm))


def site_scale(adapter: Adapter, site: str, values: Mapping[str, npt.ArrayLike], norm: Norm | None = None) -> float:
    """Return the `rounding_scale` of an adapter's value at a site; arguments and errors as of `evaluate_site`."""
    return rounding_scale(*_at_site(adapter, site, values, norm))


def _at_site(
    adapter: Adapter, site: str, values: Mapping[str, npt.ArrayLike], norm: Norm | None
) -> tuple[AdapterGraph, Mapping[str, npt.ArrayLike], Mapping[str, npt.ArrayLike]]:
    """Return the bound graph, its inputs, and its parameters with those of the base."""
    placement = adapter.placements.get(site)
    if placement is None:
        known = ", ".join(adapter.placements) or "none"
        raise AdapterError("does not act here", where=f"adapter `{adapter.name}`", found=f"`{site}`", expected=known)
    graph = bind_base_norm(adapter.graphs[placement.graph], norm)
    width = placement.widths.get("d") or np.shape(values[graph.inputs[0]])[-1]
    return graph, values, {**adapter.parameters(site), **borrowed(graph, values, width)}


def sample_ids(
    graph: AdapterGraph, parameters: Mapping[str, Array], shape: tuple[int, int], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw ids [batch, tokens] among those that a graph changes: rows of its tables, and its tokens."""
    known = np.zeros(1)
    for node in graph.nodes:
        owned = {role: parameters[name] for role, name in node.parameters.items()}
        if node.op == "one_hot":
            known = np.concatenate([known, INDEX_BASE * owned["high"].astype(np.float64) + owned["low"]])
        elif node.op == "lookup":
            known = np.arange(float(len(owned["weight"])))
    return rng.choice(known, shape)


def evaluate_head(adapter: Adapter, hidden: npt.ArrayLike, mask: npt.ArrayLike) -> Array:
    """Return the float64 result of an adapter's head for a hidden state [batch, tokens, d] and mask [batch, tokens].

    Raises `AdapterError` if the adapter has no head.
    """
    if adapter.head is None:
        raise AdapterError("has no head", where=f"adapter `{adapter.name}`")
    return evaluate(adapter.head.graph, {"hidden": hidden, "mask": mask}, adapter.parameters(HEAD))


def values_of(
    graph: AdapterGraph, inputs: Mapping[str, npt.ArrayLike], parameters: Mapping[str, npt.ArrayLike]
) -> Named:
    """Return every value of a graph by its name, in float64; arguments as of `evaluate`."""
    return interpret(graph, LOWERINGS, _float64(inputs), _float64(parameters))


def _float64(arrays: Mapping[str, npt.ArrayLike]) -> Named:
    return {name: np.asarray(array, np.float64) for name, array in arrays.items()}
