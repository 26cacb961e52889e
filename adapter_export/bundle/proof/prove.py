"""Prove a bundle: verify every claim about it, and return a report.

One engine serves `check` (against a model, at every optimization level, site by site), `verify` (against the stored
golden vectors), and `build` and `add`, which verify a new bundle before it replaces the old one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from time import perf_counter

import onnxruntime as ort

from adapter_export.bundle.bundle_reader import Graph, OpenedBundle
from adapter_export.bundle.golden.ablation import effects
from adapter_export.bundle.golden.golden_vectors import Golden
from adapter_export.bundle.golden.recorded_runs import RunDigests
from adapter_export.bundle.proof.claim import steps_of, verify
from adapter_export.bundle.proof.claims import agenda
from adapter_export.bundle.proof.compare_arrays import Original
from adapter_export.bundle.proof.context import Context
from adapter_export.bundle.proof.proof_plan import Plan, Reference, plan_check
from adapter_export.bundle.report import Report
from adapter_export.errors import NothingComparedError
from adapter_export.graph.adapter import Adapter
from adapter_export.reporting import SILENT, Reporter
from adapter_export.words import argument

_RUNS_PER_STEP = 2
"""A step of a check is, on average, a run of the bundle and one of the model."""


def prove(
    plan: Plan,
    reference: Reference | None,
    *,
    original: Original | None = None,
    computed: Sequence[Golden] = (),
    adapters: Mapping[str, Adapter] | None = None,
    runs: RunDigests | None = None,
    reporter: Reporter = SILENT,
) -> Report:
    """Verify every claim about a bundle. Wrong results fail the report; they raise no error.

    Args:
        plan: the bundle and the trials.
        reference: the model; `None` if golden vectors are the only reference.
        original: the base before its precision changed; the report includes the bundle's distance from it.
        computed: the model's results from an earlier check of the same cases (`Context.expected`).
        adapters: the user's adapters, by name.
        runs: collects the outputs of golden cases for recording; default: compare with the recorded runs.
        reporter: receives each step.

    Raises:
        InputError: the bundle or the reference cannot run.
        NothingComparedError: there are no inputs for `original`, or none that the reference accepts.
    """
    context = context_of(plan, reference, original, computed, adapters, runs)
    claims, bundle = agenda(context), plan.bundle
    if reference is not None and bundle.has_many_weights:
        reporter.warn(_duration(context, steps_of(claims, context)))
    findings = verify(claims, context, reporter)
    return Report(
        bundle=str(bundle.folder),
        base=bundle.manifest.base,
        against=None if reference is None else reference.path,
        reference=None if reference is None else reference.runner.description,
        runtime=f"onnxruntime {ort.__version__}",
        scope=plan.scope,
        findings=(*plan.files, *findings),
        agreements=context.agreements,
        effects=() if plan.quick else effects(bundle, plan.adapters),
        digest=bundle.digest,
        locations=tuple(context.locations),
    )


def _duration(context: Context, steps: int) -> str:
    """Return an estimate of the time of a check, from one run of a typical case, and what makes it shorter."""
    bundle, case = context.bundle, context.plan.probe
    graph = Graph(bundle, "slots", bundle.manifest.graphs["slots"])
    for _ in range(2):  # the first run allocates memory
        began = perf_counter()
        graph.run(case.arrays, (None,) * case.batch)
    minutes = math.ceil(steps * (perf_counter() - began) * _RUNS_PER_STEP / 60)
    parts = argument("quick", True) + ", " + argument("only") + ", " + argument("variants", option="variant") + " and"
    return (
        f"this takes about {minutes} minute{'s' * (minutes > 1)}, as the base is large; "
        + parts
        + " "
        + argument("cases", option="case")
        + " choose parts, and the verdict names those left out"
    )


def context_of(
    plan: Plan,
    reference: Reference | None,
    original: Original | None = None,
    computed: Sequence[Golden] = (),
    adapters: Mapping[str, Adapter] | None = None,
    runs: RunDigests | None = None,
) -> Context:
    """Return the context of the claims, without the cases that the reference does not accept.

    Raises:
        NothingComparedError: no case is left.
    """
    accepted = plan if reference is None else replace(plan, cases=tuple(filter(reference.takes, plan.cases)))
    if not accepted.cases and not any(golden.cases for golden in accepted.golden):
        raise NothingComparedError("the model accepts none of these cases", fix="choose other cases")
    digests = runs or RunDigests.of(plan.bundle.manifest)
    return Context(accepted, plan.cases, reference, original, adapters or {}, computed, digests)


def prove_new(bundle: OpenedBundle, runs: RunDigests | None = None, *, unchanged: Collection[str | None] = ()) -> None:
    """Verify a new bundle against its golden vectors before it replaces an old one.

    Args:
        bundle: the new bundle.
        runs: collects the outputs of golden cases.
        unchanged: adapters of the old bundle, and `None` for its base. Their files have the same SHA-256, and their
            rows of the bank are compared bit by bit, so a graph that runs piece by piece does not run them again.

    Raises:
        ParityError: an output exceeds its budget, or two files do not agree.
        BaseModelError: the rows of a batch cannot be separated.
        FormatError: ONNX Runtime cannot open a graph.
    """
    plan = replace(plan_check(bundle, quick=True), recorded=() if runs is None else runs.cases)
    changed = tuple(golden for golden in plan.golden if golden.adapter not in unchanged)
    if changed and any(graph.pieces for graph in plan.graphs):
        plan = replace(plan, golden=changed)
    prove(plan, None, runs=runs).raise_for_failure()
