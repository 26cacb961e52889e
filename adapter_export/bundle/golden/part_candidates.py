"""Candidates for golden parts: directions that expose a fault of an adapter, from runs with and without the fault.

A direction is the change that the fault causes in an output, weighted by the inverse of the rounding noise, as 8-bit
integers. Its limit follows from the rounding of graphs that round differently.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from adapter_export.bundle.golden.golden_parts import GoldenParts
from adapter_export.bundle.golden.golden_vectors import Case
from adapter_export.bundle.golden.neighbours import ENOUGH
from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.format.manifest import PartRecord
from adapter_export.numerics.runner import Arrays
from adapter_export.runtime.self_check import projection

_LARGE = 2**13
"""Maximum number of weights of a golden part."""

_CAUTION = 2.5
"""Limit divided by the measured rounding: other processors round differently."""

_NARROWEST = 0.05
"""Smallest limit of a golden part."""

_UNSEEN = 1 / 50
"""Assumed minimum rounding of an element, as a fraction of its budget."""

_CLIPPED = 4.0
"""Weights are clipped at this many standard deviations, so that 8 bits resolve the many small ones."""

_LARGEST = 127

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """One case: outputs of the reference and of the graph.

    Attributes:
        case: the inputs.
        feeds: the inputs and the adapter's tensors.
        expected: outputs of the reference.
        right: outputs of the graph.
        wrong: outputs of the graph with each fault, by name.
        disturbed: outputs of graphs that round differently; measured if golden vectors do not suffice.
        wrong_elsewhere: outputs of one of these graphs with each fault.
    """

    case: Case
    feeds: Arrays
    expected: Arrays
    right: Arrays
    wrong: Mapping[str, Arrays]
    disturbed: Sequence[Arrays] = ()
    wrong_elsewhere: Mapping[str, Arrays] = field(default_factory=dict)

    def rounding(self, output: str) -> Vector:
        """Return the deviations of correct runs from the reference, [runs, elements]."""
        expected = self.expected[output].ravel().astype(np.float64)
        return np.stack([run[output].ravel() - expected for run in (self.right, *self.disturbed)])

    def scatter(self, output: str) -> Vector:
        """Return the variance of rounding at each position of an output, with a last axis of length 1.

        It is smoothed by the overall mean, because there are few runs. The step of a quantized value moves all features
        of one token, so positions differ much.
        """
        noise = self.rounding(output).reshape(-1, *self.expected[output].shape)
        variance: Vector = np.square(noise).mean(axis=(0, -1))[..., None]
        return variance + (variance.mean() or 1.0)


@dataclass(frozen=True)
class Candidate:
    """A possible golden part: its weights case by case, and how clearly it exposes its fault."""

    part: PartRecord
    weights: tuple[np.ndarray, ...]
    separation: float

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(weight.size for weight in self.weights)

    def shown(self, seen: Sequence[Seen], fault: str) -> tuple[str, float]:
        """Return the part's output, and how clearly the part exposes a fault, which need not be its own.

        This is the minimum over two graphs that round differently: with one graph, its rounding would count as part of
            the fault.
        """
        output, values = self.part.output, list[float]()
        for runs in ([run.wrong for run in seen], [run.wrong_elsewhere for run in seen]):
            pairs = zip(runs, seen, self.weights, strict=False)
            sums = [projection(of[fault].get(output), run.expected[output], weight) for of, run, weight in pairs]
            values.append(abs(self.part.factor * sum(sums)) / self.part.limit)
        return output, math.inf if any(map(math.isnan, values)) else min(values)


def candidates(seen: Sequence[Seen], faults: Sequence[str], budgets: Mapping[str, float]) -> dict[str, Candidate]:
    """Return the best golden part for each fault in these cases.

    This is the smallest sufficient part, or else the one that shows the most.
    """
    best_by_fault: dict[str, Candidate] = {}
    for output, allowed in budgets.items():
        for candidate in _candidates_of(seen, faults, output, allowed):
            best = best_by_fault.get(candidate.part.fault)
            if best is None or _rank(candidate) > _rank(best):
                best_by_fault[candidate.part.fault] = candidate
    return best_by_fault


def _rank(candidate: Candidate) -> tuple[bool, float]:
    suffices = candidate.separation >= ENOUGH
    return suffices, -float(candidate.size) if suffices else candidate.separation


@dataclass(frozen=True)
class _Direction:
    """Weights that expose a fault in one output, and the graph's results along them.

    Attributes:
        fault: its name.
        weights: by case, int8.
        gain: Σ weight · change by the fault.
        error: largest |Σ weight · rounding| of the correct runs.
    """

    fault: str
    weights: tuple[np.ndarray, ...]
    gain: float
    error: float

    @property
    def length(self) -> float:
        return math.sqrt(sum(float(np.square(weight.astype(np.float64)).sum()) for weight in self.weights))


def _candidates_of(seen: Sequence[Seen], faults: Sequence[str], output: str, allowed: float) -> Iterator[Candidate]:
    """Yield a golden part for each fault, based on one output.

    Its limit follows from the graphs' rounding against the reference: along the direction of the fault, and along those
    of all faults, because other processors round differently.
    """
    floats = all(run.expected[output].dtype.name in FLOAT_TYPES for run in seen)
    if not floats or sum(run.expected[output].size for run in seen) > _LARGE:
        return
    noise = np.concatenate([run.rounding(output) for run in seen], axis=1)
    root = math.sqrt(noise.shape[1])
    spread = max(float(np.sqrt(np.mean(np.sum(np.square(noise), 1)))), _UNSEEN * allowed * root)
    directions = list(filter(None, (_direction(seen, fault, output, noise) for fault in faults)))
    cosines = [direction.error / (direction.length * spread) for direction in directions]
    typical = max(math.sqrt(sum(each**2 for each in cosines) / max(len(cosines), 1)), 1 / root)
    for direction in directions:
        rounding = max(direction.error, typical * direction.length * spread) / direction.gain
        limit = float(f"{max(_CAUTION * rounding, _NARROWEST):.3g}")
        candidate = Candidate(PartRecord(direction.fault, output, 1 / direction.gain, limit), direction.weights, 0.0)
        yield replace(candidate, separation=candidate.shown(seen, direction.fault)[1])


def _direction(seen: Sequence[Seen], fault: str, output: str, noise: Vector) -> _Direction | None:
    """Return the direction of a fault; `None` if it has no effect, or makes an output non-finite."""
    moved = [_difference(run.wrong[fault].get(output), run.right[output]) for run in seen]
    known = [each for each in moved if each is not None]
    if len(known) < len(seen):
        return None
    weights = _weights([each / run.scatter(output) for each, run in zip(known, seen, strict=True)])
    if weights is None:
        return None
    gain = sum(float(np.vdot(weight.astype(np.float64), each)) for weight, each in zip(weights, known, strict=True))
    flat = np.concatenate([weight.ravel() for weight in weights]).astype(np.float64)
    return _Direction(fault, weights, gain, float(np.abs(noise @ flat).max())) if gain > 0 else None


def _difference(faulty: np.ndarray | None, right: np.ndarray) -> Vector | None:
    """Return the change that a fault causes in an output; `None` if it has another shape or is not finite."""
    if faulty is None or faulty.shape != right.shape:
        return None
    difference = faulty.astype(np.float64) - right
    return difference if np.isfinite(difference).all() else None


def _weights(moved: Sequence[Vector]) -> tuple[np.ndarray, ...] | None:
    """Return directions as 8-bit integers with one common factor; `None` if all are zero."""
    flat = np.concatenate([each.ravel() for each in moved]) if moved else np.zeros(0)
    most = _CLIPPED * float(np.sqrt(np.mean(np.square(flat)))) if flat.size else 0.0
    if most == 0:
        return None
    return tuple(np.rint(np.clip(each / most, -1, 1) * _LARGEST).astype(np.int8) for each in moved)


def golden_parts(name: str, parts: Sequence[Candidate], seen: Sequence[Seen]) -> GoldenParts:
    """Return golden parts with the cases that have weights, and in each the outputs that parts use."""
    cases = seen[: max(len(candidate.weights) for candidate in parts)]
    weights = [
        {at: candidate.weights[number] for at, candidate in enumerate(parts) if number < len(candidate.weights)}
        for number in range(len(cases))
    ]
    outputs = [sorted({parts[at].part.output for at in used}) for used in weights]
    return GoldenParts(
        name,
        [run.case for run in cases],
        [
            {output: np.ascontiguousarray(run.expected[output]) for output in names}
            for run, names in zip(cases, outputs, strict=True)
        ],
        [candidate.part for candidate in parts],
        weights,
    )
