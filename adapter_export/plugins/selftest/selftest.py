"""Self-test of a check: plant faults of many kinds in copies of a bundle, and check whether each is found."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

from adapter_export.bundle.bundle_reader import LEVEL, Graph, OpenedBundle
from adapter_export.bundle.golden.golden_vectors import SEED, Case, Golden, case_of
from adapter_export.bundle.golden.recorded_runs import NOT_COMPARED
from adapter_export.bundle.proof.exact_tensors import Source, check_slots, check_tensors
from adapter_export.bundle.proof.manifest_checks import check_manifest
from adapter_export.bundle.proof.proof_plan import Plan, Reference, plan_check
from adapter_export.bundle.proof.prove import context_of, prove
from adapter_export.bundle.report import BASE, Report, failures
from adapter_export.dtypes import same_bits
from adapter_export.errors import AdapterExportError, RequestError
from adapter_export.format.check_report import (
    SELF_TEST_VERSION,
    FaultRecord,
    FaultStatus,
    Finding,
    SelfTestReport,
)
from adapter_export.format.manifest import VARIANT_NAMES, VariantName
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.sample_inputs import word_cases
from adapter_export.plugins.selftest.fault import Area, Copy, Fault
from adapter_export.plugins.selftest.fault_kinds import FAULTS
from adapter_export.runtime.bundle import Bundle
from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.tables import Described, Table

MOST_NUMBERS = 65
"""Maximum tokens, over all rows, of the cases that run for every fault."""

_OF_GRAPH: frozenset[Area] = frozenset({"base nodes", "shapes", "sites"})
"""Areas of faults in computation, as opposed to stored data."""

_OF_FILES = ("manifest", "golden", "cut")
"""Claims that compare files with one another."""

_SHOWN = 300
"""Maximum characters kept of a line of a check."""


@dataclass(frozen=True, repr=False)
class SelfTest(Described):
    """Result of a self-test: one record per planted kind of fault."""

    bundle: str
    against: str | None
    seed: int
    faults: tuple[FaultRecord, ...]

    def described(self) -> Mapping[str, object]:
        """Return the facts for `repr` and notebooks."""
        missed = self.count("missed")
        return {"bundle": self.bundle, "passed": self.passed, "faults": len(self.faults), "missed": missed}

    @property
    def passed(self) -> bool:
        """True if every fault with an effect was found."""
        return not any(fault.status == "missed" for fault in self.faults)

    def to_json(self) -> dict[str, Any]:
        """Return the document of `schemas/self-test.schema.json`."""
        document = asdict(SelfTestReport(version=SELF_TEST_VERSION, **vars(self)))
        return {**document, "faults": [{**fault, "places": list(fault["places"])} for fault in document["faults"]]}

    def count(self, *statuses: FaultStatus) -> int:
        """Return the number of faults with one of these statuses."""
        return sum(fault.status in statuses for fault in self.faults)

    def table(self) -> Table:
        """Return a table with a row for each area and one for the total."""
        groups = {
            area: [fault for fault in self.faults if fault.area == area]
            for area in dict.fromkeys(f.area for f in self.faults)
        }
        rows = [_counts(area, faults) for area, faults in groups.items()]
        columns = ("faults in", "planted", "found", "located", "missed", "without effect", "not applicable")
        return Table(columns, [*rows, _counts("all", self.faults)], numbers="lrrrrrr")

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


def _counts(area: str, faults: Sequence[FaultRecord]) -> tuple[object, ...]:
    by = Counter(fault.status for fault in faults)
    detected = by["located"] + by["found"]
    planted = detected + by["missed"] + by["without effect"]
    return area, planted, detected, by["located"], by["missed"], by["without effect"], by["not applicable"]


def self_test(
    bundle: OpenedBundle, reference: Reference | None, kinds: Collection[str], seed: int
) -> Iterator[FaultRecord]:
    """Plant each kind of fault in a copy, and yield the result of checking it; the original bundle must pass first.

    Static checks run first, then a quick check: few shapes, one level, the affected graph and adapters. Faults that
    these do not locate get the whole check.

    Raises:
        ParityError: the bundle fails without a fault.
        InputError: as for `prove`.
    """
    if reference is not None and reference.source is not None:
        source = reference.source  # shared by all faults, because an export is slow
        reference = replace(reference, source=Source(source.origin, cache(source.export_again)))
    plan = _few(plan_check(bundle, brief=True))
    computed = [golden for golden in context_of(plan, reference).expected if golden.against == "reference"]
    prove(plan, reference, computed=computed).raise_for_failure()
    with temporary_folder() as folder:
        copy = Copy(bundle, folder)
        for at, fault in enumerate(FAULTS):
            if not kinds or fault.name in kinds:
                copy.renew(seed + at)
                yield _outcome(bundle, reference, fault, computed, plan, copy)


def _few(plan: Plan, variants: Sequence[VariantName] = ()) -> Plan:
    """Keep the small cases, one level and some graphs."""
    small = [case for case in plan.cases if math.prod(case.axes.values()) <= MOST_NUMBERS]
    wanted = tuple(variant for variant in plan.variants if not variants or variant in variants)
    return replace(plan, cases=tuple(small) or plan.cases[:1], levels=(LEVEL,), variants=wanted or plan.variants)


def _outcome(
    bundle: OpenedBundle, reference: Reference | None, fault: Fault, computed: Sequence[Golden], plan: Plan, copy: Copy
) -> FaultRecord:
    def record(status: FaultStatus, places: Sequence[str] = (), detail: str = "") -> FaultRecord:
        return FaultRecord(fault.name, fault.area, status, tuple(filter(None, places)), detail[:_SHOWN])

    sources = {name: bundle.source(name) for name in bundle.names if name is not None}  # the user's adapters
    places = fault.plant(copy)
    if places is None:
        return record("not applicable")
    if fault.area in ("golden data", "recorded runs"):
        seen, unseen = _said_of_golden(copy, recorded=fault.area == "recorded runs")
        if unseen:
            return record(unseen[0], places, unseen[1])
        located = next((line for line in seen if any(_names(line, place) for place in places)), None)
        return record("found" if located is None else "located", places, located or seen[0])
    # each stage is a subset of the whole check; faults in computation must show when a graph runs
    looks: list[Callable[[], list[str]]] = [
        lambda: _said_of_bits(copy, reference, sources),
        lambda: _said_of_few(copy, reference, computed, plan, fault.area),
    ]
    looks = looks[::-1] if fault.area in _OF_GRAPH else looks
    lines: list[str] = []
    looks.append(lambda: _said(lambda: _lines(prove(plan_check(copy.opened()), reference, adapters=sources))))
    for look in looks:
        lines = [*look(), *lines]
        located = next((line for line in lines if any(_names(line, place) for place in places)), None)
        if located is not None:
            return record("located", places, located)
    if lines:
        return record("found", places, lines[0])
    unlike = "" if fault.area in ("manifest", "texts", "batches", "generation") else _differs(bundle, copy, plan)
    same = "every output of every graph is bit-identical"
    return record("missed", places, unlike) if unlike is not None else record("without effect", places, same)


def _names(line: str, place: str) -> bool:
    return bool(place) and re.search(rf"(?<![A-Za-z0-9]){re.escape(place)}(?![A-Za-z0-9])", line) is not None


def _said(lines: Callable[[], Iterable[str]]) -> list[str]:
    """Return the faults, one per line; an error that stops the check counts as one line."""
    try:
        return list(lines())
    except AdapterExportError as error:
        return [" ".join(str(error).split())]


def _said_of_bits(copy: Copy, reference: Reference | None, sources: Mapping[str, Adapter]) -> list[str]:
    """Verify files, the manifest, slots and constants, without running a graph."""

    def lines() -> Iterator[str]:
        plan = plan_check(copy.opened(), quick=True)
        findings = [*plan.files, *check_manifest(plan.bundle, {}, quick=True)]
        findings += check_slots(plan.bundle, plan.adapters, sources)
        if reference is not None and reference.source is not None:
            findings += check_tensors(plan.bundle, reference.source, plan.variants, brief=True)
        yield from (_line(finding) for finding in findings if not finding.passed)

    return _said(lines)


def _said_of_golden(copy: Copy, *, recorded: bool) -> tuple[list[str], tuple[FaultStatus, str] | None]:
    """Return the faults that golden data show in each affected kind of graph, and a status if they show none.

    Recorded runs show any changed bit, but only on a machine that rounds like the build's: they are used if `recorded`.
    """
    manifest = copy.manifest if recorded else replace(copy.manifest, recorded=None)
    opened, shown = OpenedBundle(Bundle(copy.folder, manifest, verified=False)), list[str]()
    of_adapters = {path for record in manifest.adapters for path in (record.safetensors, record.onnx_adapter)}
    for variant in VARIANT_NAMES:
        files = set(opened.files_of(variant))
        if not files or not copy.changed & (of_adapters if variant in ("slots", "inputs") else files):
            continue
        # a recorded run counts only if the base rounds as recorded, and baked graphs cannot run the base
        ran: Sequence[VariantName] = ("slots", variant) if recorded and variant == "baked" else (variant,)
        plan = plan_check(opened, quick=True, variants=ran)
        report = prove(replace(plan, files=()), None)  # without `files`, which compares files with one another
        lines = list(
            _lines(replace(report, findings=tuple(each for each in report.findings if each.check not in _OF_FILES)))
        )
        if not lines:
            apart = next((finding.detail for finding in report.findings if finding.check == NOT_COMPARED), None)
            return shown, ("missed", f"not shown by golden data in `{variant}`") if apart is None else (
                "not applicable",
                f"recorded runs are not comparable here: {apart}",
            )
        shown += lines
    return shown, None


def _said_of_few(
    copy: Copy, reference: Reference | None, computed: Sequence[Golden], like: Plan, area: Area
) -> list[str]:
    """Run a quick check: few shapes, one level, and only the affected graphs and adapters."""
    variants: Sequence[VariantName] = (
        () if area in ("bank", "inputs graph", "adapters", "manifest", "generation") else ("slots",)
    )
    only = (BASE,) if area in ("base weights", "base nodes", "shapes") else ()

    def lines() -> Iterator[str]:
        opened = copy.opened()
        present = [variant for variant in variants if opened.files_of(variant)]
        plan = _few(plan_check(opened, brief=True, variants=present, only=only))
        same = [case.name for case in plan.cases] == [case.name for case in like.cases]
        known = [
            golden
            for golden in computed
            if same and golden.adapter in plan.names and _is_source(copy, golden.adapter, like)
        ]
        return _lines(prove(plan, reference, computed=known if len(known) == len(plan.names) else ()))

    return _said(lines)


def _is_source(copy: Copy, adapter: str | None, like: Plan) -> bool:
    """Return whether the source of an adapter is unchanged, so that earlier results of the reference apply."""
    if adapter is None:
        return True
    return like.bundle.record(adapter).source not in copy.changed


def _lines(report: Report) -> Iterator[str]:
    """Yield faults, one per line, the most precisely located first."""
    for failure in failures(report):
        culprit = failure.culprit
        if culprit is not None:
            yield f"culprit {culprit.name}, {failure.adapter}: {'; '.join(culprit.faults)}"
        yield f"{failure.adapter}, {failure.case}, {failure.output}: {'; '.join(failure.faults)}"
    wrong = [finding for finding in report.findings if not finding.passed]
    yield from (_line(finding) for finding in sorted(wrong, key=lambda finding: finding.id == "shape/matrix"))
    for result in (*report.outputs, *report.sites):
        if not result.passed:
            yield f"{result.place}: {'; '.join(result.faults)}"


def _line(finding: Finding) -> str:
    return f"{finding.id} {finding.where}: {finding.detail}"


def _differs(bundle: OpenedBundle, copy: Copy, plan: Plan) -> str | None:
    """Return the first output of a copy that differs from the bundle's by a bit, or `None`."""
    other = copy.opened()
    for variant in VARIANT_NAMES:
        for file in bundle.files_of(variant):
            original, faulty = Graph(bundle, variant, file), Graph(other, variant, file)
            for name in plan.names:
                if name not in original.adapters:
                    continue
                for case in (*plan.cases, *bundle.golden(name).cases, *(_words(bundle) if name is None else ())):
                    chosen = (name,) * case.batch
                    try:
                        first, second = original.run(case.arrays, chosen), faulty.run(case.arrays, chosen)
                    except RequestError as error:
                        return str(error)
                    for output in first.keys() | second.keys():
                        if not same_bits(first.get(output), second.get(output)):
                            return f"{file}, {name or 'base'}, {case.name}: `{output}` differs within the budget"
    return None


def _words(bundle: OpenedBundle) -> Iterator[Case]:
    manifest = bundle.manifest
    for case in word_cases(manifest.inputs, seed=SEED, lengths=manifest.lengths):
        yield case_of(case.name, case.arrays, manifest.inputs)
