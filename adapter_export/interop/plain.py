"""Plain tensors of any framework become an adapter: the names say where they belong, the shapes say how wide it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from adapter_export.dtypes import FLOAT_TYPES, Weights
from adapter_export.errors import AdapterError, TensorError, UsageError
from adapter_export.graph.adapter import HEAD, Adapter, Head, Placement
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.kinds import BottleneckOptions, Kind, classification_head
from adapter_export.graph.ops import Dim
from adapter_export.sites.site import SiteMap

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Packed:
    """An adapter, and what was done to the tensors on the way."""

    adapter: Adapter
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    """What one owner of tensors, a site or the head, must bring."""

    owner: str
    graph_name: str
    graph: AdapterGraph
    widths: dict[str, int]


def fitting_options(tensors: Tensors, activation: str, scaling: float = 1.0) -> BottleneckOptions:
    """The options of a bottleneck whose biases and norms are those that the tensors' names show.

    Args:
        tensors: `<site>.down.weight` [d, b] and so on.
        activation: one of `ACTIVATIONS`; nothing in the tensors shows it.
        scaling: the factor on the up-projection's output; nothing shows it either.
    """
    names = tuple(name for name in tensors if not name.startswith(f"{HEAD}."))
    return BottleneckOptions(
        activation=activation,
        scaling=scaling,
        bias=any(name.endswith((".down.bias", ".up.bias")) for name in names),
        norm_before=any(".norm_before." in name for name in names),
        norm_after=any(".norm_after." in name for name in names),
    )


def pack(
    tensors: Tensors,
    kind: Kind,
    sites: SiteMap,
    *,
    name: str,
    base: str,
    labels: tuple[str, ...] | None = None,
    pooling: str = "mean",
) -> Packed:
    """Make an adapter of tensors `<site>.<parameter>`, such as `layers.0.ffn.down.weight` [d, b].

    Args:
        tensors: the weights of every site of the kind and, where `labels` are given, `head.classifier.weight`
            [d, classes] and `head.classifier.bias` [classes].
        kind: which graph acts at which sites.
        sites: the sites of the base.
        name: what users will call it.
        base: the fingerprint of the base.
        labels: the name of each class, in the order of the logits.
        pooling: what the head reads: the `mean` over the tokens or the `first` token.

    Raises:
        AdapterError: the base has no site at which the kind acts.
        UsageError: labels without a head, or a head without labels.
        TensorError: listing every tensor that is missing, left over, misshapen or not made of finite numbers.
    """
    head = _head(tensors, sites, labels, pooling)
    parts = list(_site_parts(tensors, kind, sites))
    if head is not None:
        parts.append(_Part(HEAD, HEAD, head.graph, dict(head.widths)))
    _check(tensors, parts)
    weights = _as_float32(tensors)
    at_sites = [part for part in parts if part.owner != HEAD]
    placements = {part.owner: Placement(part.graph_name, part.widths) for part in at_sites}
    graphs = {part.graph_name: part.graph for part in at_sites}
    adapter = Adapter(name, kind.name, base, graphs, placements, weights, head)
    return Packed(adapter, tuple(_notes(tensors)))


def _head(tensors: Tensors, sites: SiteMap, labels: tuple[str, ...] | None, pooling: str) -> Head | None:
    present = any(name.startswith(f"{HEAD}.") for name in tensors)
    if present and labels is None:
        raise UsageError(
            "the tensors hold a head, and its classes have no names", fix="give `--labels` in the order of the logits"
        )
    if labels is None:
        return None
    if not present:
        raise UsageError(
            "labels are given, and the tensors hold no head",
            expected=f"`{HEAD}.classifier.weight` [{sites.width}, {len(labels)}] and `{HEAD}.classifier.bias`",
            fix="add the head's tensors, or leave out `--labels`",
        )
    return Head(classification_head(pooling), {"d": sites.width, "classes": len(labels)}, labels)


def _site_parts(tensors: Tensors, kind: Kind, sites: SiteMap) -> Iterator[_Part]:
    places = list(kind.at(sites))
    if not places:
        raise AdapterError(
            f"the base has no site at which `{kind.name}` acts",
            found=", ".join(site.name for site in sites),
            expected=kind.places(),
            fix="choose another `--kind`",
        )
    for site, part in places:
        bound = _bind(tensors, site.name, part.graph, {"d": site.width, "d_in": site.width_in})
        widths = {symbol: bound[symbol] for symbol in part.graph.symbols() if symbol in bound}
        yield _Part(site.name, part.graph_name, part.graph, widths)


def _bind(tensors: Tensors, owner: str, graph: AdapterGraph, known: Mapping[str, int]) -> dict[str, int]:
    """A number for each symbol that the shapes of the owner's tensors show."""
    bound = dict(known)
    for parameter, symbols in graph.parameters.items():
        tensor = tensors.get(f"{owner}.{parameter}")
        if tensor is None or tensor.ndim != len(symbols):
            continue
        straight = _agrees(tensor.shape, symbols, bound)
        shape = tensor.shape if straight or not _agrees(tensor.shape[::-1], symbols, bound) else tensor.shape[::-1]
        for symbol, number in zip(symbols, shape, strict=True):
            bound.setdefault(str(symbol), number)
    return bound


def _agrees(shape: tuple[int, ...], symbols: tuple[Dim, ...], bound: Mapping[str, int]) -> bool:
    return all(bound.get(str(symbol), number) == number for symbol, number in zip(symbols, shape, strict=True))


def _check(tensors: Tensors, parts: list[_Part]) -> None:
    expected = {f"{part.owner}.{name}": (part, name) for part in parts for name in part.graph.parameters}
    faults = list(_missing(tensors, parts))
    faults += [f"`{name}` {_why_left_over(name, list(expected))}" for name in tensors if name not in expected]
    for name, (part, parameter) in expected.items():
        if name in tensors:
            faults += [f"`{name}` {fault}" for fault in _faults(tensors[name], part, parameter)]
    if faults:
        raise TensorError(
            f"{len(faults)} of the tensors {'does' if len(faults) == 1 else 'do'} not fit",
            found="; ".join(faults),
            fix="run `adapter-export sites MODEL` for the names of the sites, and write the tensors again",
        )


def _missing(tensors: Tensors, parts: list[_Part]) -> Iterator[str]:
    for part in parts:
        names = [f"{part.owner}.{name}" for name in part.graph.parameters]
        absent = [name for name in names if name not in tensors]
        if len(absent) == len(names):
            yield f"every tensor of `{part.owner}` is missing ({', '.join(part.graph.parameters)})"
        else:
            yield from (f"`{name}` is missing" for name in absent)


def _why_left_over(name: str, expected: list[str]) -> str:
    near = get_close_matches(name, expected, n=1, cutoff=0.8)
    return f"has no place{f', perhaps it is `{near[0]}`' if near else ''}"


def _faults(tensor: np.ndarray, part: _Part, parameter: str) -> Iterator[str]:
    if tensor.dtype.name not in FLOAT_TYPES:
        yield f"is {tensor.dtype}, not one of {', '.join(FLOAT_TYPES)}"
        return
    symbols = part.graph.parameters[parameter]
    if 0 in tensor.shape:
        yield f"has an empty shape {list(tensor.shape)}"
    elif tensor.ndim != len(symbols) or not _agrees(tensor.shape, symbols, part.widths):
        wanted = [part.widths.get(str(symbol), symbol) for symbol in symbols]
        transposed = tensor.ndim == len(symbols) > 1 and _agrees(tensor.shape[::-1], symbols, part.widths)
        hint = "; it looks transposed: weights are stored [in, out]" if transposed else ""
        yield f"has shape {list(tensor.shape)}, not {wanted}{hint}"
    with np.errstate(over="ignore"):
        unfit = int(np.count_nonzero(~np.isfinite(tensor.astype(np.float32))))
    if unfit:
        yield f"holds {unfit} NaN, Inf or numbers beyond float32"


def _as_float32(tensors: Tensors) -> Weights:
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}


def _notes(tensors: Tensors) -> Iterator[str]:
    for dtype in sorted({tensor.dtype.name for tensor in tensors.values()} - {"float32"}):
        count = sum(tensor.dtype.name == dtype for tensor in tensors.values())
        rounding = "each number rounded once" if dtype == "float64" else "without loss"
        yield f"{count} tensors are {dtype} and were converted to float32, {rounding}"
