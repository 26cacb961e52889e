"""Claims about outputs: every graph matches the golden vectors and the model, through every adapter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from adapter_export.bundle.bundle_reader import Graph, OpenedBundle
from adapter_export.bundle.golden.golden_vectors import Case, Golden, to_disturb
from adapter_export.bundle.golden.recorded_runs import RunDigests
from adapter_export.bundle.proof.compare_arrays import compare, missing, unexpected
from adapter_export.bundle.proof.context import Context
from adapter_export.bundle.proof.proof_plan import LEVELS, Trial, trials
from adapter_export.bundle.proof.shapes import smallest_case
from adapter_export.bundle.report import BASE
from adapter_export.errors import BaseModelError, RequestError
from adapter_export.format.check_report import ComparisonRecord, Finding, Measurement, SpanRecord, Split
from adapter_export.format.manifest import Manifest
from adapter_export.numerics.budget import Budget
from adapter_export.numerics.runner import Arrays, run
from adapter_export.reporting import SILENT, Reporter
from adapter_export.runtime.bank import MASK_BELOW
from adapter_export.words import argument, quoted

_SHOWN = 5
"""Maximum number of slots that a fault names."""

_AMPLIFIED = 100.0
"""Factor by which a measured budget may exceed the formula's; larger errors are not measured again."""

_LEVELS = 4
"""Number of optimization levels of ONNX Runtime."""


def run_outputs(context: Context, graph: Graph) -> Iterable[Finding]:
    """Run a graph on every case, and measure every output; findings follow when all graphs have run."""
    some = trials(context.plan, graph, context.expected)
    results = list(run_trials(graph, some, context.digests, context.progress))
    if context.reference is not None and not context.plan.quick:
        results = _measure_again(context, graph, results)
    context.outputs += results
    return ()


def run_trials(
    graph: Graph, some: Sequence[Trial], runs: RunDigests | None = None, reporter: Reporter = SILENT
) -> Iterator[Measurement]:
    """Run trials, and compare each adapter's rows with its expected outputs; `runs` collects runs of one adapter.

    Raises:
        RequestError: the graph cannot compute a case.
        BaseModelError: a new bank finds no row of the batch where an adapter acts.
    """
    sizes = [
        sum(array.nbytes for array in golden.outputs[at].values()) for trial in some for golden, at in trial.expected
    ]

    def record(at: int, outputs: Arrays) -> None:
        if runs is not None and not some[at].mixed:
            for golden, case in some[at].expected:
                runs.add(graph, golden, case, outputs)

    results = graph.run_all([(trial.case.arrays, trial.chosen) for trial in some], max(sizes, default=0), record)
    try:
        for trial, computed in zip(some, results, strict=True):
            for golden, at in trial.expected:
                head = None if golden.adapter is None else graph.bundle.record(golden.adapter).output
                names = {*graph.bundle.common_outputs, head}
                relevant = {name: value for name, value in computed.items() if name in names}
                rows = np.array([name == golden.adapter for name in trial.chosen]) if trial.mixed else None
                yield from compare_outputs(relevant, golden, at, graph, rows)
            reporter.step(f"{graph.file}, {graph.level}: {trial.case.name}")
    except RequestError as error:
        if not (graph.bundle.staged and graph.by_row):
            raise
        raise BaseModelError(  # the base computes this case, so the new bank is at fault
            "the batch is not the first axis where an adapter acts, so a bank cannot separate rows",
            found=error.found,
            fix="build with " + argument("variants", ["slots", "inputs"]),
        ) from error


def compare_outputs(
    outputs: Arrays, golden: Golden, at: int, graph: Graph, rows: npt.NDArray[np.bool_] | None = None
) -> Iterator[Measurement]:
    """Compare every output that the graph returned or should return in one case, in the form of golden data.

    `rows` [batch] marks the rows of the adapter; `None` if all are. With `rows`, only outputs with one row per row of
    the batch are compared.
    """
    case, record = golden.cases[at], None if golden.adapter is None else graph.bundle.record(golden.adapter)
    logits = {"logits"} & set(graph.bundle.base_outputs) - golden.sketches.keys()
    if record is not None and record.task is not None and record.task.kind.picks_largest:
        logits.add(record.output or "")

    def result(output: str, part: Split, comparison: ComparisonRecord) -> Measurement:
        return Measurement(
            **vars(comparison),
            kind="output",
            name=output,
            against=golden.against,
            adapter=golden.adapter,
            case=case.name,
            variant=graph.variant,
            level=graph.level,
            axes=case.axes,
            part=part,
            mixed=rows is not None,
        )

    for name, expected in golden.outputs[at].items():
        allowed = golden.budgets[name]
        if name not in outputs:
            yield result(name, "all", missing(allowed))
        elif rows is None or expected.shape[:1] == rows.shape:
            for part, elements in golden.parts(at, name):
                where = elements
                if rows is not None:
                    of_adapter = np.broadcast_to(rows.reshape(-1, *(1,) * (expected.ndim - 1)), expected.shape)
                    where = of_adapter if elements is None else of_adapter & elements
                if where is None or where.any():
                    own_width = _compare_classes if graph.by_row else compare
                    comparison = own_width(outputs[name], expected, allowed, where=where, logits=name in logits)
                    if name == graph.bundle.manifest.checksums and not comparison.passed:
                        comparison = _naming_slots(comparison, outputs[name], expected, where, graph.bundle)
                    yield result(name, part, comparison)
    for name in sorted(outputs.keys() - golden.outputs[at].keys()):
        yield result(name, "all", unexpected(outputs[name]))


def _naming_slots(
    comparison: ComparisonRecord,
    actual: np.ndarray,
    expected: np.ndarray,
    where: npt.NDArray[np.bool_] | None,
    bundle: OpenedBundle,
) -> ComparisonRecord:
    """Name the slots whose checksums differ: the graph did not receive these tensors unchanged."""
    if actual.shape != expected.shape:
        return comparison
    differ = (actual != expected) if where is None else (actual != expected) & where
    names = [slot.name for slot, wrong in zip(bundle.manifest.slots, differ.any(0), strict=True) if wrong]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return replace(comparison, faults=(f"received different tensors for {quoted(names[:_SHOWN])}{more}",))


def _compare_classes(
    actual: np.ndarray, expected: np.ndarray, budget: Budget, *, where: npt.NDArray[np.bool_] | None, logits: bool
) -> ComparisonRecord:
    """Compare an adapter's part of an output as wide as the bank's widest adapter; the rest is masked."""
    if not expected.ndim or actual.shape[:-1] != expected.shape[:-1]:
        return compare(actual, expected, budget, where=where, logits=logits)
    classes, rest = actual[..., : expected.shape[-1]], actual[..., expected.shape[-1] :]
    comparison = compare(classes, expected, budget, where=where, logits=logits)
    rows = np.ones(rest.shape, bool) if where is None else np.broadcast_to(where[..., :1], rest.shape)
    if (rest[rows] < MASK_BELOW).all():
        return comparison
    faults = (*comparison.faults, "a class outside the adapter's labels is not masked")
    return replace(comparison, verdict="failed", faults=faults)


def _measure_again(context: Context, graph: Graph, results: Sequence[Measurement]) -> list[Measurement]:
    """Compare small excesses again, in cases for which the effect of rounding was not measured."""
    expected, measured = context.expected, {case.name for case in to_disturb(context.plan.cases)}
    off = [
        measurement
        for measurement in results
        if not measurement.passed and measurement.against == "reference" and measurement.compared
    ]
    wider = dict[tuple[str | None, str], Golden]()
    for name, case in dict.fromkeys(
        (measurement.adapter, measurement.case) for measurement in off if measurement.ratio < _AMPLIFIED
    ):
        if case not in measured:
            golden = next(vectors for vectors in expected if (vectors.against, vectors.adapter) == ("reference", name))
            at = next(at for at, other in enumerate(golden.cases) if other.name == case)
            source, output = context.bundle.with_output(name)
            wider[name, case] = context.maker.measure(golden, at, source, output)
    if not wider:
        return list(results)

    def of(trial: Trial) -> tuple[tuple[Golden, int], ...]:
        named = [(golden.adapter, trial.case.name) for golden, _ in trial.expected if golden.against == "reference"]
        return tuple((wider[each], 0) for each in named if each in wider)

    again = [
        replace(trial, expected=widened) for trial in trials(context.plan, graph, expected) if (widened := of(trial))
    ]
    others = [
        measurement
        for measurement in results
        if measurement.against != "reference" or (measurement.adapter, measurement.case) not in wider
    ]
    return [*others, *run_trials(graph, again)]


def find_smallest(context: Context) -> Iterable[Finding]:
    """Find the smallest failing case for the base and each adapter, and run it at every level."""
    known = {case.name: case for case in context.plan.cases}
    off = [
        measurement
        for measurement in context.outputs
        if not measurement.passed and measurement.against == "reference" and measurement.variant == "slots"
    ]
    for golden in context.expected:
        failing = [measurement for measurement in off if measurement.adapter == golden.adapter]
        if golden.against == "reference" and failing:
            first = min(failing, key=lambda measurement: math.prod(measurement.axes.values()))
            context.outputs += _at_smallest(context, golden, first, known[first.case])
    return ()


def _at_smallest(context: Context, golden: Golden, first: Measurement, of: Case) -> list[Measurement]:
    """Return the outputs of an adapter's smallest failing case, at the levels that have not run yet."""
    bundle, name = context.bundle, golden.adapter
    (file,) = bundle.files_of("slots")
    graph = Graph(bundle, "slots", file, next(level for level in LEVELS if level == first.level))
    case = smallest_case(graph, context.model, of, name, context.tolerance)
    source, output = bundle.with_output(name)
    expected = golden.stored(run(context.model.runner, case.arrays, source, bundle.base_outputs, output))
    if bundle.checksums is not None:
        expected |= bundle.checksums.expected(source, case.arrays)
    alone = replace(golden, cases=[case], outputs=[expected], undefined=[{}])
    ran = {
        measurement.level
        for measurement in context.outputs
        if (measurement.adapter, measurement.case, measurement.variant) == (name, case.name, "slots")
    }
    graphs = [replace(graph, level=level) for level in LEVELS if level not in ran]
    return [
        measurement
        for at_level in graphs
        for measurement in compare_outputs(
            bundle.stored(at_level.run(case.arrays, (name,) * case.batch)), alone, 0, at_level
        )
    ]


def of_outputs(context: Context) -> Iterator[Finding]:
    """Yield a finding for each output of each graph and adapter, with its coverage."""
    groups: dict[str, list[Measurement]] = {}
    for output in context.outputs:
        name = f"{output.name}{'/mixed' if output.mixed else ''}"
        subject = f"{output.against}/{output.variant}/{output.adapter or BASE}/{name}"
        groups.setdefault(subject, []).append(output)
    for subject, group in groups.items():
        output, tried = group[0], {result.case for result in group}
        source = "the golden vectors" if output.against == "golden" else "the model"
        mixed = ", in mixed batches" if output.mixed else ""
        form = ", as a sketch of each row" if output.name in context.manifest.sketches else ""
        place = f"`{output.name}` of `{output.adapter or BASE}` in the graph `{output.variant}`"
        claim = f"{place} matches {source}{mixed}{form}"
        cases = [case for case in context.plan.cases if case.name in tried]
        levels = SpanRecord("levels", len({result.level for result in group}), _LEVELS)
        coverage = (*_spans(cases, len(context.plan.cases), context.manifest), levels)
        yield Finding.measured("output", subject, claim, group, "worst {ratio} of the budget", coverage)


def _spans(cases: Sequence[Case], of: int, manifest: Manifest) -> tuple[SpanRecord, ...]:
    """Return the number of shapes, words and positions in some cases, with the totals."""
    spans = [SpanRecord("shapes", len(cases), of)]
    limits = {record.name: record.limit for record in manifest.inputs if record.role == "ids"}
    for name, limit in limits.items() if cases else ():
        words = {int(word) for case in cases for word in case.arrays[name].reshape(-1).tolist()}
        spans.append(SpanRecord("words" if len(limits) == 1 or name == "input_ids" else name, len(words), limit))
    if limits and cases:
        longest = max(case.arrays[name].shape[-1] for case in cases for name in limits)
        spans.append(SpanRecord("positions", longest, manifest.max_tokens))
    return tuple(spans)
