"""Plan of a check: the bundle, its reference, and the trials of each graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from adapter_export.bundle.bundle_reader import LEVEL, Graph, OpenedBundle
from adapter_export.bundle.golden.golden_vectors import Case, Golden, check_cases, named, to_disturb
from adapter_export.bundle.proof.exact_tensors import Source
from adapter_export.bundle.proof.invariants import check_files
from adapter_export.bundle.report import BASE
from adapter_export.bundle.texts import Contract
from adapter_export.bundle.variants import VARIANTS
from adapter_export.errors import UsageError
from adapter_export.format.check_report import Finding, Scope
from adapter_export.format.lengths import Bounds, axis_lengths
from adapter_export.format.manifest import VARIANT_NAMES, InputRecord, VariantName
from adapter_export.numerics.runner import Arrays, Runner
from adapter_export.providers import ProviderName
from adapter_export.runtime.graphs import Optimization
from adapter_export.words import quoted

LEVELS: tuple[Optimization, ...] = ("none", "basic", LEVEL)
"""Optimization levels of ONNX Runtime to test: every fusion might drop a slot."""


@dataclass(frozen=True)
class Reference:
    """Another computation of the bundle's outputs, with the path of its model.

    `contract` describes the model's texts and how it generates, `inputs` and `lengths` its valid inputs. `live` runs
    the live model without adapters, where the runner has a program captured from it; `not_live` is the reason if it
    cannot run. `source` has the tensors that the bundle's constants derive from.
    """

    path: str
    runner: Runner
    contract: Contract = field(default_factory=Contract)
    inputs: Sequence[InputRecord] = ()
    lengths: Bounds = field(default_factory=dict)
    live: Callable[[Mapping[str, np.ndarray]], Arrays] | None = None
    not_live: str | None = None
    source: Source | None = None

    def takes(self, case: Case) -> bool:
        """Return whether every axis of the inputs has a length that the model accepts."""
        return all(
            size in axis_lengths(axis, self.lengths) or (size == 0 and record.role == "cache")
            for record in self.inputs
            if record.name in case.arrays
            for axis, size in zip(record.axes, case.arrays[record.name].shape, strict=False)
        )


@dataclass(frozen=True)
class Plan:
    """Golden vectors of the chosen adapters, and the `cases` (a matrix of shapes) of a check.

    `files` are the findings about the bundle's files. A quick check runs only golden vectors, at one level; a brief one
    skips most shapes, the vocabulary sweep, node comparison if all outputs match, and exporting the graph again. Named
    cases make it `narrow`, which skips words and nodes. `every_node` keeps passing nodes in the report, `repro` is the
    folder for reproductions of faults, `runtimes` are other Python interpreters to run golden vectors in, and
    `providers` other providers (default: those of the installed ONNX Runtime). `recorded` are cases of a new bundle
    that every graph runs with each adapter.
    """

    bundle: OpenedBundle
    golden: tuple[Golden, ...]
    cases: tuple[Case, ...]
    variants: tuple[VariantName, ...]
    files: tuple[Finding, ...]
    quick: bool
    brief: bool = False
    narrow: bool = False
    levels: tuple[Optimization, ...] = LEVELS
    every_node: bool = False
    repro: Path | None = None
    runtimes: tuple[str, ...] = ()
    providers: tuple[ProviderName, ...] = ()
    recorded: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str | None, ...]:
        """The base (`None`) and the adapters."""
        return tuple(golden.adapter for golden in self.golden)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The adapters, without the base."""
        return tuple(name for name in self.names if name is not None)

    @property
    def scope(self) -> Scope:
        """Scope of the check; a choice of names covers less than a quick check of everything."""
        if self.quick:
            return "golden"
        left_out = {*self.bundle.names} - {*self.names} or {*_variants_in(self.bundle)} - {*self.variants}
        return "part" if self.narrow or left_out else "quick" if self.brief else "full"

    @property
    def probe(self) -> Case:
        """Case for tests that do not run at every shape: the padded one, or else the largest."""
        stored = [case for golden in self.golden for case in golden.cases]
        return max(
            self.cases or stored,
            key=lambda case: (case.real is not None, case.batch, sum(a.size for a in case.arrays.values())),
        )

    @property
    def graphs(self) -> list[Graph]:
        """Graphs to run, each at its levels; graphs with another baked-in adapter are excluded."""
        levels: dict[VariantName, Sequence[Optimization]] = {} if self.quick else {"slots": self.levels}
        return [
            Graph(self.bundle, variant, file, level)
            for variant in self.variants
            for file in self.bundle.files_of(variant)
            if {*self.names} & {*VARIANTS[variant].adapters(self.bundle.manifest, file)}
            for level in levels.get(variant, (LEVEL,))
        ]


def plan_check(
    folder: Path | OpenedBundle,
    *,
    only: Sequence[str] = (),
    cases: Sequence[str] = (),
    variants: Sequence[str] = (),
    quick: bool = False,
    brief: bool = False,
) -> Plan:
    """Open a bundle, check its files, and choose the trials; the default is everything.

    `base` in `only` selects the base. A quick check runs golden vectors at one level, and no sites, swaps or other
    shapes; a brief one skips only slow parts. Set other attributes of the plan with `replace`.

    Raises:
        UsageError: `only`, `cases` or `variants` contains an unknown name.
        InputError: the bundle cannot be read, or its files do not match their SHA-256.
    """
    bundle = folder if isinstance(folder, OpenedBundle) else OpenedBundle.open(folder)
    _check_known("adapter", only, [name or BASE for name in bundle.names])
    names = [name for name in bundle.names if not only or (name or BASE) in only]
    existing = _variants_in(bundle)
    _check_known("variant", variants, existing)
    chosen = tuple(variant for variant in existing if not variants or variant in variants)
    files = tuple(check_files(bundle, chosen, names))
    stored = [bundle.golden(name) for name in names]
    known = [case for golden in stored for case in golden.cases]
    matrix = () if quick else check_cases(bundle.manifest, known)
    named_so = {case.name for case in (*matrix, *known)} | (set(cases) if quick else set())
    extra = [case for name in cases if name not in named_so and (case := named(bundle.manifest, name))]
    _check_known("case", cases, [case.name for case in (*matrix, *known, *extra)])
    if cases:
        matrix = tuple(replace(case, core=True) for case in (*matrix, *extra) if case.name in cases)
    elif brief:
        matrix = tuple(case for case in matrix if case.core)
    return Plan(
        bundle,
        tuple(golden.only(cases) for golden in stored),
        matrix,
        chosen,
        files,
        quick,
        brief,
        bool(cases),
    )


def _variants_in(bundle: OpenedBundle) -> list[VariantName]:
    """Return the variants that a bundle contains."""
    return [variant for variant in VARIANT_NAMES if bundle.files_of(variant)]


def _check_known(what: str, requested: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in requested if name not in known]
    if unknown:
        names = quoted(dict.fromkeys(known))
        raise UsageError(f"unknown {what}", found=quoted(unknown), expected=f"one of {names}")


Expected = tuple[Golden, int]
"""Golden vectors, and the indices of their cases."""


@dataclass(frozen=True)
class Trial:
    """One run of a graph: the adapter of each row of the batch (`None` is the base), and the expected outputs.

    Rows of a mixed batch run through different adapters, and are compared adapter by adapter.
    """

    case: Case
    chosen: tuple[str | None, ...]
    expected: tuple[Expected, ...]
    mixed: bool = False


def trials(plan: Plan, graph: Graph, expected: Sequence[Golden]) -> list[Trial]:
    """Return the trials of a graph: its cases through each adapter and, for a bank, mixed batches.

    The main graph runs all cases; other graphs and levels run the core cases. The graphs of a new bundle were made by
    this process, so one with the operators of another runs the smallest case of each shape of a row, and a bank runs
    mixed batches instead of uniform ones.
    """
    whole = (graph.variant, graph.level) == (plan.variants[0], LEVEL)
    bank = plan.bundle.manifest.bank if graph.by_row else None
    unmixed: list[Expected] = [
        (golden, at)
        for golden in expected
        for at in range(len(golden.cases))
        if whole or golden.cases[at].core
        if golden.adapter in graph.adapters
    ]
    if plan.bundle.staged and VARIANTS[graph.variant].runs_as is not None:
        few = {case.name for golden in expected for case in to_disturb(golden.cases)}.union(plan.recorded)
        unmixed = [(golden, at) for golden, at in unmixed if golden.cases[at].name in few]
    planned = [
        Trial(golden.cases[at], (golden.adapter,) * golden.cases[at].batch, ((golden, at),)) for golden, at in unmixed
    ]
    if bank is None or not plan.bundle.batch_invariant or len(bank.rows) < 2:
        return planned
    alike: dict[tuple[str, str], list[Expected]] = {}
    for golden, at in unmixed:
        alike.setdefault((golden.against, golden.cases[at].name), []).append((golden, at))
    for group in alike.values():
        case = group[0][0].cases[group[0][1]]
        for chosen in round_robin(bank.rows, case.batch):
            members = tuple((golden, at) for golden, at in group if golden.adapter in chosen)
            if len(chosen) > 1 and members:
                planned.append(Trial(case, chosen, members, mixed=True))
    covered = {trial.case.name for trial in planned if trial.mixed} - {*plan.recorded}
    if not plan.bundle.staged or not covered:
        return planned
    return [trial for trial in planned if trial.mixed or trial.case.name not in covered]


def round_robin(rows: Sequence[str | None], batch: int) -> list[tuple[str | None, ...]]:
    """Return batches that cycle through the rows of a bank until each has run."""
    return [tuple(rows[(start + at) % len(rows)] for at in range(batch)) for start in range(0, len(rows), batch)]
