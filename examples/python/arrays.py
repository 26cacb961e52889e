"""Inputs that come as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from adapter_export.errors import FormatError, RequestError
from adapter_export.format.manifest import Manifest
from adapter_export.safe_io.documents import read_json


def read_inputs(path: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """Convert nested lists by name, such as `{"input_ids": [[101, 102]]}`, to arrays of the manifest's types.

    Raises:
        FileError, FormatError: the file cannot be read, or has other contents.
        RequestError: rows differ in length, or a value is not a number of the input's type.
    """
    document = read_json(path)
    if not isinstance(document, Mapping):
        raise FormatError("holds no arrays by name", where=path, fix="write them as nested lists in JSON")
    dtypes = {record.name: record.dtype for record in manifest.inputs}
    return {name: _array(rows, np.dtype(dtypes.get(name, "int64")), name) for name, rows in document.items()}


def rows_of(inputs: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The rows of a batch, each with arrays `[1, ...]`.

    Raises:
        RequestError: inputs with different numbers of rows.
    """
    counts = {len(array) for array in inputs.values() if array.ndim}
    if len(counts) != 1:
        raise RequestError("the inputs have different numbers of rows", found=sorted(counts), expected="one number")
    return [{name: array[row : row + 1] for name, array in inputs.items()} for row in range(counts.pop())]


def _array(rows: object, dtype: np.dtype, name: str) -> np.ndarray:
    try:
        array = np.array(rows)
    except ValueError as error:
        raise RequestError("rows of different lengths", where=f"`{name}`", fix="pad them") from error
    numbers = "iuf" if dtype.kind == "f" else "b" if dtype.kind == "b" else "iu"
    if array.size and array.dtype.kind not in numbers:  # a fraction would be cut off without a word
        raise RequestError("contains invalid numbers of its type", where=f"`{name}`", found=array.dtype, expected=dtype)
    return array.astype(dtype)
