"""Golden cases as files store them: seeds in place of large inputs, sketches in place of wide outputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.errors import FormatError
from adapter_export.format.manifest import InputRecord, Manifest
from adapter_export.format.sketch import filled, sketched

Arrays = Mapping[str, np.ndarray]


def case_inputs(manifest: Manifest, tensors: Arrays, case: str) -> dict[str, np.ndarray]:
    """Return the inputs of a case in a file of golden vectors or golden parts.

    Raises:
        FormatError: a seed, or the shape that follows it, does not describe the input.
    """
    return {record.name: _input(record, tensors, case) for record in manifest.inputs}


def _input(record: InputRecord, tensors: Arrays, case: str) -> np.ndarray:
    key = f"{case}.fill.{record.name}"
    if key not in tensors:
        return tensors[f"{case}.input.{record.name}"]
    fill, numbers = tensors[key], 1 + len(record.axes)
    if record.dtype not in FLOAT_TYPES or fill.dtype != np.int64 or fill.shape != (numbers,):
        raise FormatError(
            "is not a seed followed by the shape of a float input",
            where=f"`{key}`",
            found=f"{fill.dtype} {list(fill.shape)} for {record.dtype}",
            expected=f"int64 [{numbers}]",
        )
    seed, *shape = fill.tolist()
    if not 0 <= seed < 2**32:
        raise FormatError("has a seed out of range", where=f"`{key}`", found=seed, expected="0 to 2^32 - 1")
    try:
        return filled(seed, shape, record.dtype)
    except ValueError as error:
        raise FormatError("has a shape out of range", where=f"`{key}`", found=shape) from error


def expected_output(manifest: Manifest, tensors: Arrays, case: str, output: str) -> np.ndarray:
    """Return an expected output, or its sketch; FormatError if it is not the sketch that the manifest describes."""
    expected, record = tensors[f"{case}.output.{output}"], manifest.sketches.get(output)
    if record is None or (expected.ndim == record.axes + 1 and expected.shape[-1] == record.width):
        return expected
    raise FormatError(
        "is not the sketch that the manifest describes",
        where=f"`{case}.output.{output}`",
        found=list(expected.shape),
        expected=f"{record.width} numbers after {record.axes} axes",
    )


def comparable(manifest: Manifest, outputs: Arrays) -> dict[str, np.ndarray]:
    """Return the outputs of a graph as golden data store them."""
    return sketched(outputs, manifest.sketches)
