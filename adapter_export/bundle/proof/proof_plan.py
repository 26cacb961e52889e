"""The plan of a check: the bundle, the reference it is compared with, and the trials of each graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from adapter_export.bundle.bundle_reader import LEVEL, Graph, OpenedBundle
from adapter_export.bundle.golden import Case, Golden, check_cases, named
from adapter_export.bundle.proof.exact_tensors import Source
from adapter_export.bundle.proof.invariants import check_files
from adapter_export.bundle.report import BASE
from adapter_export.bundle.texts import Contract
from adapter_export.bundle.variants import VARIANTS
from adapter_export.errors import UsageError, quoted
from adapter_export.format.check_report import Finding, Scope
from adapter_export.format.lengths import Bounds, axis_lengths
from adapter_export.format.manifest import VARIANT_NAMES, InputRecord, VariantName
from adapter_export.numerics.runner import Arrays, Runner
from adapter_export.runtime.graphs import Optimization

LEVELS: tuple[Optimization, ...] = ("none", "basic", LEVEL)
"""The optimization levels of ONNX Runtime that are tried: every fusion is a chance to lose a slot."""


@dataclass(frozen=True)
class Reference:
    """Another computation of what the bundle should compute, and the path of its model as it was given.

    `contract` is what the model says of texts, `inputs` and `lengths` what it takes. `live` runs the model itself,
    without an adapter, where the runner has a program that was captured from it; `not_live` says why it cannot.
    `source` is what the constants of the bundle follow from.
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
        """Return whether every axis of the inputs has a length that the model takes."""
        return all(
            size in axis_lengths(axis, self.lengths) or (size == 0 and record.role == "cache")
            for record in self.inputs
            if record.name in case.arrays
            for axis, size in zip(record.axes, case.arrays[record.name].shape, strict=False)
        )


@dataclass(frozen=True)
class Plan:
    """Golden vectors of the chosen adapters, and `cases`, a matrix of shapes, that a check runs.

    `files` is what the files of the bundle have shown. A quick check runs golden vectors at one level alone; a brief
    one leaves out what takes long: shapes that are no core, words, nodes where all outputs are right, and making the
    graph again. Named cases make it `narrow`, which leaves out words and nodes. `every_node` keeps all nodes in the
    report, not only those that are wrong, `repro` is the folder for what repeats a fault, and `runtimes` are other
    Pythons to run golden vectors in.
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

    @property
    def names(self) -> tuple[str | None, ...]:
        """The base, which is none, and the adapters."""
        return tuple(golden.adapter for golden in self.golden)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Without the base."""
        return tuple(name for name in self.names if name is not None)

    @property
    def scope(self) -> Scope:
        """The scope of the check; a choice of names is less than a quick check of everything."""
        if self.quick:
            return "golden"
        left_out = {*self.bundle.names} - {*self.names} or {*_variants_in(self.bundle)} - {*self.variants}
        return "part" if self.narrow or left_out else "quick" if self.brief else "full"

    @property
    def probe(self) -> Case:
        """The one case for what is not tried at every shape: the padded one, or else the largest."""
        stored = [case for golden in self.golden for case in golden.cases]
        return max(
            self.cases or stored,
            key=lambda case: (case.real is not None, case.batch, sum(a.size for a in case.arrays.values())),
        )

    @property
    def graphs(self) -> list[Graph]:
        """The graphs to run, each at its levels; those into which another adapter is baked are left out."""
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
    every_node: bool = False,
    repro: Path | None = None,
    runtimes: Sequence[str] = (),
) -> Plan:
    """Open a bundle, look at its files, and choose what to run: everything, but for names that are given.

    Among the adapters in `only`, `base` is the base alone. A quick check runs golden vectors at one level, without a
    look at sites, at swapping and at other shapes; a brief one leaves out only what takes long. The others are those of
    `Plan`.

    Raises:
        UsageError: `only`, `cases` or `variants` names what is not there.
        InputError: the bundle cannot be read, or its files are not those that were written.
    """
    bundle = folder if isinstance(folder, OpenedBundle) else OpenedBundle.open(folder)
    _check_known("adapter", only, [name or BASE for name in bundle.names])
    names = [name for name in bundle.names if not only or (name or BASE) in only]
    there = _variants_in(bundle)
    _check_known("variant", variants, there)
    chosen = tuple(variant for variant in there if not variants or variant in variants)
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
        every_node=every_node,
        repro=repro,
        runtimes=tuple(runtimes),
    )


def _variants_in(bundle: OpenedBundle) -> list[VariantName]:
    """Return the graphs that a bundle has."""
    return [variant for variant in VARIANT_NAMES if bundle.files_of(variant)]


def _check_known(what: str, asked: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in asked if name not in known]
    if unknown:
        names = quoted(dict.fromkeys(known))
        raise UsageError(f"no such {what}", found=quoted(unknown), expected=f"of {names}")


Expected = tuple[Golden, int]
"""Golden vectors, and which of their cases."""


@dataclass(frozen=True)
class Trial:
    """One run of one graph: the adapter of each row of the batch (`None` is the base), and the expected outputs.

    In a mixed batch, rows run through different adapters, and are compared adapter by adapter.
    """

    case: Case
    chosen: tuple[str | None, ...]
    expected: tuple[Expected, ...]
    mixed: bool = False


def trials(plan: Plan, graph: Graph, expected: Sequence[Golden]) -> list[Trial]:
    """Return what to run on a graph: its cases through each adapter, and on a bank mixed batches as well.

    The graph that clients run has all cases, the others and other levels the core of them.
    """
    whole = (graph.variant, graph.level) == (plan.variants[0], LEVEL)
    bank = plan.bundle.manifest.bank if graph.by_row else None
    there: list[Expected] = [
        (golden, at)
        for golden in expected
        for at in range(len(golden.cases))
        if whole or golden.cases[at].core
        if golden.adapter in graph.adapters
    ]
    found = [
        Trial(golden.cases[at], (golden.adapter,) * golden.cases[at].batch, ((golden, at),)) for golden, at in there
    ]
    if bank is None or not plan.bundle.batch_invariant or len(bank.rows) < 2:
        return found
    alike: dict[tuple[str, str], list[Expected]] = {}
    for golden, at in there:
        alike.setdefault((golden.against, golden.cases[at].name), []).append((golden, at))
    for group in alike.values():
        case = group[0][0].cases[group[0][1]]
        for chosen in round_robin(bank.rows, case.batch):
            own = tuple((golden, at) for golden, at in group if golden.adapter in chosen)
            if len(chosen) > 1 and own:
                found.append(Trial(case, chosen, own, mixed=True))
    return found


def round_robin(rows: Sequence[str | None], batch: int) -> list[tuple[str | None, ...]]:
    """Return batches in which every row of a bank has its turn, beginning anew when they are used up."""
    return [tuple(rows[(start + at) % len(rows)] for at in range(batch)) for start in range(0, len(rows), batch)]
