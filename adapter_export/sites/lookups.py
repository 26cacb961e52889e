"""Lookups of a base as sites: rows of a trained table, chosen by ids [batch, tokens] that the caller passes.

A lookup is a linear layer of one-hot vectors, whose matrix is the table. Learned positions, which no caller passes, are
not sites.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import chain, count
from typing import NamedTuple

from adapter_export.sites.linear_layers import SITE_PATH
from adapter_export.sites.site import Site
from adapter_export.sites.view import FlowIndex, FlowNode

_SAME_IDS = frozenset({"cast", "identity", "to", "_to_copy", "contiguous", "clone", "alias"}) | {
    *("reshape", "view", "unsafe_view", "squeeze", "unsqueeze", "flatten")
}
"""Operations that keep each id, and with equal shapes its place."""


class _Lookup(NamedTuple):
    """A lookup: its ids [batch, tokens], its result [batch, tokens, width], its module, and the rows of its table."""

    u: str
    h: str
    path: str | None
    rows: int


def lookup_sites(index: FlowIndex, names: Collection[str]) -> Iterator[Site]:
    """Yield the lookups by ids of a caller, in order of evaluation, named by module path; `names` are taken."""
    lookups = [found for node in index.nodes if (found := _lookup(index, node)) is not None]
    times = Counter(lookup.path for lookup in lookups)
    used = set(names)
    for lookup in lookups:
        path, width = lookup.path, index.flow.width(lookup.h)
        assert width is not None  # as `_lookup` has checked
        named = [] if path is None or times[path] > 1 else [path, f"outside.{path}"]
        candidates = chain(named, (f"outside.lookup{number}" for number in count()))
        name = next(name for name in candidates if SITE_PATH.fullmatch(name) and name not in used)
        used.add(name)
        yield Site(name, "lookup", None, width, lookup.rows, lookup.h, u=lookup.u, path=path)


def _lookup(index: FlowIndex, node: FlowNode) -> _Lookup | None:
    """Return a node as a lookup by ids of a caller."""
    if node.rows is None or len(node.inputs) != 1 or not _is_passed(index, node.inputs[0]):
        return None
    last, u = node, node.inputs[0]
    while last.outputs[0] not in index.flow.shapes:  # integers, which the next node multiplies by their scale
        readers = index.readers(last.outputs[0])
        if len(readers) != 1 or len(readers[0].inputs) != 1:
            return None
        last = readers[0]
    h = last.outputs[0]
    is_per_token = (index.flow.rank(u), index.flow.rank(h)) == (2, 3) and index.flow.width(h) is not None
    return _Lookup(u, h, last.path or node.path, node.rows) if is_per_token else None


def _is_passed(index: FlowIndex, ids: str) -> bool:
    """Return whether ids are an input of the base, in its shape."""
    value = ids
    while (node := index.producer(value)) is not None:
        if node.op.lower() not in _SAME_IDS or len(node.inputs) != 1 or not index.flow.alike(node.inputs[0], ids):
            return False
        value = node.inputs[0]
    return True
