"""Neighbours: the adapters of a bundle with the most similar golden vectors, and their distances."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.golden_vectors import Golden

ENOUGH = 2.0
"""Minimum separation wanted for every fault and every other adapter, in multiples of the budget."""

MOST = 1e6
"""Maximum recorded separation: JSON has no infinity."""

Vector = npt.NDArray[np.float64]

_SAMPLED = 512
"""Elements of an output that are compared for every pair of adapters."""


def nearest_adapters(bundle: OpenedBundle) -> dict[str, list[tuple[str, float]]]:
    """Return for each adapter the others with different tensors, the least separated by golden vectors first.

    Each comes with its separation, measured on some elements of one case; on all elements if below `ENOUGH`.
    """
    golden = {record.name: bundle.golden(record.name) for record in bundle.manifest.adapters}
    samples = _samples(golden)
    nearest: dict[str, list[tuple[str, float]]] = {}
    for name, vectors in golden.items():
        apart = dict.fromkeys((other for other in golden if other != name), 0.0)
        for output, budget in vectors.budgets.items():
            names, values = samples[output, vectors.outputs[0][output].shape[1:]]
            most = np.abs(values - values[names.index(name)]).max(1, initial=0.0)
            known = {other: _over(float(each), budget.absolute) for other, each in zip(names, most, strict=True)}
            apart = {other: max(least, known.get(other, np.inf)) for other, least in apart.items()}  # or another head
        for other in [other for other, least in apart.items() if least < ENOUGH]:
            if _same_tensors(bundle, name, other):
                del apart[other]
            else:
                apart[other] = _apart(vectors, golden[other])
        nearest[name] = sorted(apart.items(), key=lambda pair: pair[1])
    return nearest


def _samples(golden: Mapping[str, Golden]) -> dict[tuple[str, tuple[int, ...]], tuple[list[str], Vector]]:
    """Return, by output and row shape, the adapters that have it, and some of its elements in one case for each."""
    groups: dict[tuple[str, tuple[int, ...]], dict[str, np.ndarray]] = {}
    for name, vectors in golden.items():
        at = max(
            range(len(vectors.cases)),
            key=lambda each: (vectors.cases[each].real is None, vectors.cases[each].batch > 1),
        )
        for output, value in vectors.outputs[at].items():
            flat, key = value.ravel(), (output, vectors.outputs[0][output].shape[1:])
            groups.setdefault(key, {})[name] = flat[:: max(1, flat.size // _SAMPLED)]
    return {key: (list(of), np.stack(list(of.values())).astype(np.float64)) for key, of in groups.items()}


def _same_tensors(bundle: OpenedBundle, name: str, other: str) -> bool:
    first, second = bundle.tensors(name), bundle.tensors(other)
    return all(np.array_equal(first[slot], second[slot]) for slot in first)


def _apart(first: Golden, other: Golden) -> float:
    """Return the largest deviation of another adapter's golden vectors, divided by the budget."""
    return max(
        separation_of(theirs.get(output), ours[output], budget.absolute)
        for ours, theirs in zip(first.outputs, other.outputs, strict=True)
        for output, budget in first.budgets.items()
    )


def separation_of(actual: np.ndarray | None, expected: np.ndarray, allowed: float) -> float:
    """Return the largest deviation divided by the budget; infinite for NaN or a different shape."""
    if actual is None or actual.shape != expected.shape:
        return np.inf
    return _over(float(np.abs(actual.astype(np.float64) - expected).max(initial=0.0)), allowed)


def _over(most: float, allowed: float) -> float:
    if np.isnan(most) or (most and not allowed):
        return np.inf
    return most / allowed if allowed else 0.0
