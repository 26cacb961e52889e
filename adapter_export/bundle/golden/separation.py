"""Separation: how clearly golden data show that an adapter is applied only partly, or replaced by another one.

Each fault is planted in the new graph, on small inputs. Faults that golden vectors show less than twofold get golden
parts: more inputs are drawn until they suffice, up to a limit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnxruntime as ort

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.ablation import effects, note_of
from adapter_export.bundle.golden.fault_batches import first_row, has_rows, run_sets
from adapter_export.bundle.golden.golden_parts import GoldenParts
from adapter_export.bundle.golden.golden_vectors import Case, Golden, case_of
from adapter_export.bundle.golden.neighbours import ENOUGH, MOST, nearest_adapters, separation_of
from adapter_export.bundle.golden.part_candidates import Candidate, Seen, candidates, golden_parts
from adapter_export.bundle.write import BundleWriter
from adapter_export.dtypes import Weights
from adapter_export.errors import RequestError
from adapter_export.format.manifest import (
    AdapterRecord,
    Axis,
    Manifest,
    NearestRecord,
    SeparationRecord,
    SlotRecord,
)
from adapter_export.graph.adapter import HEAD, PREFIX
from adapter_export.numerics.runner import Arrays, Runner, run
from adapter_export.numerics.sample_inputs import sized_cases
from adapter_export.onnx_backend.base.disturbed import disturbed
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import weights_are_many
from adapter_export.onnx_backend.slots import SLOT_PREFIX
from adapter_export.runtime.graphs import run_session
from adapter_export.words import quoted

_ELEMENTS = 2**14
"""Maximum elements of all outputs in a case that runs for every fault."""

_SIZES = ((8, 8), (16, 10), (32, 10))
"""Batch and length of drawn inputs, in increasing size."""

_MOST_ELEMENTS = 2**18
"""Maximum elements of the largest input of a drawn case, and of all outputs."""

_SEED = 32

_DRAWS = 5
"""Number of disturbed graphs that simulate the rounding of other machines."""

_NEAR = 2
"""Maximum other adapters that are planted as faults if golden vectors do not separate them."""

_HOPELESS = (0.0, 0.0, 0.3, 0.6)
"""Fractions of `ENOUGH` by the number of cases: weaker faults are abandoned. More rows improve separation by the
square root of their number, and no drawn case has four times as many as those before it."""

_NAMED = 6
"""Maximum number of faults named in a message."""


@dataclass(frozen=True)
class Fault:
    """A wrong application of an adapter.

    Attributes:
        name: for example `layers.5.ffn off`.
        tensors: tensors fed to its slots.
        is_part: whether only one part is wrong. Such a fault gets its own golden part, which names it.
    """

    name: str
    tensors: Weights
    is_part: bool = False


def faults_of(bundle: OpenedBundle, name: str) -> Iterator[Fault]:
    """Yield the faults of an adapter: each part off, each layer off, and no adapter.

    A part is a site, the head, or parameters that sites share. Sites without effect are skipped: neutral tensors give
    the same result.
    """
    tensors, neutral = bundle.tensors(name), bundle.tensors(None)
    idle = {site for effect in effects(bundle, [name]) for site in effect.idle}
    acting: dict[str, list[SlotRecord]] = {}
    for slot in bundle.manifest.slots:
        if slot.site not in idle and not np.array_equal(tensors[slot.name], neutral[slot.name]):
            # each of the keys and values of a prefix is a part
            part = slot.name.removeprefix(SLOT_PREFIX) if slot.site == PREFIX else slot.site
            acting.setdefault(part, []).append(slot)
    layers: dict[int, list[str]] = {}
    for site in bundle.manifest.sites:
        if site.name in acting and site.layer is not None:
            layers.setdefault(site.layer, []).append(site.name)

    def off(sites: Collection[str]) -> Weights:
        return tensors | {slot.name: neutral[slot.name] for site in sites for slot in acting[site]}

    yield from (Fault(f"{site} off", off([site]), is_part=True) for site in acting)
    yield from (Fault(f"layer {layer} off", off(sites)) for layer, sites in layers.items() if len(sites) > 1)
    if len(acting) > 1:
        yield Fault("no adapter", neutral)


Separations = dict[str, dict[str, float]]
"""Separations by fault and output."""


@dataclass(frozen=True)
class SeparationMaker:
    """Measures separation, and makes golden parts.

    Attributes:
        bundle: a bundle that is being built, with its adapters and golden vectors.
        references: computes the expected outputs of golden parts; never the exported graph.
    """

    bundle: OpenedBundle
    references: Runner

    def measure(
        self, name: str, others: Sequence[tuple[str, float]]
    ) -> tuple[SeparationRecord | None, GoldenParts | None]:
        """Return the separation of an adapter, and golden parts if golden vectors do not show all faults twofold.

        Args:
            name: the adapter.
            others: adapters from `nearest_adapters`.

        Returns:
            `None` for the separation of an adapter that fills no slot.
        """
        part_faults = list(faults_of(self.bundle, name))
        if not part_faults:
            return None, None
        near = [other for other, apart in others[:_NEAR] if apart < ENOUGH]
        faults = [*part_faults, *(Fault(_swapped(other), self.bundle.tensors(other)) for other in near)]
        golden = self.bundle.golden(name)
        seen = [self._run(name, *self._telling(golden), faults)]
        separations = _deviations(golden, seen[0])
        weak = [fault for fault in faults if _best(separations[fault.name]) < ENOUGH]
        parts = self._parts(name, weak, seen, separations)
        apart = {other: max(apart, _best(separations.pop(_swapped(other), {}))) for other, apart in others}
        return _record(separations, _nearest(apart)), golden_parts(name, parts, seen) if parts else None

    @cached_property
    def _disturbed_sessions(self) -> list[ort.InferenceSession]:
        """Open sessions of graphs that round differently; empty if several copies of the graph exceed the memory."""
        model, slots = self.bundle.slots_model, {slot.name for slot in self.bundle.manifest.slots}
        if weights_are_many(model):
            return []
        home = self.bundle.home
        return [open_session(disturbed(model, home, slots, draw), home) for draw in range(_DRAWS)]

    def _telling(self, golden: Golden) -> tuple[Case, Arrays]:
        """Return the golden case that runs for every fault, with its expected outputs: one without padding.

        If possible it has several tokens in a row, a past included: attention to a single token hides its query. Of a
        large base it is the shortest, and a single row if rows are independent. Otherwise it is the one with the most
        elements up to `_ELEMENTS`, or else with the fewest.
        """
        manifest = self.bundle.manifest
        batches = {record.axes[0] for record in manifest.inputs if record.axes}
        able = [at for at, case in enumerate(golden.cases) if case.real is None] or [0]
        lengths = {at: max(_lengths(golden.cases[at], batches), default=1) for at in able}
        if max(lengths.values()) > 1:
            able = [at for at in able if lengths[at] > 1]
        if self.bundle.has_many_weights:
            at = min(able, key=lambda at: (lengths[at], -golden.cases[at].batch))
            case, outputs = golden.cases[at], golden.outputs[at]
            alone = manifest.batch_invariant and has_rows(manifest)
            return first_row(case, outputs, manifest.inputs) if alone else (case, outputs)
        sizes = {at: sum(value.size for value in golden.outputs[at].values()) for at in able}
        small = [at for at in able if sizes[at] <= _ELEMENTS]
        at = max(small, key=lambda at: sizes[at]) if small else min(able, key=lambda at: sizes[at])
        return golden.cases[at], golden.outputs[at]

    def _run(self, name: str, case: Case, expected: Arrays, faults: Sequence[Fault]) -> Seen:
        tensors, names = self.bundle.tensors(name), [fault.name for fault in faults]
        sets = [tensors, *({**tensors, **fault.tensors} for fault in faults)]
        right, *wrong = run_sets(self.bundle, case, sets) or self._run_slots(case, sets)
        return Seen(case, {**case.arrays, **tensors}, expected, right, dict(zip(names, wrong, strict=True)))

    def _run_slots(self, case: Case, sets: Sequence[Weights]) -> list[Arrays]:
        """Run the graph with slots on one set of tensors after the other."""
        requests = [{**case.arrays, **tensors} for tensors in sets]
        try:
            return self.bundle.run_slots(requests, self.bundle.stored)
        except RequestError:  # a fault that the graph rejects is not silent
            first = self.bundle.run_slots(requests[:1], self.bundle.stored)
            return [*first, *map(self._outputs, requests[1:])]

    def _outputs(self, feeds: Arrays) -> Arrays:
        """Return the graph's outputs; empty if it rejects these tensors."""
        try:
            return self.bundle.run_slots([feeds], self.bundle.stored)[0]
        except RequestError:
            return {}

    def _parts(self, name: str, weak: Sequence[Fault], seen: list[Seen], separations: Separations) -> list[Candidate]:
        """Return golden parts for weak faults; adds their separations to `separations` and their cases to `seen`.

        A part for a site usually also shows its layer. There are no parts if other rounding cannot be simulated,
        because their limits would be guesses.
        """
        chosen, unclear = list[Candidate](), list(weak) if weak and self._disturbed_sessions else []
        drawn, count = self._draw(name), 0
        budgets = {output: budget.absolute for output, budget in self.bundle.golden(name).budgets.items()}
        while unclear:
            if count == len(seen):
                case = next(drawn, None)
                if case is None:
                    break
                seen.append(self._run(name, *case, unclear))
            seen[count] = self._run_disturbed(seen[count], unclear)
            count += 1
            by_fault = candidates(seen[:count], [fault.name for fault in unclear], budgets)
            for fault in unclear:
                clear = [] if fault.is_part else [candidate for candidate in chosen if candidate.separation >= ENOUGH]
                known = [candidate.shown(seen, fault.name) for candidate in clear]
                shown = max(known, key=lambda pair: pair[1], default=("", 0.0))
                best = by_fault.get(fault.name)
                known_best = max(shown[1], _best(separations[fault.name]))
                if shown[1] < ENOUGH and best is not None and best.separation > known_best:
                    chosen = [*(candidate for candidate in chosen if candidate.part.fault != fault.name), best]
                    shown = best.part.output, best.separation
                output, separation = shown
                if separation > separations[fault.name].get(output, 0.0):
                    separations[fault.name][output] = separation
            least = ENOUGH * _HOPELESS[min(count, len(_HOPELESS) - 1)]
            unclear = [fault for fault in unclear if least <= _best(separations[fault.name]) < ENOUGH]
        return [candidate for candidate in chosen if candidate.separation > 1]

    def _run_disturbed(self, seen: Seen, faults: Sequence[Fault]) -> Seen:
        """Return a case with outputs of graphs that round differently: all without faults, one with each fault."""
        stored, first = self.bundle.stored, self._disturbed_sessions[0]
        right = [stored(run_session(session, seen.feeds)) for session in self._disturbed_sessions]
        wrong = {fault.name: stored(run_session(first, {**seen.feeds, **fault.tensors})) for fault in faults}
        return replace(seen, disturbed=right, wrong_elsewhere=wrong)

    def _draw(self, name: str) -> Iterator[tuple[Case, Arrays]]:
        """Draw cases of limited size, and run the reference on each; yield nothing if its runs are slow."""
        if not self.references.keeps_weights:
            return
        manifest, golden = self.bundle.manifest, self.bundle.golden(name)
        adapter, output = self.bundle.with_output(name)
        for number, sized in enumerate(sized_cases(manifest.inputs, manifest.lengths, _SIZES, seed=_SEED)):
            case = case_of(f"part{number}_{sized.name}", sized.arrays, manifest.inputs, sized.seeds)
            if _numbers(case) * max(1.0, _width(golden)) > _MOST_ELEMENTS:
                continue
            try:
                expected = run(self.references, case.arrays, adapter, self.bundle.base_outputs, output)
            except RequestError:  # the base does not accept this shape
                continue
            if all(np.isfinite(value).all() for value in expected.values()):
                yield case, self.bundle.stored(expected)


def measure_separations(
    bundle: OpenedBundle, references: Runner | None, names: Collection[str], writer: BundleWriter
) -> Manifest:
    """Return the manifest of a bundle with the separation of its adapters, and write golden parts of the new ones.

    Args:
        bundle: a bundle that is being built, with its adapters and golden vectors.
        references: computes the expected outputs of golden parts, never the exported graph; `None` if no adapter is
            new.
        names: the new adapters.
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
    """Return a separation updated for changed neighbours. The result of golden parts for a neighbour is kept."""
    apart = dict(others)
    if known.nearest is not None and known.nearest.adapter in apart:
        apart[known.nearest.adapter] = max(apart[known.nearest.adapter], known.nearest.separation)
    return replace(known, nearest=_nearest(apart))


def _nearest(apart: Mapping[str, float]) -> NearestRecord | None:
    least = min(apart, key=lambda other: apart[other], default=None)
    return None if least is None else NearestRecord(least, _written(apart[least]))


def remarks(bundle: OpenedBundle, names: Collection[str]) -> Iterator[str]:
    """Yield notes on new adapters: those without effect, and faults that golden data barely show."""
    measured = effects(bundle, names)
    yield from filter(None, map(note_of, measured))
    alike = {
        effect.adapter for effect in measured if len(effect.idle) == len(effect.sites) or not effect.beyond_rounding
    }
    yield from (remark for name in names if name not in alike for remark in weakness(bundle.record(name), alike))


def weakness(record: AdapterRecord, alike: Collection[str] = ()) -> Iterator[str]:
    """Yield the faults of an adapter that golden data barely show; similarity to adapters in `alike` is expected."""
    separation = record.golden.separation
    if separation is not None and separation.weak:
        shown, more = quoted(separation.weak[:_NAMED]), len(separation.weak) - _NAMED
        yield (
            f"golden data of `{record.name}` barely show {shown}{f' and {more} more' if more > 0 else ''}: "
            f"the weakest fault moves the outputs by {separation.least:.2g} times the budget, less than {ENOUGH:g}"
        )
    nearest = None if separation is None else separation.nearest
    if nearest is not None and nearest.separation < ENOUGH and nearest.adapter not in alike:
        yield f"golden data of `{record.name}` barely show `{nearest.adapter}` instead ({nearest.separation:.2g})"


def _lengths(case: Case, batches: Collection[Axis]) -> Iterator[int]:
    yield from (size for axis, size in case.axes.items() if axis not in batches)


def _numbers(case: Case) -> int:
    """Return the elements of the largest input of a case."""
    return max(array.size for array in case.arrays.values())


def _width(golden: Golden) -> float:
    """Return the ratio of output elements to elements of the largest input, in the largest golden case."""
    sizes = {_numbers(case): outputs for case, outputs in zip(golden.cases, golden.outputs, strict=True)}
    most = max(sizes)
    return sum(value.size for value in sizes[most].values()) / most


def _swapped(other: str) -> str:
    return f"{other} in its place"


def _best(outputs: Mapping[str, float]) -> float:
    return max(outputs.values(), default=0.0)


def _written(separation: float) -> float:
    return float(f"{min(separation, MOST):.4g}")


def _record(separations: Separations, nearest: NearestRecord | None) -> SeparationRecord | None:
    """Return the record for the manifest, with four digits: more would be noise."""
    if not separations:
        return None
    best = {fault: _written(_best(outputs)) for fault, outputs in separations.items()}
    least = min(best, key=lambda fault: best[fault])
    outputs = {output for values in separations.values() for output in values}
    sites = [values for fault, values in separations.items() if fault != f"{HEAD} off"] or list(separations.values())
    by_output = {output: _written(min(values.get(output, 0.0) for values in sites)) for output in sorted(outputs)}
    weak = sorted((fault for fault in best if best[fault] < ENOUGH), key=lambda fault: best[fault])
    return SeparationRecord(best[least], least, by_output, tuple(weak), nearest)


def _deviations(golden: Golden, seen: Seen) -> dict[str, dict[str, float]]:
    """Return, by fault and output, the largest deviation divided by the budget."""
    return {
        fault: {
            output: separation_of(outputs.get(output), seen.expected[output], budget.absolute)
            for output, budget in golden.budgets.items()
        }
        for fault, outputs in seen.wrong.items()
    }
