"""Weights of a weighted fusion that a call gives, in the place of those that the adapter has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adapter_export.errors import RequestError
from adapter_export.format.manifest import MixRecord
from adapter_export.runtime.catalogue import Entry

Weighting = Mapping[str, float] | Sequence[Mapping[str, float]]
"""A finite weight for each member of a fusion, by name: for all rows of a batch, or a mapping for each row."""


def weight_choices(weights: Weighting, rows: int) -> list[object]:
    """What each row of a batch chose."""
    return [None] * rows if isinstance(weights, Mapping) else [sorted(row.items()) for row in weights]


def weight_tensors(entry: Entry | None, weights: Weighting) -> dict[str, np.ndarray]:
    """The tensors, float32 [1, members] or [batch, members], for every slot that holds weights of the fusion.

    Raises:
        RequestError: the adapter is no weighted fusion of the bundle, or a row does not give a finite weight for each
            member.
    """
    record = _record(entry)
    given = [weights] if isinstance(weights, Mapping) else list(weights)
    for row, one in enumerate(given):
        _check(one, record, None if isinstance(weights, Mapping) else row)
    array = np.array([[one[name] for name in record.members] for one in given], np.float32)
    return dict.fromkeys(record.slots, array)


def _record(entry: Entry | None) -> MixRecord:
    if entry is None or entry.mix is None:
        raise RequestError(
            "has no weights that a call could give",
            where="the base alone" if entry is None else f"adapter `{entry.name}`",
            expected="a weighted fusion of the bundle",
            fix="make one with `adapter-export compose fuse`, and `build` or `add` it",
        )
    return entry.mix


def _check(weights: Mapping[str, float], record: MixRecord, row: int | None) -> None:
    """Every member by its name: one left out would be a guess."""
    largest = float(np.finfo(np.float32).max)
    fits = set(weights) == set(record.members) and all(abs(weight) <= largest for weight in weights.values())
    if not fits:  # NaN is not below anything
        raise RequestError(
            "a fusion needs a finite weight for each of its members",
            where=None if row is None else f"row {row}",
            found=", ".join(f"`{name}`: {weight}" for name, weight in weights.items()) or "none",
            expected=", ".join(f"`{name}`" for name in record.members),
        )
