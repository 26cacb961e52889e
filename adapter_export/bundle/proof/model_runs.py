"""Claims about the model: it is deterministic, and its capture matches the live model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from adapter_export.bundle.bundle_reader import LEVEL
from adapter_export.bundle.golden.golden_vectors import Case, Golden, Tolerance, whole_rows
from adapter_export.bundle.proof.compare_arrays import compare
from adapter_export.bundle.proof.context import Context
from adapter_export.bundle.report import BASE
from adapter_export.errors import RequestError
from adapter_export.format.check_report import Finding
from adapter_export.numerics.runner import Arrays, Undefined, run
from adapter_export.words import joined


def uncompared_padding(context: Context) -> Iterator[Finding]:
    """Yield for each case the amount of padding that is not compared with any adapter."""
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for golden in context.expected:
        for case, vague in zip(golden.cases, golden.undefined, strict=False):
            for name, positions in vague.items():
                has_long_rows = name in golden.sketches and golden.sketches[name].axes == 1
                left_out = whole_rows(positions) if has_long_rows else positions
                what = "positions" if left_out.ndim > 1 else "rows that follow from such positions"
                of = 0 if case.real is None else int((~case.real).sum()) if left_out.ndim > 1 else case.batch
                counts[case.name, what] = max(counts.get((case.name, what), (0, 0))[0], int(left_out.sum())), of
    for (name, what), (count, of) in counts.items():
        reason = f"{count} of {of} {what}: attention sees no token there, so any value is correct"
        yield Finding.unverified("padding not compared", name, reason)


def repeats(context: Context) -> Iterator[Finding]:
    """Verify that the model is deterministic: a model that draws random numbers cannot be a reference."""
    probe = context.plan.probe
    golden = next((vectors for vectors in context.expected if vectors.against == "reference"), None)
    at = next((at for at, case in enumerate(golden.cases) if case.name == probe.name), None) if golden else None
    if golden is None or at is None:
        return
    bundle, case = context.bundle, golden.cases[at]
    source, output = bundle.with_output(golden.adapter)
    again = golden.stored(run(context.model.runner, case.arrays, source, bundle.base_outputs, output))
    faults, worst = list[str](), 0.0
    for each, value in golden.without(bundle.manifest.checksums).outputs[at].items():
        # ignore measured budgets: they would include the random noise
        allowed = bundle.allowance(context.plan.cases).budget(value)
        for _, elements in golden.parts(at, each):
            if elements is None or elements.any():
                comparison = compare(again[each], value, allowed, where=elements)
                faults += [f"`{each}`: {fault}" for fault in comparison.faults]
                worst = max(worst, comparison.ratio)
    random = "a model with random numbers (dropout, sampling) cannot be a reference; capture it in eval mode"
    detail = (
        f"`{case.name}` twice: {'; '.join(faults)}: {random}" if faults else f"`{case.name}` twice, within the budget"
    )
    claim = "the model gives the same output for the same input"
    found_so = Finding.tested("reference", "repeats", not faults, detail, claim, context.model.path)
    yield replace(found_so, ratio=worst)


def live_cost(context: Context) -> int:
    """Return the number of cases that the live model runs."""
    return len(context.live_cases) if context.model.live is not None else 0


def live_model(context: Context) -> Iterator[Finding]:
    """Compare the base with the live model, case by case: a capture may be correct at some lengths only.

    For a bundle in another precision, the original base is compared.
    """
    model, bundle, original = context.model, context.bundle, context.original
    if model.not_live is not None:
        yield Finding.unverified("live model not compared", BASE, model.not_live)
    if model.live is None:
        return
    vague = {
        case.name: undefined
        for golden in context.expected
        if golden.adapter is None
        for case, undefined in zip(golden.cases, golden.undefined, strict=False)
    }
    session = bundle.runtime_session()
    for case in context.live_cases:
        try:
            live = model.live(case.arrays)
            if original is None or bundle.numerics.precision.name == "fp32":
                outputs = session.run(case.arrays, allow_padding=True)
            else:
                outputs = original.runner.run(case.arrays, None)
            faults = list(_apart(case, outputs, live, vague.get(case.name, {}), context.tolerance))
        except RequestError as error:
            faults = [error.problem()]
        sizes = ", ".join(f"{axis} {size}" for axis, size in case.axes.items())
        detail = f"{sizes}: " + (joined(faults, "; ") or "every output, within the budget")
        yield Finding.tested("live model", case.name, not faults, detail)
    bundle.close(bundle.manifest.graphs["slots"], LEVEL)  # so that the weights are not in memory twice


def _apart(case: Case, outputs: Arrays, live: Arrays, vague: Undefined, tolerance: Tolerance) -> Iterator[str]:
    """Yield the faults of each output; padding that the model leaves undefined is not compared."""
    golden = Golden(None, [case], [live], {}, "", undefined=[vague])
    for name, wanted in live.items():
        if name not in outputs:
            yield f"missing output `{name}`"
            continue
        for _, elements in golden.parts(0, name):
            if elements is None or elements.any():
                result = compare(outputs[name], wanted, tolerance(None, name, wanted), where=elements)
                yield from (f"`{name}`: {fault}" for fault in result.faults)
