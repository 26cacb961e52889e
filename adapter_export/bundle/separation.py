"""Separation: how well golden data tell an adapter from the same adapter applied in part, or from another one.

Each fault is planted in the graph that has just been made, on small inputs. Where golden vectors do not tell a fault
twofold, golden parts are made that do: more inputs are drawn until they suffice, up to a few.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from adapter_export.bundle.effects import effects, note_of
from adapter_export.bundle.golden import Case, Golden, case_of
from adapter_export.bundle.golden_parts import GoldenParts
from adapter_export.bundle.opened import OpenedBundle
from adapter_export.bundle.write import BundleWriter
from adapter_export.dtypes import FLOAT_TYPES, Weights
from adapter_export.errors import RequestError, quoted
from adapter_export.format.manifest import (
    AdapterRecord,
    Manifest,
    NearestRecord,
    PartRecord,
    SeparationRecord,
    SlotRecord,
)
from adapter_export.graph.adapter import HEAD
from adapter_export.numerics.runner import Arrays, Runner, run
from adapter_export.numerics.sample_inputs import sized_cases
from adapter_export.onnx_backend.base.disturbed import disturbed
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import weights_are_many
from adapter_export.runtime.graphs import run_session
from adapter_export.runtime.self_check import projection

ENOUGH = 2.0
"""The separation that every fault should have."""

_MOST = 1e6
"""The largest separation that is written: JSON has no infinity."""

_ELEMENTS = 2**14
"""The most elements of all outputs in a case that is run for every fault."""

_SIZES = ((8, 8), (16, 10), (32, 10))
"""Batch and length of drawn inputs, each larger than the last."""

_MOST_ELEMENTS = 2**18
"""The most elements of all outputs in a drawn case."""

_LARGE = 2**13
"""The most weights of a golden part."""

_SEED = 32

_CAUTION = 2.5
"""By how much a limit is wider than the rounding that was measured: other processors round elsewhere."""

_NARROWEST = 0.05
"""The narrowest limit of a golden part."""

_UNSEEN = 1 / 50
"""The rounding of an element, as a part of its budget, that is assumed where less is seen."""

_CLIPPED = 4.0
"""Weights are cut at this many standard deviations, so that 8 bits keep the many that are small."""

_LARGEST = 127

_DRAWS = 5
"""How many disturbed graphs show what rounding on other machines does."""

_NEAR = 2
"""How many other adapters are tried as faults, if golden vectors do not tell them."""

_HOPELESS = (0.0, 0.0, 0.3, 0.6)
"""By the number of cases: a fault that shows less than this part of `ENOUGH` is given up. More rows of inputs make it
clearer by the root of their number, and no drawn case has four times as many as those before it."""

_NAMED = 6
"""How many faults a message names."""

_SAMPLED = 2048
"""How many elements of an output are compared for every pair of adapters."""


@dataclass(frozen=True)
class Fault:
    """An adapter as it must not be applied.

    Attributes:
        name: such as `layers.5.ffn off`.
        tensors: what its slots are fed with.
        is_part: whether one part alone is wrong. Such a fault has a golden part of its own, so that it is named.
    """

    name: str
    tensors: Weights
    is_part: bool = False


def faults_of(bundle: OpenedBundle, name: str) -> Iterator[Fault]:
    """Yield the faults of an adapter: each part off, each layer off, and no adapter.

    A part is a site, the head, or what sites share. A site at which the adapter changes nothing is none: it gives the
    same with neutral tensors.
    """
    own, neutral = bundle.tensors(name), bundle.tensors(None)
    idle = {site for effect in effects(bundle, [name]) for site in effect.idle}
    acting: dict[str, list[SlotRecord]] = {}
    for slot in bundle.manifest.slots:
        if slot.site not in idle and not np.array_equal(own[slot.name], neutral[slot.name]):
            acting.setdefault(slot.site, []).append(slot)
    layers: dict[int, list[str]] = {}
    for site in bundle.manifest.sites:
        if site.name in acting and site.layer is not None:
            layers.setdefault(site.layer, []).append(site.name)

    def off(sites: Collection[str]) -> Weights:
        return own | {slot.name: neutral[slot.name] for site in sites for slot in acting[site]}

    yield from (Fault(f"{site} off", off([site]), is_part=True) for site in acting)
    yield from (Fault(f"layer {layer} off", off(sites)) for layer, sites in layers.items() if len(sites) > 1)
    if len(acting) > 1:
        yield Fault("no adapter", neutral)


Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Seen:
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
class _Candidate:
    """A golden part that could be stored: its weights case by case, and how well it tells its fault."""

    part: PartRecord
    weights: tuple[np.ndarray, ...]
    separation: float

    @property
    def size(self) -> int:
        return sum(weight.size for weight in self.weights)

    def shown(self, seen: Sequence[_Seen], fault: str) -> tuple[str, float]:
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


Separations = dict[str, dict[str, float]]
"""By fault and output."""


@dataclass(frozen=True)
class SeparationMaker:
    """Measures separation, and makes golden parts.

    Attributes:
        bundle: one that is being made, whose adapters and golden vectors are written.
        references: computes what golden parts expect; never the exported graph.
    """

    bundle: OpenedBundle
    references: Runner

    def measure(
        self, name: str, others: Sequence[tuple[str, float]]
    ) -> tuple[SeparationRecord | None, GoldenParts | None]:
        """Return the separation of an adapter, and golden parts if golden vectors do not tell all faults twofold.

        Args:
            name: of the adapter.
            others: the adapters of `nearest_adapters`.

        Returns:
            `None` for the separation of an adapter that fills no slot.
        """
        own = list(faults_of(self.bundle, name))
        if not own:
            return None, None
        near = [other for other, apart in others[:_NEAR] if apart < ENOUGH]
        faults = [*own, *(Fault(_swapped(other), self.bundle.tensors(other)) for other in near)]
        golden = self.bundle.golden(name)
        at = _telling(golden)
        seen = [self._run(name, golden.cases[at], golden.outputs[at], faults)]
        found = _deviations(golden, seen[0])
        weak = [fault for fault in faults if _best(found[fault.name]) < ENOUGH]
        parts = self._parts(name, weak, seen, found)
        apart = {other: max(apart, _best(found.pop(_swapped(other), {}))) for other, apart in others}
        return _record(found, _nearest(apart)), _golden_parts(name, parts, seen) if parts else None

    @cached_property
    def _disturbed(self) -> list[ort.InferenceSession]:
        """Sessions of graphs that round elsewhere; none where the graph is too large to be in memory more than once."""
        model, slots = self.bundle.slots_model, {slot.name for slot in self.bundle.manifest.slots}
        if weights_are_many(model):
            return []
        home = self.bundle.home
        return [open_session(disturbed(model, home, slots, draw), home) for draw in range(_DRAWS)]

    def _run(self, name: str, case: Case, expected: Arrays, faults: Sequence[Fault]) -> _Seen:
        own = {**case.arrays, **self.bundle.tensors(name)}
        right, *wrong = self.bundle.run_slots([own, *({**own, **fault.tensors} for fault in faults)])
        return _Seen(case, own, expected, right, dict(zip((fault.name for fault in faults), wrong, strict=True)))

    def _parts(self, name: str, weak: Sequence[Fault], seen: list[_Seen], found: Separations) -> list[_Candidate]:
        """Return golden parts that show weak faults; what they show goes into `found`, cases for them into `seen`.

        A part that shows a site shows most layers with it, too. Where rounding on other machines cannot be tried out
        there are none: their limits would be guesses.
        """
        chosen, unclear = list[_Candidate](), list(weak) if weak and self._disturbed else []
        drawn, count = self._drawn(name), 0
        budgets = {output: budget.absolute for output, budget in self.bundle.golden(name).budgets.items()}
        while unclear:
            if count == len(seen):
                case = next(drawn, None)
                if case is None:
                    break
                seen.append(self._run(name, *case, unclear))
            seen[count] = self._elsewhere(seen[count], unclear)
            count += 1
            candidates = _candidates(seen[:count], [fault.name for fault in unclear], budgets)
            for fault in unclear:
                clear = [] if fault.is_part else [one for one in chosen if one.separation >= ENOUGH]
                known = [one.shown(seen, fault.name) for one in clear]
                shown = max(known, key=lambda pair: pair[1], default=("", 0.0))
                own = candidates.get(fault.name)
                if shown[1] < ENOUGH and own is not None and own.separation > max(shown[1], _best(found[fault.name])):
                    chosen = [*(one for one in chosen if one.part.fault != fault.name), own]
                    shown = own.part.output, own.separation
                output, separation = shown
                if separation > found[fault.name].get(output, 0.0):
                    found[fault.name][output] = separation
            least = ENOUGH * _HOPELESS[min(count, len(_HOPELESS) - 1)]
            unclear = [fault for fault in unclear if least <= _best(found[fault.name]) < ENOUGH]
        return [one for one in chosen if one.separation > 1]

    def _elsewhere(self, seen: _Seen, faults: Sequence[Fault]) -> _Seen:
        """Return a case with what graphs give that round elsewhere: all of them as it is, one with each fault."""
        right = [run_session(session, seen.feeds) for session in self._disturbed]
        wrong = {fault.name: run_session(self._disturbed[0], {**seen.feeds, **fault.tensors}) for fault in faults}
        return replace(seen, disturbed=right, wrong_elsewhere=wrong)

    def _drawn(self, name: str) -> Iterator[tuple[Case, Arrays]]:
        """Draw cases that are not too large, and let the reference compute each; none where a run of it takes long."""
        if not self.references.keeps_weights:
            return
        manifest, golden = self.bundle.manifest, self.bundle.golden(name)
        adapter, output = self.bundle.with_output(name)
        for number, made in enumerate(sized_cases(manifest.inputs, manifest.lengths, _SIZES, seed=_SEED)):
            case = case_of(f"part{number}_{made.name}", made.arrays, manifest.inputs)
            if _numbers(case) * _width(golden) > _MOST_ELEMENTS:
                continue
            try:
                yield case, run(self.references, case.arrays, adapter, self.bundle.base_outputs, output)
            except RequestError:  # the base does not take this shape
                continue


def with_separation(
    bundle: OpenedBundle, references: Runner | None, names: Collection[str], writer: BundleWriter
) -> Manifest:
    """Return the manifest of a bundle with the separation of its adapters, and write golden parts of the new ones.

    Args:
        bundle: one that is being made, whose adapters and golden vectors are written.
        references: computes what golden parts expect; never the exported graph. `None` if no adapter is new.
        names: the adapters that are new.
        writer: writes into the bundle.
    """
    others = nearest_adapters(bundle)
    maker = None if references is None else SeparationMaker(bundle, references)
    records: list[AdapterRecord] = []
    for record in bundle.manifest.adapters:
        golden, near = record.golden, others[record.name]
        if maker is not None and record.name in names:
            separation, parts = maker.measure(record.name, near)
            golden = replace(golden, separation=separation, parts=None if parts is None else writer.parts(parts))
        elif golden.separation is not None:
            golden = replace(golden, separation=_renewed(golden.separation, near))
        records.append(replace(record, golden=golden))
    return replace(bundle.manifest, adapters=tuple(records))


def _renewed(known: SeparationRecord, others: Sequence[tuple[str, float]]) -> SeparationRecord:
    """Return a separation for other neighbours: adapters came or went. What golden parts tell of one is kept."""
    apart = dict(others)
    if known.nearest is not None and known.nearest.adapter in apart:
        apart[known.nearest.adapter] = max(apart[known.nearest.adapter], known.nearest.separation)
    return replace(known, nearest=_nearest(apart))


def _nearest(apart: Mapping[str, float]) -> NearestRecord | None:
    least = min(apart, key=lambda other: apart[other], default=None)
    return None if least is None else NearestRecord(least, _written(apart[least]))


def remarks(bundle: OpenedBundle, names: Collection[str]) -> Iterator[str]:
    """Yield what to say of new adapters: those that change nothing, and those whose golden data hardly tell a fault."""
    found = effects(bundle, names)
    yield from filter(None, map(note_of, found))
    alike = {one.adapter for one in found if len(one.idle) == len(one.sites) or not one.beyond_rounding}
    yield from (said for name in names if name not in alike for said in weakness(bundle.record(name), alike))


def weakness(record: AdapterRecord, alike: Collection[str] = ()) -> Iterator[str]:
    """Yield what to say of an adapter whose golden data hardly tell a fault; not that it is like those in `alike`."""
    found = record.golden.separation
    if found is not None and found.weak:
        shown, more = quoted(found.weak[:_NAMED]), len(found.weak) - _NAMED
        yield (
            f"golden data of `{record.name}` hardly tell {shown}{f' and {more} more' if more > 0 else ''}: "
            f"the least shows {found.least:.2g} of what is allowed, {ENOUGH:g} is wanted"
        )
    nearest = None if found is None else found.nearest
    if nearest is not None and nearest.separation < ENOUGH and nearest.adapter not in alike:
        yield f"golden data of `{record.name}` hardly tell `{nearest.adapter}` in its place ({nearest.separation:.2g})"


def _telling(golden: Golden) -> int:
    """Return the golden case that is run for every fault: the largest of few elements without padding.

    If all have many elements, it is the smallest.
    """
    sizes = {
        at: sum(value.size for value in golden.outputs[at].values())
        for at, case in enumerate(golden.cases)
        if case.real is None
    } or {0: 0}
    small = [at for at, size in sizes.items() if size <= _ELEMENTS]
    return max(small, key=lambda at: sizes[at]) if small else min(sizes, key=lambda at: sizes[at])


def _numbers(case: Case) -> int:
    """Return the elements of the largest input of a case."""
    return max(array.size for array in case.arrays.values())


def _width(golden: Golden) -> float:
    """Return how many elements all outputs have for one of the largest input, in the largest golden case."""
    sizes = {_numbers(case): outputs for case, outputs in zip(golden.cases, golden.outputs, strict=True)}
    most = max(sizes)
    return sum(value.size for value in sizes[most].values()) / most


def _swapped(other: str) -> str:
    return f"{other} in its place"


def _best(outputs: Mapping[str, float]) -> float:
    return max(outputs.values(), default=0.0)


def _written(separation: float) -> float:
    return float(f"{min(separation, _MOST):.4g}")


def _record(found: Separations, nearest: NearestRecord | None) -> SeparationRecord | None:
    """Return what the manifest says, with four digits: more would be noise."""
    if not found:
        return None
    best = {fault: _written(_best(outputs)) for fault, outputs in found.items()}
    least = min(best, key=lambda fault: best[fault])
    outputs = {output for one in found.values() for output in one}
    sites = [one for fault, one in found.items() if fault != f"{HEAD} off"] or list(found.values())
    by_output = {output: _written(min(one.get(output, 0.0) for one in sites)) for output in sorted(outputs)}
    weak = sorted((fault for fault in best if best[fault] < ENOUGH), key=lambda fault: best[fault])
    return SeparationRecord(best[least], least, by_output, tuple(weak), nearest)


def _deviations(golden: Golden, seen: _Seen) -> dict[str, dict[str, float]]:
    """Return by fault and output the largest deviation over the allowed one."""
    return {
        fault: {
            output: _ratio(outputs.get(output), seen.expected[output], budget.absolute)
            for output, budget in golden.budgets.items()
        }
        for fault, outputs in seen.wrong.items()
    }


def _ratio(found: np.ndarray | None, expected: np.ndarray, allowed: float) -> float:
    """Return the largest deviation over the allowed one; infinite for NaN, and for another shape."""
    if found is None or found.shape != expected.shape:
        return np.inf
    most = float(np.abs(found.astype(np.float64) - expected).max(initial=0.0))
    if np.isnan(most):
        return np.inf
    return most / allowed if allowed else np.inf if most else 0.0


def _candidates(seen: Sequence[_Seen], faults: Sequence[str], budgets: Mapping[str, float]) -> dict[str, _Candidate]:
    """Return the best golden part for each fault by these cases.

    That is the smallest that suffices, or else the one that tells most.
    """
    found: dict[str, _Candidate] = {}
    for output, allowed in budgets.items():
        for candidate in _candidates_of(seen, faults, output, allowed):
            best = found.get(candidate.part.fault)
            if best is None or _rank(candidate) > _rank(best):
                found[candidate.part.fault] = candidate
    return found


def _rank(candidate: _Candidate) -> tuple[bool, float]:
    suffices = candidate.separation >= ENOUGH
    return suffices, -float(candidate.size) if suffices else candidate.separation


def _candidates_of(seen: Sequence[_Seen], faults: Sequence[str], output: str, allowed: float) -> Iterator[_Candidate]:
    """Yield a golden part by one output for each fault.

    Its limit follows from the rounding that the graph shows against the reference: along the direction of the fault
    itself, and along those of all faults, since another processor rounds elsewhere.
    """
    floats = all(one.expected[output].dtype.name in FLOAT_TYPES for one in seen)
    if not floats or sum(one.expected[output].size for one in seen) > _LARGE:
        return
    noise = np.concatenate([one.rounding(output) for one in seen], axis=1)
    spread = max(float(np.sqrt(np.mean(np.sum(np.square(noise), 1)))), _UNSEEN * allowed * np.sqrt(noise.shape[1]))
    weights: dict[str, tuple[np.ndarray, ...]] = {}
    gains: dict[str, float] = {}
    errors: dict[str, float] = {}
    lengths: dict[str, float] = {}
    for fault in faults:
        moved = [_difference(one.wrong[fault].get(output), one.right[output]) for one in seen]
        own = _weights([each / one.scatter(output) for each, one in zip(moved, seen, strict=True) if each is not None])
        if own is None or len(own) < len(seen):
            continue
        flat = np.concatenate([weight.ravel() for weight in own]).astype(np.float64)
        gain = sum(float(np.vdot(w.astype(np.float64), d)) for w, d in zip(own, moved, strict=True) if d is not None)
        if gain > 0:
            weights[fault], gains[fault] = own, gain
            errors[fault], lengths[fault] = float(np.abs(noise @ flat).max()), float(np.linalg.norm(flat))
    if not weights:
        return
    cosines = [errors[fault] / (lengths[fault] * spread) for fault in weights]
    typical = max(float(np.sqrt(np.mean(np.square(cosines)))), 1 / np.sqrt(noise.shape[1]))
    for fault, own in weights.items():
        rounding = max(errors[fault], typical * lengths[fault] * spread) / gains[fault]
        limit = max(_CAUTION * rounding, _NARROWEST)
        candidate = _Candidate(PartRecord(fault, output, 1 / gains[fault], float(f"{limit:.3g}")), own, 0.0)
        yield replace(candidate, separation=candidate.shown(seen, fault)[1])


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


def nearest_adapters(bundle: OpenedBundle) -> dict[str, list[tuple[str, float]]]:
    """Return for each adapter all others with other tensors, those first that golden vectors tell apart least.

    Each comes with its separation, measured on some elements of one case; below `ENOUGH` on all of them.
    """
    golden = {record.name: bundle.golden(record.name) for record in bundle.manifest.adapters}
    samples: dict[tuple[str, tuple[int, ...]], dict[str, np.ndarray]] = {}
    for name, own in golden.items():
        at = max(range(len(own.cases)), key=lambda each: (own.cases[each].real is None, own.cases[each].batch > 1))
        for output, value in own.outputs[at].items():
            flat = value.ravel()
            samples.setdefault((output, value.shape), {})[name] = flat[:: max(1, flat.size // _SAMPLED)]
    found: dict[str, list[tuple[str, float]]] = {}
    for name in golden:
        apart = dict.fromkeys((other for other in golden if other != name), 0.0)
        for output, budget in golden[name].budgets.items():
            group = next((of for (key, _), of in samples.items() if key == output and name in of), {})
            alike = [other for other in apart if other in group]
            apart |= dict.fromkeys((other for other in apart if other not in group), np.inf)  # its head is elsewhere
            if alike:
                stacked = np.stack([group[other] for other in alike]).astype(np.float64)
                most = np.abs(stacked - group[name]).max(1, initial=0.0)
                ratios = np.divide(most, budget.absolute, out=np.full_like(most, np.inf), where=budget.absolute > 0)
                apart |= {other: max(apart[other], float(ratio)) for other, ratio in zip(alike, ratios, strict=True)}
        for other in [other for other, least in apart.items() if least < ENOUGH]:
            if _same_tensors(bundle, name, other):
                del apart[other]
            else:
                apart[other] = _apart(golden[name], golden[other])
        found[name] = sorted(apart.items(), key=lambda pair: pair[1])
    return found


def _same_tensors(bundle: OpenedBundle, one: str, other: str) -> bool:
    first, second = bundle.tensors(one), bundle.tensors(other)
    return all(np.array_equal(first[slot], second[slot]) for slot in first)


def _apart(one: Golden, other: Golden) -> float:
    """Return the largest deviation of another adapter's golden vectors over what those of one allow."""
    return max(
        _ratio(theirs.get(output), own[output], budget.absolute)
        for own, theirs in zip(one.outputs, other.outputs, strict=True)
        for output, budget in one.budgets.items()
    )


def _golden_parts(name: str, parts: Sequence[_Candidate], seen: Sequence[_Seen]) -> GoldenParts:
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
