"""Candidates for golden parts: directions that show a fault of an adapter, made of runs with it and without.

A direction is what the fault adds to an output, weighted by how little rounding scatters there, as integers of 8 bits.
Its limit follows from the rounding that graphs show which round elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from adapter_export.bundle.golden import Case
from adapter_export.bundle.golden_parts import GoldenParts
from adapter_export.bundle.neighbours import ENOUGH
from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.format.manifest import PartRecord
from adapter_export.numerics.runner import Arrays
from adapter_export.runtime.self_check import projection

_LARGE = 2**13
"""The most weights of a golden part."""

_CAUTION = 2.5
"""The ratio of a limit to the rounding that was measured: other processors round elsewhere."""

_NARROWEST = 0.05
"""The narrowest limit of a golden part."""

_UNSEEN = 1 / 50
"""The rounding of an element, as a part of its budget, that is assumed where less is seen."""

_CLIPPED = 4.0
"""Weights are cut at this many standard deviations, so that 8 bits keep the many that are small."""

_LARGEST = 127

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """One case: what the reference gives, and what the graph gives.

    Attributes:
        case: the inputs.
        feeds: these, and the adapter's tensors.
        expected: what the reference gives.
        right: what the graph gives.
        wrong: what it gives with each fault, by its name.
        disturbed: what graphs give that round elsewhere; measured where golden vectors do not suffice.
        wrong_elsewhere: what one of these gives with each fault.
    """

    case: Case
    feeds: Arrays
    expected: Arrays
    right: Arrays
    wrong: Mapping[str, Arrays]
    disturbed: Sequence[Arrays] = ()
    wrong_elsewhere: Mapping[str, Arrays] = field(default_factory=dict)

    def rounding(self, output: str) -> Vector:
        """Return the deviations of right runs from the reference, [runs, elements]."""
        expected = self.expected[output].ravel().astype(np.float64)
        return np.stack([run[output].ravel() - expected for run in (self.right, *self.disturbed)])

    def scatter(self, output: str) -> Vector:
        """Return the variance of rounding at each place of an output but for its last axis, of length 1.

        It is smoothed by the mean of all, since few runs show it. The step of a quantised value moves all features of
        one token, so that places differ much.
        """
        noise = self.rounding(output).reshape(-1, *self.expected[output].shape)
        variance: Vector = np.square(noise).mean(axis=(0, -1))[..., None]
        return variance + (variance.mean() or 1.0)


@dataclass(frozen=True)
class Candidate:
    """A golden part that could be stored: its weights case by case, and how well it tells its fault."""

    part: PartRecord
    weights: tuple[np.ndarray, ...]
    separation: float

    @property
    def size(self) -> int:
        """Its number of weights."""
        return sum(weight.size for weight in self.weights)

    def shown(self, seen: Sequence[Seen], fault: str) -> tuple[str, float]:
        """Return its output, and how well the part shows a fault, which need not be its own.

        That is the smaller one of what two graphs give that round otherwise: one alone would take its own rounding for
        a part of the fault.
        """
        output, values = self.part.output, list[float]()
        for runs in ([one.wrong for one in seen], [one.wrong_elsewhere for one in seen]):
            pairs = zip(runs, seen, self.weights, strict=False)
            sums = [projection(of[fault].get(output), one.expected[output], weight) for of, one, weight in pairs]
            values.append(abs(self.part.factor * sum(sums)) / self.part.limit)
        return output, math.inf if any(map(math.isnan, values)) else min(values)


def candidates(seen: Sequence[Seen], faults: Sequence[str], budgets: Mapping[str, float]) -> dict[str, Candidate]:
    """Return the best golden part for each fault by these cases.

    That is the smallest that suffices, or else the one that tells most.
    """
    found: dict[str, Candidate] = {}
    for output, allowed in budgets.items():
        for candidate in _candidates_of(seen, faults, output, allowed):
            best = found.get(candidate.part.fault)
            if best is None or _rank(candidate) > _rank(best):
                found[candidate.part.fault] = candidate
    return found


def _rank(candidate: Candidate) -> tuple[bool, float]:
    suffices = candidate.separation >= ENOUGH
    return suffices, -float(candidate.size) if suffices else candidate.separation


@dataclass(frozen=True)
class _Direction:
    """Weights that show a fault in one output, and what a graph gives along them.

    Attributes:
        fault: its name.
        weights: case by case, int8.
        gain: Σ weight · what the fault adds.
        error: the largest |Σ weight · rounding| of all right runs.
    """

    fault: str
    weights: tuple[np.ndarray, ...]
    gain: float
    error: float

    @property
    def length(self) -> float:
        return math.sqrt(sum(float(np.square(weight.astype(np.float64)).sum()) for weight in self.weights))


def _candidates_of(seen: Sequence[Seen], faults: Sequence[str], output: str, allowed: float) -> Iterator[Candidate]:
    """Yield a golden part by one output for each fault.

    Its limit follows from the rounding that graphs show against the reference: along the direction of the fault itself,
    and along those of all faults, since another processor rounds elsewhere.
    """
    floats = all(one.expected[output].dtype.name in FLOAT_TYPES for one in seen)
    if not floats or sum(one.expected[output].size for one in seen) > _LARGE:
        return
    noise = np.concatenate([one.rounding(output) for one in seen], axis=1)
    root = math.sqrt(noise.shape[1])
    spread = max(float(np.sqrt(np.mean(np.sum(np.square(noise), 1)))), _UNSEEN * allowed * root)
    directions = list(filter(None, (_direction(seen, fault, output, noise) for fault in faults)))
    cosines = [one.error / (one.length * spread) for one in directions]
    typical = max(math.sqrt(sum(each**2 for each in cosines) / max(len(cosines), 1)), 1 / root)
    for one in directions:
        rounding = max(one.error, typical * one.length * spread) / one.gain
        limit = float(f"{max(_CAUTION * rounding, _NARROWEST):.3g}")
        candidate = Candidate(PartRecord(one.fault, output, 1 / one.gain, limit), one.weights, 0.0)
        yield replace(candidate, separation=candidate.shown(seen, one.fault)[1])


def _direction(seen: Sequence[Seen], fault: str, output: str, noise: Vector) -> _Direction | None:
    """Return the direction of a fault; `None` if it moves nothing, or makes an output that is not finite."""
    moved = [_difference(one.wrong[fault].get(output), one.right[output]) for one in seen]
    known = [each for each in moved if each is not None]
    if len(known) < len(seen):
        return None
    weights = _weights([each / one.scatter(output) for each, one in zip(known, seen, strict=True)])
    if weights is None:
        return None
    gain = sum(float(np.vdot(weight.astype(np.float64), each)) for weight, each in zip(weights, known, strict=True))
    flat = np.concatenate([weight.ravel() for weight in weights]).astype(np.float64)
    return _Direction(fault, weights, gain, float(np.abs(noise @ flat).max())) if gain > 0 else None


def _difference(found: np.ndarray | None, right: np.ndarray) -> Vector | None:
    """Return what a fault adds to an output; `None` if it has another shape, or is not finite."""
    if found is None or found.shape != right.shape:
        return None
    difference = found.astype(np.float64) - right
    return difference if np.isfinite(difference).all() else None


def _weights(moved: Sequence[Vector]) -> tuple[np.ndarray, ...] | None:
    """Return directions as integers of 8 bits with one factor; `None` if nothing moves."""
    flat = np.concatenate([each.ravel() for each in moved]) if moved else np.zeros(0)
    most = _CLIPPED * float(np.sqrt(np.mean(np.square(flat)))) if flat.size else 0.0
    if most == 0:
        return None
    return tuple(np.rint(np.clip(each / most, -1, 1) * _LARGEST).astype(np.int8) for each in moved)


def golden_parts(name: str, parts: Sequence[Candidate], seen: Sequence[Seen]) -> GoldenParts:
    """Return golden parts with the cases that have weights, and in each the outputs that parts look at."""
    cases = seen[: max(len(candidate.weights) for candidate in parts)]
    weights = [
        {at: candidate.weights[number] for at, candidate in enumerate(parts) if number < len(candidate.weights)}
        for number in range(len(cases))
    ]
    outputs = [sorted({parts[at].part.output for at in own}) for own in weights]
    return GoldenParts(
        name,
        [one.case for one in cases],
        [
            {output: np.ascontiguousarray(one.expected[output]) for output in own}
            for one, own in zip(cases, outputs, strict=True)
        ],
        [candidate.part for candidate in parts],
        weights,
    )
