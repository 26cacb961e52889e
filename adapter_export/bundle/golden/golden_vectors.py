"""Golden vectors: inputs, the reference's outputs for them, and the budget of each output.

A bundle stores golden vectors so that a program in any language can verify itself; a check computes more of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from adapter_export.bundle.report import BASE
from adapter_export.dtypes import FLOAT_TYPES, Stored
from adapter_export.errors import BaseModelError, NothingComparedError, TensorError
from adapter_export.format.axes import axis_names, length
from adapter_export.format.check_report import Against, Split
from adapter_export.format.manifest import GoldenRecord, InputRecord, Manifest, OutputRecord
from adapter_export.format.sketch import SketchRecord, read_fill, sketched
from adapter_export.format.tensors import read_tensors, write_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.budget import EXACT, Budget, Extent, budget, product_error
from adapter_export.numerics.runner import Arrays, Runner, Undefined, find_undefined, measure_rounding, run
from adapter_export.numerics.sample_inputs import (
    LENGTHS,
    covering_cases,
    edge_cases,
    has_rows_per_token,
    named_case,
    shown_tokens,
)
from adapter_export.onnx_backend.rewrite.checksums import EXACT_CHECKSUM, SlotChecksums
from adapter_export.reporting import SILENT, Reporter
from adapter_export.tables import number_of
from adapter_export.words import quoted

SEED = 20
"""Seed that differs from that of the golden vectors, so that a check sees other inputs."""

_SHOWN = 5
"""Maximum number of wrong tensors named in a message."""


_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Case:
    """Named inputs, the length of each dynamic axis, and the mask of real tokens, [batch, tokens].

    `real` is `None` if all tokens are real or the base has no mask. `core` cases run in every graph at every level.
    `seeds` describe inputs that `filled` made, by name.
    """

    name: str
    arrays: Mapping[str, np.ndarray]
    axes: Mapping[str, int]
    real: npt.NDArray[np.bool_] | None
    core: bool = True
    seeds: Mapping[str, int] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Length of the first axis of the inputs."""
        return max((len(array) for array in self.arrays.values() if array.ndim), default=1)

    def parts(self, shape: Sequence[int]) -> Iterator[tuple[Split, npt.NDArray[np.bool_] | None]]:
        """Split an output of this shape into parts that are compared separately, each with its elements.

        An output with a row per token is split into real tokens and padding. Both are compared: the bundle must match
        the base even at padding.
        """
        if self.real is None or not has_rows_per_token(shape, self.real):
            yield "all", None
            return
        rows = self.real.reshape(self.real.shape + (1,) * (len(shape) - 2))
        yield "tokens", rows
        yield "padding", ~rows


def case_of(
    name: str,
    arrays: Mapping[str, np.ndarray],
    inputs: Sequence[InputRecord],
    seeds: Mapping[str, int] = MappingProxyType({}),
) -> Case:
    """Return a case whose axes and padding are read from the arrays."""
    axes: dict[str, int] = {}
    for record in inputs:
        lengths = zip(record.axes, arrays[record.name].shape, strict=True)
        axes.update({axis: length for axis, length in lengths if isinstance(axis, str)})
    return Case(name, arrays, axes, shown_tokens(inputs, arrays), seeds=seeds)


def stored_inputs(case: Case) -> Arrays:
    """Return the tensors of a case's inputs in files: seed and shape of inputs that have a seed, the others whole."""
    seeds = {
        f"{case.name}.fill.{name}": np.array([seed, *case.arrays[name].shape], np.int64)
        for name, seed in case.seeds.items()
    }
    whole = {f"{case.name}.input.{name}": array for name, array in case.arrays.items() if name not in case.seeds}
    return seeds | whole


def stored_case(name: str, tensors: Mapping[str, np.ndarray], inputs: Sequence[InputRecord], where: Path) -> Case:
    """Return a case from the tensors of a file.

    Raises:
        TensorError: the file lacks an input, or has one of another number of axes or of an impossible shape.
    """
    arrays, seeds, faults = dict[str, np.ndarray](), dict[str, int](), list[str]()
    for record in inputs:
        whole, fill = tensors.get(f"{name}.input.{record.name}"), tensors.get(f"{name}.fill.{record.name}")
        if whole is not None and fill is None:
            arrays[record.name] = whole
        elif whole is None and fill is not None:
            try:
                arrays[record.name] = read_fill(fill, record.dtype)
                seeds[record.name] = int(fill[0])
            except ValueError as error:
                faults.append(f"`{name}.fill.{record.name}`: {error}")
                continue
        else:
            faults.append(f"`{name}.input.{record.name}` missing, or stored twice")
            continue
        if arrays[record.name].ndim != len(record.axes):
            shape = list(arrays[record.name].shape)
            faults.append(
                f"`{name}.input.{record.name}` {shape}, expected {number_of(len(record.axes), 'axis', 'axes')}"
            )
    if faults:
        raise TensorError(
            "the golden data do not match their cases",
            where=where,
            found="; ".join(faults[:_SHOWN]),
            expected="every input, whole or as a seed and a shape",
            fix="rebuild the bundle",
        )
    return case_of(name, arrays, inputs, seeds)


def check_cases(manifest: Manifest, stored: Sequence[Case], seed: int = SEED) -> tuple[Case, ...]:
    """Return shapes for a bundle: every pair of a batch, a length and a kind of padding, then its length limits.

    Without a maximum length in the manifest, no case is longer than the longest of the `stored` cases.
    """
    longest: int | None = None
    if manifest.max_tokens is None:
        batches = {record.axes[0] for record in manifest.inputs if record.axes}
        lengths = (length for case in stored for axis, length in case.axes.items() if axis not in batches)
        longest = max(lengths, default=None)
    cases = covering_cases(manifest.inputs, seed=seed, lengths=manifest.lengths, max_tokens=longest)
    checked = [(shape.core, case_of(shape.name, shape.arrays, manifest.inputs, shape.seeds)) for shape in cases]
    names = {case.name for case in cases}
    for edge in edge_cases(manifest.inputs, manifest.lengths, seed=seed):
        case = case_of(edge.name, edge.arrays, manifest.inputs, edge.seeds)
        if edge.name not in names:  # skip duplicates: a long case costs as much as all others
            checked.append((max(case.axes.values(), default=0) <= max(LENGTHS), case))
    return tuple(replace(case, core=core) for core, case in checked)


def named(manifest: Manifest, name: str) -> Case | None:
    """Return the case named, for example, `batch2_tokens4`; `None` if the bundle has no such shape."""
    input_case = named_case(manifest.inputs, name, manifest.lengths, seed=SEED)
    return None if input_case is None else case_of(input_case.name, input_case.arrays, manifest.inputs)


@dataclass(frozen=True)
class Golden:
    """Expected outputs of the base, or of one adapter, for each case, and the budget of each output.

    `against` is `golden` for stored vectors and `reference` for outputs computed during a check. `undefined` contains,
    by case and output, the padding positions that the reference leaves undefined, [batch, tokens], or for outputs
    without a row per token the rows that depend on such positions, [batch]. Outputs in `sketches` are sketches.
    """

    adapter: str | None
    cases: Sequence[Case]
    outputs: Sequence[Arrays]
    budgets: Mapping[str, Budget]
    reference: str
    against: Against = "golden"
    undefined: Sequence[Undefined] = ()
    sketches: Mapping[str, SketchRecord] = field(default_factory=dict)

    def stored(self, outputs: Mapping[str, np.ndarray]) -> Arrays:
        """Return outputs of a program in the form of these golden data, to be compared with them."""
        return sketched(outputs, self.sketches)

    def only(self, names: Sequence[str]) -> Golden:
        """Return the named cases; all cases if no name is given."""
        selected = [at for at, case in enumerate(self.cases) if not names or case.name in names]
        return replace(self, cases=[self.cases[at] for at in selected], outputs=[self.outputs[at] for at in selected])

    def without(self, output: str | None) -> Golden:
        """Return all outputs except one."""
        others = [{name: value for name, value in arrays.items() if name != output} for arrays in self.outputs]
        return replace(self, outputs=others)

    def of_base(self, outputs: Collection[str]) -> Golden:
        """Return the vectors of the base, from those of an adapter that leaves the base's `outputs` unchanged."""

        def of_outputs(values: Mapping[str, _Value]) -> dict[str, _Value]:
            return {name: value for name, value in values.items() if name in outputs}

        return replace(
            self,
            adapter=None,
            outputs=list(map(of_outputs, self.outputs)),
            budgets=of_outputs(self.budgets),
            undefined=list(map(of_outputs, self.undefined)),
        )

    def parts(self, at: int, output: str) -> Iterator[tuple[Split, npt.NDArray[np.bool_] | None]]:
        """Split an output of a case as `Case.parts` does, without undefined elements."""
        shape = self.outputs[at][output].shape
        vague = self.undefined[at].get(output) if self.undefined else None
        for part, elements in self.cases[at].parts(shape):
            if vague is not None and elements is not None:
                elements = elements & ~vague.reshape(elements.shape)
            elif vague is not None:  # whole rows
                elements = ~whole_rows(vague).reshape(-1, *(1,) * (len(shape) - 1))
            yield part, elements


def whole_rows(undefined: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the rows of a batch with any undefined position, [batch], from such rows or [batch, tokens]."""
    return np.asarray(undefined.reshape(len(undefined), -1).any(-1), bool)


_WHOLE_BYTES = 2**20
"""Maximum bytes of golden data that an output, or all caches together, take as a whole."""

_MOST_BYTES = 3 * 2**19
"""Maximum bytes of all outputs in golden vectors. Inputs and golden parts are small beside these."""

_SKETCH_OF_CACHE = SketchRecord(1, 8, 16, (61, 64))
_SKETCHES = (
    (2**12, (8, 64, (61, 64))),
    (2**16, (8, 64, (127, 128))),
    (2**18, (8, 64, (251, 256))),
    (2**63, (8, 1024, (2039, 2048))),
)
"""`largest`, `columns` and `moduli` of sketches of rows up to a number of elements. Sums of more terms are less
sensitive, so long rows have more sums. Two moduli have no common divisor, so that two elements share at most one of
their sums unless they are very far apart."""


def choose_sketches(
    outputs: Sequence[OutputRecord], inputs: Sequence[InputRecord], cases: Sequence[Case]
) -> Mapping[str, SketchRecord]:
    """Return the outputs of a base whose golden data would be large, with their sketches.

    A row is a token, or a text for a cache: what a decoder keeps of a token grows with its layers. While all outputs
    are too large together, rows of the largest one get more axes, up to all of an item of the batch.
    """
    shapes: dict[str, list[list[int]]] = {}
    for output in outputs:
        if output.dtype == "float32" and {*axis_names([output])} <= {name for case in cases for name in case.axes}:
            shapes[output.name] = [[length(axis, case.axes) for axis in output.axes] for case in cases]
    caches = {record.next for record in inputs} - {None}
    of_caches = sum(_bytes(shapes[name]) for name in shapes.keys() & caches)
    sketches: dict[str, SketchRecord] = {}
    for output in outputs:
        if output.name not in shapes or len(output.axes) < 2:
            continue
        if output.name in caches:
            record: SketchRecord | None = _SKETCH_OF_CACHE if of_caches > _WHOLE_BYTES else None
        else:
            large = _bytes(shapes[output.name]) > _WHOLE_BYTES
            record = _sketch(shapes[output.name], len(output.axes) - 1) if large else None
        if record is not None:
            sketches[output.name] = record
    return _coarser(sketches, [output for output in outputs if output.name in shapes.keys() - caches], shapes)


def _coarser(
    sketches: dict[str, SketchRecord], outputs: Sequence[OutputRecord], shapes: Mapping[str, list[list[int]]]
) -> Mapping[str, SketchRecord]:
    """Return sketches of which the largest have longer rows, until all outputs are small enough or none can be."""
    able = list(outputs)
    while able and sum(_bytes(each, sketches.get(name)) for name, each in shapes.items()) > _MOST_BYTES:
        output = max(able, key=lambda each: _bytes(shapes[each.name], sketches.get(each.name)))
        of_output, now = shapes[output.name], sketches.get(output.name)
        axes = len(output.axes) if now is None else now.axes
        longer = (_sketch(of_output, fewer) for fewer in range(axes - 1, 0, -1))
        smaller = [each for each in longer if each is not None and _bytes(of_output, each) < _bytes(of_output, now)]
        if smaller:
            sketches[output.name] = smaller[0]
        else:
            able.remove(output)
    return sketches


def _sketch(shapes: Sequence[Sequence[int]], axes: int) -> SketchRecord | None:
    """Return a sketch of an output that keeps some leading axes; `None` if no row has more numbers than the sketch."""
    row = max(math.prod(shape[axes:]) for shape in shapes)
    record = SketchRecord(axes, *next(sizes for most, sizes in _SKETCHES if row <= most))
    return record if record.width < row else None


def _bytes(shapes: Sequence[Sequence[int]], sketch: SketchRecord | None = None) -> int:
    """Return the bytes of an output in all cases, as a sketch or whole."""
    stored = shapes if sketch is None else [sketch.shape_of(shape) for shape in shapes]
    return sum(map(math.prod, stored)) * np.dtype(np.float32).itemsize


def read_golden(
    folder: Path,
    adapter: str | None,
    record: GoldenRecord,
    inputs: Sequence[InputRecord],
    sketches: Mapping[str, SketchRecord] = MappingProxyType({}),
) -> Golden:
    """Read the golden vectors of the base or of an adapter from a bundle; outputs in `sketches` are stored as those.

    Raises:
        FileError, FormatError: the file cannot be read.
        TensorError: it lacks an input or an output of a case, or contains other tensors.
    """
    path = folder / record.path
    tensors = read_tensors(path)
    missing = {f"{case}.output.{name}" for case in record.cases for name in record.absolute} - tensors.keys()
    cases = [stored_case(case, tensors, inputs, path) for case in record.cases] if not missing else []
    expected = {name for case in cases for name in stored_inputs(case)}
    expected |= {f"{case.name}.output.{name}" for case in cases for name in record.absolute}
    wrong = missing or tensors.keys() - expected
    if wrong:
        raise TensorError(
            "the golden vectors do not match their cases",
            where=path,
            found=", ".join(sorted(wrong)[:_SHOWN]),
            expected=f"all inputs and outputs of {quoted(record.cases)}",
            fix="rebuild the bundle",
        )
    outputs = [{name: tensors[f"{case}.output.{name}"] for name in record.absolute} for case in record.cases]
    budgets = {name: _stored_budget(record, name) for name in record.absolute}
    return Golden(adapter, cases, outputs, budgets, record.reference, sketches=sketches)


def write_golden(golden: Golden, folder: Path, path: str) -> GoldenRecord:
    """Write golden vectors to a file of a bundle, and return their record for the manifest.

    Raises:
        WriteError: the operating system refused.
    """
    tensors: Arrays = {}
    for case, outputs in zip(golden.cases, golden.outputs, strict=True):
        tensors |= stored_inputs(case)
        tensors |= {f"{case.name}.output.{name}": array for name, array in outputs.items()}
    write_tensors(folder / path, tensors)
    absolute = {name: allowed.absolute for name, allowed in golden.budgets.items()}
    reasons = {name: allowed.reason for name, allowed in golden.budgets.items()}
    return GoldenRecord(path, tuple(case.name for case in golden.cases), absolute, golden.reference, reasons)


def _stored_budget(record: GoldenRecord, output: str) -> Budget:
    reason = record.reasons.get(output)
    origin = f"stored with the golden vectors of {record.reference}"
    return Budget(record.absolute[output], origin if reason is None else f"{origin}: {reason}")


@dataclass(frozen=True)
class Allowance:
    """Sizes that determine the budgets of all outputs of a graph.

    `inner` is the length of the longest dot product, `depth` the number of consecutive products, and `stored` the
    coarsest type that the base rounds its activations to.
    """

    inner: int
    depth: int
    stored: Stored = "float32"

    @classmethod
    def of(cls, extent: Extent, cases: Iterable[Case], stored: Stored = "float32") -> Allowance:
        """Return the allowance of a graph for some inputs: attention and pooling sum over the number of tokens."""
        lengths = [size for case in cases for array in case.arrays.values() for size in array.shape]
        return cls(max([extent.inner, *lengths]), extent.depth, stored)

    def error(self, runner: Runner) -> float | None:
        """Return the relative errors to disturb a reference with; `None` if their effect is not measured.

        Errors of a type coarser than float32 are as large as the outputs, and a base that does not stay in memory is
        too slow.
        """
        measured = runner.keeps_weights and self.stored == "float32"
        return product_error("float32", inner=self.inner) if measured else None

    def budget(self, *expected: np.ndarray, moved: float = 0.0) -> Budget:
        """Return the budget of an output from its expected values, case by case; `error` changes it by `moved`."""
        dtype = expected[0].dtype.name
        if dtype not in FLOAT_TYPES:
            return EXACT
        largest = max(map(scale, expected))
        return budget(dtype, inner=self.inner, depth=self.depth, scale=largest, rounded_to=self.stored, moved=moved)


def scale(values: np.ndarray) -> float:
    """Return the largest absolute value of the finite elements; 0 if there are none."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


@dataclass(frozen=True)
class Tolerance:
    """Budgets for comparing two outputs of the bundle with each other instead of with a reference.

    `measured` has budgets by adapter (`None` is the base) and output, widened by the measured needs of the reference.
    """

    allowance: Allowance
    measured: Mapping[tuple[str | None, str], Budget]

    @classmethod
    def of(cls, allowance: Allowance, manifest: Manifest, computed: Iterable[Golden]) -> Tolerance:
        """Return the tolerance of a bundle: its golden budgets, or a reference's measured needs."""
        records: dict[str | None, GoldenRecord] = {None: manifest.golden}
        records |= {record.name: record.golden for record in manifest.adapters}
        measured = {
            (name, each): _stored_budget(record, each) for name, record in records.items() for each in record.absolute
        }
        measured |= {(golden.adapter, each): budget for golden in computed for each, budget in golden.budgets.items()}
        return cls(allowance, measured)

    def __call__(self, adapter: str | None, output: str, expected: np.ndarray) -> Budget:
        """Return the budget of an output from its expected values; at least its measured budget."""
        formula = self.allowance.budget(expected)
        return max(self.measured.get((adapter, output), formula), formula, key=lambda budget: budget.absolute)


def to_disturb(cases: Sequence[Case]) -> list[Case]:
    """Return core cases for measuring the effect of rounding: the smallest of those that differ in batch only.

    An error is as likely to grow in rows of a small batch as in a larger one of the same length.
    """
    smallest: dict[object, Case] = {}
    for case in sorted([case for case in cases if case.core] or cases, key=lambda case: case.batch):
        rows = tuple((name, array.shape[1:]) for name, array in case.arrays.items())
        smallest.setdefault((rows, case.real is not None), case)
    return list(smallest.values())


@dataclass(frozen=True)
class GoldenMaker:
    """Computes a graph's expected outputs with a reference, never with the graph; `outputs` are those of the base.

    With `checksums`, expected slot checksums are added: references have no slots. Outputs in `sketches` are condensed
    case by case, so that only one case's wide outputs are in memory.
    """

    references: Runner
    cases: Sequence[Case]
    outputs: Sequence[str]
    allowance: Allowance
    base: str
    checksums: SlotChecksums | None = None
    sketches: Mapping[str, SketchRecord] = field(default_factory=dict)

    def compute(
        self,
        adapter: Adapter | None,
        output: str | None,
        *,
        name: str | None = None,
        reporter: Reporter = SILENT,
        inspect: Callable[[Case, Arrays], None] | None = None,
    ) -> Golden:
        """Run the reference on every case; each output has one budget for all cases.

        `output` is the graph's output for the adapter's head; `name` is the adapter's name in the bundle, if it differs
        from the adapter's name. `inspect` receives each case with its whole outputs.
        """
        recorded = name if adapter is None or name is not None else adapter.name
        outputs, vague = [], list[Undefined]()
        for case in self.cases:
            computed = run(self.references, case.arrays, adapter, self.outputs, output)
            if inspect is not None:
                inspect(case, computed)
            outputs.append({**sketched(computed, self.sketches), **self._expected_checksums(case, adapter)})
            del computed
            vague.append({} if case.real is None else self._undefined(case, adapter, output))
            reporter.step(f"{recorded or BASE}, {case.name}: reference")
        few = to_disturb(self.cases)
        moved = self._measure_rounding(
            few, adapter, output, lambda: reporter.step(f"{recorded or BASE}: reference with errors")
        )
        budgets = self._budgets(outputs, moved)
        description = self.references.description
        return Golden(recorded, self.cases, outputs, budgets, description, "reference", vague, self.sketches)

    def measure(self, golden: Golden, at: int, adapter: Adapter | None, output: str | None) -> Golden:
        """Return one computed case, with budgets widened by the measured effect of rounding on it."""
        moved = self._measure_rounding([golden.cases[at]], adapter, output, lambda: None)
        wider = self._budgets(golden.outputs, moved)
        budgets = {
            name: max(formula, wider[name], key=lambda budget: budget.absolute)
            for name, formula in golden.budgets.items()
        }
        case, outputs, vague = golden.cases[at], golden.outputs[at], golden.undefined[at]
        return replace(golden, budgets=budgets, cases=[case], outputs=[outputs], undefined=[vague])

    def _budgets(self, outputs: Sequence[Arrays], moved: Mapping[str, float]) -> dict[str, Budget]:
        names = dict.fromkeys(each for values in outputs for each in values)
        of = {name: [values[name] for values in outputs if name in values] for name in names}
        budgets = {name: self.allowance.budget(*arrays, moved=moved.get(name, 0.0)) for name, arrays in of.items()}
        return budgets if self.checksums is None else {**budgets, self.checksums.output: EXACT_CHECKSUM}

    def _expected_checksums(self, case: Case, adapter: Adapter | None) -> Arrays:
        return {} if self.checksums is None else self.checksums.expected(adapter, case.arrays)

    def of_base(self, golden: Golden) -> Golden:
        """Return the base's vectors, derived from those of an adapter that acts at no site."""
        plain = golden.of_base(self.outputs)
        if self.checksums is None:
            return plain
        outputs = [
            {**values, **self._expected_checksums(case, None)}
            for case, values in zip(plain.cases, plain.outputs, strict=True)
        ]
        return replace(plain, outputs=outputs, budgets={**plain.budgets, self.checksums.output: EXACT_CHECKSUM})

    def _measure_rounding(
        self, cases: Sequence[Case], adapter: Adapter | None, output: str | None, on_run: Callable[[], None]
    ) -> Mapping[str, float]:
        """Return the effect of rounding on each output of the reference in some cases; empty if it is not measured."""
        step = self.allowance.error(self.references)
        if step is None:
            return {}

        def disturbed_run(inputs: Mapping[str, np.ndarray], disturbed: Adapter) -> Arrays:
            outputs = run(self.references, inputs, disturbed, self.outputs, output)
            on_run()
            return outputs

        arrays, sites = [case.arrays for case in cases], self.references.sites
        return measure_rounding(disturbed_run, arrays, adapter, sites=sites, base=self.base, step=step)

    def _undefined(self, case: Case, adapter: Adapter | None, output: str | None) -> Undefined:
        """Return undefined elements: positions of the padding, and whole rows of outputs that depend on them.

        Real tokens are always compared.
        """
        real = case.real
        assert real is not None  # the caller checks it
        vague: Undefined = {}
        for name, each in find_undefined(self.references, case.arrays, adapter, self.outputs, output).items():
            if has_rows_per_token(each.shape, real):
                vague[name] = np.logical_and(each.reshape(*real.shape, -1).any(-1), ~real)
            elif each.shape[:1] == real.shape[:1]:
                vague[name] = np.any(each.reshape(len(real), -1), -1)
        return vague

    def make(self, adapter: Adapter | None, output: str | None = None, inputs: Sequence[InputRecord] = ()) -> Golden:
        """Return golden vectors that can be stored; the caches among `inputs` are compared with their outputs.

        Raises:
            BaseModelError: the reference lacks an output of the base, returns NaN or Inf, or an output that does not
                extend its cache.
            NothingComparedError: there are no cases.
        """
        if not self.cases:
            raise NothingComparedError("no golden vectors: there are no inputs")
        added = None if self.checksums is None else self.checksums.output
        names = [*self.outputs, *filter(None, (output,))]

        def inspect(case: Case, outputs: Arrays) -> None:
            faults = [f"missing output `{name}`" for name in names if name not in outputs]
            faults += [f"NaN or Inf in `{name}`" for name in names if not np.isfinite(outputs.get(name, 0)).all()]
            if faults:
                raise BaseModelError(
                    "the reference cannot compute golden vectors",
                    where=f"`{self.references.description}`, case `{case.name}`",
                    found="; ".join(faults),
                    expected=quoted(names),
                    fix="check the base and the adapter's weights",
                )
            check_caches(case, outputs, inputs)

        golden, names_stored = self.compute(adapter, output, inspect=inspect), [*names, *filter(None, (added,))]
        outputs = [{name: np.ascontiguousarray(computed[name]) for name in names_stored} for computed in golden.outputs]
        budgets = {name: golden.budgets[name] for name in names_stored}
        return replace(golden, outputs=outputs, budgets=budgets, against="golden", undefined=())


def check_caches(case: Case, outputs: Arrays, inputs: Sequence[InputRecord]) -> None:
    """Check that each returned cache begins with the cache that was fed: outputs and caches are paired only by order.

    Raises:
        BaseModelError: an output does not extend the cache it is paired with.
    """
    for record in inputs:
        if record.next is None:
            continue
        past = case.arrays[record.name]
        if not np.array_equal(outputs[record.next][tuple(map(slice, past.shape))], past):
            raise BaseModelError(
                "an output does not extend the cache it is paired with",
                where=f"output `{record.next}`",
                expected=f"the input `{record.name}`, followed by the new tokens",
                fix="export the base with its cache outputs in the order of its cache inputs",
            )
