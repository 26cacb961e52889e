"""What a bundle is tried on: a matrix of shapes, with and without padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapter_export.bundle.report import Part
from adapter_export.dtypes import FLOAT_TYPES, Stored
from adapter_export.format.manifest import GoldenRecord, InputRecord, Manifest
from adapter_export.numerics.budget import EXACT, Budget, Extent, budget, product_error
from adapter_export.numerics.runner import Runner
from adapter_export.numerics.sample_inputs import input_cases

SEED = 20
"""Another seed than that of the golden vectors, so that the two look at different inputs."""


@dataclass(frozen=True)
class Case:
    """One set of inputs.

    Attributes:
        name: says the shape.
        arrays: an array for each input of the base.
        axes: the length of each dynamic axis.
        real: which tokens are real, [batch, tokens]; none if all are, or if the base reads no mask.
    """

    name: str
    arrays: Mapping[str, np.ndarray]
    axes: Mapping[str, int]
    real: npt.NDArray[np.bool_] | None

    def parts(self, shape: Sequence[int]) -> Iterator[tuple[Part, npt.NDArray[np.bool_] | None]]:
        """The parts of an output of that shape to compare on their own, each with the elements that belong to it.

        An output with one row per token is taken apart into real tokens and padding. Both are compared: what stands
        at the padding is the base's own doing, and the bundle must do it too.
        """
        if self.real is None or tuple(shape[:2]) != self.real.shape:
            yield "all", None
            return
        rows = self.real.reshape(self.real.shape + (1,) * (len(shape) - 2))
        yield "tokens", rows
        yield "padding", ~rows


def check_cases(manifest: Manifest, known: Sequence[Case], seed: int = SEED) -> tuple[Case, ...]:
    """The matrix of shapes for a bundle: batch 1 and odd, one token, an odd number, many, and padded rows.

    Args:
        manifest: the bundle's.
        known: cases that the base is known to take; where the manifest does not say how long a text may be, none is
            longer than the longest of them.
        seed: of the random numbers.
    """
    max_tokens = _longest(manifest.inputs, known) if manifest.text is None else manifest.text.max_tokens
    cases = input_cases(manifest.inputs, seed=seed, max_tokens=max_tokens)
    return tuple(case_of(case.name, case.arrays, manifest.inputs) for case in cases)


def _longest(records: Sequence[InputRecord], known: Sequence[Case]) -> int | None:
    """The longest of all axes but the batch."""
    batches = {record.axes[0] for record in records if record.axes}
    return max((length for case in known for axis, length in case.axes.items() if axis not in batches), default=None)


def case_of(name: str, arrays: Mapping[str, np.ndarray], records: Sequence[InputRecord]) -> Case:
    """A case from its arrays."""
    axes: dict[str, int] = {}
    for record in records:
        lengths = zip(record.axes, arrays[record.name].shape, strict=True)
        axes.update({axis: length for axis, length in lengths if isinstance(axis, str)})
    return Case(name, arrays, axes, _real(arrays, records))


def _real(arrays: Mapping[str, np.ndarray], records: Sequence[InputRecord]) -> npt.NDArray[np.bool_] | None:
    masks = [arrays[record.name] != 0 for record in records if record.role == "mask" and len(record.axes) == 2]
    return masks[0] if masks and not masks[0].all() else None


# The budget of every output of a bundle.


@dataclass(frozen=True)
class Allowance:
    """What decides the budgets of all outputs.

    Attributes:
        inner: the length of the longest dot product.
        depth: how many products follow each other.
        stored: the coarsest type that the base rounds its activations to.
    """

    inner: int
    depth: int
    stored: Stored = "float32"

    @classmethod
    def of(cls, found: Extent, cases: Iterable[Case], stored: Stored = "float32") -> Allowance:
        """The allowance of a graph for some inputs: attention and pooling add up as many terms as there are tokens."""
        longest = max((length for case in cases for length in case.axes.values()), default=1)
        return cls(max(found.inner, longest), found.depth, stored)

    def error(self, runner: Runner) -> float | None:
        """The relative errors that a reference also runs with; none where it does not, as in golden vectors."""
        measured = runner.keeps_weights and self.stored == "float32"
        return product_error("float32", inner=self.inner) if measured else None

    def budget(self, *expected: np.ndarray, moved: float = 0.0) -> Budget:
        """The budget of an output, from what the reference gives for it in all cases.

        Args:
            expected: what it gives.
            moved: how far errors move the output.
        """
        dtype = expected[0].dtype.name
        if dtype not in FLOAT_TYPES:
            return EXACT
        largest = max(map(scale, expected))
        return budget(dtype, inner=self.inner, depth=self.depth, scale=largest, rounded_to=self.stored, moved=moved)


@dataclass(frozen=True)
class Tolerance:
    """The budgets of outputs that are compared with each other and not with a reference.

    Attributes:
        allowance: of the graph.
        known: budgets by adapter and output, with what the reference has been seen to need; none is the base.
    """

    allowance: Allowance
    known: Mapping[tuple[str | None, str], Budget]

    def __call__(self, adapter: str | None, output: str, expected: np.ndarray) -> Budget:
        """The budget of an output, from what is expected of it; no less than what is known of it.

        Args:
            adapter: the adapter that gives it; none for the base alone.
            output: its name.
            expected: its values.
        """
        found = self.allowance.budget(expected)
        return max(self.known.get((adapter, output), found), found, key=lambda budget: budget.absolute)


def stored_budgets(manifest: Manifest) -> dict[tuple[str | None, str], Budget]:
    """What golden vectors allow, by adapter and output."""
    records: dict[str | None, GoldenRecord] = {None: manifest.golden}
    records |= {record.name: record.golden for record in manifest.adapters}
    return {
        (adapter, output): Budget(absolute, stored_reason(golden, output))
        for adapter, golden in records.items()
        for output, absolute in golden.absolute.items()
    }


def stored_reason(golden: GoldenRecord, output: str) -> str:
    """Where the allowed deviation of golden vectors comes from."""
    said = golden.reasons.get(output)
    return f"stored with the golden vectors of {golden.reference}{'' if said is None else f': {said}'}"


def scale(values: np.ndarray) -> float:
    """The largest absolute value of the finite elements, 0 if there are none."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
