"""Golden batches, `golden/batches.json`: multi-row requests with the reference's answer to each single row.

Specified in `docs/reference/format.md`. A client that pads a row on the wrong side, mixes up rows or omits an input
returns other answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from adapter_export.errors import FormatError, within
from adapter_export.format.files import canonical_json
from adapter_export.format.records import SEMVER, Count, NotEmpty, NotNegative, record_from_json, version_checked
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.regular_files import read_bytes

GOLDEN_BATCHES_VERSION = "1.0.0"
"""Version of the format written, and the newest supported."""


@dataclass(frozen=True)
class GoldenBatchRow:
    """One row of a request, and the reference's answer to this single row.

    Attributes:
        adapter: the adapter of the row; null for the base.
        inputs: the row's array for each input of the graph, as nested lists of integers without batch axis and padding.
        context: for span tasks, the range [start, end) of tokens that may be the answer; null for other tasks.
        answer: the answer to the row's arrays, without `adapter` and `task`; `outputs` for a row without a task.
        absolute: maximum |found - expected| of every number in the answer.
        decided: whether rounding cannot change a label or position; if false, only numbers are compared.
    """

    adapter: str | None
    inputs: Annotated[Mapping[str, Any], NotEmpty()]
    context: tuple[Count, Count] | None
    answer: Annotated[Mapping[str, Any], NotEmpty()]
    absolute: NotNegative
    decided: bool = True

    def array(self, name: str) -> np.ndarray:
        """Return an input with a batch axis of 1, `int64[1, ...]`."""
        return np.asarray([self.inputs[name]], np.int64)


@dataclass(frozen=True)
class GoldenBatch:
    """Rows of one request.

    Attributes:
        name: unique in the file.
        rows: the rows of the request, in order. Their lengths and adapters may differ.
    """

    name: Annotated[str, NotEmpty()]
    rows: Annotated[tuple[GoldenBatchRow, ...], NotEmpty()]


@dataclass(frozen=True)
class GoldenBatches:
    """Multi-row requests, and the reference's answer to each single row, without padding.

    This is `golden/batches.json`. Specified in docs/reference/format.md.

    Attributes:
        version: the version of this format. Readers reject another major version.
        reference: the program that computed the answers, such as `torch 2.13.0 float32`; never the exported graph.
        batches: the requests.
    """

    version: Annotated[str, SEMVER]
    reference: str
    batches: Annotated[tuple[GoldenBatch, ...], NotEmpty()]


def golden_batches_json(batches: GoldenBatches) -> bytes:
    """Return the document; the bytes are deterministic."""
    return canonical_json(asdict(batches))


def parse_golden_batches(data: bytes, where: object) -> GoldenBatches:
    """Parse golden batches; `where` names their source in messages.

    Raises:
        FormatError: the document violates the format; `VersionError` is a subclass.
    """
    document = parse_json(data, where)
    with version_checked(document, GOLDEN_BATCHES_VERSION, where), within(where):
        batches = record_from_json(GoldenBatches, document)
        counts = Counter(batch.name for batch in batches.batches)
        twice = next((name for name, count in counts.items() if count > 1), None)
        if twice is not None:
            raise FormatError("a name occurs twice", where="`$.batches`", found=f"`{twice}`")
        for index, batch in enumerate(batches.batches):
            for at, row in enumerate(batch.rows):
                _check_inputs(row, f"`$.batches[{index}].rows[{at}].inputs`")
    return batches


def read_golden_batches(path: Path) -> GoldenBatches:
    """Read golden batches from a file.

    Raises:
        FileError: the file cannot be read.
        FormatError: see `parse_golden_batches`.
    """
    return parse_golden_batches(read_bytes(path), path)


def _check_inputs(row: GoldenBatchRow, where: str) -> None:
    for name, value in row.inputs.items():
        try:
            is_integer = np.asarray(value).dtype.kind == "i"
        except (ValueError, OverflowError):  # lists of different lengths
            is_integer = False
        if not is_integer:
            raise FormatError(
                "is not an array of integers", where=where, found=f"`{name}`", expected="nested lists of equal lengths"
            )
