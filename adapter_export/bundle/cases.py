"""The inputs that a bundle is tried on: a matrix of shapes, with and without padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapter_export.bundle.report import Part
from adapter_export.format.manifest import InputRecord, Manifest
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

    @property
    def batch(self) -> int:
        """The length of the first axis of the inputs."""
        return max((len(array) for array in self.arrays.values() if array.ndim), default=1)

    def parts(self, shape: Sequence[int]) -> Iterator[tuple[Part, npt.NDArray[np.bool_] | None]]:
        """Yield the parts of an output of that shape to compare on their own, each with the elements of it.

        An output with one row per token is split into real tokens and padding. Both are compared: what stands at the
        padding is the base's own doing, and the bundle must do it too.
        """
        if self.real is None or tuple(shape[:2]) != self.real.shape:
            yield "all", None
            return
        rows = self.real.reshape(self.real.shape + (1,) * (len(shape) - 2))
        yield "tokens", rows
        yield "padding", ~rows


def case_of(name: str, arrays: Mapping[str, np.ndarray], inputs: Sequence[InputRecord]) -> Case:
    """Return a case, its axes and its padding read off the arrays."""
    axes: dict[str, int] = {}
    for record in inputs:
        lengths = zip(record.axes, arrays[record.name].shape, strict=True)
        axes.update({axis: length for axis, length in lengths if isinstance(axis, str)})
    masks = [arrays[record.name] != 0 for record in inputs if record.role == "mask" and len(record.axes) == 2]
    return Case(name, arrays, axes, masks[0] if masks and not masks[0].all() else None)


def check_cases(manifest: Manifest, known: Sequence[Case], seed: int = SEED) -> tuple[Case, ...]:
    """Return the matrix of shapes for a bundle: batch 1 and odd, one token, an odd number, many, and padded rows.

    Args:
        manifest: the bundle's.
        known: cases that the base is known to take; where the manifest does not say how long a text may be, none is
            longer than the longest of them.
        seed: of the random numbers.
    """
    if manifest.text is not None:
        longest: int | None = manifest.text.max_tokens
    else:
        batches = {record.axes[0] for record in manifest.inputs if record.axes}
        lengths = (length for case in known for axis, length in case.axes.items() if axis not in batches)
        longest = max(lengths, default=None)
    cases = input_cases(manifest.inputs, seed=seed, max_tokens=longest)
    return tuple(case_of(case.name, case.arrays, manifest.inputs) for case in cases)
