"""Prove a bundle: run every graph with every adapter on every case, compare all of it, and say what was found.

One engine serves `check` (against a reference, at every optimization level, site by site), `verify` (against the stored
golden vectors) and `build` and `add`, which verify what they have made before it takes its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from adapter_export.bundle.ablation import effects
from adapter_export.bundle.golden import Case, Golden, GoldenMaker, OnStep, Tolerance, named, scale, silent, to_disturb
from adapter_export.bundle.golden_batches import replay_batches
from adapter_export.bundle.golden_media import compare_processors, replay_media
from adapter_export.bundle.golden_parts import GoldenParts
from adapter_export.bundle.opened import LEVEL, Graph, OpenedBundle
from adapter_export.bundle.proof.check_parts import PartValue, check_parts, check_separation, part_values
from adapter_export.bundle.proof.compare_arrays import Original, agreements, compare, missing, unexpected
from adapter_export.bundle.proof.exact_tensors import check_cut, check_slots, check_tensors
from adapter_export.bundle.proof.invariants import (
    check_apart,
    check_fan_out,
    check_native,
    check_outside,
    check_proofs,
    check_record,
    check_row_order,
    check_swap,
    check_weights_apart,
    swaps,
)
from adapter_export.bundle.proof.ledger import not_asked, of_invariants, of_outputs, of_sites
from adapter_export.bundle.proof.locate import Trace, trace, typical
from adapter_export.bundle.proof.manifest_checks import check_claims
from adapter_export.bundle.proof.proof_plan import LEVELS, Plan, Reference, Trial, dealt, plan_check, trials
from adapter_export.bundle.proof.runtimes import check_providers, check_runtime
from adapter_export.bundle.proof.shapes import check_coverage, check_words, smallest_case, word_steps
from adapter_export.bundle.proof.site_probe import SiteProbe
from adapter_export.bundle.recorded_runs import RunDigests, compare_runs
from adapter_export.bundle.report import BASE, Report
from adapter_export.bundle.texts import check_contract, replay
from adapter_export.errors import BaseModelError, NothingComparedError, RequestError, argument, quoted
from adapter_export.format.check_report import (
    ComparisonRecord,
    InvariantRecord,
    ObligationRecord,
    OutputRecord,
    SiteRecord,
    Split,
    verdict,
)
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.budget import Budget
from adapter_export.numerics.runner import DRAWS, Arrays, Undefined, run
from adapter_export.runtime.bank import MASK_BELOW
from adapter_export.runtime.graphs import run_session

_SHOWN = 5
"""The number of slots that a fault names."""

_MOST_ASLEEP = 3
"""How many cases that fail the sites are tried on."""


_AMPLIFIED = 100.0
"""By how much a measured budget may be wider than that of the formula, at most; more is wrong in any case."""


def run_trials(
    graph: Graph, some: Sequence[Trial], on_step: OnStep, runs: RunDigests | None = None
) -> Iterator[OutputRecord]:
    """Run, and compare each adapter's rows with what is expected of that adapter. `runs` gets those of one adapter.

    Raises:
        RequestError: the graph cannot compute a case.
        BaseModelError: a new bank finds no row of the batch where an adapter acts.
    """
    sizes = [
        sum(array.nbytes for array in golden.outputs[at].values()) for trial in some for golden, at in trial.expected
    ]
    results = graph.run_all([(trial.case.arrays, trial.chosen) for trial in some], max(sizes, default=0))
    try:
        for trial, found in zip(some, results, strict=True):
            for golden, at in trial.expected:
                head = None if golden.adapter is None else graph.bundle.record(golden.adapter).output
                names = {*graph.bundle.common_outputs, head}
                own = {name: value for name, value in found.items() if name in names}
                rows = np.array([name == golden.adapter for name in trial.chosen]) if trial.mixed else None
                yield from compare_outputs(own, golden, at, graph, rows)
                if runs is not None and not trial.mixed:
                    runs.add(graph, golden, at, found)
            on_step(f"{graph.file}, {graph.level}: {trial.case.name}")
    except RequestError as error:
        if not (graph.bundle.staged and graph.by_row):
            raise
        raise BaseModelError(  # a new bank that cannot compute what the base can
            "has no batch as the first axis where an adapter acts, so that a bank cannot tell rows apart",
            found=error.found,
            fix=f"build with {argument('variants', ['slots', 'inputs'])}",
        ) from error


def compare_outputs(
    found: Arrays, golden: Golden, at: int, graph: Graph, rows: npt.NDArray[np.bool_] | None = None
) -> Iterator[OutputRecord]:
    """Compare every output that the graph gave or must give in one case.

    `rows` [batch] are those that ran through the adapter, none if all did. With them, those outputs alone are compared
    that have a row for each row of the batch.
    """
    case, record = golden.cases[at], None if golden.adapter is None else graph.bundle.record(golden.adapter)
    logits = {"logits"} & set(graph.bundle.base_outputs)
    logits |= (
        {record.output or ""}
        if record is not None and record.task is not None and record.task.kind.picks_largest
        else set()
    )

    def result(output: str, part: Split, comparison: ComparisonRecord) -> OutputRecord:
        return OutputRecord(
            **vars(comparison),
            against=golden.against,
            adapter=golden.adapter,
            case=case.name,
            axes=case.axes,
            level=graph.level,
            output=output,
            part=part,
            variant=graph.variant,
            mixed=rows is not None,
        )

    for name, expected in golden.outputs[at].items():
        allowed = golden.budgets[name]
        if name not in found:
            yield result(name, "all", missing(allowed))
        elif rows is None or expected.shape[:1] == rows.shape:
            for part, elements in golden.parts(at, name):
                where = elements
                if rows is not None:
                    own = np.broadcast_to(rows.reshape(-1, *(1,) * (expected.ndim - 1)), expected.shape)
                    where = own if elements is None else own & elements
                if where is None or where.any():
                    own_width = _compare_own if graph.by_row else compare
                    comparison = own_width(found[name], expected, allowed, where=where, logits=name in logits)
                    if name == graph.bundle.manifest.checksums and not comparison.passed:
                        comparison = _naming_slots(comparison, found[name], expected, where, graph.bundle)
                    yield result(name, part, comparison)
    for name in sorted(found.keys() - golden.outputs[at].keys()):
        yield result(name, "all", unexpected(found[name]))


def _naming_slots(
    comparison: ComparisonRecord,
    found: np.ndarray,
    expected: np.ndarray,
    where: npt.NDArray[np.bool_] | None,
    bundle: OpenedBundle,
) -> ComparisonRecord:
    """Name the slots whose checksums differ: which tensors the graph did not receive as they are."""
    if found.shape != expected.shape:
        return comparison
    differ = (found != expected) if where is None else (found != expected) & where
    names = [slot.name for slot, wrong in zip(bundle.manifest.slots, differ.any(0), strict=True) if wrong]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return replace(comparison, faults=(f"received other tensors for {quoted(names[:_SHOWN])}{more}",))


def _compare_own(
    found: np.ndarray, expected: np.ndarray, budget: Budget, *, where: npt.NDArray[np.bool_] | None, logits: bool
) -> ComparisonRecord:
    """Compare what is an adapter's own of an output that is as wide as the widest of its bank; the rest is masked."""
    if not expected.ndim or found.shape[:-1] != expected.shape[:-1]:
        return compare(found, expected, budget, where=where, logits=logits)
    own, rest = found[..., : expected.shape[-1]], found[..., expected.shape[-1] :]
    comparison = compare(own, expected, budget, where=where, logits=logits)
    rows = np.ones(rest.shape, bool) if where is None else np.broadcast_to(where[..., :1], rest.shape)
    if (rest[rows] < MASK_BELOW).all():
        return comparison
    faults = (*comparison.faults, "a class that the adapter lacks is not masked")
    return replace(comparison, verdict="failed", faults=faults)


def steps(plan: Plan, reference: Reference | None, original: Original | None = None) -> int:
    """Return how many steps `prove` takes."""
    lived = len(plan.cases) if reference and reference.live and None in plan.names else 0
    plan = _taken(plan, reference)
    measured = reference and plan.bundle.allowance(plan.cases or (plan.probe,)).error(reference.runner)
    planned = [
        *plan.golden,
        *(replace(golden, cases=plan.cases, against="reference") for golden in plan.golden if reference),
    ]
    computed = len(plan.names) - (_headed_base(plan) is not None)
    total = lived + (computed * len(plan.cases) if reference else 0)
    total += computed * len(to_disturb(plan.cases)) * DRAWS if measured else 0
    for graph in plan.graphs:
        total += len(trials(plan, graph, planned)) + (0 if plan.quick else len(_mixed(plan, graph)))
    if reference and _tries_words(plan):
        total += word_steps(plan.bundle.manifest)
    if "slots" in plan.variants and not plan.quick:
        total += len(swaps(plan.names)) + len(plan.names) + 2 * len(plan.adapters)
        total += len(_walked(plan)) if reference else 0
    total += reference is not None and reference.source is not None and not plan.quick
    manifest = plan.bundle.manifest
    total += sum(one is not None for one in (manifest.golden_texts, manifest.golden_batches, manifest.media))
    return total + (len(plan.names) * len(original.cases) if original else 0)


def prove(
    plan: Plan,
    reference: Reference | None,
    on_step: OnStep = silent,
    original: Original | None = None,
    computed: Sequence[Golden] = (),
    own: Mapping[str, Adapter] | None = None,
    runs: RunDigests | None = None,
) -> Report:
    """Run everything, and return what was found: a bundle that computes something else is no error, but does not pass.

    Without a reference, the golden vectors alone are compared. With `original`, the base before its precision was
    changed, the report says how far the bundle is from it. `computed` is what the reference gave before for the same
    cases, by `expect`, and `own` are the adapters as the user has them, by name. `runs` collects what golden cases
    give, to be recorded; by default it is compared with what the bundle has recorded.

    Raises:
        InputError: the bundle or the reference cannot be run.
        NothingComparedError: there are no inputs for `original`, or none that the reference takes.
    """
    bundle, whole, plan = plan.bundle, plan, _taken(plan, reference)
    expected, cases = [*plan.golden, *(computed or expect(plan, reference, on_step))], plan.cases or (plan.probe,)
    outputs, ledger, values = list[OutputRecord](), list[ObligationRecord](), list[PartValue]()
    texts, batches = bundle.texts(), bundle.batches()
    again = {*(["slots"] if original or texts or batches else []), *(["bank", "fanout"] if batches else [])}
    invariants, sites = [*plan.files, *_left_out(expected)], list[SiteRecord]()
    tolerance, digests = None, runs or RunDigests.of(bundle.manifest)
    if not plan.quick:
        given = [golden for golden in expected if golden.against == "reference"]
        tolerance = Tolerance.of(bundle.allowance(cases), bundle.manifest, given)
        invariants += check_outside(bundle.manifest)
        if reference is not None:
            invariants += check_record(bundle.manifest, reference.inputs, reference.lengths)
            invariants += _live(whole, reference, original, expected, tolerance, on_step)
    for graph in plan.graphs:
        results = list(run_trials(graph, trials(plan, graph, expected), on_step, digests))
        outputs += (
            results if reference is None or plan.quick else _remeasured(plan, graph, reference, results, expected)
        )
        values += part_values(graph, _golden_parts(plan, graph))
        invariants += _invariants(plan, graph, tolerance, on_step)
        if reference is not None and tolerance is not None and _tries_words(plan) and _is_main(graph):
            ledger += check_words(graph, reference, tolerance, on_step)
        if bundle.staged and graph.variant == "slots" and all(result.passed for result in outputs) and not graph.pieces:
            of_slots = partial(run_session, bundle.session(graph.file))  # weights of a fusion are of one row of a batch
            for record in bundle.manifest.adapters if bundle.manifest.batch_invariant else ():
                if record.mix is not None:
                    golden = bundle.golden(record.name).without(bundle.manifest.checksums)
                    check_weights_apart(of_slots, record.mix, bundle.tensors(record.name), golden)
        if (graph.variant, graph.level) == ("slots", LEVEL):
            _ = bundle.batch_invariant  # tried out while the graph is open
        if graph.level != LEVEL or graph.variant not in again:
            bundle.close(graph.file, graph.level)
    if reference is not None and tolerance is not None:
        passed = all(result.passed for result in outputs)
        ledger += check_coverage(bundle.manifest, plan.cases, passed)
        ledger += _repeats(plan, reference, expected)
        outputs += _at_smallest(plan, reference, outputs, expected, tolerance)
    if "slots" in plan.variants and not plan.quick:
        probe = SiteProbe.of(bundle)
        for name in plan.adapters:
            sites += probe.check(plan.probe, bundle.source(name), bundle.record(name), bundle.tensors(name))
            on_step(f"{name}: sites")
        sites += _asleep(plan, probe, expected, outputs, sites)
    traced = Trace()
    if reference is not None and not plan.quick:
        there = {case.name: case for golden in expected for case in golden.cases}
        smallest = [named(bundle.manifest, one.case) for one in outputs if not one.passed and one.case not in there]
        there |= {case.name: case for case in smallest if case is not None}
        graphs = [graph for graph in plan.graphs if graph.level == LEVEL]
        every = list(there.values())
        traced = trace(graphs, reference.runner, every, _walked(plan), outputs, repro=plan.repro, on_step=on_step)
        invariants += traced.invariants
    for python in plan.runtimes:
        invariants += check_runtime(python, Graph(bundle, "slots", bundle.manifest.graphs["slots"]), plan.golden)
    invariants += check_parts(values)
    invariants += check_separation(bundle.manifest.adapters, plan.adapters)
    if not bundle.staged:
        invariants += compare_runs(bundle.manifest, plan.names, digests)
    small = not any(graph.pieces for graph in plan.graphs)
    if texts is not None:
        invariants += replay(bundle, texts, plan.names, run=small and "slots" in plan.variants)
        if reference is not None and not plan.quick:
            invariants += check_contract(bundle, texts, plan.names, reference.contract)
        on_step("golden texts")
    if batches is not None:
        variants = plan.variants if small else ()
        invariants.append(replay_batches(bundle, batches, plan.names, variants))
        for variant in again - {"slots"}:
            if variant in bundle.manifest.graphs:
                bundle.close(bundle.manifest.graphs[variant], LEVEL)
        on_step("golden batches")
    if bundle.manifest.media is not None:
        invariants += replay_media(bundle, plan.names, run=small and "slots" in plan.variants)
        if reference is not None and reference.contract.processor is not None:
            invariants.append(compare_processors(bundle.manifest.media.digest, reference.contract.processor))
        on_step("golden media")
    bundle.close_runtime()
    if not bundle.staged:
        ledger += _ledger(plan, reference, expected, own or {}, on_step)
    ledger += [*of_outputs(outputs, plan.cases, bundle.manifest), *of_sites(sites), *of_invariants(invariants)]
    return Report(
        bundle=str(bundle.folder),
        base=bundle.manifest.base,
        against=None if reference is None else reference.path,
        reference=None if reference is None else reference.runner.description,
        runtime=f"onnxruntime {ort.__version__}",
        outputs=tuple(outputs),
        sites=tuple(sites),
        invariants=tuple(invariants),
        agreements=None if original is None else agreements(bundle, plan.names, original, on_step),
        effects=() if plan.quick else effects(bundle, plan.adapters),
        digest=bundle.digest,
        ledger=(*ledger, *traced.ledger),
        nodes=tuple(record for record in traced.nodes if plan.every_node or not record.passed),
        locations=tuple(traced.locations),
    )


def _golden_parts(plan: Plan, graph: Graph) -> list[GoldenParts]:
    """Return the golden parts of the adapters that a graph can run."""
    parts = [plan.bundle.parts(name) for name in plan.adapters if name in graph.adapters]
    return [each for each in parts if each is not None]


def expect(plan: Plan, reference: Reference | None, on_step: OnStep = silent) -> list[Golden]:
    """Return what a reference gives for the base and each adapter of a plan, if there is a reference."""
    if reference is None:
        return []
    bundle, plan = plan.bundle, _taken(plan, reference)
    maker, twin = _maker(plan, reference), _headed_base(plan)
    found: dict[str | None, Golden] = {}
    for name in [name for name in plan.names if name is not None or twin is None]:
        adapter, output = bundle.with_output(name)
        found[name] = maker.compute(adapter, output, on_step, name=name)
    if twin is not None:
        found[None] = maker.of_base(found[twin])
    return [found[name] for name in plan.names]


def _headed_base(plan: Plan) -> str | None:
    """Return an adapter that acts at no site, as the base head: a run with it gives what the base gives, too."""
    alone = (name for name in plan.adapters if not plan.bundle.source(name).placements)
    return next(alone, None) if None in plan.names else None


def _maker(plan: Plan, reference: Reference) -> GoldenMaker:
    bundle = plan.bundle
    allowance = bundle.allowance(plan.cases or (plan.probe,))
    known = bundle.manifest.base
    return GoldenMaker(reference.runner, plan.cases, bundle.base_outputs, allowance, known, bundle.checksums)


def _needed(plan: Plan, reference: Reference, golden: Golden) -> Mapping[str, float]:
    """Return the budgets that a reference needs for the inputs of golden vectors, by output."""
    bundle, name = plan.bundle, golden.adapter
    source, output = bundle.with_output(name)
    maker = replace(_maker(plan, reference), cases=golden.cases, allowance=bundle.allowance(golden.cases))
    made = maker.compute(source, output, name=name)
    return {each: budget.absolute for each, budget in made.budgets.items()}


def _remeasured(
    plan: Plan, graph: Graph, reference: Reference, results: Sequence[OutputRecord], expected: Sequence[Golden]
) -> list[OutputRecord]:
    """Compare again what is a little off in cases for which it was not measured how far rounding moves them."""
    measured = {case.name for case in to_disturb(plan.cases)}
    off = [one for one in results if not one.passed and one.against == "reference" and one.compared]
    wider = dict[tuple[str | None, str], Golden]()
    for name, case in dict.fromkeys((one.adapter, one.case) for one in off if one.ratio < _AMPLIFIED):
        if case not in measured:
            golden = next(one for one in expected if (one.against, one.adapter) == ("reference", name))
            at = next(at for at, one in enumerate(golden.cases) if one.name == case)
            source, output = plan.bundle.with_output(name)
            wider[name, case] = _maker(plan, reference).measured(golden, at, source, output)
    if not wider:
        return list(results)

    def of(trial: Trial) -> tuple[tuple[Golden, int], ...]:
        named = [(one.adapter, trial.case.name) for one, _ in trial.expected if one.against == "reference"]
        return tuple((wider[each], 0) for each in named if each in wider)

    again = [replace(trial, expected=own) for trial in trials(plan, graph, expected) if (own := of(trial))]
    kept = [one for one in results if one.against != "reference" or (one.adapter, one.case) not in wider]
    return [*kept, *run_trials(graph, again, silent)]


def _repeats(plan: Plan, reference: Reference, expected: Sequence[Golden]) -> Iterator[ObligationRecord]:
    """Whether the reference gives the same again: one that draws random numbers shows nothing."""
    golden = next((one for one in expected if one.against == "reference"), None)
    at = next((at for at, case in enumerate(golden.cases) if case.name == plan.probe.name), None) if golden else None
    if golden is None or at is None:
        return
    bundle, case, name = plan.bundle, golden.cases[at], golden.adapter
    source, output = bundle.with_output(name)
    again = run(reference.runner, case.arrays, source, bundle.base_outputs, output)
    faults, worst = list[str](), 0.0
    for each, value in golden.without(bundle.manifest.checksums).outputs[at].items():
        allowed = bundle.allowance(plan.cases).budget(value)  # without what was measured: random numbers are in that
        for _, elements in golden.parts(at, each):
            if elements is None or elements.any():
                found = compare(again[each], value, allowed, where=elements)
                faults += [f"`{each}`: {fault}" for fault in found.faults]
                worst = max(worst, found.ratio)
    random = "random numbers in it (dropout, sampling) make what is compared with it worthless; capture it in eval mode"
    yield ObligationRecord(
        "reference/repeats",
        "the model gives the same for the same input, again",
        "failed" if faults else "tested",
        reference.path,
        f"`{case.name}` twice: {'; '.join(faults)}: {random}" if faults else f"`{case.name}` twice, within the budget",
        ratio=worst,
    )


def _tries_words(plan: Plan) -> bool:
    return "slots" in plan.variants and None in plan.names and not (plan.quick or plan.brief or plan.narrow)


def _is_main(graph: Graph) -> bool:
    """Whether it is what clients run."""
    return (graph.variant, graph.level) == ("slots", LEVEL)


def _at_smallest(
    plan: Plan, reference: Reference, outputs: Sequence[OutputRecord], expected: Sequence[Golden], tolerance: Tolerance
) -> Iterator[OutputRecord]:
    """For the base and each adapter that is off, find the smallest case at which it is, and run it at every level."""
    known = {case.name: case for case in plan.cases}
    off = [one for one in outputs if not one.passed and one.against == "reference" and one.variant == "slots"]
    (file,) = plan.bundle.files_of("slots")
    for golden in expected:
        own = [one for one in off if one.adapter == golden.adapter]
        if golden.against != "reference" or not own:
            continue
        first = min(own, key=lambda one: math.prod(one.axes.values()))
        level = next(level for level in LEVELS if level == first.level)
        graph, name = Graph(plan.bundle, "slots", file, level), golden.adapter
        case = smallest_case(graph, reference, known[first.case], name, tolerance)
        source, output = plan.bundle.with_output(name)
        found = run(reference.runner, case.arrays, source, plan.bundle.base_outputs, output)
        if plan.bundle.checksums is not None:
            found |= plan.bundle.checksums.expected(source, case.arrays)
        alone = replace(golden, cases=[case], outputs=[found], undefined=[{}])
        ran = {one.level for one in outputs if (one.adapter, one.case) == (name, case.name) and one.variant == "slots"}
        for level in (level for level in LEVELS if level not in ran):
            at_level = replace(graph, level=level)
            yield from compare_outputs(at_level.run(case.arrays, (name,) * case.batch), alone, 0, at_level)


def _asleep(
    plan: Plan,
    probe: SiteProbe,
    expected: Sequence[Golden],
    outputs: Sequence[OutputRecord],
    sites: Sequence[SiteRecord],
) -> Iterator[SiteRecord]:
    """Try the sites of an adapter that fails on cases that fail, where a fault does not show on the usual case."""
    cases = {case.name: case for golden in expected for case in golden.cases}
    of_base = any(one.adapter is None and not one.passed for one in outputs)
    for name in plan.adapters:
        wrong = dict.fromkeys(one.case for one in outputs if one.adapter == name and not one.passed)
        if of_base or not all(one.passed for one in sites if one.adapter == name):
            continue
        for case in [cases[each] for each in wrong if each in cases and each != plan.probe.name][:_MOST_ASLEEP]:
            found = probe.check(case, plan.bundle.source(name), plan.bundle.record(name), plan.bundle.tensors(name))
            yield from found
            if not all(one.passed for one in found):
                break


def _walked(plan: Plan) -> list[str | None]:
    """Return what the nodes are compared with: the base, and the adapter that acts at most sites."""
    most = max(plan.adapters, key=lambda name: len(plan.bundle.source(name).placements), default=None)
    walked = [name for name in (None, most) if name in plan.names] if "slots" in plan.variants else []
    return [] if plan.quick or ((plan.brief or plan.narrow) and not plan.every_node) else list(dict.fromkeys(walked))


def _ledger(
    plan: Plan, reference: Reference | None, expected: Sequence[Golden], own: Mapping[str, Adapter], on_step: OnStep
) -> list[ObligationRecord]:
    """Return what is owed beside what runs: tensors bit by bit, what the manifest says, and what was left out."""
    measured = {
        (golden.adapter, name): allowed.absolute / largest
        for golden in expected
        for name, allowed in golden.budgets.items()
        if golden.against == "reference"
        and (largest := max((scale(found[name]) for found in golden.outputs if name in found), default=0.0))
    }
    again = None if reference is None else partial(_needed, plan, reference)
    ledger = list(check_claims(plan.bundle, measured, again, quick=plan.quick))
    if "fanout" in plan.variants:
        ledger += check_cut(plan.bundle)
    if plan.quick:
        return ledger
    ledger += check_slots(plan.bundle, plan.adapters, own)
    if reference is not None and reference.source is not None:
        ledger += check_tensors(plan.bundle, reference.source, plan.variants, brief=plan.brief)
        on_step("constants")
    if "slots" in plan.variants:
        graph = Graph(plan.bundle, "slots", plan.bundle.manifest.graphs["slots"])
        ledger += check_providers(graph, plan.golden)
    ledger += not_asked(plan.bundle.manifest, plan.names, plan.variants, against=reference is not None)
    return ledger


def _taken(plan: Plan, reference: Reference | None) -> Plan:
    """Leave out the cases that the reference does not take, which are those of a record that is wider than its own."""
    taken = plan if reference is None else replace(plan, cases=tuple(filter(reference.takes, plan.cases)))
    if not taken.cases and not any(golden.cases for golden in taken.golden):
        raise NothingComparedError("the model takes none of these cases", fix="name others")
    return taken


def _live(
    plan: Plan,
    reference: Reference,
    original: Original | None,
    expected: Sequence[Golden],
    tolerance: Tolerance,
    on_step: OnStep,
) -> Iterator[InvariantRecord]:
    """Compare the base with the model itself, case by case: what was captured may be right at some lengths only.

    For a bundle in another precision that is the base as it was.
    """
    if reference.not_live is not None:
        yield InvariantRecord("live model not compared", BASE, "passed", reference.not_live)
    if reference.live is None or None not in plan.names:
        return
    session, bundle = plan.bundle.runtime_session(), plan.bundle
    same = original is None or bundle.numerics.precision.name == "fp32"
    vague = {
        case.name: undefined
        for golden in expected
        if golden.adapter is None
        for case, undefined in zip(golden.cases, golden.undefined, strict=False)
    }
    for case in plan.cases:
        try:
            live = reference.live(case.arrays)
            found = (
                session.run(case.arrays, allow_padding=True)
                if same or original is None
                else original.runner.run(case.arrays, None)
            )
            faults = list(_apart(case, found, live, vague.get(case.name, {}), tolerance))
        except RequestError as error:
            faults = [f"{error.what}: {error.found}"]
        sizes = ", ".join(f"{axis} {size}" for axis, size in case.axes.items())
        detail = f"{sizes}: {'; '.join(faults) or 'every output, within the budget'}"
        yield InvariantRecord("live model", case.name, verdict(not faults), detail)
        on_step(f"{BASE}, {case.name}: live model")
    bundle.close(bundle.manifest.graphs["slots"], LEVEL)  # the weights are not to be in memory twice


def _apart(case: Case, found: Arrays, live: Arrays, vague: Undefined, tolerance: Tolerance) -> Iterator[str]:
    """Yield the faults of each output; padding that the model does not define is not compared."""
    golden = Golden(None, [case], [live], {}, "", undefined=[vague])
    for name, wanted in live.items():
        if name not in found:
            yield f"no output `{name}`"
            continue
        for _, elements in golden.parts(0, name):
            if elements is None or elements.any():
                result = compare(found[name], wanted, tolerance(None, name, wanted), where=elements)
                yield from (f"`{name}`: {fault}" for fault in result.faults)


def _left_out(expected: Sequence[Golden]) -> Iterator[InvariantRecord]:
    """Say for each case how many positions of its padding, and how many rows, are not compared, through any adapter."""
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for golden in expected:
        for case, vague in zip(golden.cases, golden.undefined, strict=False):
            for left_out in vague.values():
                what = "positions" if left_out.ndim > 1 else "rows that follow from such positions"
                of = 0 if case.real is None else int((~case.real).sum()) if left_out.ndim > 1 else case.batch
                counts[case.name, what] = max(counts.get((case.name, what), (0, 0))[0], int(left_out.sum())), of
    for (name, what), (count, of) in counts.items():
        detail = f"{count} of {of} {what}: attention sees no token there, so that any value is right"
        yield InvariantRecord("padding not compared", name, "passed", detail)


def _mixed(plan: Plan, graph: Graph) -> list[tuple[str | None, ...]]:
    """The mixed batches to take apart, where rows do not depend on each other by themselves."""
    bank, batch = plan.bundle.manifest.bank, plan.probe.batch
    if bank is None or not graph.by_row or not plan.bundle.batch_invariant or batch == 1:
        return []
    return [chosen for chosen in dealt(bank.rows, batch) if set(plan.names) & set(chosen)]


def _invariants(plan: Plan, graph: Graph, tolerance: Tolerance | None, on_step: OnStep) -> Iterator[InvariantRecord]:
    """What must hold of a graph whatever a reference says; without a tolerance only how adapters are loaded."""
    case, bundle = plan.probe, plan.bundle
    if tolerance is not None:
        for chosen in _mixed(plan, graph):
            yield check_apart(graph.run, case, chosen, tolerance)
            on_step("rows of a batch")
        if graph.variant == "fanout" and bundle.manifest.bank is not None and bundle.batch_invariant:
            names = [name for name in plan.names if name in bundle.manifest.bank.rows]
            yield check_fan_out(graph, case, names, tolerance)
    if not _is_main(graph) or graph.pieces:
        return
    of_runtime, small = (
        partial(bundle.runtime_session(checksums=True).run, allow_padding=True),
        typical(plan.cases or (case,)),
    )  # bits tell on few numbers
    if tolerance is not None and None in plan.names:
        yield from check_proofs(bundle)
    if tolerance is not None:
        for first, second in swaps(plan.names):
            yield check_swap(of_runtime, small, first, second)
            on_step(f"{first or BASE} → {second or BASE} → {first or BASE}")
        for name in plan.names:
            yield check_row_order(of_runtime, case, name, tolerance)
            on_step(f"{name or BASE}: row order")
    for name in plan.adapters if tolerance is not None or bundle.staged else ():
        if bundle.record(name).precision == "float32":  # ONNX Runtime itself widens nothing
            yield check_native(name, of_runtime(small.arrays, name), bundle.native_run(name, small.arrays))
        on_step(f"{name}: active adapter")


def prove_new(bundle: OpenedBundle, runs: RunDigests | None = None) -> None:
    """Verify a bundle that has just been made against its golden vectors, before it takes its place.

    `runs` collects what golden cases give.

    Raises:
        ParityError: an output deviates by more than is allowed, or two files do not agree.
        BaseModelError: rows of a batch cannot be told apart.
        FormatError: ONNX Runtime cannot open a graph.
    """
    prove(plan_check(bundle, quick=True), None, runs=runs).raise_for_failure()
