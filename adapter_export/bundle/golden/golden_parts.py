"""Golden parts: directions in which a fault of an adapter changes its outputs, for outputs with wide budgets.

Rounding has no preferred direction, but a missing site changes all elements in one direction. The deviation of an
output
is therefore projected onto the change that the fault causes: a matched filter (Turin 1960, IRE Transactions 6.3), whose
noise falls with the square root of the number of elements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapter_export.bundle.golden.golden_vectors import Case, stored_case, stored_inputs
from adapter_export.errors import TensorError
from adapter_export.format.manifest import InputRecord, PartRecord, PartsRecord
from adapter_export.format.tensors import read_tensors, write_tensors
from adapter_export.numerics.runner import Arrays
from adapter_export.runtime.self_check import part_values
from adapter_export.words import quoted

_SHOWN = 5
"""Maximum number of wrong tensors named in a message."""


@dataclass(frozen=True)
class GoldenParts:
    """Golden parts of one adapter.

    Attributes:
        adapter: its name.
        cases: inputs.
        expected: the reference's outputs that parts use, by case, in the form of golden data.
        parts: the faults.
        weights: by case, the int8 weights of some parts, by their index in `parts`.
    """

    adapter: str
    cases: Sequence[Case]
    expected: Sequence[Arrays]
    parts: Sequence[PartRecord]
    weights: Sequence[Mapping[int, np.ndarray]]

    def values(self, outputs: Sequence[Arrays]) -> list[float]:
        """Return the value of each part: near 0 for a correct program, near 1 with the fault.

        Args:
            outputs: the outputs of a program in each case, in the form of golden data. Outputs of a bank may have more
                classes.

        Returns:
            NaN if an output is missing, has another shape or contains NaN.
        """
        return part_values(self.parts, outputs, self.expected, self.weights)


def write_parts(parts: GoldenParts, folder: Path, path: str) -> PartsRecord:
    """Write golden parts to a file of a bundle, and return their record for the manifest.

    Raises:
        WriteError: the operating system refused.
    """
    tensors: Arrays = {}
    for case, expected, weights in zip(parts.cases, parts.expected, parts.weights, strict=True):
        tensors |= stored_inputs(case)
        tensors |= {f"{case.name}.output.{name}": array for name, array in expected.items()}
        tensors |= {f"{case.name}.part.{at}": array for at, array in weights.items()}
    write_tensors(folder / path, tensors)
    return PartsRecord(path, tuple(case.name for case in parts.cases), tuple(parts.parts))


def read_parts(folder: Path, adapter: str, record: PartsRecord, inputs: Sequence[InputRecord]) -> GoldenParts:
    """Read the golden parts of an adapter from a bundle.

    Raises:
        FileError, FormatError: the file cannot be read.
        TensorError: it lacks an input, an output or all weights of a part, or contains other tensors.
    """
    tensors, outputs = read_tensors(folder / record.path), {part.output for part in record.parts}
    weights = [
        {at: tensors[key] for at in range(len(record.parts)) if (key := f"{case}.part.{at}") in tensors}
        for case in record.cases
    ]
    expected = [
        {name: tensors[key] for name in outputs if (key := f"{case}.output.{name}") in tensors} for case in record.cases
    ]
    cases = [stored_case(case, tensors, inputs, folder / record.path) for case in record.cases]
    known = {name for case in cases for name in stored_inputs(case)}
    known |= {f"{case}.part.{at}" for case, of in zip(record.cases, weights, strict=True) for at in of}
    known |= {f"{case}.output.{name}" for case, of in zip(record.cases, expected, strict=True) for name in of}
    wrong = sorted(known ^ tensors.keys())
    for case, case_outputs, of in zip(record.cases, expected, weights, strict=True):
        wrong += [
            f"{case}.part.{at}"
            for at, weight in of.items()
            if weight.dtype != np.int8 or case_outputs.get(record.parts[at].output, np.zeros(())).shape != weight.shape
        ]
    wrong += [f"part {at} without weights" for at in range(len(record.parts)) if not any(at in of for of in weights)]
    if wrong:
        raise TensorError(
            "the golden parts do not match their cases",
            where=folder / record.path,
            found=", ".join(wrong[:_SHOWN]),
            expected=f"inputs, outputs and int8 weights of {quoted(record.cases)}",
            fix="rebuild the bundle",
        )
    return GoldenParts(adapter, cases, expected, record.parts, weights)
