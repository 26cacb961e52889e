"""Import of plain tensors of any framework: names determine sites, shapes determine widths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adapter_export.bases.base_view import BaseView
from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.errors import TensorError, UsageError
from adapter_export.graph.adapter import HEAD, Adapter, Head, Placement
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.heads import HeadOptions, embedding_facts, head_graph
from adapter_export.graph.kinds import Kind, kind_named
from adapter_export.graph.ops import Dim
from adapter_export.graph.tasks import CLASSES, DEFAULT_TYPE, TASK_TYPES, ProblemType, Task
from adapter_export.plugins.formats.importers.tensor_map import Imported, Tensors, conversions, unfit
from adapter_export.tables import verb_for
from adapter_export.words import argument, command, nearest


def fitting_kind(tensors: Tensors, name: str, **stated: Any) -> Kind:
    """Return a kind with options inferred from tensors such as `<site>.down.weight` [d, b], and the passed options.

    Raises:
        UsageError: the kind or an option is unknown, or a required option cannot be inferred.
        AdapterError: the tensors do not match the kind.
    """
    site_tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{HEAD}.")}
    return kind_named(name).fitting(site_tensors, stated)


@dataclass(frozen=True)
class _Owner:
    """Required tensors of a site or the head."""

    name: str
    graph_name: str
    graph: AdapterGraph
    widths: dict[str, int]
    names: Mapping[str, str]
    """Tensor of each parameter of the graph."""


def pack(
    tensors: Tensors,
    kind: Kind,
    base: BaseView,
    *,
    name: str,
    labels: tuple[str, ...] | None = None,
    task: ProblemType | None = None,
    look: HeadOptions | None = None,
) -> Imported:
    """Make an adapter from tensors `<site>.<parameter>`, such as `layers.0.ffn.down.weight` [d, b].

    Shared parameters are named `shared.<graph>.<parameter>`. A head has `head.classifier.weight` [.., classes] and
    `head.classifier.bias` [classes] after optional dense layers `head.dense_1.weight` [d, e1] and so on; an embedding
    may have `head.projection.weight` [.., width]. `labels` are in the order of the logits. `task` defaults to
    `single_label` if there are tensors of a head. `look` contains other facts of a head that tensors do not show.

    Raises:
        AdapterError: the base has no site for the kind, or widths are inconsistent.
        UsageError: labels without a head, or a head without labels.
        TensorError: tensors are missing, unexpected, misshapen or not finite; the message lists all of them.
    """
    head = _head(tensors, base.sites.width, labels, task, look or HeadOptions())
    owners = []
    for site, component in kind.placed(base.sites):
        names = component.tensor_names(site.name)
        bound = _bind(tensors, names, component.graph, {"d": site.width, "d_in": site.width_in})
        widths = {symbol: bound[symbol] for symbol in component.graph.symbols() if symbol in bound}
        owners.append(_Owner(site.name, component.graph_name, component.graph, widths, names))
    graphs = {owner.graph_name: owner.graph for owner in owners}
    placements = {owner.name: Placement(owner.graph_name, owner.widths) for owner in owners}
    if head is not None:
        owners.append(_Owner(HEAD, HEAD, head.graph, dict(head.widths), _head_names(head.graph)))
    _check(tensors, owners)
    weights = {key: np.ascontiguousarray(tensor, np.float32) for key, tensor in tensors.items()}
    adapter = Adapter(name, kind.name, base.fingerprint, graphs, placements, weights, head)
    return Imported(adapter, tuple(conversions(tensors.values())))


def _head(
    tensors: Tensors, width: int, labels: tuple[str, ...] | None, task: ProblemType | None, look: HeadOptions
) -> Head | None:
    """Return the head, with dense layers and projection inferred from the tensors."""
    present = any(name.startswith(f"{HEAD}.") for name in tensors)
    wanted = task or DEFAULT_TYPE
    if (present or task) and labels is None and TASK_TYPES[wanted].has_labels:
        raise UsageError(
            "the head has classes but no labels",
            fix="pass "
            + argument("labels")
            + " in the order of the logits, or the "
            + argument("task")
            + " of a head without "
            "classes",
        )
    if labels is not None and (not TASK_TYPES[wanted].has_labels or not present):
        raise UsageError(
            f"labels are given, but {'no tensors belong to a head' if not present else f'`{wanted}` has no classes'}",
            expected=f"`{HEAD}.classifier.weight` [{width}, {len(labels)}] and `{HEAD}.classifier.bias`",
            fix="add the head's tensors, or omit " + argument("labels"),
        )
    if not present and task is None:
        return None
    dense = sum(re.fullmatch(rf"{HEAD}\.dense_\d+\.weight", name) is not None for name in tensors)
    projection = f"{HEAD}.projection.weight" in tensors
    graph = head_graph(wanted, replace(look, dense=dense, projection=projection))
    known = {"d": width} | ({} if labels is None else {CLASSES: len(labels)})
    bound = _bind(tensors, _head_names(graph), graph, known)
    facts = embedding_facts(graph) if TASK_TYPES[wanted].embeds else {}
    task_record = Task(wanted, labels or (), **facts)
    return Head(graph, {name: bound[name] for name in graph.symbols() if name in bound}, task_record)


def _head_names(graph: AdapterGraph) -> dict[str, str]:
    return {name: f"{HEAD}.{name}" for name in graph.parameters}


def _bind(tensors: Tensors, names: Mapping[str, str], graph: AdapterGraph, known: Mapping[str, int]) -> dict[str, int]:
    """Infer each symbol's value from tensor shapes, first from own tensors, then from shared ones."""
    bound = dict(known)
    for parameter in sorted(graph.parameters, key=graph.shared.__contains__):
        symbols, tensor = graph.parameters[parameter], tensors.get(names[parameter])
        if tensor is None or tensor.ndim != len(symbols):
            continue
        straight = _agrees(tensor.shape, symbols, bound)
        shape = tensor.shape if straight or not _agrees(tensor.shape[::-1], symbols, bound) else tensor.shape[::-1]
        for symbol, number in zip(symbols, shape, strict=True):
            if isinstance(symbol, str):
                bound.setdefault(symbol, number)
    return bound


def _agrees(shape: tuple[int, ...], symbols: tuple[Dim, ...], bound: Mapping[str, int]) -> bool:
    wanted = (bound.get(symbol) if isinstance(symbol, str) else symbol for symbol in symbols)
    return all(want in (None, number) for want, number in zip(wanted, shape, strict=True))


def _check(tensors: Tensors, owners: list[_Owner]) -> None:
    expected = {tensor: (owner, name) for owner in owners for name, tensor in owner.names.items()}
    faults = list(dict.fromkeys(_missing(tensors, owners)))
    for name in tensors:
        if name not in expected:
            near = nearest(name, expected, 0.8)
            faults.append(f"`{name}` is unknown{'' if near is None else f', did you mean `{near}`?'}")
    for name, (owner, parameter) in expected.items():
        if name in tensors:
            faults += [f"`{name}` {fault}" for fault in _faults(tensors[name], owner, parameter)]
    if faults:
        sites = command("open_base(MODEL).sites", "sites MODEL")
        raise TensorError(
            f"{len(faults)} of the tensors {verb_for(len(faults), 'do')} not fit",
            found="; ".join(faults),
            fix="list the names of the sites with " + sites + ", and write the tensors again",
        )


def _missing(tensors: Tensors, owners: list[_Owner]) -> Iterator[str]:
    for owner in owners:
        unshared = [name for name, tensor in owner.names.items() if tensor.startswith(f"{owner.name}.")]
        absent = [(name, tensor) for name, tensor in owner.names.items() if tensor not in tensors]
        if len(unshared) > 1 and {name for name, _ in absent} >= set(unshared):
            yield f"every tensor of `{owner.name}` is missing ({', '.join(unshared)})"
            absent = [(name, tensor) for name, tensor in absent if name not in unshared]
        yield from (f"`{tensor}` is missing" for _, tensor in absent)


def _faults(tensor: np.ndarray, owner: _Owner, parameter: str) -> Iterator[str]:
    fault = unfit(tensor)
    if fault is not None:
        yield fault
    if tensor.dtype.name not in FLOAT_TYPES or 0 in tensor.shape:
        return
    symbols = owner.graph.parameters[parameter]
    if tensor.ndim != len(symbols) or not _agrees(tensor.shape, symbols, owner.widths):
        wanted = [owner.widths.get(str(symbol), symbol) for symbol in symbols]
        transposed = tensor.ndim == len(symbols) == 2 and _agrees(tensor.shape[::-1], symbols, owner.widths)
        hint = "; it looks transposed: weights are stored [in, out]" if transposed else ""
        yield f"has shape {list(tensor.shape)}, not {wanted}{hint}"
