"""Test every word and position, and search for the smallest failing shape: the matrix of shapes omits these."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from adapter_export.bundle.bundle_reader import Graph, OpenedBundle
from adapter_export.bundle.golden.golden_vectors import SEED, Case, Golden, Tolerance, case_of
from adapter_export.bundle.proof.compare_arrays import compare
from adapter_export.bundle.proof.context import Context
from adapter_export.bundle.proof.proof_plan import Reference
from adapter_export.bundle.report import BASE
from adapter_export.errors import RequestError
from adapter_export.format.check_report import ComparisonRecord, Finding, SpanRecord
from adapter_export.format.manifest import Manifest
from adapter_export.numerics.runner import run
from adapter_export.numerics.sample_inputs import (
    MOST_WORDS,
    ROWS_OF_WORDS,
    STEPS,
    WORDS_IN_ROW,
    InputCase,
    Padding,
    Shape,
    alone_case,
    padding_of,
    pairs_covered,
    resized,
    shape_of,
    shaped_case,
    word_cases,
)

_SHOWN = 5
"""Maximum number of words named in a message."""

_TRIED_ALONE = 512

_MOST_PRODUCTS = 10**12
"""Maximum words times parameters of the vocabulary sweep: minutes on one thread. The rows of an embedding are also
compared bit by bit, so that a large base is sampled; coverage says how many words ran."""

_MOST_OUTPUTS = 2**24
"""Maximum numbers in an output of one case of the vocabulary sweep: 64 MB in float32. The outputs of a language model
are as wide as its vocabulary."""


def _words(bundle: OpenedBundle) -> Iterator[InputCase]:
    """Yield inputs with every word, or with as many as the size of the base allows."""
    manifest = bundle.manifest
    weights = (value.const_value for value in bundle.slots_model.graph.initializers.values())
    parameters = sum(tensor.size for tensor in weights if tensor is not None)
    most = min(MOST_WORDS, _MOST_PRODUCTS // max(parameters, 1))
    widths = [record.axes[-1] for record in manifest.base_outputs if record.axes]
    widest = max((width for width in widths if isinstance(width, int)), default=1)
    rows = min(ROWS_OF_WORDS, max(1, _MOST_OUTPUTS // (WORDS_IN_ROW * widest)))
    return word_cases(manifest.inputs, seed=SEED, lengths=manifest.lengths, most=most, rows=rows)


def word_cost(context: Context, _: Graph) -> int:
    """Return the number of cases that `check_words` runs."""
    return sum(1 for _ in _words(context.bundle))


def check_words(context: Context, graph: Graph) -> Iterator[Finding]:
    """Compare the base on the ids of every vocabulary; rerun the words of a wrong row one by one."""
    manifest, reference, tolerance = context.manifest, context.model, context.tolerance
    tables = {record.name: record.limit for record in manifest.inputs if record.role == "ids" and record.limit}
    tried: dict[str, set[int]] = {name: set() for name in tables}
    worst, wrong = 0.0, dict[str, list[int]]()
    faults = list[str]()
    for words in _words(context.bundle):
        case = case_of(words.name, words.arrays, manifest.inputs)
        if not reference.takes(case):
            continue
        pairs = list(_both(graph, reference, case, None, tolerance))
        worst = max([worst, *(comparison.ratio for _, comparison in pairs)])
        bad = [f"`{name}`: {fault}" for name, comparison in pairs for fault in comparison.faults]
        if bad and not faults:
            faults = bad
        if bad and sum(map(len, wrong.values())) < _SHOWN:
            for name, ids in _alone(graph, reference, case, tolerance).items():
                wrong.setdefault(name, []).extend(ids)
        for name, seen in tried.items():
            seen.update(case.arrays[name].ravel().tolist())
        context.progress.step(f"{BASE}: {case.name}")
    for name, limit in tables.items():
        shown = ", ".join(map(str, wrong.get(name, [])[:_SHOWN]))
        more = f"only {'words' if len(wrong.get(name, ())) > 1 else 'word'} {shown} of `{name}`; " if shown else ""
        yield Finding(
            check="shape",
            subject=f"words/{name}",
            claim=f"the base computes each word of `{name}` as the model does",
            status="failed"
            if faults and (shown or not any(wrong.values()))
            else "tested"
            if tried[name]
            else "unverified",
            where=f"{graph.file}: {name}",
            detail=f"{more}{'; '.join(faults[:2])}" if faults else "every output, within the budget",
            coverage=(SpanRecord("words", len(tried[name]), limit),),
            ratio=worst,
        )


def _both(
    graph: Graph, reference: Reference, case: Case, adapter: str | None, tolerance: Tolerance
) -> Iterator[tuple[str, ComparisonRecord]]:
    """Compare each output of one case; `RequestError` if one side cannot compute it."""
    bundle = graph.bundle
    source, output = (None, None) if adapter is None else (bundle.source(adapter), bundle.record(adapter).output)
    expected = run(reference.runner, case.arrays, source, bundle.base_outputs, output)
    outputs = graph.run(case.arrays, (adapter,) * case.batch)
    golden = Golden(adapter, [case], [expected], {}, "")
    for name, wanted in expected.items():
        for part, elements in golden.parts(0, name):
            if name in outputs and part != "padding":  # padding may be undefined
                yield name, compare(outputs[name], wanted, tolerance(adapter, name, wanted), where=elements)


def _alone(graph: Graph, reference: Reference, case: Case, tolerance: Tolerance) -> dict[str, list[int]]:
    """Return the ids of a case that fail in a row without other words, by input."""
    manifest = graph.bundle.manifest
    wrong: dict[str, list[int]] = {}
    for record in manifest.inputs:
        if record.role != "ids" or not record.limit or record.limit == 1:
            continue
        ids = np.unique(case.arrays[record.name])[:_TRIED_ALONE]
        isolated = alone_case(manifest.inputs, record.name, ids, lengths=manifest.lengths, seed=SEED)
        alone = case_of("alone", isolated.arrays, manifest.inputs)
        expected = run(reference.runner, alone.arrays, None, graph.bundle.base_outputs, None)
        outputs, bad = graph.run(alone.arrays, (None,) * alone.batch), np.zeros(len(ids), bool)
        for name, wanted in expected.items():
            if wanted.dtype.kind == "f" and wanted.shape == outputs[name].shape and len(wanted) == len(ids):
                apart = np.abs(outputs[name].astype(np.float64) - wanted).reshape(len(ids), -1).max(1)
                bad |= ~(apart <= tolerance(None, name, wanted).absolute)
        if bad.any() and not bad.all():  # if all rows fail, the word is not the cause
            wrong[record.name] = ids[bad].tolist()
    return wrong


def check_coverage(context: Context) -> Iterator[Finding]:
    """Yield the coverage of pairs of batch, length and padding, and of positions."""
    manifest, cases = context.manifest, context.plan.cases
    names = [case.name for case in cases]
    longest = manifest.tokens.maximum
    lengths = {case.name: _tokens(manifest, case) for case in cases}
    done, of = pairs_covered(manifest.inputs, manifest.lengths, names)
    spans = [SpanRecord("pairs of shapes", done, of), SpanRecord("shapes", len(cases), None)]
    if any(lengths.values()):
        spans.insert(0, SpanRecord("positions", max(lengths.values()), longest))
    if cases:
        yield Finding(
            check="shape",
            subject="matrix",
            claim="the bundle computes every shape as the model does",
            status="tested" if all(output.passed for output in context.outputs) else "failed",
            where="all graphs",
            detail=f"{names[0]} to {max(names, key=lengths.__getitem__)}, pairwise over batch, length and padding",
            coverage=tuple(spans),
        )


def _tokens(manifest: Manifest, case: Case) -> int:
    """Return the tokens of a row; 0 for a base without token ids."""
    of_tokens = [
        case.arrays[record.name] for record in manifest.inputs if record.role == "ids" and len(record.axes) == 2
    ]
    return max((array.shape[1] for array in of_tokens), default=0)


def smallest_case(graph: Graph, reference: Reference, case: Case, adapter: str | None, tolerance: Tolerance) -> Case:
    """Return the smallest case that a graph still fails: without padding, with few rows and few tokens.

    Lengths are tried in steps, then bisected between the last that passes and the first that fails. Returns `case` if
    new random numbers make the fault disappear.
    """
    inputs, bounds = graph.bundle.manifest.inputs, graph.bundle.manifest.lengths
    tried: dict[tuple[tuple[tuple[str, int], ...], Padding], Case | None] = {}

    def wrong(shape: Shape, padding: Padding) -> Case | None:
        key = tuple(shape.items()), padding
        if key not in tried:
            shaped = shaped_case(inputs, (shape, padding), np.random.default_rng(SEED), bounds)
            smaller, bad = case_of(shaped.name, shaped.arrays, inputs), False
            if reference.takes(smaller):
                try:
                    bad = any(
                        not case_that_fails.passed
                        for _, case_that_fails in _both(graph, reference, smaller, adapter, tolerance)
                    )
                except RequestError:
                    bad = False
            tried[key] = smaller if bad else None
        return tried[key]

    shape, padding = shape_of(inputs, case.axes), padding_of(case.name)
    best = wrong(shape, padding)
    if best is None:
        return case
    if padding != "none" and (case_that_fails := wrong(shape, "none")) is not None:
        best, padding = case_that_fails, "none"
    for which, now in (("batch", case.batch), ("tokens", max(shape.values(), default=1))):

        def at(size: int, which: str = which, shape: Shape = shape) -> Shape:
            return resized(inputs, bounds, shape, which, size)

        steps = [size for size in (range(1, now) if which == "batch" else STEPS) if size < now]
        first = next((index for index, size in enumerate(steps) if wrong(at(size), padding)), len(steps))
        low, high = (steps[first - 1] + 1 if first else 1), steps[first] if first < len(steps) else now
        while low < high:  # bisect between the last that passes and the first that fails
            middle = (low + high) // 2
            low, high = (low, middle) if wrong(at(middle), padding) else (middle + 1, high)
        if (case_that_fails := wrong(at(high), padding)) is not None:
            best, shape = case_that_fails, at(high)
    return best
