"""What a bundle is tried on: a matrix of shapes, with and without padding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapter_export.format.manifest import InputRecord, Manifest
from adapter_export.parity.report import Part
from adapter_export.reference.inputs import input_cases

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
