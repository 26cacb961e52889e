"""Adapters by strength: the same graph and slots, with the tensors that make an adapter's updates larger or smaller."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import FormatError, RequestError
from adapter_export.graph.adapter import HEAD
from adapter_export.reading.documents import parse_json
from adapter_export.runtime.graphs import Graphs
from adapter_export.runtime.loaded_adapters import Adapters, Entry, Loaded

STRENGTH_KEY = "adapter_export.strength"
"""The key, in the metadata of the graph with slots, of the parameters that scale what each of its graphs adds: JSON."""

_MOST = 1000.0
"""The largest strength: more is no request, but an error of units."""

_KEPT = 32
"""How many adapters at other strengths stay in memory."""


class Strengths:
    """The adapters of a session at strengths other than 1; thread-safe.

    At every site `v` becomes `v + s·Δ` where the adapter makes it `v + Δ`. Heads stay as they are.
    """

    def __init__(self, graphs: Graphs, adapters: Adapters) -> None:
        self._graphs = graphs
        self._adapters = adapters
        self._kept: OrderedDict[tuple[Entry, float], Entry] = OrderedDict()
        self._lock = Lock()

    def at(self, entry: Entry, strength: float) -> Entry:
        """Return an adapter at a strength; itself at 1.

        Raises:
            RequestError: the strength is no number from -1000 to 1000, or the adapter has no strength: its updates are
                not added to what they replace, or read each other.
        """
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not -_MOST <= strength <= _MOST:
            expected = f"a number from {-_MOST:g} to {_MOST:g}"
            raise RequestError("is no strength", where="`strength`", found=repr(strength), expected=expected)
        strength = float(strength)
        if math.isclose(strength, 1.0, rel_tol=0, abs_tol=0):
            return entry
        key = entry, strength
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        loaded = self._adapters.loaded(entry)
        changed = replace(loaded, tensors=self._scaled(entry.name, loaded, strength))
        made = replace(entry, read=lambda: changed, on_demand=False, row=None)
        with self._lock:
            made = self._kept.setdefault(key, made)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return made

    def _scaled(self, name: str, loaded: Loaded, strength: float) -> Weights:
        tensors = dict(loaded.tensors)
        for slot in self._graphs.manifest.slots:
            own = tensors[slot.name]
            if slot.site == HEAD or (own.shape == slot.neutral and (own == slot.neutral_value).all()):
                continue
            scaled = self._parameters[slot.graph]
            if scaled is None:
                raise RequestError(
                    "has no strength: what it computes is not what it replaces plus an update that can be scaled",
                    where=f"adapter `{name}`, graph `{slot.graph}`",
                    expected="strength 1",
                    fix="leave the strength out for this adapter",
                )
            if slot.parameter in scaled:
                wide = slot.neutral_value + strength * (own.astype(np.float64) - slot.neutral_value)
                tensors[slot.name] = wide.astype(np.float32)
        return tensors

    @cached_property
    def _parameters(self) -> dict[str, list[str] | None]:
        """By the names of graphs, the parameters that are scaled; none where there are none."""
        metadata = self._graphs.session("slots").get_modelmeta().custom_metadata_map
        where = f"`{STRENGTH_KEY}` in the metadata of `{self._graphs.manifest.graphs['slots']}`"
        if STRENGTH_KEY not in metadata:
            raise RequestError(
                "the bundle does not say how its adapters are scaled",
                where=where,
                found="a bundle of an earlier release",
                fix="build it again, or leave the strength out",
            )
        found: Any = parse_json(metadata[STRENGTH_KEY].encode(), where)
        known = {slot.graph for slot in self._graphs.manifest.slots if slot.site != HEAD}
        if not isinstance(found, dict) or not known <= found.keys():
            raise FormatError("does not name all graphs of the bundle", where=where, fix="build it again")
        return found
