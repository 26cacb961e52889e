"""Adapters scaled by a strength: tensors for the same slots whose updates are larger or smaller."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import FormatError, RequestError
from adapter_export.format.manifest import SlotRecord
from adapter_export.graph.adapter import HEAD
from adapter_export.runtime.graphs import Graphs
from adapter_export.runtime.loaded_adapters import Adapters, Entry
from adapter_export.safe_io.documents import parse_json

STRENGTH_KEY = "adapter_export.strength"
"""Metadata key of the graphs `slots` and `inputs`: JSON of the parameters that scale each adapter graph's update."""

Strength = float | Sequence[float]
"""Scale of an adapter's updates: one number, or one per row."""

Scaled = Mapping[str, Sequence[str] | None]
"""Parameters that a strength scales, by the name of the graph; `None` for a graph that no strength can scale."""

_MOST = 1000.0
"""Maximum strength; larger numbers are mistakes, such as percentages."""

_MOST_CACHED = 32
"""Maximum number of scaled adapters kept in memory."""


def strength_of_each(strength: Strength | None, rows: int) -> Sequence[float]:
    """Return the strength of each row, by default 1; RequestError unless there is one strength or one per row."""
    if isinstance(strength, str) or not isinstance(strength, Sequence):
        return [1.0 if strength is None else strength] * rows
    if len(strength) != rows:
        expected = f"{rows}, one for each row"
        raise RequestError("`strength` must have one number per row", found=len(strength), expected=expected)
    return strength


def check_strength(strength: object) -> float:
    """Return a strength; RequestError unless it is a number from -1000 to 1000."""
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not -_MOST <= strength <= _MOST:
        expected = f"a number from {-_MOST:g} to {_MOST:g}"
        raise RequestError("is no strength", where="`strength`", found=repr(strength), expected=expected)
    return float(strength)


def scaled_parameters(text: str | None, slots: Sequence[SlotRecord], where: str) -> Scaled:
    """Return the scaled parameters of each adapter graph from the metadata of a bundle's graph.

    Args:
        text: the metadata at `STRENGTH_KEY`.
        slots: of the bundle.
        where: the metadata in messages.

    Raises:
        RequestError: the metadata has no such key.
        FormatError: it lacks an adapter graph.
    """
    where = f"`{STRENGTH_KEY}` in {where}"
    if text is None:
        raise RequestError(
            "the bundle has no record of scaled parameters",
            where=where,
            found="a bundle of an earlier release",
            fix="build it again, or leave the strength out",
        )
    parameters: Any = parse_json(text.encode(), where)
    if not isinstance(parameters, dict) or not {slot.graph for slot in slots if slot.site != HEAD} <= parameters.keys():
        raise FormatError("lacks graphs of the bundle", where=where, fix="build it again")
    return parameters


def scaled(tensors: Weights, slots: Sequence[SlotRecord], parameters: Scaled, strength: float, adapter: str) -> Weights:
    """Return the tensors of an adapter at a strength.

    Raises:
        RequestError: the adapter cannot be scaled: it replaces values instead of adding updates, or its updates read
            each other.
    """
    scaled_tensors = dict(tensors)
    for slot in slots:
        trained = tensors[slot.name]
        if slot.site == HEAD or (trained.shape == slot.neutral and (trained == slot.neutral_value).all()):
            continue
        names = parameters[slot.graph]
        if names is None:
            raise RequestError(
                "cannot be scaled: it does not add an update to the value that it replaces",
                where=f"adapter `{adapter}`, graph `{slot.graph}`",
                expected="strength 1",
                fix="leave the strength out for this adapter",
            )
        if slot.parameter in names:
            # in float64, so that the result is rounded once
            wide = slot.neutral_value + strength * (trained.astype(np.float64) - slot.neutral_value)
            scaled_tensors[slot.name] = wide.astype(np.float32)
    return scaled_tensors


class Strengths:
    """The adapters of a session at strengths other than 1; thread-safe.

    Strength `s` turns the adapter's `v + Δ` into `v + s·Δ` at every site. Heads are not scaled.
    """

    def __init__(self, graphs: Graphs, adapters: Adapters) -> None:
        self._graphs = graphs
        self._adapters = adapters
        self._cache: OrderedDict[tuple[Entry, float], Entry] = OrderedDict()
        self._lock = Lock()

    def at(self, entry: Entry, strength: float) -> Entry:
        """Return an adapter at a strength; the same object at 1.

        Raises:
            RequestError: as `check_strength`, `scaled_parameters` and `scaled`.
        """
        strength = check_strength(strength)
        if math.isclose(strength, 1.0, rel_tol=0, abs_tol=0):
            return entry
        key = entry, strength
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
        loaded = self._adapters.load(entry)
        tensors = scaled(loaded.tensors, self._graphs.manifest.slots, self._parameters, strength, entry.name)
        changed = replace(loaded, tensors=tensors)
        changed_entry = replace(entry, read=lambda: changed, on_demand=False, row=None)
        with self._lock:
            changed_entry = self._cache.setdefault(key, changed_entry)
            while len(self._cache) > _MOST_CACHED:
                self._cache.popitem(last=False)
        return changed_entry

    @cached_property
    def _parameters(self) -> Scaled:
        text = self._graphs.single().metadata.get(STRENGTH_KEY)
        return scaled_parameters(text, self._graphs.manifest.slots, "the metadata of the graph")
