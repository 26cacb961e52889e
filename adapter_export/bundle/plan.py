"""What a check of a bundle will run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapter_export.bundle.cases import Case, case_of, check_cases, stored_reason
from adapter_export.bundle.contents import check_contents, check_files, check_structure, check_twins, read_source
from adapter_export.bundle.report import BASE, FORMS, Form, InvariantResult
from adapter_export.errors import TensorError, UsageError
from adapter_export.format.manifest import AdapterRecord, GoldenRecord, InputRecord, Manifest
from adapter_export.format.manifest_json import read_manifest
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.tasks import LABELLED
from adapter_export.numerics.budget import Budget
from adapter_export.runtime.graphs import Optimization

# The golden vectors of a bundle: inputs and reference outputs that were stored when it was built.


@dataclass(frozen=True)
class GoldenCase:
    """One stored case.

    Attributes:
        case: the inputs.
        outputs: what the reference computed.
        budgets: the allowed deviation of each output, as the manifest states it.
    """

    case: Case
    outputs: Mapping[str, np.ndarray]
    budgets: Mapping[str, Budget]


def golden_cases(bundle: Path, record: GoldenRecord, inputs: Sequence[InputRecord]) -> list[GoldenCase]:
    """Read the golden vectors of the base or of an adapter.

    Raises:
        FileError: the file is missing.
        TensorError: a case lacks an input or has no output.
    """
    tensors = read_tensors(bundle / record.path)
    budgets = {name: Budget(absolute, stored_reason(record, name)) for name, absolute in record.absolute.items()}
    return [_golden_case(name, tensors, inputs, budgets, record.path) for name in record.cases]


def _golden_case(
    name: str,
    tensors: Mapping[str, np.ndarray],
    inputs: Sequence[InputRecord],
    budgets: Mapping[str, Budget],
    path: str,
) -> GoldenCase:
    arrays = _under(f"{name}.input.", tensors)
    outputs = _under(f"{name}.output.", tensors)
    wanted = {record.name for record in inputs}
    if set(arrays) != wanted or not outputs or set(outputs) != set(budgets):
        raise TensorError(
            f"golden case `{name}` is not complete",
            where=path,
            found=f"inputs {', '.join(sorted(arrays)) or 'none'}; outputs {', '.join(sorted(outputs)) or 'none'}",
            expected=f"inputs {', '.join(sorted(wanted))}; outputs {', '.join(sorted(budgets))}",
            fix="build the bundle again",
        )
    return GoldenCase(case_of(name, arrays, inputs), outputs, budgets)


def _under(prefix: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


LEVELS: tuple[Optimization, ...] = ("none", "basic", "all")
"""The optimization levels of ONNX Runtime that are tried: every fusion is a chance to lose a slot."""


@dataclass(frozen=True)
class Subject:
    """The base alone, or one adapter of the bundle.

    Attributes:
        record: the adapter in the manifest; none for the base alone.
        adapter: as it was given to the build.
        golden: its golden vectors.
    """

    record: AdapterRecord | None
    adapter: Adapter | None
    golden: tuple[GoldenCase, ...]

    @property
    def name(self) -> str | None:
        """The adapter's name in the bundle; none for the base alone."""
        return None if self.record is None else self.record.name

    @property
    def output(self) -> str | None:
        """The output that holds the result of the adapter's head; none without a head."""
        return None if self.record is None else self.record.output

    @property
    def classifies(self) -> bool:
        """Whether that output holds one number per class."""
        return self.record is not None and self.record.task in LABELLED


@dataclass(frozen=True)
class Plan:
    """What will be run.

    Attributes:
        folder: the bundle.
        manifest: its manifest.
        subjects: the base and the adapters.
        cases: the matrix of shapes.
        files: what the files of the bundle have shown.
        forms: the graphs to run.
    """

    folder: Path
    manifest: Manifest
    subjects: tuple[Subject, ...]
    cases: tuple[Case, ...]
    files: tuple[InvariantResult, ...]
    forms: tuple[Form, ...]

    @property
    def base_outputs(self) -> tuple[str, ...]:
        """The names of the base's outputs."""
        return tuple(record.name for record in self.manifest.base_outputs)

    @property
    def probe(self) -> Case:
        """The one case for what is not tried at every shape: the padded one, or else the largest."""
        stored = [golden.case for subject in self.subjects for golden in subject.golden]
        return max(
            self.cases or stored, key=lambda case: (case.real is not None, sum(a.size for a in case.arrays.values()))
        )


def plan_check(folder: Path, *, only: Sequence[str] = (), cases: Sequence[str] = (), forms: Sequence[str] = ()) -> Plan:
    """Open a bundle, hold its files against their hashes, and choose what to run.

    Args:
        folder: the bundle.
        only: the adapters to check, and `base` for the base alone; everything if not given.
        cases: the cases to check; all of them if not given.
        forms: the graphs to check; all that the bundle has if not given.

    Raises:
        UsageError: `only`, `cases` or `forms` names what is not there.
        InputError: the bundle cannot be read, or its files are not those that were written.
    """
    manifest = read_manifest(folder)
    files = [check_files(folder, manifest), *check_structure(folder, manifest)]
    records: list[AdapterRecord | None] = [None, *manifest.adapters]
    chosen = [record for record in records if not only or _name(record) in only]
    _check_known("adapter", only, [_name(record) for record in records])
    files += [check_twins(folder, record) for record in chosen if record is not None]
    there = _forms(manifest)
    _check_known("flavour", forms, there)
    wanted = tuple(form for form in there if not forms or form in forms)
    files += check_contents(folder, manifest, wanted, chosen)
    subjects = tuple(_subject(folder, manifest, record) for record in chosen)
    stored = [golden.case for subject in subjects for golden in subject.golden]
    matrix = check_cases(manifest, stored)
    _check_known("case", cases, [case.name for case in (*matrix, *stored)])
    return Plan(
        folder,
        manifest,
        tuple(_with_cases(subject, cases) for subject in subjects),
        tuple(case for case in matrix if not cases or case.name in cases),
        tuple(files),
        wanted,
    )


def _forms(manifest: Manifest) -> tuple[Form, ...]:
    """The graphs of a bundle that are run."""
    baked = any(record.baked is not None for record in manifest.adapters)
    return tuple(form for form in FORMS if form in manifest.graphs or (form == "baked" and baked))


def _subject(folder: Path, manifest: Manifest, record: AdapterRecord | None) -> Subject:
    golden: GoldenRecord = manifest.golden if record is None else record.golden
    adapter = None if record is None else read_source(folder, record)
    return Subject(record, adapter, tuple(golden_cases(folder, golden, manifest.inputs)))


def _with_cases(subject: Subject, cases: Sequence[str]) -> Subject:
    kept = tuple(golden for golden in subject.golden if not cases or golden.case.name in cases)
    return Subject(subject.record, subject.adapter, kept)


def _name(record: AdapterRecord | None) -> str:
    return BASE if record is None else record.name


def _check_known(what: str, asked: Sequence[str], known: Sequence[str]) -> None:
    unknown = [name for name in asked if name not in known]
    if unknown:
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(known))
        raise UsageError(f"no such {what}", found=", ".join(f"`{name}`" for name in unknown), expected=f"of {names}")
