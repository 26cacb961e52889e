"""Golden vectors: inputs and reference outputs by which any program, in any language, can prove itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from adapter_export.dtypes import FLOAT_TYPES, Stored
from adapter_export.errors import BaseModelError, NothingComparedError, ParityError, TensorError
from adapter_export.format.manifest import GoldenRecord, InputRecord
from adapter_export.format.tensors import read_tensors, write_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.amplification import moved_by_rounding
from adapter_export.numerics.budget import EXACT, Budget, Extent, budget, product_error
from adapter_export.numerics.runner import Arrays, Runner, run
from adapter_export.numerics.sample_inputs import InputCase

MASK_BELOW = -1e30
"""What an output of a bank is below where the row's adapter has no class; see `rows.MASKED`."""

_SHOWN = 5
"""How many wrong tensors a message names."""


@dataclass(frozen=True)
class Golden:
    """The golden vectors of a base, or of one adapter on it.

    Attributes:
        cases: the inputs.
        outputs: what the reference gives for each case, by output.
        absolute: the allowed absolute deviation of each output.
        reference: what computed the outputs.
        reasons: where the number of each output comes from.
    """

    cases: Sequence[InputCase]
    outputs: Sequence[Arrays]
    absolute: Mapping[str, float]
    reference: str
    reasons: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, record: GoldenRecord, inputs: Sequence[InputRecord]) -> Golden:
        """The golden vectors of a bundle.

        Raises:
            FileError, FormatError: the file cannot be read.
            TensorError: a case lacks an input or an output.
        """
        tensors = read_tensors(folder / record.path)
        wanted = {
            f"{case}.{kind}.{name}"
            for case in record.cases
            for kind, names in (("input", [one.name for one in inputs]), ("output", record.absolute))
            for name in names
        }
        if wanted != tensors.keys():
            raise TensorError(
                "holds other tensors than those of its cases",
                where=folder / record.path,
                found=", ".join(sorted(wanted ^ tensors.keys())[:_SHOWN]),
                expected=f"inputs and outputs of {', '.join(f'`{case}`' for case in record.cases)}",
                fix="build the bundle again",
            )
        cases = [
            InputCase(case, {one.name: tensors[f"{case}.input.{one.name}"] for one in inputs}) for case in record.cases
        ]
        outputs = [{name: tensors[f"{case}.output.{name}"] for name in record.absolute} for case in record.cases]
        return cls(cases, outputs, record.absolute, record.reference, record.reasons)

    def write(self, path: Path, name: str) -> GoldenRecord:
        """Write the tensors; `name` is the file's path in the bundle.

        Raises:
            WriteError: the operating system refused.
        """
        write_tensors(path, dict(self._tensors()))
        names = tuple(case.name for case in self.cases)
        return GoldenRecord(name, names, self.absolute, self.reference, self.reasons)

    def _tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        for case, outputs in zip(self.cases, self.outputs, strict=True):
            yield from ((f"{case.name}.input.{name}", array) for name, array in case.arrays.items())
            yield from ((f"{case.name}.output.{name}", array) for name, array in outputs.items())

    def verify(self, run: Callable[[Mapping[str, np.ndarray]], Arrays], where: str) -> None:
        """Hold a program against the golden vectors.

        Args:
            run: the program, from inputs to outputs.
            where: names it in messages.

        Raises:
            ParityError: as `compare`.
        """
        self.compare([run(case.arrays) for case in self.cases], where)

    def compare(self, results: Sequence[Arrays], where: str) -> None:
        """Hold the outputs of a program, case by case, against the golden vectors.

        Args:
            results: what the program gives for each case.
            where: names it in messages.

        Raises:
            ParityError: an output is missing, has another shape or type, or deviates by more than is allowed.
        """
        for case, outputs, found in zip(self.cases, self.outputs, results, strict=True):
            for name, expected in outputs.items():
                self._compare(found.get(name), expected, name, f"{where}, case `{case.name}`")

    def compare_row(self, case: int, row: int, outputs: Arrays, where: str) -> None:
        """Hold one row of the outputs of a bank against the golden vectors.

        Along the last axis an output may be wider than the golden one; what is beyond must be masked.

        Args:
            case: which of the cases.
            row: which row of its batch.
            outputs: what the bank gives for the whole batch.
            where: names it in messages.

        Raises:
            ParityError: as `compare`, or something is not masked.
        """
        batch = max(len(output) for output in self.outputs[case].values())
        for name, expected in self.outputs[case].items():
            if len(expected) == batch:
                place = f"{where}, case `{self.cases[case].name}`, row {row}"
                found = outputs[name][row : row + 1] if name in outputs else None
                own = None if found is None else _own(found, expected.shape[-1], f"{place}, `{name}`")
                self._compare(own, expected[row : row + 1], name, place)

    def _compare(self, found: np.ndarray | None, expected: np.ndarray, name: str, where: str) -> None:
        place = f"{where}, `{name}`"
        if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
            facts = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise ParityError(place, found=facts, expected=f"{expected.dtype} {list(expected.shape)}")
        deviation = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)
        if not deviation <= self.absolute[name]:  # NaN fails
            allowed = self.reasons.get(name, f"{self.absolute[name]:.2e}")
            raise ParityError(place, found=f"a deviation of {deviation:.2e}", expected=f"at most {allowed}")


def _own(found: np.ndarray, width: int, where: str) -> np.ndarray:
    """What is an adapter's own of an output that is as wide as the widest of its bank."""
    if not (found[..., width:] < MASK_BELOW).all():
        raise ParityError(where, found="numbers for classes that the adapter lacks", expected=f"below {MASK_BELOW:g}")
    return found[..., :width]


@dataclass(frozen=True)
class GoldenMaker:
    """Lets the reference compute the golden vectors of a graph.

    Attributes:
        references: what computes; never the graph itself.
        cases: the inputs.
        inputs: those of the graph.
        outputs: the names of the base's outputs.
        extent: that of the graph, from which the allowed deviations follow.
        stored: the coarsest type that the graph rounds its activations to.
        base: the fingerprint of the base.
    """

    references: Runner
    cases: Sequence[InputCase]
    inputs: Sequence[InputRecord]
    outputs: Sequence[str]
    extent: Extent
    stored: Stored
    base: str

    def make(self, adapter: Adapter | None, output: str | None = None) -> Golden:
        """Golden vectors.

        Args:
            adapter: the adapter; none for the base alone.
            output: the output of the graph that holds the result of the adapter's head, if it has one.

        Raises:
            BaseModelError: the reference lacks an output of the base, or gives NaN or Inf; or an output is not the
                cache that it seems to be.
            NothingComparedError: there are no cases.
        """
        if not self.cases:
            raise NothingComparedError("no golden vectors: there are no inputs to compute them from")
        given = [run(self.references, case.arrays, adapter, self.outputs, output) for case in self.cases]
        names = [*self.outputs, *([] if output is None else [output])]
        pairs = list(zip(self.cases, given, strict=True))
        outputs = [_checked(found, names, self.references, case) for case, found in pairs]
        for case, found in zip(self.cases, outputs, strict=True):
            _check_caches(self.inputs, case.arrays, found)
        moved = self._moved(adapter, output)
        budgets = {name: self._allowed([found[name] for found in outputs], moved.get(name, 0.0)) for name in names}
        absolute = {name: allowed.absolute for name, allowed in budgets.items()}
        reasons = {name: allowed.reason for name, allowed in budgets.items()}
        return Golden(self.cases, outputs, absolute, self.references.description, reasons)

    @property
    def _inner(self) -> int:
        """The terms of the longest sum: attention and pooling add up as many as there are tokens."""
        lengths: list[int] = [size for case in self.cases for array in case.arrays.values() for size in array.shape]
        return max([self.extent.inner, *lengths])

    def _moved(self, adapter: Adapter | None, output: str | None) -> dict[str, float]:
        """How far errors move the outputs; nothing where that is not measured.

        Errors of a coarser type than float32 are the size of the outputs.
        """
        if not self.references.keeps_weights or self.stored != "float32":
            return {}
        return moved_by_rounding(
            lambda inputs, disturbed: run(self.references, inputs, disturbed, self.outputs, output),
            [case.arrays for case in self.cases],
            adapter,
            sites=self.references.sites,
            base=self.base,
            step=product_error("float32", inner=self._inner),
        )

    def _allowed(self, values: Sequence[np.ndarray], moved: float) -> Budget:
        """The budget of an output, by its largest value in any case; whole numbers must be equal."""
        dtype = values[0].dtype.name
        if dtype not in FLOAT_TYPES:
            return EXACT
        scale = max(float(np.abs(value).max(initial=0.0)) for value in values)
        return budget(
            dtype, inner=self._inner, depth=self.extent.depth, scale=scale, rounded_to=self.stored, moved=moved
        )


def _checked(outputs: Arrays, names: Sequence[str], references: Runner, case: InputCase) -> Arrays:
    missing = [name for name in names if name not in outputs]
    broken = [name for name in names if name in outputs and not np.isfinite(outputs[name]).all()]
    if missing or broken:
        raise BaseModelError(
            "the reference gives no golden vectors",
            where=f"`{references.description}`, case `{case.name}`",
            found="; ".join([f"no output `{name}`" for name in missing] + [f"NaN or Inf in `{n}`" for n in broken]),
            expected=", ".join(f"`{name}`" for name in names),
            fix="check the base and the adapter's weights",
        )
    return {name: np.ascontiguousarray(outputs[name]) for name in names}


def _check_caches(records: Sequence[InputRecord], inputs: Mapping[str, np.ndarray], outputs: Arrays) -> None:
    """What a cache is in the next call begins with what it was: outputs are assigned to caches by their order alone."""
    for record in records:
        if record.next is not None:
            past = inputs[record.name]
            if not np.array_equal(outputs[record.next][tuple(map(slice, past.shape))], past):
                raise BaseModelError(
                    "an output is not the cache that it seems to be",
                    where=f"output `{record.next}`",
                    expected=f"what is given as `{record.name}`, and then the new tokens",
                    fix="export the base with the caches among its outputs in the order of its inputs",
                )
